"""The plots of a report. Records that are drawn are of one kind."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from pipelines.errors import printable
from pipelines.files import write_whole
from pipelines.ledger import WORK
from tdn_bench.records import Record
from tdn_bench.reporting.confusions import confusion
from tdn_bench.reporting.tables import number, pace, stages_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STAGES = tuple(stage for stage in WORK if stage != "train")  # of inference
MAX_BARS, MAX_MATRICES = 40, 6


def pyplot() -> ModuleType:
    """matplotlib.pyplot, drawing into files: imported where something is drawn, as it takes a while."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    return plt


def plot_text(text: str) -> str:
    """Text from data as a plot takes it: no mathematics between dollars, no label that a legend leaves out because it
    begins with an underscore, none wider than the plot."""
    text = printable(text)
    text = (text if len(text) <= 60 else f"{text[:60]}…").replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def save(figure: Figure, path: Path) -> None:
    """Write a figure, whole or not at all, and close it. Raises OSError, and ValueError for a suffix without a
    format."""
    content = io.BytesIO()
    try:
        figure.savefig(content, dpi=120, bbox_inches="tight", format=path.suffix.removeprefix(".") or None)
    finally:
        pyplot().close(figure)
    write_whole(path, content.getvalue())


def plot_stages(records: Sequence[Record], path: Path) -> None:
    """Work per video by stage, and the wall time it took: where they overlap, the bars are longer than the mark. Only
    the MAX_BARS fastest are drawn, which the axis says. Raises Unfit for a figure that is none."""
    plt = pyplot()
    drawn = sorted(records, key=pace)[:MAX_BARS][::-1]
    places = range(len(drawn))  # names may be alike
    fig, ax = plt.subplots(figsize=(8, 1.2 + 0.45 * len(drawn)))
    left = [0.0] * len(drawn)
    for stage in stages_of(drawn, STAGES):
        values = [number(r.figures, f"ledger_{stage}_ms") or 0.0 for r in drawn]
        ax.barh(places, values, left=left, label=stage)
        left = [a + b for a, b in zip(left, values, strict=True)]
    ax.scatter([pace(r) for r in drawn], places, marker="|", s=300, color="black", label="wall time", zorder=3)
    ax.set_yticks(places, [plot_text(r.name) for r in drawn])
    fastest = f"the fastest {len(drawn)} of {len(records)}; " if len(drawn) < len(records) else ""
    ax.set_xlabel(f"{fastest}ms per video: work by stage, summed over threads (bars); wall time (mark)")
    ax.legend(ncols=6, loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False, fontsize="small")
    save(fig, path)


def plot_confusion(records: Sequence[Record], path: Path) -> None:
    """Confusion matrices of at most MAX_MATRICES networks: true classes (rows), predicted ones (columns), in percent of
    the row."""
    plt = pyplot()
    matrices = [matrix for r in records if (matrix := confusion(r)) is not None]
    alike = all(names == matrices[0][1] for _, names in matrices)  # else an axis would show another's names
    wide = 4.2 if alike else 6.5
    fig, axes = plt.subplots(1, len(records), figsize=(1.5 + wide * len(records), 4.6), sharey=alike, squeeze=False)
    for ax, record, (counts, names) in zip(axes[0], records, matrices, strict=True):
        shares = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
        ax.imshow(shares, vmin=0, vmax=100, cmap="Blues")
        top1 = number(record.figures, "top1_percent")
        said = "" if top1 is None else f": top-1 {top1:.1f} %"
        ax.set_title(f"{plot_text(record.name)}{said}", fontsize="medium")
        shown = range(len(names))
        ax.set_xticks(shown, [str(i) for i in shown])
        ax.set_yticks(shown, [f"{plot_text(names[i])}  {i}" for i in shown], fontsize="small")
        ax.set_xlabel("predicted")
        if len(names) <= 12:
            for (i, j), share in np.ndenumerate(shares):
                if share >= 0.5:
                    colour = "white" if share > 60 else "black"
                    ax.text(j, i, f"{share:.0f}", ha="center", va="center", color=colour, fontsize="small")
    save(fig, path)
