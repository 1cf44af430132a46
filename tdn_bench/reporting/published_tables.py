"""What the paper publishes beside what was measured: its Tables 1 to 5, its Figure 1, and the times of Table 5."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from tdn_bench.records import PUBLISHED, Published, Record
from tdn_bench.reporting import charts
from tdn_bench.reporting.accuracy import CLASSES, Accuracy
from tdn_bench.reporting.found import Found
from tdn_bench.reporting.parts import Builder, Chart, Row, Section, Table, Text, accuracy_cell
from tdn_bench.reporting.tables import Cell, Unfit, needed, setting, shortened

TITLES = {
    "1a": "Table 1a: what difference does",
    "1b": "Table 1b: how the S-TDM's motion joins appearance",
    "1c": "Table 1c: the parts of the L-TDM",
    "1d": "Table 1d: in which stages",
    "1e": "Table 1e: which of the two modules",
    "1f": "Table 1f: other temporal modules",
    "2": "Table 2: Something-Something V1 and V2",
    "3": "Table 3: Kinetics-400",
    "4": "Table 4: UCF101 and HMDB51",
    "5": "Table 5: time on one V100, batch 16, data loading included",
}


def published_section(builder: Builder) -> Section:
    """Every row of the paper's tables, with what was counted and measured here."""
    section = builder.section(
        "Published beside measured",
        Text(
            "TDN paper (CVPR 2021, arXiv 2012.10071), Tables 1 to 5, every row; the compared networks' figures are of "
            "their own papers. Multiply-adds beside them are counted by this project, one view at 224 pixels. A "
            "measured accuracy stands beside the published one; where it is of other data, another size or a smaller "
            "network it is set in italics: compare orders then, not values."
        ),
    )
    measured = builder.accuracies(builder.found.chosen)
    section.parts.append(_figure1(builder, measured))
    for source, title in TITLES.items():
        rows = [_published_row(builder, row, measured) for row in PUBLISHED if row.source == source]
        timed = source == "5"
        header = ["network", "frames", "data", "top-1 %", "measured top-1 %", "of what", "top-5 %", "G mult-adds"]
        header += ["counted here", "backbone", "note"] + ["ms/video"] * timed
        cells = [replace(row, cells=row.cells if timed else row.cells[:-1]) for row in rows]
        same, other = (sum(bool(row.links) and row.aside == aside for row in rows) for aside in (False, True))
        counts = [f"{len(rows)} rows", f"{same} measured" * bool(same), f"{other} on other data" * bool(other)]
        said = f"{title} ({', '.join(filter(None, counts))})"
        one = builder.section(said, folded=source in ("2", "3", "4"))
        one.parts.append(Table(title, header, cells, late=True))
        section.inner.append(one)
    return section


def _published_row(builder: Builder, row: Published, measured: Sequence[Accuracy]) -> Row:
    def cell(value: float | None) -> str:
        return "–" if value is None else Cell(f"{value:g}", value)

    views = f" × {row.views}" if row.views else ""
    own = [a for a in measured if a.variant == row.variant]
    best = max(own, key=lambda a: (a.is_of(row), len(a.found), a.found[-1].record.created_utc), default=None)
    first = [row.name, row.frames or "–", row.data, cell(row.top1_percent)]
    last = [
        cell(row.top5_percent),
        "–" if row.gmacs is None else Cell(f"{row.gmacs:g}{views}", row.gmacs),
        "–" if row.counted_gmacs is None else Cell(f"{row.counted_gmacs:.1f}", row.counted_gmacs),
        row.backbone,
        row.note,
        cell(row.ms_per_video),
    ]
    if best is None:
        return Row([*first, "–", "–", *last])
    runs = f", {len(best.found)} runs" if len(best.found) > 1 else ""
    what = f"{best.network}, on {best.data}{runs}"
    top1 = Cell(accuracy_cell(best, None), best.top1_percent, measured=True)
    made = builder.row(best.found[-1], [*first, top1, Cell(what, measured=True), *last], *best.found[:-1][:5])
    return replace(made, aside=not best.is_of(row))


def _figure1(builder: Builder, measured: Sequence[Accuracy]) -> Chart:
    """The paper's Figure 1, with what was measured on the same data."""
    rows = [row for row in PUBLISHED if (row.table, row.data) == ("2", "sthv1")]
    same = [a for a in measured if a.gmacs and (a.dataset, a.classes) == ("sthv1", CLASSES["sthv1"])]
    own = "in colour what was measured here on the same data" if same else "nothing was measured here on the same data"
    caption = (
        f"The paper's Figure 1: published points of Something-Something V1 (Table 2) in grey; {own}. All views count."
    )
    of = [a.found[-1] for a in same]
    spec = charts.accuracy_against_cost(same, rows, builder.hrefs(of))
    return builder.chart("Accuracy against cost", caption, of, spec)


def is_table5(record: Record) -> bool:
    """Whether a record is of `benchmarks/table5.py`."""
    return record.kind == "benchmark" and record.name.startswith("table5-")


def table5_row(record: Record, network: str) -> dict[str, float]:
    """A network's figures in a record of Table 5 (`benchmarks/table5.py`). Raises Unfit."""
    figures = record.figures.get(network)
    if not isinstance(figures, dict):
        raise Unfit(f"has no {network}")
    keys = ("ms_per_video", "loading_ms", "network_ms", "ratio", "ratio_low", "ratio_high")
    found = {key: needed(figures, key) for key in keys}
    if min(found.values()) < 0 or not 0 < found["ratio_low"] <= found["ratio"] <= found["ratio_high"]:
        raise Unfit(f"{network} has an interval that does not hold its ratio")
    return found


def table5(builder: Builder, found: Sequence[Found]) -> Section | None:
    rows5 = [row for row in PUBLISHED if row.table == "5"]
    base = next(row.ms_per_video for row in rows5 if row.variant == "tsn")
    assert base is not None
    networks = [str(row.variant) for row in rows5]
    fit = builder.fitting(found, *(partial(table5_row, network=n) for n in networks))
    if not fit:
        return None
    section = builder.section("Table 5: seven networks, timed in one run that takes turns")
    for f in fit:
        rows, drawn = [], []
        for row in rows5:
            own = table5_row(f.record, str(row.variant))
            published = None if row.ms_per_video is None else row.ms_per_video / base
            ratio = own["ratio"], own["ratio_low"], own["ratio_high"]
            rows.append(
                [
                    row.name,
                    Cell(f"{ratio[0]:.2f} [{ratio[1]:.2f}, {ratio[2]:.2f}]", ratio[0]),
                    "–" if published is None else Cell(f"{published:.2f}", published),
                    row.frames,
                    *(Cell(f"{own[key]:.0f}", own[key]) for key in ("ms_per_video", "loading_ms", "network_ms")),
                    "–" if row.ms_per_video is None else Cell(f"{row.ms_per_video:g}", row.ms_per_video),
                ]
            )
            drawn.append((row.name, published, ratio))
        keys = ("size", "precision", "rounds", "device")
        what = ", ".join(f"{key} {setting(f.record, key)}" for key in keys)
        caption = (
            f"{shortened(f.record.name)} ({what}): from video file to label, one video at a time, networks in turns. "
            "Ratios are medians over rounds with a 95 % interval. The paper's are of one V100 at batch 16: another "
            "machine, where loading and small layers weigh differently. I3D's views are one timed view, six times."
        )
        header = ["network", "÷ TSN", "published ÷ TSN", "frames", "ms/video", "of it loading", "of it network"]
        table = Table(caption, [*header, "published ms"], [Row(row) for row in rows], builder.row(f, ()))
        said = "Circles: measured, with the interval; grey diamonds: published. Logarithmic."
        section.parts += [
            table,
            builder.chart("Time as a multiple of TSN's", said, [f], charts.ratios(drawn)),
        ]
    return section
