"""The HTML report: one page that needs nothing else, no network either.

What it holds is put together as plain parts; `report.html.jinja` lays them out. All text of records reaches the page
escaped; charts reach it as JSON that cannot end its own element.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from pipelines.errors import printable
from tdn_bench.records import Record
from tdn_bench.reporting.accuracy import Accuracy
from tdn_bench.reporting.found import Collection, Found
from tdn_bench.reporting.history import commit_order
from tdn_bench.reporting.parts import (
    SOUND,
    WORST,
    Builder,
    Chart,
    Lines,
    Row,
    Section,
    Table,
    Text,
    accuracy_cell,
    bounded,
)
from tdn_bench.reporting.published_tables import published_section
from tdn_bench.reporting.sections import machine_section
from tdn_bench.reporting.tables import (
    Cell,
    cell,
    network_of,
    number,
    pace,
    pace_cell,
    setting,
    shortened,
    throughput_columns,
)

MAX_HEADLINES = 12
HERE = Path(__file__).parent


def html_page(found: Collection, missing: Sequence[str] = ()) -> bytes:
    """The page of a folder's records. `missing` lists what could not be measured, and why."""
    builder = Builder(found)
    groups = found.groups
    sections = [_headlines(builder)]
    order = commit_order()
    for (published, machine), of in groups.items():
        whose = "Published" if published else "Not published" if any(p for p, _ in groups) else "Machine"
        sections.append(machine_section(builder, f"{whose}: {shortened(machine)}", of, order))
    sections.append(published_section(builder))
    if missing:
        sections.append(builder.section("Not measured here", Lines([shortened(line) for line in missing])))
    if not_shown := [*builder.unfit, *found.others]:
        sections.append(
            builder.section("Not shown", Text("These files are no records, or lack what their table shows:"))
        )
        sections[-1].parts.append(Lines(bounded([printable(line) for line in not_shown])))
    sections.append(_all_records(builder))
    return _render(found, sections)


def _headlines(builder: Builder) -> Section:
    """A row for every network on its data: how accurate, and its fastest engine from file to label."""
    rows: list[tuple[Any, Row]] = []
    groups = builder.found.groups
    for (_, machine), of in groups.items():
        where = [shortened(machine)] if len(groups) > 1 else []
        known = builder.accuracies(of)
        timed = builder.fitting([f for f in of if f.record.kind == "throughput"], throughput_columns([])[1])
        networks: dict[tuple[str, str], list[Found]] = {(a.network, a.data): [] for a in known}
        for f in timed:
            data = shortened(f.record.data["name"]) if f.record.data is not None else "–"
            networks.setdefault((network_of(f.record), data), []).append(f)
        for (network, data), runs in networks.items():
            accuracy = min(
                (a for a in known if (a.network, a.data) == (network, data)),
                key=lambda a: a.found[-1].record.kind != "evaluate",
                default=None,
            )
            if not (runs := [f for f in runs if f.record.status != "void"]) and accuracy is None:
                continue
            rows.append(_headline(builder, [network, data, *where], accuracy, runs))
    rows.sort(key=lambda row: row[0])
    header = [
        "network",
        "data",
        *["machine"] * (len(groups) > 1),
        "top-1 %",
        "fastest engine",
        "ms/video",
        "× eager fp32",
        "clips/s",
        "batch",
    ]
    caption = (
        "Of every network on its data: top-1, in brackets the 95 % interval by the number of videos, or ± the standard "
        "deviation over runs; the fastest engine from video file to label, with its own top-1; ± half of the mean's "
        "95 % interval. Runs that were disturbed are taken only where there is no other, and carry a mark; void ones "
        "never."
    )
    section = builder.section("At a glance")
    if rows:
        section.parts.append(Table(caption, header, [row for _, row in rows[:MAX_HEADLINES]]))
        if len(rows) > MAX_HEADLINES:
            section.parts.append(Text(f"{MAX_HEADLINES} of {len(rows)} networks; the sections below have all."))
    else:
        section.parts.append(Text("No network was trained, evaluated or timed in these records."))
    return section


def _headline(
    builder: Builder, start: list[str], accuracy: Accuracy | None, runs: Sequence[Found]
) -> tuple[tuple[bool, float], Row]:
    """A row, and where it stands."""
    best = min(runs, key=lambda f: (f.record.status not in SOUND, pace(f.record)), default=None)
    cells = [*start, accuracy_cell(accuracy, best)]
    of = [] if best is None else [best]
    if best is not None:
        r = best.record
        batch = setting(r, "batch_size")
        alike = [f for f in runs if setting(f.record, "batch_size") == batch]
        eager = [f for f in alike if (setting(f.record, "engine"), setting(f.record, "precision")) == ("eager", "fp32")]
        base = min(eager, key=lambda f: (f.record.status not in SOUND, pace(f.record)), default=None)
        gain = None if base is None or not pace(r) else pace(base.record) / pace(r)
        cells += [
            _engine(r),
            pace_cell(r),
            "–" if gain is None else Cell(f"{gain:.2f}", gain),
            cell(r.figures, "clips_per_s", ".1f"),
            batch,
        ]
        of += [base] if base not in (None, best) else []  # type: ignore[list-item]
    else:
        cells += ["–"] * 5
    of += [] if accuracy is None else [accuracy.found[-1]]
    top1 = 0.0 if accuracy is None else accuracy.top1_percent
    return (best is None, -top1), builder.row(of[0], cells, *of[1:])


def _engine(record: Record) -> str:
    """The engine and precision of a run, and the accuracy that it had: a quantised one may have lost some."""
    top1 = number(record.figures, "top1_percent")
    said = f"{setting(record, 'engine')} {setting(record, 'precision')}"
    return said if top1 is None else f"{said}, top-1 {top1:.2f} %"


def _all_records(builder: Builder) -> Section:
    """Every record that the page is of, with its command."""
    rows = []
    for f in builder.found.chosen:
        r = f.record
        command = builder.link(f).command
        cells = [
            shortened(r.kind),
            shortened(r.name),
            r.created_utc[:16].replace("T", " "),
            (r.commit or "–")[:10],
            command,
        ]
        rows.append(builder.row(f, cells))
    section = builder.section("All records", folded=len(rows) > 30)
    older = len(builder.found.every) - len(builder.found.chosen)
    said = f" {older} older records are not listed: of the same kinds and names, or of earlier runs." if older else ""
    caption = f"The records that this page is of, and the command that made each.{said}"
    section.parts.append(Table(caption, ["kind", "name", "time, UTC", "commit", "command"], rows))
    return section


def _charts(sections: Sequence[Section]) -> Iterator[Chart]:
    for section in sections:
        yield from (part for part in section.parts if isinstance(part, Chart))
        yield from _charts(section.inner)


def safe_json(value: object) -> str:
    """JSON that stands in a <script> element: nothing in it ends that, or opens a comment. NaN would be a fault of
    ours."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))  # ASCII
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


@cache
def _bundle() -> str:
    """Vega, Vega-Lite and Vega-Embed in one script."""
    import altair
    import vl_convert

    version = ".".join(altair.SCHEMA_VERSION.removeprefix("v").split(".")[:2])
    script = vl_convert.javascript_bundle(vl_version=version)  # type: ignore[call-arg]
    assert "</script" not in script.lower()
    assert "<!--" not in script
    return script


def _source(script: str) -> str:
    """A script as a Content-Security-Policy names it."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _finalize(value: Any) -> Any:
    """Text as a page may hold it: no control characters, no half of a character."""
    from markupsafe import Markup

    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    return printable(value)


@cache
def _template() -> Any:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=_finalize,
    )
    return environment.get_template("report.html.jinja")


def _render(found: Collection, sections: Sequence[Section]) -> bytes:
    from markupsafe import Markup

    script = (HERE / "report.js").read_text(encoding="utf-8")
    specs = {chart.id: chart.spec for chart in _charts(sections)}
    bundle = _bundle() if specs else ""
    statuses = [f.record.status for f in found.chosen]
    counts = [(status, statuses.count(status)) for status in WORST if status in statuses]
    text = _template().render(
        sections=sections,
        counts=counts,
        records=len(found.chosen),
        sources=len(found.groups),
        first=found.chosen[0].record.created_utc[:10],
        last=found.chosen[-1].record.created_utc[:10],
        style=Markup((HERE / "report.css").read_text(encoding="utf-8")),
        script=Markup(script),
        bundle=Markup(bundle),
        specs=Markup(safe_json(specs)),
        script_sources=Markup(" ".join(_source(s) for s in (bundle, script) if s)),
    )
    return text.encode()
