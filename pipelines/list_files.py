"""The authors' text lists, a video a line: `path num_frames label`, or `path label` as for Kinetics.

Columns are separated by spaces, tabs or commas. Which form a list has is decided once, from all of its lines.
"""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from pipelines.errors import DataError
from pipelines.label_files import MAX_CLASSES, VIDEO_SUFFIXES, text_lines

SEPARATORS = {" ": "spaces", "\t": "tabs", ",": "commas"}
FORMS = {2: "path label", 3: "path num_frames label"}
# Only these blanks separate: a path may hold any others.
_LAST_NUMBER = re.compile(r"(.*[^ \t])[ \t]+([0-9]+)")


class ListRow(NamedTuple):
    """A line of a list, and where it stands. num_frames is not kept: frames are counted, not believed."""

    where: str
    path: str
    label: int


class _Line(NamedTuple):
    where: str
    text: str
    readings: dict[int, tuple[str, str]]  # by the number of columns: path and label


def read_list(path: Path, base: Path) -> tuple[list[ListRow], str]:
    """The rows of a list, and a sentence that says how it was read.

    Where spaces leave open whether a number belongs to the path, the files below `base` decide. Raises DataError
    naming the line that is wrong, that has another form than the first, or that can be read in two ways.
    """
    lines: list[_Line] = []
    first = None
    for where, text in text_lines(path):
        separator = _separator(text)
        first = first or separator
        if separator is None or not (readings := _readings(text, separator)):
            hint = "num_frames may be left out, in all lines"
            raise DataError(f"{where}: expected '{FORMS[3]}', got {text[:80]!r}; {hint}")
        if separator != first:
            raise DataError(
                f"{where}: columns separated by {SEPARATORS[separator]}, but by {SEPARATORS[str(first)]} in "
                f"{lines[0].where}; separate all lines alike"
            )
        lines.append(_Line(where, text, readings))
    if not lines:
        return [], ""
    columns, why = _columns(lines, base)
    rows = []
    for line in lines:
        name, label = line.readings[columns]
        rows.append(ListRow(line.where, name, _label(line.where, label)))
    return rows, f"{path}: read as '{FORMS[columns]}', separated by {SEPARATORS[str(first)]}{why}"


def _separator(text: str) -> str | None:
    """What stands before the number at a line's end; None where there is none."""
    head = text.rstrip(' \t"').rstrip("0123456789")
    gap = head[len(head.rstrip(' \t,"')) :]
    return next((mark for mark in (",", "\t", " ") if mark in gap), None)


def _readings(text: str, separator: str) -> dict[int, tuple[str, str]]:
    """How a line can be read: with 3 columns, with 2, with either, or not at all."""
    if separator != " ":
        commas = csv.reader([text], strict=True, skipinitialspace=True)
        try:
            fields = next(commas) if separator == "," else text.split("\t")
        except csv.Error:
            return {}
        fields = [field.strip(" \t") for field in fields]
        numbers = all(re.fullmatch("[0-9]+", field) for field in fields[1:])
        return {len(fields): (fields[0], fields[-1])} if len(fields) in FORMS and fields[0] and numbers else {}
    found = {}
    if two := _LAST_NUMBER.fullmatch(text.rstrip(" \t")):
        found[2] = two[1], two[2]
        if three := _LAST_NUMBER.fullmatch(two[1]):
            found[3] = three[1], two[2]
    return found


def _columns(lines: list[_Line], base: Path) -> tuple[int, str]:
    """How many columns a list has, and what decided where its text did not."""
    most = max(lines[0].readings)
    odd = next((line for line in lines if max(line.readings) != most), None)
    undecided = [line for line in lines if len(line.readings) > 1]
    if odd is None and all(line.readings[3][0].lower().endswith(VIDEO_SUFFIXES) for line in undecided):
        return most, ""
    folder = os.path.join(base, "")
    with_number, without = ([line for line in undecided if _is_there(line, n, folder)] for n in (2, 3))
    if odd is None and not with_number:
        return 3, ""
    if with_number and without:
        (path, _), (shorter, _) = (with_number[0].readings[n] for n in (2, 3))
        raise DataError(
            f"{with_number[0].where}: can be read as '{FORMS[2]}' (of {path[:80]!r}) and as '{FORMS[3]}' (of "
            f"{shorter[:80]!r}), and both kinds of files are in {base}; separate the columns by tabs or commas"
        )
    if odd is not None and (not undecided or len(with_number) < len(undecided)):
        raise DataError(
            f"{odd.where}: expected '{FORMS[most]}', got {odd.text[:80]!r}; {lines[0].where} has {most} columns, and "
            "all lines must have as many"
        )
    return 2, f"; paths end with a number, as the files in {base} do"


def _is_there(line: _Line, columns: int, folder: str) -> bool:
    path = line.readings[columns][0]
    return os.path.exists(path if path.startswith("/") else folder + path)


def _label(where: str, digits: str) -> int:
    if len(digits) > 9 or int(digits) >= MAX_CLASSES:
        raise DataError(f"{where}: label {digits[:20]} is too large; labels must be below {MAX_CLASSES}")
    return int(digits)


def write_list(path: Path, rows: Iterable[tuple[str, int, int]]) -> None:
    """Write rows of (path, num_frames, label) as `read_list` reads them; DataError for what it could not."""
    lines = []
    for video, num_frames, label in rows:
        if video.splitlines() != [video] or video != video.rstrip() or num_frames < 0 or label < 0:
            reason = "a list takes one-line paths without trailing spaces, and numbers of frames and labels from 0"
            raise DataError(f"{path}: cannot hold ({video!r}, {num_frames}, {label}); {reason}")
        lines.append(f"{video} {num_frames} {label}\n")
    try:
        path.write_text("".join(lines), encoding="utf-8")
    except (OSError, UnicodeEncodeError) as e:
        raise DataError(f"{path}: cannot be written ({e})") from e
