"""--max-seconds bounds the whole comparison: rounds of any cost, on a clock that only the rounds move."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tdn_bench.errors import UserError
from tdn_bench.regression.budget import RESERVE_S, Budget, OutOfTime

MIN_ROUNDS, MIN_TURNS = 6, 4


class Clock:
    def __init__(self):
        self.now_s = 1000.0

    def __call__(self):
        return self.now_s


def run(max_seconds, start_s, turn_s, wanted_s=12.0, rounds=100):
    """What `interleave` does, without workers: (rounds, seconds passed, the refusal). Each round starts in `start_s`,
    each turn takes `turn_s`."""
    clock = Clock()
    begun, done = clock.now_s, 0
    budget = Budget(max_seconds, MIN_ROUNDS, clock)

    def passes(seconds):  # as a worker that is waited for
        if seconds > budget.timeout():
            clock.now_s += budget.left_s()
            raise OutOfTime("over")
        clock.now_s += seconds

    try:
        while done < rounds and (turns_s := budget.next_round_s(wanted_s, MIN_TURNS)) is not None:
            try:
                passes(start_s)
                budget.is_ready(start_s, turn_s, MIN_TURNS)
                turns, since = 0, clock.now_s
                while turns < MIN_TURNS or clock.now_s - since < turns_s or turns % 2:
                    passes(turn_s)
                    turns += 1
            except OutOfTime:
                if budget.enough:
                    break
                raise
            budget.took(start_s, turn_s)
            done += 1
    except UserError as e:
        return done, clock.now_s - begun, str(e)
    return done, clock.now_s - begun, None


@given(st.floats(6, 5000), st.floats(0.01, 300), st.floats(0.01, 60))
def test_the_time_is_never_exceeded_and_a_verdict_has_its_rounds(max_seconds, start_s, turn_s):
    done, passed_s, refusal = run(max_seconds, start_s, turn_s)
    assert passed_s <= max_seconds + 1e-6
    assert (refusal is None) == (done >= MIN_ROUNDS)
    if max_seconds - RESERVE_S > 1.01 * MIN_ROUNDS * (start_s + (MIN_TURNS + 2) * turn_s + 12):
        assert refusal is None


def test_what_cannot_fit_is_refused_after_one_round_with_what_it_takes():
    """As on the machine that took 369 s for --max-seconds 45: 49 s to start, turns of 1.5 s."""
    done, passed_s, refusal = run(45, 49, 1.5)
    assert (done, passed_s) == (0, 40)
    done, passed_s, refusal = run(120, 49, 1.5)
    assert done == 0  # said as soon as the first workers are ready
    assert passed_s == 49
    assert refusal is not None
    assert refusal.startswith("--max-seconds 120: 6 rounds of fresh processes, which a verdict needs, take about ")
    assert "\n" not in refusal
    done, passed_s, refusal = run(369, 49, 1.5)
    assert refusal is None
    assert done == 6


def test_where_there_is_time_rounds_take_as_long_as_is_wanted():
    done, passed_s, refusal = run(1000, 10, 1, wanted_s=12)
    assert refusal is None
    assert done == (1000 - RESERVE_S) // 22
    assert 950 < passed_s <= 1000


def test_without_an_end_nothing_is_refused():
    budget = Budget(math.inf, 0)
    budget.took(1e6, 1e6)
    assert budget.next_round_s(5, 4) == 5
    assert budget.timeout() == math.inf


def test_what_follows_the_last_round_is_kept():
    clock = Clock()
    budget = Budget(100, 1, clock)
    budget.keep(20)
    assert budget.left_s() == 100 - RESERVE_S - 20
    clock.now_s += 90
    with pytest.raises(OutOfTime, match=r"--max-seconds 100: .* are not over by then"):
        budget.timeout()
