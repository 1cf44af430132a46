"""What samples allow to be said: percentiles, means and ratios with their intervals, or a refusal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats as distributions

from tdn_bench.errors import UserError


@dataclass(frozen=True)
class Interval:
    """An estimate, and the interval that holds the true value with the confidence that was asked for."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}]"


class TooFewSamples(UserError):
    """Samples that do not bound what was asked for."""


def samples_for_percentile(q: float, confidence: float = 0.95) -> int:
    """The fewest independent samples whose order statistics bound the q-th percentile (0 < q < 100) on both sides:
    otherwise it may well lie beyond the largest or the smallest of them. 6 for the median, 36 for p90, 368 for p99."""
    tail = min(q, 100 - q) / 100
    return math.ceil(math.log((1 - confidence) / 2) / math.log(1 - tail))


def percentile(samples: Sequence[float] | np.ndarray, q: float, confidence: float = 0.95) -> Interval:
    """The q-th percentile with its distribution-free interval between two order statistics (binomial).

    Raises TooFewSamples where no such interval exists: a p99 of fifty samples is their maximum under another name.
    """
    ordered = np.sort(np.asarray(samples, float))
    n, share = len(ordered), q / 100
    wanted = samples_for_percentile(q, confidence)
    if n < wanted:
        raise TooFewSamples(f"p{q:g} of {n} samples: at least {wanted} are needed for a {confidence:.0%} interval")
    below, above = distributions.binom.ppf(((1 - confidence) / 2, (1 + confidence) / 2), n, share)
    # P(X_(low) > percentile) and P(X_(high) < percentile) are at most (1 − confidence) / 2 each; counted from 1
    low, high = max(int(below), 1), min(int(above) + 1, n)
    return Interval(float(np.percentile(ordered, q)), float(ordered[low - 1]), float(ordered[high - 1]))
