"""Answers as they are written, one video at a time: a table for people, JSON lines or CSV for programs."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from rich.console import Console
from rich.text import Text

from pipelines.errors import BadClip, printable
from pipelines.files import whole_file
from tdn_bench.errors import UserError
from tdn_bench.recognizer import Prediction

FORMATS = ("table", "json", "csv")
COLUMNS = ("video", "rank", "class", "class_index", "probability", "error")
Answer = Prediction | BadClip


@contextmanager
def open_output(path: Path | None) -> Iterator[TextIO]:
    """Where answers go: to stdout, or to a file that takes its place when all have been written. Where that does not
    come to pass, no folder stays that was made for it."""
    if path is None:
        yield sys.stdout
        return
    path = path.resolve()
    made = [folder for folder in path.parents if not folder.exists()]
    try:
        with whole_file(path) as whole, whole.open("w", encoding="utf-8", errors="backslashreplace") as file:
            yield file
    except BaseException:
        for folder in made:
            with suppress(OSError):  # somebody else has put something there
                folder.rmdir()
        raise


def check_not_read(output: Path | None, files: Sequence[str]) -> None:
    """Raise UserError where `output` is one of the files that are read."""
    if output is None or not output.exists():
        return
    if any(os.path.exists(file) and output.samefile(file) for file in files):
        raise UserError(f"--output {output}: is read, too; name another file")


class Writer:
    """Writes answers to `file` in one of FORMATS, each as soon as it is there: the `top` likeliest classes."""

    def __init__(self, file: TextIO, format: str, top: int) -> None:
        self.file, self.format, self.top = file, format, top
        self.console = Console(file=file, highlight=False, force_terminal=file.isatty())  # NO_COLOR is heeded
        if format == "csv":
            file.write(_csv_lines([COLUMNS]))

    def write(self, video: str, answer: Answer) -> None:
        """What was said of `video`. A table has nothing of a bad one, which is named on stderr."""
        if self.format == "json":
            self.file.write(json.dumps(_as_object(video, answer, self.top)) + "\n")  # ASCII, whatever names hold
        elif self.format == "csv":
            self.file.write(_csv_lines(_as_rows(video, answer, self.top)))
        elif isinstance(answer, Prediction):
            self.console.print(_as_text(video, answer, self.top), soft_wrap=True)
        self.file.flush()


def _as_object(video: str, answer: Answer, top: int) -> dict[str, object]:
    if isinstance(answer, BadClip):
        return {"video": video, "error": answer.reason}
    ranked = answer.ranked(top)
    return {"video": video, "top": [{"class": name, "class_index": i, "probability": p} for i, name, p in ranked]}


def _as_rows(video: str, answer: Answer, top: int) -> list[tuple[object, ...]]:
    if isinstance(answer, BadClip):
        return [(video, "", "", "", "", answer.reason)]
    return [(video, rank, name, i, p, "") for rank, (i, name, p) in enumerate(answer.ranked(top), 1)]


def _csv_lines(rows: list[tuple[object, ...]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _as_text(video: str, answer: Prediction, top: int) -> Text:
    text = Text(printable(video), style="bold")
    for rank, (_, name, p) in enumerate(answer.ranked(top)):
        text.append(f"\n  {100 * p:5.1f} %  {printable(name)}", style="not bold" if rank else "not bold green")
    return text
