"""Warm-up, length and watch: on made-up samples, and beside a process that really takes the processor."""

import subprocess
import sys
import time

import numpy as np
import pytest

from tdn_bench.measurement.interference import Watch
from tdn_bench.measurement.statistics import drift, half_width
from tdn_bench.measurement.warm_up import warm_up


def test_warm_up_ends_when_nothing_gets_faster():
    times = [10, 8, 6, 4, 2, *[1] * 50]
    calls = iter(times)
    found = warm_up(lambda: float(next(calls)), min_calls=2)
    assert found["warmup_stable"] is True
    used = times[: found["warmup_calls"]]
    quarter = len(used) // 4
    assert np.median(used[-quarter:]) == np.median(used[-2 * quarter : -quarter]) == 1
    assert found["warmup_calls"] > 6  # the sixth call was the first that was not faster


def test_warm_up_gives_up_in_time_and_says_so():
    ever_faster = iter(np.geomspace(1e300, 1e-300, 10**6))

    def work():
        time.sleep(0.001)
        return float(next(ever_faster)) / 2 ** next(count)

    count = iter(range(1000))
    found = warm_up(work, max_s=0.05)
    assert found["warmup_stable"] is False
    assert found["warmup_calls"] >= 4


def test_drift_is_of_medians():
    assert drift([1, 1, 9, 1, 2, 2, 2, 30]) == pytest.approx(1.0)
    assert drift([5]) == 0


def test_half_width_covers_samples_that_hang_together():
    generator = np.random.default_rng(0)
    held = 0
    for _ in range(200):
        noise = np.convolve(generator.normal(0, 1, 420), np.ones(20) / 20, "valid")[:400]  # neighbours alike
        samples = 10 + noise
        held += abs(samples.mean() / 10 - 1) <= half_width(samples) * samples.mean() / 10
    assert held >= 180


@pytest.mark.parametrize(
    ("figures", "samples", "gpu", "status", "reason"),
    [
        ({}, [1.0] * 20, {}, "stable", None),
        ({"foreign_cpu_share": 0.1}, [], {}, "unstable", "other processes took 10%"),
        ({"foreign_cpu_share": 0.5}, [], {}, "void", "other processes took 50%"),
        ({"stolen_cpu_share": 0.3}, [], {}, "void", "hypervisor took 30%"),
        ({"thermal_throttles": 2}, [], {}, "void", "temperature"),
        ({}, [1.0] * 10 + [1.2] * 10, {}, "unstable", "drift by +20.0%"),
        ({}, [], {"sm_clock_mhz": [1900, 1900, 1500]}, "unstable", "clock changed by 21%"),
        ({}, [], {"throttle_reasons": [0, 0x20]}, "void", "slowed down"),
        ({}, [], {"throttle_reasons": [0x4, 1]}, "unstable", "power cap"),
        ({}, [], {"compute_processes": [1, 2]}, "void", "other processes used the GPU"),
    ],
)
def test_what_voids_a_run(figures, samples, gpu, status, reason):
    watch = Watch()
    watch.figures = figures
    said, reasons = watch.verdict(samples, gpu)
    assert said == status
    assert (reason is None and not reasons) or reason in reasons[0]


def test_a_busy_neighbour_is_seen_and_an_own_process_is_not_one():
    burn = [sys.executable, "-c", "while True: pass"]
    shares = {}
    for own in (False, True):
        with subprocess.Popen(burn) as process:
            with Watch([process.pid] if own else []) as watch:
                time.sleep(1)
            process.kill()
        shares[own] = watch.figures.get("foreign_cpu_share")
    if shares[False] is None:
        pytest.skip("this system does not say what others do")
    assert shares[False] > 0.05  # a core, or what a busy machine leaves of it
    assert watch.figures["load_average_before"] >= 0
