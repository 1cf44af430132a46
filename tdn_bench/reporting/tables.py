"""The tables of a report, in Markdown: one function for each kind of record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.ledger import WORK
from tdn_bench.measurement.statistics import PERCENTILES
from tdn_bench.records import Record
from tdn_bench.records.published import PUBLISHED
from tdn_bench.records.tables import markdown_table

LOADING = WORK[: WORK.index("infer")]  # what the loader does; in older records "read" covers open and demux


def stages_of(records: Sequence[Record], stages: Sequence[str]) -> list[str]:
    """Those of the ledger's `stages` that any of the records has."""
    return [stage for stage in stages if any(f"ledger_{stage}_ms" in r.figures for r in records)]


def training_table(records: Sequence[Record]) -> str:
    """Accuracy and pace of training runs (`tdn-bench train`)."""
    rows = [
        [
            r.name,
            f"{r.settings['model']}, T = {r.settings['num_segments']}, {r.settings['size']} px",
            f"{r.figures['top1_percent']:.2f}",
            f"{r.figures['top5_percent']:.2f}",
            str(r.settings["epochs"]),
            f"{r.figures['train_s']:.0f}",
            f"{r.figures['clips_per_s']:.1f}",
            f"{r.figures['wait_share']:.0%}",
        ]
        for r in records
    ]
    header = ["run", "network", "top-1 %", "top-5 %", "epochs", "training s", "clips/s", "waiting for data"]
    return markdown_table(header, rows)


def throughput_table(records: Sequence[Record]) -> str:
    """Engines from video file to label (`tdn-bench throughput`), the fastest first."""
    header = [
        "engine, precision, loader",
        "ms/video",
        " / ".join(f"p{q}" for q in PERCENTILES),
        "batches",
        "of it infer ms",
        "clips/s",
        "frames/s",
        "top-1 %",
        "difference to eager fp32 (σ)",
        "build s",
        "peak host GiB",
    ]
    return markdown_table(
        header, [_throughput_row(r) for r in sorted(records, key=lambda r: r.figures["ms_per_video"])]
    )


def _throughput_row(record: Record) -> list[str]:
    f = record.figures
    return [
        record.name,
        f"{f['ms_per_video']:.2f}",
        " / ".join(_cell(f, f"p{q}_ms_per_video", ".2f") for q in PERCENTILES),
        str(f["batches"]),
        f"{f['ledger_infer_ms']:.2f}",
        f"{f['clips_per_s']:.1f}",
        f"{f['frames_per_s']:.0f}" + ("" if f["real_time"] else " (below real time)"),
        _cell(f, "top1_percent", ".2f"),
        f"{record.details['agreement_with_eager_fp32']['max_difference']:.1e}",
        f"{f['build_s']:.1f}",
        f"{f['peak_host_memory_bytes'] / 2**30:.2f}",
    ]


def loader_table(records: Sequence[Record]) -> str:
    """Loaders alone (`tdn-bench throughput --engine none`), the fastest first, with the ledger's stages."""
    stages = stages_of(records, LOADING)
    rows = [
        [
            r.name,
            f"{r.figures['clips_per_s']:.1f}",
            f"{r.figures['ms_per_video']:.2f}",
            *(_cell(r.figures, f"ledger_{stage}_ms", ".2f") for stage in stages),
        ]
        for r in sorted(records, key=lambda r: -r.figures["clips_per_s"])
    ]
    return markdown_table(["loader", "clips/s", "ms/video", *(f"{stage} ms" for stage in stages)], rows)


def scenario_table(records: Sequence[Record]) -> str:
    """Latencies and the highest load in time (`tdn-bench scenario`)."""
    rows = [
        [
            r.name,
            _load(r.figures, r.settings),
            *(_cell(r.figures, f"p{q}_latency_ms", ".1f") for q in PERCENTILES),
            r.status,
        ]
        for r in records
    ]
    header = ["scenario, engine, precision, loader", "result", *(f"p{q} ms" for q in PERCENTILES), "run"]
    return markdown_table(header, rows)


def _load(figures: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """What a scenario came to, in a few words."""
    if "videos_per_s" in figures:
        return f"{figures['videos_per_s']:.1f} videos/s"
    if "latency_bound_ms" in figures:
        best = _highest(figures, "queries_per_s", "queries/s")
        return f"{best}, p{settings['percentile']:g} within {figures['latency_bound_ms']:.0f} ms"
    if "streams" in figures:
        best = _highest(figures, "streams", f"streams of {settings['fps']:g} frames/s")
        return f"{best}, {100 * settings['on_time']:g} % of labels within {settings['deadline_ms']:g} ms"
    return f"{figures['queries']} queries of {settings.get('samples_per_query', 1)}"


def _highest(figures: Mapping[str, Any], name: str, unit: str) -> str:
    """The highest load that passed, and the lowest that was refused."""
    best, refused = (figures[key] for key in (name, f"rejected_{name}"))
    text = f"{best:.4g} {unit}" if best is not None else f"no {unit}"
    return text + (f" ({refused:.4g} refused)" if refused is not None else "")


def published_table(records: Sequence[Record]) -> str:
    """The published accuracies of the records' networks on their data set, and Table 5's times where a record is of
    throughput; empty where nothing was published."""
    shown = {(str(r.settings.get("model")).rpartition("_resnet")[0], r.settings.get("dataset")) for r in records}
    timed = any(r.kind == "throughput" for r in records)
    rows = [
        [
            f"Table {r.table}",
            f"{r.name} {r.backbone}",
            r.frames,
            r.data or "",
            *("–" if v is None else f"{v:g}" for v in (r.gmacs, r.top1_percent, r.top5_percent, r.ms_per_video)),
        ]
        for r in PUBLISHED
        if ((r.variant, r.data) in shown and r.table != "1") or (timed and r.table == "5")
    ]
    header = ["source", "network", "frames", "data", "G mult-adds", "top-1 %", "top-5 %", "ms/video"]
    return markdown_table(header, rows) if rows else ""


def _cell(figures: Mapping[str, Any], key: str, form: str) -> str:
    """A figure as text, a dash where there is none."""
    return "–" if figures.get(key) is None else format(figures[key], form)
