"""What an HTML report is made of: sections of tables, charts and lists, and the builder that makes them of records."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import Any
from urllib.parse import quote

from pipelines.errors import printable
from tdn_bench.records import Record
from tdn_bench.records.reading import is_number
from tdn_bench.reporting import charts
from tdn_bench.reporting.accuracy import Accuracy, accuracies, accuracy_of
from tdn_bench.reporting.found import Collection, Found
from tdn_bench.reporting.tables import Cell, Columns, Unfit

MAX_COMMAND, MAX_NOTES = 600, 200
SOUND = ("stable", "unwatched")
WORST = ("stable", "unwatched", "unstable", "void")  # from the best status to the worst


@dataclass(frozen=True)
class Link:
    """To a record's file, with the command that made it."""

    href: str
    file: str
    command: str


@dataclass(frozen=True)
class Row:
    cells: Sequence[str]
    status: str | None = None
    reasons: str = ""
    links: Sequence[Link] = ()
    aside: bool = False  # of other data than what it stands beside


@dataclass(frozen=True)
class Table:
    caption: str
    header: Sequence[str]
    rows: Sequence[Row]
    of: Row | None = None  # where all of it is of one record
    late: bool = False  # the status stands last, not second: it is not of all that is in the row
    kind: str = "table"

    @property
    def linked(self) -> bool:
        return any(row.links for row in self.rows)


@dataclass(frozen=True)
class Chart:
    title: str
    spec: charts.Spec
    caption: str
    links: Sequence[Link]
    id: str
    kind: str = "chart"


@dataclass(frozen=True)
class Text:
    text: str
    kind: str = "text"


@dataclass(frozen=True)
class Lines:
    lines: Sequence[str]
    kind: str = "lines"


@dataclass(frozen=True)
class Numbers:
    """A record's figures, in a box that opens."""

    title: str
    pairs: Sequence[tuple[str, Cell]]
    more: int
    link: Link
    kind: str = "numbers"


@dataclass
class Section:
    title: str
    id: str
    parts: list[Any] = field(default_factory=list)
    inner: list[Section] = field(default_factory=list)
    folded: bool = False


@dataclass
class Builder:
    """A page while it is put together."""

    found: Collection
    unfit: dict[str, None] = field(default_factory=dict)  # a line each, once
    ids: Iterator[int] = field(default_factory=count)

    def section(self, title: str, *parts: Any, folded: bool = False) -> Section:
        return Section(title, f"s{next(self.ids)}", list(parts), folded=folded)

    def hrefs(self, found: Sequence[Found]) -> list[str]:
        return [self.link(f).href for f in found]

    def link(self, found: Found) -> Link:
        name = found.path.relative_to(self.found.folder).as_posix()
        said = printable(shlex.join(found.record.command))
        said = said if len(said) <= MAX_COMMAND else f"{said[:MAX_COMMAND]}…"
        return Link(f"./{quote(os.fsencode(name))}", found.shown, said)

    def fitting(self, found: Sequence[Found], *takes: Callable[[Record], object]) -> list[Found]:
        """Those in which each of `takes` finds what it needs; the others are named at the page's end."""
        return [f for f in found if all(self.fits(f, partial(take, f.record)) for take in takes)]

    def fits(self, found: Found, take: Callable[[], object]) -> bool:
        """Whether `take` finds in a record what it needs; else the record is named at the page's end."""
        try:
            take()
        except Unfit as e:
            self.unfit[f"{found.shown}: {printable(str(e))}"] = None
            return False
        return True

    def accuracies(self, found: Sequence[Found]) -> list[Accuracy]:
        kept = [f for f in found if f.record.kind in ("train", "evaluate") and f.record.status != "void"]
        kept = [f for f in kept if "model" in f.record.settings]  # an ensemble is no network
        return accuracies([f for f in kept if self.fits(f, partial(accuracy_of, f))])

    def row(self, found: Found, cells: Sequence[str], *others: Found) -> Row:
        """A record's row, with the worst status of all that it is of."""
        worst = max((found, *others), key=lambda f: WORST.index(f.record.status)).record
        reasons = printable("; ".join(worst.status_reasons))
        return Row(cells, worst.status, reasons, [self.link(f) for f in (found, *others)])

    def table(self, caption: str, found: Sequence[Found], columns: Callable[[Sequence[Record]], Columns]) -> Table:
        """A table of one kind of records, void ones last."""
        header, row = columns([f.record for f in found])
        kept = sorted(self.fitting(found, row), key=lambda f: f.record.status == "void")
        at = len(header) - 1
        assert header[at] == "status"  # which a page shows as a mark
        return Table(caption, header[:at], [self.row(f, row(f.record)[:at]) for f in kept])

    def chart(self, title: str, caption: str, found: Sequence[Found], spec: charts.Spec) -> Chart:
        caption = caption[0].upper() + caption[1:]
        return Chart(title, spec, caption, [self.link(f) for f in found], f"c{next(self.ids)}")


def bounded(lines: Sequence[str]) -> list[str]:
    more = len(lines) - MAX_NOTES
    return [*lines[:MAX_NOTES], *([f"and {more} more"] if more > 0 else [])]


def accuracy_cell(accuracy: Accuracy | None, timed: Found | None) -> str:
    if accuracy is None:
        top1 = None if timed is None else timed.record.figures.get("top1_percent")
        return Cell(f"{top1:.2f}", top1) if is_number(top1) else "–"
    text = f"{accuracy.top1_percent:.2f}"
    if accuracy.spread is not None:
        text += f" ± {accuracy.spread:.2f}"
    if accuracy.interval is not None:
        text += f" [{100 * accuracy.interval.low:.1f}, {100 * accuracy.interval.high:.1f}]"
    return Cell(text, accuracy.top1_percent)
