"""A figure over commits: which records hold it, in what order they stand, the table and the plot."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.errors import printable
from tdn_bench.errors import UserError
from tdn_bench.records import Record, machine_text, read_records
from tdn_bench.records.reading import is_number
from tdn_bench.reporting.plots import plot_text, pyplot, save


@dataclass(frozen=True)
class Point:
    """One record's value of the figure, and where it stands."""

    record: Record
    column: tuple[int, str, str, int]  # its commit's place; how many of its line's points of that commit came before
    commit: str  # short, with a mark
    value: float
    quartiles: tuple[float, ...]


def read_below(folders: Sequence[Path]) -> list[Record]:
    """All records below the folders, each once; other JSON files are passed over with a note."""
    found = [path for folder in folders for path in folder.rglob("*.json")]
    files = {os.path.realpath(path) if path.is_file() else os.path.abspath(path): path for path in found}
    records, others = read_records(files.values())
    for line in others:
        print(f"note: not shown: {line}", file=sys.stderr)
    without = [printable(str(folder)) for folder in folders if not any(folder.rglob("*.json"))]
    if without or not records:
        raise UserError(f"{', '.join(without) or 'FOLDER'}: no records (*.json) there; name folders that have some")
    return list(records.values())


def numbers(figures: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """All numbers among a record's figures; those of a figure inside another as `outer.inner`."""
    for key, value in figures.items():
        if isinstance(value, Mapping):
            yield from numbers(value, f"{prefix}{key}.")
        elif is_number(value):
            yield prefix + key, value


def quartiles(record: Record, figure: str) -> tuple[float, ...]:
    """Of the samples that the figure was made of; empty where there are none."""
    values = np.array(record.samples.get(figure, ()), float)
    if figure in ("ms_per_video", "p50_ms_per_video") and {"interval_s", "videos"} <= set(record.samples):
        times, videos = (np.array(record.samples[key], float) for key in ("interval_s", "videos"))
        if len(times) != len(videos):  # of whom nobody knows which is whose
            return ()
        with np.errstate(divide="ignore", invalid="ignore"):
            values = 1000 * times / videos
    values = values[np.isfinite(values)]
    repeated = len(values) > 1 and record.kind != "train"  # whose samples are a curve over epochs
    return tuple(np.percentile(values, (25, 75)).tolist()) if repeated else ()


def commit_order() -> dict[str, int]:
    """The place of every commit in the history of HEAD here, parents first; empty without git or a checkout."""
    command = ["git", "rev-list", "--topo-order", "--reverse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return {}
    return {commit: place for place, commit in enumerate(done.stdout.split())}


def lines_of(records: Sequence[Record], figure: str, order: Mapping[str, int]) -> dict[tuple[str, ...], list[Point]]:
    """(machine with all that makes it another one; kind; name) -> points from left to right."""
    known = [(order[str(r.commit)], r.created_utc) for r in records if r.commit in order]
    lines: dict[tuple[str, ...], list[Point]] = defaultdict(list)
    for r in sorted(records, key=lambda r: r.created_utc):
        if (value := dict(numbers(r.figures)).get(figure)) is None:
            continue
        line = (f"{r.machine['name']} ({machine_text(r.machine)})", r.kind, r.name)
        commit, mark = r.commit or "none", ""
        place = (order.get(commit, -1), "", commit)
        if commit not in order:  # it stands behind the last commit that was measured by then
            place = (max((at for at, time in known if time <= r.created_utc), default=-1), r.created_utc, commit)
            mark = "+" if commit.endswith("+") else "?"
        column = (*place, sum(p.column[:3] == place for p in lines[line]))
        lines[line].append(Point(r, column, commit[:9] + mark, value, quartiles(r, figure)))
    return {line: sorted(lines[line], key=lambda p: p.column) for line in sorted(lines)}


def table(points: Sequence[Point]) -> str:
    """One line a record, in aligned columns."""
    rows = [("commit", "time, UTC", "value", "quartiles", "status")]
    for p in points:
        time, spread = p.record.created_utc[:16].replace("T", " "), " – ".join(f"{v:.5g}" for v in p.quartiles)
        status = printable(": ".join(filter(None, (p.record.status, "; ".join(p.record.status_reasons)))))
        rows.append((p.commit, time, f"{p.value:.5g}", spread, status))
    wide = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  " + "  ".join(map(str.ljust, row, wide)).rstrip() for row in rows)


def plot(lines: Mapping[tuple[str, ...], Sequence[Point]], figure: str, path: Path) -> None:
    """One line for each of `lines`; a void run is shown, but joined with nothing."""
    plt = pyplot()
    commits = {p.column: p.commit for points in lines.values() for p in points}
    x = {column: i for i, column in enumerate(sorted(commits))}
    fig, ax = plt.subplots(figsize=(min(5 + 0.3 * len(x), 16), 4.5))
    parts = [set(part) for part in zip(*lines, strict=True)]
    for i, (line, points) in enumerate(lines.items()):
        colour, aside = f"C{i % 10}", (i - (len(lines) - 1) / 2) * min(0.1, 0.5 / len(lines))
        name = plot_text(", ".join(part for part, all_ in zip(line, parts, strict=True) if len(all_) > 1))
        valid, marker = [p for p in points if p.record.status != "void"], "osD^v"[i // 10 % 5]
        at, values = [x[p.column] + aside for p in valid], [p.value for p in valid]
        ax.plot(at, values, color=colour, marker=marker, lw=1, label=name or plot_text(line[-1]))
        for p in points:
            where, face = x[p.column] + aside, "white" if p.record.status in ("unstable", "void") else colour
            ax.plot([where] * len(p.quartiles), p.quartiles, color=colour, alpha=0.5, lw=2)
            ax.plot(where, p.value, "X" if p.record.status == "void" else marker, color=colour, mfc=face)
    ticks = [c for c in x if c[-1] == 0][:: math.ceil(len(x) / 60)]
    ax.set_xticks([x[c] for c in ticks], [commits[c] for c in ticks], rotation=60, ha="right", rotation_mode="anchor")
    ax.set(xlim=(-0.6, len(x) - 0.4), xlabel="oldest first; bars: quartiles of samples; hollow: unstable, ×: void")
    ax.set(ylabel=plot_text(figure), title=plot_text(", ".join(p for all_ in parts if len(all_) == 1 for p in all_)))
    ax.legend(loc="upper left", bbox_to_anchor=(1, 1), ncols=math.ceil(len(lines) / 20), fontsize="small")
    try:
        save(fig, path)
    except (OSError, ValueError) as e:  # ValueError: a suffix that names no format
        raise UserError(f"--out {printable(str(path))}: cannot be written ({printable(str(e))})") from e
