"""What a network takes for what: its confusion matrix, the classes that it confuses most, its gain over a baseline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tdn_bench.records import Record
from tdn_bench.reporting.tables import Cell, Unfit, shortened

MAX_CLASSES, MAX_READABLE = 2000, 20  # of a matrix; of one that is drawn
MOST_CONFUSED = 10
Matrix = tuple[np.ndarray, list[str]]  # float (classes, classes): counts, a row a true class; the classes' names


def confusion(record: Record) -> Matrix | None:
    """A record's confusion matrix, float (classes, classes), and the names of its classes; None where it has none.
    Raises Unfit where it is none."""
    counts, names = record.details.get("confusion"), record.details.get("classes")
    if counts is None:
        return None
    classes = len(names) if isinstance(names, list) else 0
    if not 0 < classes <= MAX_CLASSES:
        raise Unfit(f"confusion matrix of {classes or 'unnamed'} classes")
    rows = counts if isinstance(counts, list) else []
    square = len(rows) == classes and all(isinstance(row, list) and len(row) == classes for row in rows)
    if not square or not all(type(n) is int and 0 <= n < 2**53 for row in rows for n in row):
        raise Unfit(f"confusion matrix is not {classes} × {classes} counts, as its classes are")
    return np.array(rows, float), [str(name) for name in names]  # type: ignore[union-attr]


def most_confused(matrix: Matrix, count: int = MOST_CONFUSED) -> tuple[Sequence[str], list[list[str]]]:
    """A table's header and rows: the pairs of true and predicted class with the largest share of the true class's
    videos, at most `count`; equal shares in the order of the videos' numbers, then of the classes."""
    counts, names = matrix
    totals = counts.sum(1)
    wrong = [(int(i), int(j)) for i, j in np.argwhere(counts > 0) if i != j]
    wrong.sort(key=lambda at: (-counts[at] / totals[at[0]], -counts[at]))
    rows = [
        [
            shortened(names[i]),
            shortened(names[j]),
            Cell(f"{100 * counts[i, j] / totals[i]:.1f}", 100 * float(counts[i, j] / totals[i])),
            Cell(f"{counts[i, j]:.0f} of {totals[i]:.0f}", float(counts[i, j])),
        ]
        for i, j in wrong[:count]
    ]
    return ["true class", "taken for", "% of the true class", "videos"], rows


@dataclass(frozen=True)
class Gain:
    """By how many points of its own videos a class is recognised more often than by a baseline."""

    name: str
    points: float
    videos: int
    percent: float
    baseline_percent: float


def gains(matrix: Matrix, baseline: Matrix) -> list[Gain]:
    """Of every class that has videos, the largest first. Both matrices are of the same videos (`comparable`)."""
    (counts, names), (other, _) = matrix, baseline
    totals = counts.sum(1)
    found = []
    for i in np.flatnonzero(totals):
        own, base = (100 * float(m[i, i] / totals[i]) for m in (counts, other))
        found.append(Gain(names[i], own - base, int(totals[i]), own, base))
    return sorted(found, key=lambda g: -g.points)


def comparable(a: Matrix, b: Matrix) -> bool:
    """Whether both are of the same classes, with as many videos of each."""
    return a[1] == b[1] and bool((a[0].sum(1) == b[0].sum(1)).all())
