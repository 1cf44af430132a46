"""What a watch tells while it runs: labels in the terminal, and lines of JSON."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from pipelines.errors import printable

Top = list[tuple[str, float]]  # labels with their probabilities, likeliest first
PIECES = 30  # of the bar for a probability of 1


@dataclass(frozen=True)
class Label:
    """What was said of one window: `frames` are its first and its newest, `segments` the first frame of each of those
    that it samples; `doubtful_frames` may be wrong, since others were damaged; `whole` is false where the stream ended
    before the window was full."""

    top: Top
    frames: tuple[int, int]
    segments: list[int]
    position_s: float
    elapsed_s: float
    latency_ms: float
    engine_ms: float
    kept_segments: int
    windows_skipped: int
    doubtful_frames: int
    whole: bool


class Screen:
    """Labels as a person reads them, on `file`: a table that changes at a terminal, else a line each."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._live: Any = None

    def __enter__(self) -> Self:
        if self._file.isatty() and os.environ.get("TERM") not in ("dumb", "unknown"):
            from rich.console import Console
            from rich.live import Live

            console = Console(file=self._file, highlight=False, markup=False, emoji=False, soft_wrap=True)
            self._live = Live(console=console, auto_refresh=False)
            self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        live, self._live = self._live, None
        if live is not None:
            live.__exit__(kind, error, trace)

    def say(self, line: str) -> None:
        """A line that stays. Raises OSError."""
        if self._live is None:
            print(printable(line), file=self._file, flush=True)
        else:
            self._live.console.print(printable(line))

    def show(self, label: Label, state: str) -> None:
        """The newest label; `state` says how the watch is doing."""
        if label.doubtful_frames:
            state = f"{label.doubtful_frames} of its frames may be wrong" + (state and f", {state}")
        if not label.whole:
            state = "shorter than a window" + (state and f", {state}")
        if self._live is None:
            names = ", ".join(f"{name} {p:.2f}" for name, p in label.top)
            self.say(f"{label.position_s:8.2f} s  {names}  ({label.latency_ms:.0f} ms{state and f'; {state}'})")
            return
        from rich.table import Table
        from rich.text import Text

        table = Table.grid(padding=(0, 1))
        for place, (name, p) in enumerate(label.top):
            style = "bold green" if place == 0 else ""
            table.add_row(
                f"{100 * p:5.1f} %", Text("█" * round(PIECES * p) or "▏", style), Text(printable(name), style)
            )
        about = f"{label.position_s:.1f} s, frames {label.frames[0]} to {label.frames[1]}, {label.latency_ms:.0f} ms"
        table.add_row("", "", Text(f"{about}{state and f'; {state}'}", "dim"))
        self._live.update(table, refresh=True)


class JsonLines:
    """Lines of JSON, an object each, as they come: for programs. The file, "-" for stdout, is opened for the first one;
    without a file, nothing is written."""

    def __init__(self, path: Path | None) -> None:
        self._path, self._file = path, sys.stdout if str(path) == "-" else None

    def write(self, event: str, content: Mapping[str, Any]) -> None:
        """One line: `event` says what it tells. Raises OSError."""
        if self._path is None:
            return
        if self._file is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("w", encoding="utf-8")
        print(json.dumps({"event": event, **content}), file=self._file, flush=True)

    def close(self) -> None:
        if self._file is not None and self._file is not sys.stdout:
            self._file.close()
