"""One Markdown page and its plots from a folder of records: `tdn-bench report FOLDER`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tdn_bench.cli.run import run_command
from tdn_bench.errors import UserError
from tdn_bench.records.published import PUBLISHED
from tdn_bench.records.record import Record, latest_records

# Stages of the ledger, with those that are the loader's; in older records "read" covers open and demux.
LOADING = ("plan", "open", "read", "demux", "decode", "augment", "copy")
LEDGER = (*LOADING, "infer", "copy_back")


@dataclass(frozen=True)
class Report:
    """Write report.md and its plots from the newest record of each kind and name."""

    folder: Path
    """Folder with records (*.json); the page is written there."""


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _training(records: list[Record]) -> str:
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


def _throughput(records: list[Record]) -> str:
    rows = []
    for r in sorted(records, key=lambda r: r.figures["ms_per_video"]):
        f = r.figures
        agreement = r.details["agreement_with_eager_fp32"]
        rows.append(
            [
                r.name,
                f"{f['ms_per_video']:.2f}",
                " / ".join(
                    f"{f[f'p{q}_ms_per_video']:.2f}" if f"p{q}_ms_per_video" in f else "–" for q in (50, 90, 99)
                ),
                str(f["batches"]),
                f"{f['ledger_infer_ms']:.2f}",
                f"{f['clips_per_s']:.1f}",
                f"{f['frames_per_s']:.0f}" + ("" if f["real_time"] else " (below real time)"),
                f"{f['top1_percent']:.2f}" if f.get("top1_percent") is not None else "–",
                f"{agreement['max_difference']:.1e}",
                f"{f['build_s']:.1f}",
                f"{f['peak_host_memory_bytes'] / 2**30:.2f}",
            ]
        )
    header = [
        "engine, precision, loader", "ms/video", "p50 / p90 / p99", "batches", "of it infer ms", "clips/s", "frames/s",
        "top-1 %", "difference to eager fp32 (σ)", "build s", "peak host GiB",
    ]  # fmt: skip
    return markdown_table(header, rows)


def _loaders(records: list[Record]) -> str:
    stages = _stages(records, LOADING)
    rows = [
        [r.name, f"{r.figures['clips_per_s']:.1f}", f"{r.figures['ms_per_video']:.2f}"]
        + [f"{r.figures[key]:.2f}" if (key := f"ledger_{s}_ms") in r.figures else "–" for s in stages]
        for r in sorted(records, key=lambda r: -r.figures["clips_per_s"])
    ]
    return markdown_table(["loader", "clips/s", "ms/video", *(f"{s} ms" for s in stages)], rows)


def _scenarios(records: list[Record]) -> str:
    rows = []
    for r in records:
        f, s = r.figures, r.settings
        if "videos_per_s" in f:
            result = f"{f['videos_per_s']:.1f} videos/s"
        elif "latency_bound_ms" in f:
            result = _highest(f, "queries_per_s", "queries/s")
            result += f", p{s['percentile']:g} within {f['latency_bound_ms']:.0f} ms"
        elif "streams" in f:
            result = _highest(f, "streams", f"streams of {s['fps']:g} frames/s")
            result += f", {100 * s['on_time']:g} % of labels within {s['deadline_ms']:g} ms"
        else:
            result = f"{f['queries']} queries of {s.get('samples_per_query', 1)}"
        keys = [f"p{q}_latency_ms" for q in (50, 90, 99)]
        rows.append([r.name, result, *(f"{f[key]:.1f}" if key in f else "–" for key in keys), r.status])
    return markdown_table(["scenario, engine, precision, loader", "result", "p50 ms", "p90 ms", "p99 ms", "run"], rows)


def _highest(figures: Mapping[str, Any], name: str, unit: str) -> str:
    """The highest load that passed, and the lowest that was refused."""
    best, refused = (figures[key] for key in (name, f"rejected_{name}"))
    text = f"{best:.4g} {unit}" if best is not None else f"no {unit}"
    return text + (f" ({refused:.4g} refused)" if refused is not None else "")


def _disturbed(records: list[Record]) -> str:
    """What was not stable, and why."""
    return "\n".join(
        f"- {r.name} ({r.kind}): {r.status}: {'; '.join(r.status_reasons)}"
        for r in records
        if r.status in ("unstable", "void")
    )


def _stages(records: list[Record], stages: Sequence[str]) -> list[str]:
    """Those that a record has."""
    return [stage for stage in stages if any(f"ledger_{stage}_ms" in r.figures for r in records)]


def _plot_ledger(records: list[Record], path: Path) -> None:
    """Work per video by stage, and the wall time it took: where they overlap, the bars are longer than the mark."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    records = sorted(records, key=lambda r: -r.figures["ms_per_video"])
    names = [r.name for r in records]
    fig, ax = plt.subplots(figsize=(8, 1.2 + 0.45 * len(records)))
    left = [0.0] * len(records)
    for stage in _stages(records, LEDGER):
        values = [r.figures.get(f"ledger_{stage}_ms", 0.0) for r in records]
        ax.barh(names, values, left=left, label=stage)
        left = [a + b for a, b in zip(left, values, strict=True)]
    walls = [r.figures["ms_per_video"] for r in records]
    ax.scatter(walls, names, marker="|", s=300, color="black", label="wall time", zorder=3)
    ax.set_xlabel("ms per video: work by stage, summed over threads (bars); wall time (mark)")
    ax.legend(ncols=6, loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False, fontsize="small")
    fig.savefig(path, dpi=120, bbox_inches="tight")
    plt.close(fig)


def _plot_confusion(records: list[Record], path: Path) -> None:
    """What each network says (columns) of each true class (rows), in percent of the row."""
    import matplotlib

    matplotlib.use("Agg")
    import numpy as np
    from matplotlib import pyplot as plt

    fig, axes = plt.subplots(1, len(records), figsize=(1.5 + 4.2 * len(records), 4.6), sharey=True, squeeze=False)
    for ax, record in zip(axes[0], records, strict=True):
        counts = np.array(record.details["confusion"], float)
        shares = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
        ax.imshow(shares, vmin=0, vmax=100, cmap="Blues")
        ax.set_title(f"{record.name}: top-1 {record.figures['top1_percent']:.1f} %", fontsize="medium")
        names = record.details["classes"]
        ax.set_xticks(range(len(names)), [str(i) for i in range(len(names))])
        ax.set_yticks(range(len(names)), [f"{name}  {i}" for i, name in enumerate(names)], fontsize="small")
        ax.set_xlabel("said")
        if len(names) <= 12:
            for (i, j), share in np.ndenumerate(shares):
                if share >= 0.5:
                    colour = "white" if share > 60 else "black"
                    ax.text(j, i, f"{share:.0f}", ha="center", va="center", color=colour, fontsize="small")
    fig.savefig(path, dpi=120, bbox_inches="tight")
    plt.close(fig)


def _provenance(records: list[Record]) -> str:
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


def _published(records: list[Record]) -> str:
    """The published accuracies of the records' networks on their data set; Table 5's times where one was timed."""
    shown = {(str(r.settings.get("model")).rpartition("_resnet")[0], r.settings.get("dataset")) for r in records}
    timed = any(r.kind == "throughput" for r in records)
    rows = [r for r in PUBLISHED if ((r.variant, r.data) in shown and r.table != "1") or (timed and r.table == "5")]
    cells = [
        [
            f"Table {r.table}",
            f"{r.name} {r.backbone}",
            r.frames,
            r.data or "",
            *("–" if v is None else f"{v:g}" for v in (r.gmacs, r.top1_percent, r.top5_percent, r.ms_per_video)),
        ]
        for r in rows
    ]
    header = ["source", "network", "frames", "data", "G mult-adds", "top-1 %", "top-5 %", "ms/video"]
    return markdown_table(header, cells) if cells else ""


def write_report(folder: Path, *, since: str = "", missing: Sequence[str] = ()) -> Path:
    """Write `report.md` from the newest records in `folder` (none older than `since`); `missing` lists what could
    not be measured, and why."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    records = latest_records(folder, since)
    if not records:
        raise UserError(f"{folder}: holds no records (*.json)")
    by_kind = {kind: [r for r in records if r.kind == kind] for kind in ("train", "throughput", "loader", "scenario")}
    parts = ["# tdn_bench report", _provenance(records)]
    if trained := by_kind["train"]:
        parts += ["## Accuracy", _training(trained)]
        if all("confusion" in r.details for r in trained):
            _plot_confusion(trained, folder / "confusion.png")
            parts += ["![What each network says of each class](confusion.png)"]
    if measured := by_kind["throughput"]:
        settings = measured[-1].settings
        parts += [
            "## From video file to label",
            f"Batch {settings['batch_size']}, data loading included, warm-up left out; every engine was checked "
            "against eager fp32 on real clips first. Percentiles are over batches.",
            _throughput(measured),
        ]
        _plot_ledger(measured, folder / "ledger.png")
        parts += ["![Work per video by stage](ledger.png)"]
    if loaders := by_kind["loader"]:
        parts += ["## Loader alone", "Stages are thread time; they overlap.", _loaders(loaders)]
    if scenarios := by_kind["scenario"]:
        parts += [
            "## Scenarios",
            "Decoding included; latency of Server counts from the scheduled arrival, of LiveStreams from the video's "
            "last frame. Percentiles that too few queries bound are left out.",
            _scenarios(scenarios),
        ]
    if disturbed := _disturbed(records):
        parts += ["## Disturbed", "The machine was not left to these runs, or their pace changed:", disturbed]
    if missing:
        parts += ["## Not measured here", "\n".join(f"- {line}" for line in missing)]
    if shown := _published([*by_kind["train"], *by_kind["throughput"]]):
        parts += [
            "## Published, for reference only",
            "TDN paper (arXiv 2012.10071) and, of the compared networks, what it cites: other data, other training; "
            "ms/video on one V100 at 224 px, batch 16, data loading included. Not comparable with the rows above.",
            shown,
        ]
    path = folder / "report.md"
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return path


def main(argv: Sequence[str] | None = None) -> None:
    """Write report.md and its plots."""
    import tyro

    config = tyro.cli(tyro.conf.Positional[Report], args=argv, prog="tdn-bench report")
    print(f"report: {write_report(config.folder)}")


if __name__ == "__main__":
    raise SystemExit(run_command(main))
