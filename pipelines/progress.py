"""How far a command has come, on stderr: a bar with the time that is left on a terminal, elsewhere a line now and then.

with progress("Evaluating", len(videos)) as advance:
    for batch in batches:
        advance(len(batch))
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Protocol, TypeVar

from pipelines.errors import printable

LINE_EVERY_S = 10.0
WORTH_A_LINE_S = 5.0  # what ends sooner says nothing where there is no terminal
SURE_AFTER_S = 1.0  # what was ready before the start may come in a burst: no rate follows from it

T = TypeVar("T")
_quiet = _busy = False


class Advance(Protocol):
    """How many more are done, and a word about how it goes."""

    def __call__(self, more: float = 1, note: str = "", /) -> None: ...


def set_quiet(quiet: bool) -> None:
    """Show no progress from now on, or show it again."""
    global _quiet
    _quiet = quiet


class Pace:
    """What is done of `total` (None: nobody knows), and how long the rest will take at the mean rate so far: from the
    start to the last report, so that reports in bursts do not look like speed. `done` was done before the start."""

    def __init__(self, total: float | None, unit: str, done: float = 0) -> None:
        self.total, self.unit, self.before, self.done = total, unit, done, done
        self.start = self.last = time.monotonic()

    def add(self, more: float) -> None:
        self.done, self.last = self.done + more, time.monotonic()

    @property
    def passed_s(self) -> float:
        return time.monotonic() - self.start

    @property
    def left_s(self) -> float | None:
        """Seconds; None while no rate is known."""
        took_s, more = self.last - self.start, self.done - self.before
        if self.total is None or more <= 0 or took_s < SURE_AFTER_S:
            return None
        return max(0.0, took_s / more * (self.total - self.done) - (time.monotonic() - self.last))

    def count(self) -> str:
        """`1,200 of 24,777 videos`; nothing where there is nothing to count."""
        of = "" if self.total is None else f" of {max(self.total, self.done):,.0f}"
        return f"{self.done:,.0f}{of} {self.unit}" if self.unit else ""

    def left(self) -> str:
        return "" if self.left_s is None else f"{duration(self.left_s)} left"


def duration(seconds: float) -> str:
    """`48 s`, `5 min 03 s`, `1 h 05 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600:,} h {whole % 3600 // 60:02d} min"


@contextmanager
def progress(
    what: str, total: float | None, unit: str = "videos", *, done: float = 0, shown: bool = True, still: bool = False
) -> Iterator[Advance]:
    """Show how much of `total` is done; the yielded function takes how many more are.

    Args:
        what: What is being done, "Evaluating".
        total: How much there is to do; None where nobody knows.
        unit: Of what, "videos"; seconds are "s". Empty where there is nothing to count.
        done: So much was done before, and says nothing of the rate.
        shown: False shows nothing, as does `set_quiet`, and a progress within another.
        still: No thread redraws the bar between reports: for what is timed.
    """
    global _busy
    if not shown or _quiet or _busy or total == 0:
        yield lambda more=1, note="", /: None
        return
    pace = Pace(total, unit, done)
    terminal = sys.stderr.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")
    _busy = True
    try:
        with _bar(what, pace, still) if terminal else _lines(what, pace) as advance:
            yield advance
    finally:
        _busy = False


@contextmanager
def _bar(what: str, pace: Pace, still: bool) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
    from rich.text import Text

    class State(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text("  ".join(filter(None, (pace.count(), pace.left(), task.fields["note"]))))

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), State())
    options = {"auto_refresh": not still, "refresh_per_second": 2, "transient": True}
    # rich takes what is printed meanwhile to its own stream: not what goes to a file or a pipe
    together = sys.stdout.isatty()
    with Progress(*columns, console=Console(stderr=True), redirect_stdout=together, **options) as bar:  # type: ignore[arg-type]
        task = bar.add_task(printable(what), total=pace.total, completed=int(pace.done), note="")
        drawn = time.monotonic()

        def advance(more: float = 1, note: str = "", /) -> None:
            nonlocal drawn
            pace.add(more)
            bar.update(task, completed=pace.done, note=note)
            if still and time.monotonic() - drawn > 1:
                bar.refresh()
                drawn = time.monotonic()

        yield advance


@contextmanager
def _lines(what: str, pace: Pace) -> Iterator[Advance]:
    said = time.monotonic()

    def say(*parts: str) -> None:
        with suppress(OSError):  # nobody reads: no reason to end
            told = ": ".join(filter(None, (what, ", ".join(filter(None, parts)))))
            print(printable(told), file=sys.stderr, flush=True)

    def advance(more: float = 1, note: str = "", /) -> None:
        nonlocal said
        pace.add(more)
        if time.monotonic() - said >= LINE_EVERY_S:
            said = time.monotonic()
            say(pace.count(), pace.left(), note)

    yield advance
    if pace.passed_s >= WORTH_A_LINE_S:
        say(f"{pace.count()} in {duration(pace.passed_s)}".strip())


def tracked(
    items: Iterable[T], what: str, total: int | None, unit: str = "videos", *, shown: bool = True
) -> Iterator[T]:
    """The items, `total` of them (None: nobody knows), with the progress of who takes them."""
    with progress(what, total, unit, shown=shown) as advance:
        for item in items:
            yield item
            advance(1)
