"""The sections of an HTML report that are of one machine: what was measured there, kind by kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np

from pipelines.errors import printable
from tdn_bench.records import Record
from tdn_bench.reporting import charts
from tdn_bench.reporting.accuracy import Accuracy
from tdn_bench.reporting.confusions import MAX_READABLE, comparable, confusion, gains, most_confused
from tdn_bench.reporting.found import Found, Group
from tdn_bench.reporting.history import lines_of, numbers
from tdn_bench.reporting.parts import Builder, Lines, Numbers, Row, Section, Table, Text, bounded
from tdn_bench.reporting.published_tables import is_table5, table5
from tdn_bench.reporting.tables import (
    COMPARED,
    Cell,
    Columns,
    Unfit,
    compared_tables,
    evaluation_columns,
    loader_columns,
    number,
    pace,
    scenario_columns,
    setting,
    shortened,
    throughput_columns,
    training_columns,
)

MAX_BARS, MAX_CONFUSIONS, MAX_FIGURES = 40, 6, 40
HISTORIES = (
    (("throughput",), "ms_per_video"),
    (("loader",), "ms_per_video"),
    (("train", "evaluate"), "top1_percent"),
)


def machine_section(builder: Builder, title: str, found: Sequence[Found], order: Mapping[str, int]) -> Section:
    """All that was measured on one machine, by one owner."""
    section = builder.section(title, Text(_provenance(found)))
    kinds: dict[str, list[Found]] = {}
    for f in found:
        kinds.setdefault(f.record.kind, []).append(f)
    timed = [f for f in kinds.get("benchmark", []) if is_table5(f.record)]
    inner = [
        _speed(builder, kinds.pop("throughput", []), kinds.pop("loader", [])),
        _scenarios(builder, kinds.pop("scenario", [])),
        _training(builder, found, kinds.pop("train", []), kinds.pop("evaluate", [])),
        _confusions(builder, found),
        _comparisons(builder, [f for kind in COMPARED for f in kinds.pop(kind, [])]),
        table5(builder, timed),
        _history(builder, found[0].group, order),
    ]
    rest = [f for of in kinds.values() for f in of if f not in timed]
    if rest:
        header = ["kind", "name"]
        rows = [builder.row(f, [shortened(f.record.kind), shortened(f.record.name)]) for f in rest]
        other = builder.section("Other records", Table("Records that have no table of their own.", header, rows))
        other.parts += [_numbers(builder, f) for f in rest]
        inner.append(other)
    disturbed = [f.record for f in found if f.record.status in ("unstable", "void")]
    if disturbed:
        why = [
            f"{shortened(r.name)} ({shortened(r.kind)}): {r.status}: {'; '.join(r.status_reasons)}" for r in disturbed
        ]
        text = Text("Something else ran on the machine, or the pace of these runs changed:")
        inner.append(builder.section("Disturbed", text, Lines(bounded([printable(line) for line in why]))))
    section.inner = [s for s in inner if s is not None]
    return section


def _provenance(found: Sequence[Found]) -> str:
    versions: dict[str, dict[str, None]] = {}
    for f in found:
        for package, version in f.record.versions.items():
            versions.setdefault(package, {})[version] = None
    said = ", ".join(f"{package} {' or '.join(of)}" for package, of in versions.items())
    commits = {(f.record.commit or "unknown")[:10] + "+" * str(f.record.commit).endswith("+") for f in found}
    first, last = found[0].record.created_utc, found[-1].record.created_utc
    when = f"{len(found)} records of {first} to {last}" if len(found) > 1 else f"1 record of {first}"
    shown = f"{when}. Versions: {said}. Commits: {', '.join(sorted(commits)[:12])}"
    return printable(shown + (f" and {len(commits) - 12} more." if len(commits) > 12 else "."))


def _numbers(builder: Builder, found: Found) -> Numbers:
    every = list(numbers(found.record.figures))
    pairs = [(shortened(name), Cell(f"{value:.6g}", value)) for name, value in every[:MAX_FIGURES]]
    title = f"{shortened(found.record.kind)}: {shortened(found.record.name)}"
    return Numbers(title, pairs, len(every) - len(pairs), builder.link(found))


def _speed(builder: Builder, engines: Sequence[Found], loaders: Sequence[Found]) -> Section | None:
    if not engines and not loaders:
        return None
    section = builder.section("From video file to label")
    if timed := sorted(builder.fitting(engines, pace), key=lambda f: pace(f.record)):
        caption = (
            "Engine × precision × network; data loading included, warm-up left out. Every engine was checked against "
            "eager fp32 on real clips first. ± is half of the mean's 95 % interval; percentiles are over batches. "
            "Compare rows of one network, batch and data set."
        )
        section.parts.append(builder.table(caption, timed, _engine_columns))
        _time_charts(builder, section, [f for f in timed if f.record.status != "void"])
    if alone := sorted(builder.fitting(loaders, pace), key=lambda f: pace(f.record)):
        section.parts.append(
            builder.table("The loader alone. Stages are thread time; they overlap.", alone, loader_columns)
        )
    return section


def _engine_columns(records: Sequence[Record]) -> Columns:
    """`throughput_columns`, with what its first column puts together set apart, and times before the workload."""
    (_, network, batch, *rest), row = throughput_columns(records)

    def cells(r: Record) -> list[str]:
        name, of, videos, ms, percentiles, *others = row(r)
        engine, precision, loader = (setting(r, key) for key in ("engine", "precision", "backend"))
        return [name, engine, precision, ms, percentiles, of, videos, loader, *others]

    assert rest[0] == "ms/video"
    return ["run", "engine", "precision", *rest[:2], network, batch, "loader", *rest[2:]], cells


def _time_charts(builder: Builder, section: Section, valid: Sequence[Found]) -> None:
    staged = builder.fitting(valid, lambda r: [number(r.figures, f"ledger_{s}_ms") for s in charts.STAGES])[:MAX_BARS]
    staged = [f for f in staged if any(number(f.record.figures, f"ledger_{s}_ms") for s in charts.STAGES)]
    if staged:
        of = f"the fastest {len(staged)} of {len(valid)} runs; " if len(staged) < len(valid) else ""
        caption = (
            f"{of}work a video by stage, summed over threads, so bars are longer than the wall time (the tick) where "
            "stages overlap. Paler: the run was disturbed."
        )
        spec = charts.stages(staged, builder.hrefs(staged))
        section.parts.append(builder.chart("Where the time goes", caption, staged, spec))
    spread = [f for f in builder.fitting(valid, batch_times_ms) if len(batch_times_ms(f.record)) > 1]
    if drawn := spread[: charts.MAX_LINES]:
        of = f"the fastest {len(drawn)} of {len(spread)} runs; " if len(drawn) < len(spread) else ""
        caption = f"{of}time a video, batch by batch. Dashed: the run was disturbed."
        values = [batch_times_ms(f.record) for f in drawn]
        spec = charts.distribution(drawn, values, builder.hrefs(drawn), "ms per video")
        section.parts.append(builder.chart("Distribution over batches", caption, drawn, spec))


def batch_times_ms(record: Record) -> np.ndarray:
    """float (batches,): milliseconds a video in each. Raises Unfit where there is not one time for each batch."""
    times, videos = (np.array(record.samples.get(key, ()), float) for key in ("interval_s", "videos"))
    if len(times) != len(videos):
        raise Unfit("samples of interval_s and videos differ in number")
    with np.errstate(divide="ignore", invalid="ignore"):
        values = 1000 * times / videos
    return values[np.isfinite(values)]


def _scenarios(builder: Builder, found: Sequence[Found]) -> Section | None:
    if not found:
        return None
    caption = (
        "Decoding included; latency of Server counts from the scheduled arrival, of LiveStreams from the video's last "
        "frame. Percentiles that too few queries bound are left out."
    )
    section = builder.section("Scenarios", builder.table(caption, found, scenario_columns))
    valid = [f for f in found if f.record.status != "void" and len(latencies_ms(f.record)) > 1]
    if drawn := valid[-charts.MAX_LINES :]:
        values = [latencies_ms(f.record) for f in drawn]
        of = f"the newest {len(drawn)} of {len(valid)} runs; " if len(drawn) < len(valid) else ""
        caption = f"{of}of every query; of a search for the highest load, those of the trial that is reported."
        spec = charts.distribution(drawn, values, builder.hrefs(drawn), "latency, ms")
        section.parts.append(builder.chart("Distribution of latency", caption, drawn, spec))
    return section


def latencies_ms(record: Record) -> np.ndarray:
    """float (queries,): latencies of a scenario; of one that searched, of the trial whose median is the record's."""
    median = record.figures.get("p50_latency_ms")
    names = [n for n in record.samples if n == "latency_ms" or (n.startswith("trial_") and n.endswith("_latency_ms"))]
    for name in names:
        values = np.array(record.samples[name], float)
        values = values[np.isfinite(values)]
        reported = isinstance(median, float) and len(values) and np.isclose(np.median(values), median, rtol=1e-6)
        if name == "latency_ms" or reported:
            return values
    return np.array(())


def _training(
    builder: Builder, every: Sequence[Found], trained: Sequence[Found], evaluated: Sequence[Found]
) -> Section | None:
    if not trained and not evaluated:
        return None
    section = builder.section("Accuracy")
    if trained:
        section.parts.append(builder.table("Training runs: accuracy on held-out videos.", trained, training_columns))
    if evaluated:
        caption = "Evaluations. Videos that could not be used are left out, of these accuracies too."
        section.parts.append(builder.table(caption, evaluated, evaluation_columns))
    _cost_charts(builder, section, every)
    valid = [f for f in trained if f.record.status != "void"]
    for key, title in (("loss", "Training loss"), ("top1_percent", "Held-out top-1 %")):
        fit = [f for f in builder.fitting(valid, partial(curve, key=key)) if len(curve(f.record, key)) > 1]
        if drawn := fit[-charts.MAX_LINES :]:
            of = f"the newest {len(drawn)} of {len(fit)} runs, " if len(drawn) < len(fit) else ""
            lines = [curve(f.record, key) for f in drawn]
            spec = charts.curves(drawn, lines, title)
            section.parts.append(builder.chart(title, f"{title}: {of}epoch by epoch.", drawn, spec))
    return section


def curve(record: Record, key: str) -> list[tuple[float, float]]:
    """(epoch from 1, value) of a training run's samples; empty where it has none. Raises Unfit where epochs and values
    differ in number."""
    values = record.samples.get(key, ())
    epochs = record.samples.get("top1_epoch", ()) if key == "top1_percent" else range(1, len(values) + 1)
    if len(epochs) != len(values):
        raise Unfit("samples of top1_epoch and top1_percent differ in number")
    return [(e, v) for e, v in zip(epochs, values, strict=True) if e is not None and v is not None]


def _cost_charts(builder: Builder, section: Section, found: Sequence[Found]) -> None:
    """Accuracy against multiply-adds, a chart for each data set."""
    by_data: dict[str, list[Accuracy]] = {}
    for a in builder.accuracies(found):
        if a.gmacs:
            by_data.setdefault(a.data, []).append(a)
    for data, own in by_data.items():
        caption = (
            f"Measured on {data}. Bars: ± the standard deviation over runs that differ in their seed. The paper's "
        )
        caption += "Figure 1 is further down, beside the published tables."
        spec = charts.accuracy_against_cost(own, (), builder.hrefs([a.found[-1] for a in own]))
        of = [f for a in own for f in a.found]
        section.parts.append(builder.chart(f"Accuracy against cost on {data}", caption, of, spec))


def _confusions(builder: Builder, found: Sequence[Found]) -> Section | None:
    """Most confused classes, small matrices, and the gain by class over a baseline."""
    kept = [f for f in found if f.record.kind in ("train", "evaluate") and f.record.status != "void"]
    known = [f for f in builder.fitting(kept, confusion) if confusion(f.record) is not None]
    if not known:
        return None
    section = builder.section("Classes")
    if len(known) > MAX_CONFUSIONS:
        section.parts.append(Text(f"The newest {MAX_CONFUSIONS} of {len(known)} runs that have a confusion matrix."))
    for f in known[-MAX_CONFUSIONS:]:
        matrix = confusion(f.record)
        assert matrix is not None
        header, rows = most_confused(matrix)
        name = charts.label_of(f.record)
        one = builder.section(name)
        if rows:
            caption = f"Most confused by {name}: the pairs with the largest share of the true class's videos."
            one.parts.append(Table(caption, header, [Row(row) for row in rows], builder.row(f, ())))
        else:
            one.parts.append(Text("No class was taken for another."))
        if len(matrix[1]) <= MAX_READABLE:
            caption = "In % of the true class (rows)."
            one.parts.append(builder.chart("Confusion matrix", caption, [f], charts.heat_map(matrix)))
        if base := _baseline(f, known):
            against = confusion(base.record)
            assert against is not None
            by_class = gains(matrix, against)
            shown = min(len(by_class), 2 * charts.MAX_GAINS)
            of = f", the {shown} of {len(by_class)} that changed most either way" if shown < len(by_class) else ""
            caption = f"By how many points of its own videos each class{of} is recognised more often than by "
            caption += f"{charts.label_of(base.record)}."
            title = f"Gain by class over {charts.label_of(base.record)}"
            one.parts.append(builder.chart(title, caption, [f, base], charts.gain_bars(by_class)))
        section.inner.append(one)
    return section


def _baseline(found: Found, known: Sequence[Found]) -> Found | None:
    """The newest TSN on the same videos; where there is none, the network with the lowest accuracy there. None for
    that one itself."""
    own = confusion(found.record)
    digest = (found.record.data or {}).get("digest")
    alike = [f for f in known if (f.record.data or {}).get("digest") == digest and comparable(own, confusion(f.record))]  # type: ignore[arg-type]
    frames = [f for f in alike if str(f.record.settings.get("model")).startswith("tsn_")]
    base = frames[-1] if frames else min(alike, key=lambda f: np.trace(confusion(f.record)[0]))  # type: ignore[index]
    same = setting(base.record, "model") == setting(found.record, "model")
    return None if base is found or same else base


def _comparisons(builder: Builder, found: Sequence[Found]) -> Section | None:
    section = builder.section("Comparisons")
    for f in found:
        title, tables = compared_tables(f.record)
        if not builder.fitting([f], tables):
            continue
        data = f" on {shortened(f.record.data['name'])}" if f.record.data is not None else ""
        caption = f"{title}: {shortened(f.record.name)}{data}."
        of = builder.row(f, ())
        made = [Table(caption, header, [Row(row) for row in rows], of) for header, rows in tables(f.record)]
        section.parts += [table for table in made if table.rows]
    return section if section.parts else None


def _history(builder: Builder, group: Group, order: Mapping[str, int]) -> Section | None:
    """Figures of records that were measured more than once, over commits."""
    every = [f for f in builder.found.every if f.group == group]
    hrefs = {id(f.record): builder.link(f).href for f in every}
    section = builder.section("Over commits")
    for kinds, figure in HISTORIES:
        records = [f.record for f in every if f.record.kind in kinds]
        lines = {line: points for line, points in lines_of(records, figure, order).items() if len(points) > 1}
        if not lines:
            continue
        newest = sorted(lines, key=lambda line: max(p.record.created_utc for p in lines[line]))[-charts.MAX_LINES :]
        shown = {line: lines[line] for line in lines if line in newest}
        of = f"the newest {len(shown)} of {len(lines)} lines; " if len(shown) < len(lines) else ""
        caption = (
            f"{of}bars: quartiles of samples; hollow: unstable, cross: void, joined with nothing. A commit with + had "
            "changed files; one with ? is not in this checkout's history."
        )
        drawn = [f for f in every if any(p.record is f.record for points in shown.values() for p in points)]
        title = f"{figure} ({' and '.join(kinds)})"
        spec = charts.over_commits(shown, figure, hrefs)
        section.parts.append(builder.chart(title, caption, drawn, spec))
    return section if section.parts else None
