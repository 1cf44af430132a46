"""The plots of a report. Records that are drawn are of one kind."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import numpy as np

from pipelines.ledger import WORK
from tdn_bench.records import Record
from tdn_bench.reporting.tables import stages_of

STAGES = tuple(stage for stage in WORK if stage != "train")  # of inference


def pyplot() -> ModuleType:
    """matplotlib.pyplot, drawing into files: imported where something is drawn, as it takes a while."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    return plt


def plot_stages(records: Sequence[Record], path: Path) -> None:
    """Work per video by stage, and the wall time it took: where they overlap, the bars are longer than the mark."""
    plt = pyplot()
    records = sorted(records, key=lambda r: -r.figures["ms_per_video"])
    names = [r.name for r in records]
    fig, ax = plt.subplots(figsize=(8, 1.2 + 0.45 * len(records)))
    left = [0.0] * len(records)
    for stage in stages_of(records, STAGES):
        values = [r.figures.get(f"ledger_{stage}_ms", 0.0) for r in records]
        ax.barh(names, values, left=left, label=stage)
        left = [a + b for a, b in zip(left, values, strict=True)]
    walls = [r.figures["ms_per_video"] for r in records]
    ax.scatter(walls, names, marker="|", s=300, color="black", label="wall time", zorder=3)
    ax.set_xlabel("ms per video: work by stage, summed over threads (bars); wall time (mark)")
    ax.legend(ncols=6, loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False, fontsize="small")
    fig.savefig(path, dpi=120, bbox_inches="tight")
    plt.close(fig)


def plot_confusion(records: Sequence[Record], path: Path) -> None:
    """Each network's confusion matrix: true classes (rows), predicted ones (columns), in percent of the row."""
    plt = pyplot()
    fig, axes = plt.subplots(1, len(records), figsize=(1.5 + 4.2 * len(records), 4.6), sharey=True, squeeze=False)
    for ax, record in zip(axes[0], records, strict=True):
        counts = np.array(record.details["confusion"], float)
        shares = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
        ax.imshow(shares, vmin=0, vmax=100, cmap="Blues")
        ax.set_title(f"{record.name}: top-1 {record.figures['top1_percent']:.1f} %", fontsize="medium")
        names = record.details["classes"]
        ax.set_xticks(range(len(names)), [str(i) for i in range(len(names))])
        ax.set_yticks(range(len(names)), [f"{name}  {i}" for i, name in enumerate(names)], fontsize="small")
        ax.set_xlabel("predicted")
        if len(names) <= 12:
            for (i, j), share in np.ndenumerate(shares):
                if share >= 0.5:
                    colour = "white" if share > 60 else "black"
                    ax.text(j, i, f"{share:.0f}", ha="center", va="center", color=colour, fontsize="small")
    fig.savefig(path, dpi=120, bbox_inches="tight")
    plt.close(fig)
