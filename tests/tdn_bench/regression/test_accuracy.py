"""The accuracy half of the gate: McNemar's test, the interval and the power against slow formulations, the verdicts."""

import math
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.stats import binomtest, norm

from tdn_bench.correctness.scores import Scores
from tdn_bench.errors import UserError
from tdn_bench.regression.accuracy import compare_scores, detectable_loss, mcnemar, paired_interval


def make(videos: int = 40, views: int = 1, classes: int = 5) -> Scores:
    """Every video is right."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(videos, views, classes, generator=generator)
    return Scores(tuple(f"v{i}" for i in range(videos)), logits, logits.softmax(2).mean(1).argmax(1))


def spoilt(scores: Scores, count: int) -> Scores:
    """The first `count` videos turn wrong."""
    logits = scores.logits.clone()
    logits[torch.arange(count), :, scores.labels[:count]] -= 20
    return replace(scores, logits=logits)


@pytest.mark.parametrize(("lost", "gained"), [(0, 0), (1, 0), (5, 0), (7, 2), (2, 7), (30, 18)])
def test_mcnemar_is_a_one_sided_sign_test(lost: int, gained: int) -> None:
    wanted = binomtest(lost, lost + gained, alternative="greater").pvalue if lost + gained else 1.0
    assert mcnemar(lost, gained) == pytest.approx(wanted)
    if lost + gained < 10:
        flips = list(product((0, 1), repeat=lost + gained))
        assert mcnemar(lost, gained) == pytest.approx(sum(sum(f) >= lost for f in flips) / len(flips))


@pytest.mark.parametrize(("lost", "gained", "videos"), [(0, 0, 160), (3, 0, 160), (2, 12, 50), (9, 4, 30), (0, 5, 20)])
def test_the_ends_of_the_interval_are_where_the_score_test_turns(lost: int, gained: int, videos: int) -> None:
    """The constrained maximum of the likelihood is searched for, not solved for."""

    def score(delta: float) -> float:
        def loss(p: float) -> float:
            shares, counts = (p, p + delta, 1 - 2 * p - delta), (lost, gained, videos - lost - gained)
            return -sum(n * math.log(max(s, 1e-300)) for s, n in zip(shares, counts, strict=True) if n)

        bounds = max(0, -delta), (1 - delta) / 2
        p = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-12}).x
        return (gained - lost - videos * delta) / math.sqrt(videos * (2 * p + delta - delta**2))

    found, z = paired_interval(lost, gained, videos, 0.95), norm.ppf(0.975)
    assert found.value == pytest.approx(100 * (gained - lost) / videos)
    assert score(found.low / 100) == pytest.approx(z, rel=1e-3)
    assert score(found.high / 100) == pytest.approx(-z, rel=1e-3)


@pytest.mark.parametrize(("lost", "gained"), [(0.02, 0.0), (0.02, 0.02), (0.1, 0.05)])
def test_the_interval_covers_the_true_change(lost: float, gained: float) -> None:
    rng, covered, draws = np.random.default_rng(0), 0, 2000
    kept: dict[tuple[int, int], tuple[float, float]] = {}
    for counts in rng.multinomial(160, (lost, gained, 1 - lost - gained), size=draws).tolist():
        pair = counts[0], counts[1]
        if pair not in kept:
            interval = paired_interval(*pair, 160, 0.95)
            kept[pair] = interval.low, interval.high
        covered += kept[pair][0] <= 100 * (gained - lost) <= kept[pair][1]
    assert covered / draws > 0.935


@pytest.mark.parametrize(("videos", "gained"), [(160, 0), (160, 4), (1000, 10)])
def test_a_loss_called_detectable_is_found_nine_times_of_ten(videos: int, gained: int) -> None:
    loss = detectable_loss(videos, gained, 0.05) / 100
    rng, share = np.random.default_rng(0), gained / videos
    counts = rng.multinomial(videos, (share + loss, share, 1 - 2 * share - loss), size=4000)
    kept = {
        tuple(c): binomtest(c[0], sum(c), alternative="greater").pvalue if sum(c) else 1 for c in counts[:, :2].tolist()
    }
    assert np.mean([kept[tuple(c)] <= 0.05 for c in counts[:, :2].tolist()]) == pytest.approx(0.9, abs=0.02)


def test_no_loss_is_detectable_with_four_videos() -> None:
    assert detectable_loss(4, 0, 0.05) == math.inf  # ½⁴ > 0.05


@pytest.mark.parametrize("views", [1, 3])
def test_same_in_any_order(views: int) -> None:
    before = make(views=views)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    moved = Scores(tuple(before.ids[i] for i in order), before.logits[order] + 1e-5, before.labels[order])
    found = compare_scores(moved, before, precision="fp32")
    assert (found.verdict, found.lost, found.gained, found.changed_videos) == ("same", 0, 0, 0)
    assert found.largest_difference == pytest.approx(1e-5 / before.logits.std().item(), rel=0.1)
    assert "\n" not in found.explanation


def test_changed_logits_need_many_videos_to_be_called_no_worse() -> None:
    for videos, verdict in ((40, "worse"), (2000, "changed")):
        before = make(videos)
        logits = before.logits.clone()
        logits[0] += 0.1  # all classes alike: the answer is the same
        found = compare_scores(replace(before, logits=logits), before, precision="fp32")
        assert (found.verdict, found.changed_videos, found.lost) == (verdict, 1, 0)
        assert (found.change_points.low >= -0.5) == (verdict == "changed")
    assert compare_scores(replace(before, logits=logits), before, precision="bf16").verdict == "same"


def test_lost_videos_are_worse() -> None:
    before = make()
    found = compare_scores(spoilt(before, 5), before, precision="fp32")
    assert (found.verdict, found.lost, found.gained) == ("worse", 5, 0)
    assert found.p_value == pytest.approx(0.5**5)
    assert "McNemar" in found.explanation
    few = compare_scores(spoilt(before, 1), before, precision="fp32")
    assert few.verdict == "worse"
    assert few.p_value == 0.5
    assert "not excluded" in few.explanation
    better = compare_scores(before, spoilt(before, 5), precision="fp32")
    assert (better.lost, better.gained, better.p_value) == (0, 5, 1)


def test_not_a_number_is_a_change() -> None:
    before = make()
    found = compare_scores(replace(before, logits=before.logits * float("nan")), before, precision="int8")
    assert (found.verdict, found.changed_videos, found.largest_difference) == ("worse", 40, math.inf)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: replace(s, ids=("other", *s.ids[1:])), "other videos: 2 are in one only"),
        (lambda s: replace(s, ids=(s.ids[1], *s.ids[1:])), "twice"),
        (lambda s: replace(s, labels=(s.labels + 1) % 5), "different labels"),
        (lambda s: replace(s, logits=s.logits[:, :, :4]), "1 × 4 and 1 × 5 views × classes"),
    ],
)
def test_other_videos_are_a_mistake(change, message: str) -> None:
    before = make()
    with pytest.raises(UserError, match=message):
        compare_scores(change(before), before, precision="fp32")


def test_accuracies_need_labels() -> None:
    before = replace(make(), labels=torch.full((40,), -1))
    with pytest.raises(UserError, match="no label"):
        compare_scores(before, before, precision="fp32")
