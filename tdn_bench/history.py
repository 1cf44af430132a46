"""Plot a figure over commits."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from tyro.conf import PositionalRequiredArgs

from pipelines.errors import printable
from tdn_bench.cli import parse, run_command
from tdn_bench.errors import UserError
from tdn_bench.records import check_file
from tdn_bench.reporting.history import commit_order, lines_of, numbers, plot, read_below, table

EXAMPLES = (
    "tdn-bench history results",
    "tdn-bench history results --kind throughput --figure ms_per_video",
)
COMMON = ("figure", "kind", "name", "out")


@dataclass(frozen=True)
class History:
    """How a figure changed over the commits of this checkout: a table and a plot, with a line for each machine, kind
    and name of record."""

    folders: tuple[Path, ...]
    """Folders with records (*.json), in them or in folders below."""
    figure: str | None = None
    """Figure to follow, e.g. ms_per_video. Leave it out to list the figures of these records."""
    kind: str | None = None
    """Only records of this kind, e.g. throughput."""
    name: str | None = None
    """Only records of this name, e.g. openvino-fp32-pyav."""
    out: Path = Path("runs/history.png")
    """Where the plot is written."""


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table and write the plot; without --figure, list the figures that there are."""
    config = parse(History, argv, "history", PositionalRequiredArgs, examples=EXAMPLES, common=COMMON)
    check_file("--out", config.out if config.figure is not None else None)
    records = read_below(config.folders)
    if not (chosen := [r for r in records if config.kind in (None, r.kind) and config.name in (None, r.name)]):
        there = ", ".join(sorted({f"{r.kind} {r.name}" for r in records}))
        raise UserError(f"--kind {config.kind} --name {config.name}: no such records; there are {printable(there)}")
    figures = sorted({(r.kind, figure) for r in chosen for figure, _ in numbers(r.figures)})
    if config.figure is None:
        for kind, found in groupby(figures, lambda pair: pair[0]):
            print(printable(f"{kind}: {', '.join(figure for _, figure in found)}"))
        return
    if config.figure not in (names := {figure for _, figure in figures}):
        close = ", ".join(difflib.get_close_matches(config.figure, names, n=5)) or "nothing like it"
        raise UserError(f"--figure {config.figure}: in no record; there is {printable(close)}; leave it out to see all")
    lines = lines_of(chosen, config.figure, commit_order())
    for line, points in lines.items():
        print(f"{printable(', '.join(line))}: {printable(config.figure)}\n{table(points)}")
    plot(lines, config.figure, config.out)
    print(f"+: files differed from the commit; ?: not in the history here; both placed by time\nplot: {config.out}")


if __name__ == "__main__":
    raise SystemExit(run_command(main))
