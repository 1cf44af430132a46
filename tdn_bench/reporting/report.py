"""One Markdown page, with its plots, from a folder of records."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tdn_bench.errors import UserError
from tdn_bench.records import Record, latest_records
from tdn_bench.reporting.plots import plot_confusion, plot_stages
from tdn_bench.reporting.tables import (
    loader_table,
    published_table,
    scenario_table,
    throughput_table,
    training_table,
)


def write_report(folder: Path, *, since: str = "", missing: Sequence[str] = ()) -> Path:
    """Write `report.md` and its plots into `folder`, from the newest record of each kind and name in it, none older
    than `since` (as `records.utc_now` writes times). `missing` lists what could not be measured, and why. Returns the
    page's path. Raises UserError where there are no records."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    records = latest_records(folder, since)
    if not records:
        raise UserError(f"{folder}: holds no records (*.json)")
    trained, measured, loaders, scenarios = (
        [r for r in records if r.kind == kind] for kind in ("train", "throughput", "loader", "scenario")
    )
    parts = ["# tdn_bench report", _provenance(records)]
    if trained:
        parts += _accuracy(trained, folder)
    if measured:
        parts += _throughput(measured, folder)
    if loaders:
        parts += ["## Loader alone", "Stages are thread time; they overlap.", loader_table(loaders)]
    if scenarios:
        parts += [
            "## Scenarios",
            "Decoding included; latency of Server counts from the scheduled arrival, of LiveStreams from the video's "
            "last frame. Percentiles that too few queries bound are left out.",
            scenario_table(scenarios),
        ]
    if disturbed := _disturbed(records):
        parts += ["## Disturbed", "Something else ran on the machine, or the pace of these runs changed:", disturbed]
    if missing:
        parts += ["## Not measured here", "\n".join(f"- {line}" for line in missing)]
    if shown := published_table([*trained, *measured]):
        parts += [
            "## Published, for reference only",
            "TDN paper (arXiv 2012.10071) and, of the compared networks, what it cites: other data, other training; "
            "ms/video on one V100 at 224 px, batch 16, data loading included. Not comparable with the rows above.",
            shown,
        ]
    path = folder / "report.md"
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return path


def _accuracy(trained: list[Record], folder: Path) -> list[str]:
    parts = ["## Accuracy", training_table(trained)]
    if all("confusion" in r.details for r in trained):
        plot_confusion(trained, folder / "confusion.png")
        parts += ["![Confusion matrices: true and predicted classes](confusion.png)"]
    return parts


def _throughput(measured: list[Record], folder: Path) -> list[str]:
    plot_stages(measured, folder / "ledger.png")
    return [
        "## From video file to label",
        f"Batch {measured[-1].settings['batch_size']}, data loading included, warm-up left out; every engine was "
        "checked against eager fp32 on real clips first. Percentiles are over batches.",
        throughput_table(measured),
        "![Work per video by stage](ledger.png)",
    ]


def _provenance(records: list[Record]) -> str:
    """Machine, versions and commits."""
    last = records[-1]
    m = last.machine
    processor = m.get("gpu") or f"{m['cpu']}, {m['cores']} cores"
    commits = sorted({r.commit or "unknown" for r in records})
    return (
        f"Machine: {processor}. "
        f"Versions: {', '.join(f'{k} {v}' for k, v in last.versions.items())}. "
        f"Commit: {', '.join(c[:12] + ('+ (changed files)' if c.endswith('+') else '') for c in commits)}. "
        f"Records of {records[0].created_utc} to {last.created_utc}, in this folder; each holds its command, "
        "settings and raw samples."
    )


def _disturbed(records: list[Record]) -> str:
    """What was not stable, and why."""
    return "\n".join(
        f"- {r.name} ({r.kind}): {r.status}: {'; '.join(r.status_reasons)}"
        for r in records
        if r.status in ("unstable", "void")
    )
