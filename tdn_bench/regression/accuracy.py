"""Has a network become worse? Two sets of scores of the same videos, compared video by video."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from scipy.optimize import brentq
from scipy.stats import binom, norm
from torch import Tensor

from tdn_bench.correctness.logits import TOLERANCE, deviation
from tdn_bench.correctness.scores import Scores
from tdn_bench.errors import UserError
from tdn_bench.measurement.statistics import Interval

POWER = 0.9


@dataclass(frozen=True)
class AccuracyVerdict:
    """same: logits within the tolerance. changed: beyond it, but a loss above the margin is excluded. worse: McNemar's
    test finds a loss, or logits changed and a loss above the margin cannot be excluded."""

    verdict: Literal["same", "changed", "worse"]
    explanation: str
    videos: int  # of known label
    lost: int  # right before and wrong now
    gained: int  # wrong before and right now
    p_value: float  # McNemar's, exact, of a loss
    change_points: Interval  # top-1 now − before; Tango's score interval
    detectable_loss_points: float  # what the test would find with 90 % power, with as many gained as here
    changed_videos: int  # whose logits moved beyond the tolerance
    largest_difference: float  # of a logit, in deviations of all logits
    median_difference: float  # over videos, of each one's largest
    tolerance: float
    margin_points: float
    confidence: float


def compare_scores(
    now: Scores, before: Scores, *, precision: str, margin_points: float = 0.5, confidence: float = 0.95
) -> AccuracyVerdict:
    """Compare scores of the same videos, matched by id; `precision` is the coarser of the two and sets the tolerance.
    Raises UserError where videos, labels, classes or views differ, and where no label is known."""
    if not 0 < confidence < 1 or margin_points < 0:
        raise UserError(f"confidence {confidence} must be between 0 and 1, margin {margin_points} points at least 0")
    now = matched(now, before)
    right, was_right = now.found(1), before.found(1)
    videos = len(right)
    if not videos:
        raise UserError("no label is known: accuracies cannot be compared")
    lost, gained = int((was_right & ~right).sum()), int((~was_right & right).sum())
    p_value = mcnemar(lost, gained)
    change = paired_interval(lost, gained, videos, confidence)
    detectable = detectable_loss(videos, gained, 1 - confidence)
    moved, tolerance = differences(now.logits, before.logits), TOLERANCE[precision]
    changed = int((moved > tolerance).sum())
    largest, median = moved.max().item(), moved.median().item()
    logits = f"logits of {changed} of {len(moved)} videos moved beyond {tolerance:g} deviations (largest {largest:.2g})"
    answers = f"top-1 {before.top(1):.2f} → {now.top(1):.2f} %, {lost} videos lost and {gained} gained"
    shown = f"{change.value:+.2f} [{change.low:+.2f}, {change.high:+.2f}] points"
    verdict: Literal["same", "changed", "worse"] = "worse"
    if p_value <= 1 - confidence:
        explanation = f"{answers}: {shown}, a loss by McNemar's test (p = {p_value:.2g}); {logits}"
    elif not changed:
        verdict = "same"
        explanation = f"{logits}; {answers}"
    elif change.low >= -margin_points:
        verdict = "changed"
        explanation = f"{logits}; {answers}: {shown}, so none above {margin_points:g} is lost"
    else:
        explanation = (
            f"{logits}; {answers}: {shown}, so a loss above {margin_points:g} is not excluded "
            f"({videos} videos show losses from {detectable:.1f} points)"
        )
    return AccuracyVerdict(
        verdict=verdict,
        explanation=explanation,
        videos=videos,
        lost=lost,
        gained=gained,
        p_value=p_value,
        change_points=change,
        detectable_loss_points=detectable,
        changed_videos=changed,
        largest_difference=largest,
        median_difference=median,
        tolerance=tolerance,
        margin_points=margin_points,
        confidence=confidence,
    )


def matched(now: Scores, before: Scores) -> Scores:
    """`now` in the order of `before`. Raises UserError where they are not of the same videos."""
    place = {video: i for i, video in enumerate(now.ids)}
    if len(place) < len(now.ids) or len(set(before.ids)) < len(before.ids):
        raise UserError("scores hold a video twice; evaluate anew")
    if odd := sorted(place.keys() ^ set(before.ids)):
        raise UserError(f"scores are of other videos: {len(odd)} are in one only, first {odd[0]}; evaluate the same")
    if now.logits.shape != before.logits.shape:
        shapes = [" × ".join(map(str, s.logits.shape[1:])) for s in (now, before)]
        raise UserError(f"scores are of {shapes[0]} and {shapes[1]} views × classes; evaluate both alike")
    order = torch.tensor([place[video] for video in before.ids])
    if wrong := (now.labels[order] != before.labels).nonzero().flatten().tolist():
        raise UserError(f"scores give video {before.ids[wrong[0]]} different labels; evaluate with the same list")
    return Scores(before.ids, now.logits[order], before.labels)


def differences(now: Tensor, before: Tensor) -> Tensor:
    """float (N,): the largest difference of a video's logits (N, views, classes), in deviations; NaN counts as inf."""
    spread = max(deviation(before.flatten(0, 1)), 1e-30)
    return ((now - before).abs().flatten(1) / spread).nan_to_num(math.inf, math.inf).amax(1)


def mcnemar(lost: int, gained: int) -> float:
    """p: how likely as many or more of the discordant videos would be lost, were losses and gains equally likely."""
    return float(binom.sf(lost - 1, lost + gained, 0.5))


def paired_interval(lost: int, gained: int, videos: int, confidence: float) -> Interval:
    """The change of accuracy in points, with Tango's score interval (Statistics in Medicine 17, 1998): it keeps its
    coverage where few or no videos are discordant."""
    z = norm.ppf((1 + confidence) / 2)

    def score(delta: float) -> float:
        b = (2 * videos - gained + lost) * delta - lost - gained
        c = -lost * delta * (1 - delta)
        p_lost = (math.sqrt(b * b - 8 * videos * c) - b) / (4 * videos)
        variance = videos * (2 * p_lost + delta * (1 - delta))
        return float((gained - lost - videos * delta) / math.sqrt(max(variance, 1e-12)))

    value, edge = (gained - lost) / videos, 1 - 1e-9
    low = brentq(lambda d: score(d) - z, -edge, value) if value > -edge else -1.0
    high = brentq(lambda d: score(d) + z, value, edge) if value < edge else 1.0
    return Interval(100 * value, 100 * low, 100 * high)


@lru_cache(maxsize=256)
def detectable_loss(videos: int, gained: int, level: float) -> float:
    """The smallest loss in points that the test at `level` finds with 90 % power, if `gained` videos are expected to be
    gained; infinite where none is."""

    def power(loss: float) -> float:
        gains, losses = gained / videos, gained / videos + loss
        fewest, most = binom.ppf((1e-9, 1 - 1e-9), videos, gains + losses)
        discordant = np.arange(fewest, most + 1)
        needed = binom.isf(level, discordant, 0.5) + 1  # the fewest losses among them with p ≤ level
        found = binom.sf(needed - 1, discordant, losses / (gains + losses))
        return float(binom.pmf(discordant, videos, gains + losses) @ found)

    largest = 1 - 2 * gained / videos
    if largest <= 0 or power(largest) < POWER:
        return math.inf
    return 100 * brentq(lambda loss: power(loss) - POWER, 1e-9, largest, xtol=1e-6)
