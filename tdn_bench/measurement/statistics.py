"""What samples allow to be said: percentiles, means and ratios with their intervals, or a refusal."""

from __future__ import annotations

import math
import statistics
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


PERCENTILES = (50, 90, 99)  # of latencies and times, wherever they are stated


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


def drift(samples: Sequence[float]) -> float:
    """By what share the median of the second half differs from the first half's."""
    half = len(samples) // 2
    return statistics.median(samples[-half:]) / statistics.median(samples[:half]) - 1 if half else 0.0


def half_width(samples: Sequence[float], groups: int = 10) -> float:
    """Half the width of the mean's 95 % interval as a share of it, from the means of ten groups in a row: neighbours
    are alike, so that single samples would promise too much."""
    means = np.array([part.mean() for part in np.array_split(np.asarray(samples, float), min(groups, len(samples)))])
    error = means.std(ddof=1) / math.sqrt(len(means))
    return float(distributions.t.ppf(0.975, len(means) - 1) * error / means.mean())


def share_interval(successes: int, total: int, confidence: float = 0.95) -> Interval:
    """A share and its Clopper-Pearson interval. The lower end of the share of latencies within a bound reaches 0.99
    exactly where the upper end of their p99 (`percentile`) is within the bound."""
    tail, failures = (1 - confidence) / 2, total - successes
    low = float(distributions.beta.ppf(tail, successes, failures + 1)) if successes else 0.0
    high = float(distributions.beta.ppf(1 - tail, successes + 1, failures)) if failures else 1.0
    return Interval(successes / total if total else math.nan, low, high)


def rate_interval(videos: Sequence[float], seconds: Sequence[float], chunks: int = 20) -> Interval:
    """Videos a second over consecutive batches, and its 95 % interval by the spread of up to `chunks` runs of them: a
    batch that waited for data is followed by one that did not, so single batches are not independent."""
    parts = [p for p in np.array_split(np.arange(len(videos)), chunks) if len(p)]
    v = np.array([np.asarray(videos)[p].sum() for p in parts], float)
    s = np.array([np.asarray(seconds)[p].sum() for p in parts], float)
    rate = v.sum() / s.sum()
    if len(parts) < 2:
        return Interval(float(rate), 0.0, math.inf)
    error_s = distributions.t.ppf(0.975, len(parts) - 1) * math.sqrt(len(parts)) * np.std(s - v / rate, ddof=1)
    return Interval(*(float(v.sum() / max(s.sum() + e, 1e-9)) for e in (0, error_s, -error_s)))


Rounds = Sequence[Sequence[float]]  # a value for each turn, by round: a round is a set of fresh processes
RESAMPLES = 10_000
TRIMMED = 0.25  # of either end: another process's burst slows single turns by any factor


def trimmed_mean(values: np.ndarray) -> np.ndarray:
    """The mean over the last axis of what is left without its largest and its smallest quarter."""
    count = values.shape[-1]
    cut = int(TRIMMED * count)
    return np.sort(values, -1)[..., cut : count - cut].mean(-1)


def resampled(rounds: Rounds, generator: np.random.Generator) -> np.ndarray:
    """float64 (RESAMPLES,): trimmed means of a two-level bootstrap: rounds are drawn, and of each drawn one its turns.

    So what differs from process to process counts as noise beside what differs from turn to turn. A few rounds drawn
    from themselves vary too little by √((R − 1) / R), which is made up for. Rounds are cut to the shortest.
    """
    turns = min(map(len, rounds))
    data = np.array([r[:turns] for r in rounds], float)  # (R, turns)
    count = len(data)
    means = np.empty(RESAMPLES)
    for begin in range(0, RESAMPLES, 1000):  # a few MB at a time
        chosen = generator.integers(count, size=(1000, count, 1))
        drawn = data[chosen, generator.integers(turns, size=(1000, count, turns))]
        means[begin : begin + 1000] = trimmed_mean(drawn.reshape(1000, -1))
    middle = trimmed_mean(data.ravel())
    return middle + (means - middle) * (math.sqrt(count / (count - 1)) if count > 1 else 1.0)


@dataclass(frozen=True)
class Change:
    """By how much a time has changed: the ratio now ÷ before, its interval, and what could have been detected.

    `detectable`, the minimum detectable change: the smallest ratio above 1 that is found slower nine times in ten with
    this noise.
    """

    ratio: Interval
    detectable: float

    def verdict(self, margin: float) -> str:
        """`regression`: certainly slower by more than the margin. `slower`, `same`, `faster`: certainly within the
        margin, and the interval lies above, holds, or lies below no change. Else `inconclusive`."""
        if self.ratio.low > 1 + margin:
            return "regression"
        if self.ratio.high > 1 + margin:
            return "inconclusive"
        return "slower" if self.ratio.low > 1 else "faster" if self.ratio.high < 1 else "same"


def change(now: Rounds, before: Rounds | None = None, *, confidence: float = 0.99, seed: int = 0) -> Change:
    """The change from logarithms of ratios: of now ÷ before in each turn, or of both relative to the same reference,
    measured apart. The interval is two-sided: either side errs with (1 − confidence) / 2.

    Raises TooFewSamples below ten turns in all.
    """
    for rounds in (now, before):
        if rounds is not None and (len(rounds) * min(map(len, rounds), default=0)) < 10:
            raise TooFewSamples(f"{sum(map(len, rounds))} turns: at least 10 in rounds of equal length are needed")
    generator = np.random.default_rng(seed)
    draws = resampled(now, generator)
    value = float(trimmed_mean(np.concatenate([np.asarray(r, float) for r in now])))
    if before is not None:
        draws = draws - resampled(before, generator)
        value -= float(trimmed_mean(np.concatenate([np.asarray(r, float) for r in before])))
    tail = (1 - confidence) / 2
    low, high = np.quantile(draws, (tail, 1 - tail))
    needed = float(draws.std()) * (distributions.norm.ppf(1 - tail) + distributions.norm.ppf(0.9))
    return Change(Interval(math.exp(value), math.exp(low), math.exp(high)), math.exp(needed))
