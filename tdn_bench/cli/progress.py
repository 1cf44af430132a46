"""How far a command has come: a bar with the time that is left where stderr is a terminal, lines where it is not."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

LINE_EVERY_S = 10.0


@contextmanager
def progress(what: str, total: int, unit: str = "videos") -> Iterator[Callable[[int], None]]:
    """Show on stderr how much of `total` is done; the yielded function takes how many more are.

    with progress("Evaluating", len(videos)) as advance:
        for batch in batches:
            advance(len(batch))
    """
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TextColumn(unit), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(what, total=total)
            yield lambda more: bar.update(task, advance=more)
        return
    start = said = time.monotonic()
    done = 0

    def advance(more: int) -> None:
        nonlocal said, done
        done += more
        now = time.monotonic()
        if now - said >= LINE_EVERY_S:
            said = now
            left_s = (now - start) / done * (total - done) if done else float("nan")
            print(f"{what}: {done} of {total} {unit}, {left_s:.0f} s left", file=sys.stderr, flush=True)

    yield advance
