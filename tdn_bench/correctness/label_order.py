"""Does a network answer well under other labels? Then classes are numbered differently on the two sides."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tdn_bench.correctness.scores import Scores

GAIN = 1.75  # of the mean class accuracy, on videos that did not help to find the permutation
LEAST = 1 / 3  # of the way from chance to all: a classifier of random weights, too, answers by some other numbering
STANDARD_ERRORS = 4.0  # above chance
MOST_LOST = 0.1  # of what classes gain


@dataclass(frozen=True)
class LabelPermutation:
    """A renumbering of the classes that fits better than the labels as they are."""

    classes: tuple[int, ...]  # the network's index of each of the data set's classes
    top1_percent: float  # with it, on all videos

    def __str__(self) -> str:
        moved = [i for i, other in enumerate(self.classes) if i != other]
        first = ", ".join(f"{i} is its {self.classes[i]}" for i in moved[:3])
        return (
            f"the labels seem to be permuted: top-1 is {self.top1_percent:.2f} % with {len(moved)} classes renumbered "
            f"(class {first}{', …' if len(moved) > 3 else ''}); check that the data set lists its classes in the "
            "checkpoint's order"
        )


def find_permutation(scores: Scores) -> LabelPermutation | None:
    """The permutation of the classes that fits best, None where the labels fit as they are or nothing does.

    A permutation found on half of each class's videos is judged on the other half, and the other way round; only
    classes with two videos or more take part, and at least half of all classes must. It fits if the mean class accuracy
    there is at least 1.75 times that of the labels as they are, a third of the way from chance to all and four standard
    errors above chance, and if classes lose by it at most a tenth of what others gain: a network that takes everything
    for a few classes, or merges some, loses as much as it gains.
    """
    from scipy.optimize import linear_sum_assignment  # here: it takes a second to import

    known = scores.labels >= 0
    labels, said = scores.labels[known].numpy(), scores.answers()[known].numpy()
    number = scores.num_classes
    half = np.empty(len(labels), np.int64)  # 0, 1, 0, 1, … within each class
    for label in np.unique(labels):
        half[labels == label] = np.arange((labels == label).sum()) % 2
    counts = np.stack([_confusion(labels[half == h], said[half == h], number) for h in (0, 1)])
    videos = counts.sum(2)  # (2, classes)
    usable = (videos > 0).all(0)
    if usable.sum() < max(2, number / 2):  # a few classes taken for any others are always a permutation
        return None
    recall = counts[:, usable] / videos[:, usable, None]  # (2, usable classes, classes)
    rows = np.flatnonzero(usable)
    found = [linear_sum_assignment(recall[h], maximize=True)[1] for h in (0, 1)]
    permuted = np.mean([recall[1 - h, np.arange(len(rows)), found[h]] for h in (0, 1)], axis=0)
    plain = recall.mean(0)[np.arange(len(rows)), rows]
    change = permuted - plain
    chance = 1 / number
    error = np.sqrt(chance * (1 - chance) * (1 / videos.sum(0)[usable]).sum()) / len(rows)
    least = chance + max(LEAST * (1 - chance), STANDARD_ERRORS * error)
    if (
        permuted.mean() < max(least, GAIN * plain.mean())
        or -change[change < 0].sum() > MOST_LOST * change[change > 0].sum()
    ):
        return None
    whole = counts.sum(0)
    order = linear_sum_assignment(whole, maximize=True)[1]
    return LabelPermutation(tuple(order.tolist()), float(100 * whole[np.arange(number), order].sum() / whole.sum()))


def _confusion(labels: np.ndarray, said: np.ndarray, number: int) -> np.ndarray:
    """int64 (classes, classes): rows are true classes, columns answers."""
    return np.bincount(labels * number + said, minlength=number**2).reshape(number, number)
