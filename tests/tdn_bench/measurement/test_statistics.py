"""Percentiles and changes against simulations whose truth is known, and the refusals."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, lognorm

from tdn_bench.measurement.statistics import Change, Interval, TooFewSamples, change, percentile, samples_for_percentile


@pytest.mark.parametrize(("q", "wanted"), [(50, 6), (90, 36), (99, 368), (10, 36)])
def test_a_percentile_needs_samples_on_both_sides(q, wanted):
    # by the definition: the smallest n with P(all n on one side of the percentile) <= 2.5 %
    share = max(q, 100 - q) / 100
    assert wanted == next(n for n in range(1, 1000) if binom.pmf(n, n, share) <= 0.025)
    assert samples_for_percentile(q) == wanted
    percentile(range(wanted), q)
    with pytest.raises(TooFewSamples, match=rf"p{q} of {wanted - 1} samples: at least {wanted}"):
        percentile(range(wanted - 1), q)


@pytest.mark.parametrize(("q", "count"), [(50, 20), (90, 60), (99, 400)])
def test_a_percentiles_interval_holds_the_truth(q, count):
    generator, truth = np.random.default_rng(0), lognorm.ppf(q / 100, 1)
    found = [percentile(generator.lognormal(size=count), q) for _ in range(500)]
    assert np.mean([i.low <= truth <= i.high for i in found]) >= 0.93


@given(st.lists(st.floats(0.1, 1e3), min_size=36, max_size=80))
def test_a_percentile_lies_in_its_interval(samples):
    found = percentile(samples, 90)
    assert found.low <= found.value <= found.high
    assert found.value == np.percentile(samples, 90)


def turns(generator, effect=0.0, rounds=4, count=12, process_sd=0.005, bursts=0.1):
    """Log-ratios with an effect of each process, ordinary noise, and now and then a burst that doubles a time."""
    processes = generator.normal(effect, process_sd, (rounds, 1))
    noise = generator.normal(0, 0.02, (rounds, count))
    burst = generator.choice([-0.7, 0, 0.7], (rounds, count), p=[bursts / 2, 1 - bursts, bursts / 2])
    return (processes + noise + burst).tolist()


def test_intervals_of_identical_code_hold_no_change():
    generator = np.random.default_rng(1)
    found = [change(turns(generator), seed=i) for i in range(150)]
    assert sum(c.ratio.low > 1 or c.ratio.high < 1 for c in found) <= 4  # 1.5 expected of a 99 % interval
    apart = [change(turns(generator), turns(generator), seed=i) for i in range(150)]
    assert sum(c.ratio.low > 1 or c.ratio.high < 1 for c in apart) <= 4


def test_what_is_said_to_be_detectable_is_detected():
    generator = np.random.default_rng(2)
    detectable = np.median([change(turns(generator), seed=i).detectable for i in range(50)])
    found = [change(turns(generator, math.log(detectable)), seed=i).ratio for i in range(100)]
    assert np.mean([r.low > 1 for r in found]) >= 0.8
    assert np.median([r.value for r in found]) == pytest.approx(detectable, rel=0.01)


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (1.031, 1.1, "regression"),
        (1.029, 1.031, "inconclusive"),
        (0.5, 1.5, "inconclusive"),
        (1.001, 1.02, "slower"),
        (0.99, 1.02, "same"),
        (0.9, 0.99, "faster"),
    ],
)
def test_verdicts(low, high, verdict):
    assert Change(Interval(1, low, high), 1.0).verdict(0.03) == verdict


def test_too_few_turns_are_refused():
    for now, before in (([[0.0] * 9], None), ([[0.0] * 10], [[0.0] * 4, [0.0] * 4]), ([], None)):
        with pytest.raises(TooFewSamples):
            change(now, before)
