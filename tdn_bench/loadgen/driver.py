"""The load driver: submits queries when they are due, and judges what becomes of them. Nothing here knows what a query
is; what answers them is a `System`, whose clock the driver reads.

A latency counts from the *scheduled* arrival: a driver that waited for the system would hide what it delays.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Protocol

import numpy as np

from tdn_bench.loadgen.arrivals import Schedule
from tdn_bench.measurement.statistics import share_interval

HOPELESS = 10  # a trial is lost where the oldest query has waited for this many bounds
# A trial is void where the generator's p99 lateness is more than this share of the bound. Latencies count lateness, so
# they are never too low; where threads outnumber cores, the operating system alone makes it several ms.
LATE_SHARE = 0.25
GROWTH_S = 60  # a backlog grows where latencies, rising at the trial's pace for this long, would pass the bound
FIRST_LOOK, NEXT_LOOK = 36, 1.25  # looks at the samples so far are few: each is a chance to be wrong


class System(Protocol):
    """What is loaded: queries in, by number; answers out."""

    def now(self) -> float:
        """Seconds on its clock."""

    def submit(self, number: int) -> None:
        """A query arrives. Returns at once, however many wait."""

    def wait(self, until_s: float) -> list[tuple[int, float]]:
        """The answered queries and when they were: as soon as there is one, none where it is `until_s` first."""

    def cancel(self) -> int:
        """Forget the queries that nobody works on yet, and say how many there were."""


@dataclass(frozen=True)
class Goal:
    """When a trial is passed: `share` of the latencies are within the bound, sure at 95 %, after `seconds`. What is
    scheduled in the first `warmup_s` and the first `warmup_queries` are not counted."""

    bound_s: float
    share: float = 0.99
    seconds: float = 5
    warmup_s: float = 1
    warmup_queries: int = 16
    steady: bool = False  # the backlog must not grow either


@dataclass
class Trial:
    """One load, and what became of it: passed, failed, undecided (the time was up) or void (the generator was late)."""

    load: float
    seed: int
    verdict: str = "undecided"
    reason: str = ""
    latency_ms: list[float] = field(default_factory=list)  # of the queries that were judged, as they were scheduled
    lateness_ms: list[float] = field(default_factory=list)  # of the generator, every query
    judged: int = 0
    on_time: int = 0
    unanswered: int = 0  # of the judged, given up: late, but nobody knows by how much
    wall_s: float = 0
    usage: dict[str, float] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        return self.verdict == "passed"


def run_schedule(system: System, schedule: Schedule, goal: Goal, load: float, seed: int = 0) -> Trial:
    """Submit every query when it is due until the goal is decided. Only queries that were due a bound ago are judged:
    of them it is known whether they were in time, answered or not."""
    bound_s, first = goal.bound_s, max(goal.warmup_queries, bisect_left(schedule.due_s, goal.warmup_s))
    trial, done_s = Trial(load, seed), dict[int, float]()
    issued, oldest, judged, look = 0, 0, first, FIRST_LOOK
    start = system.now()
    due_s = [start + due for due in schedule.due_s]
    while True:
        now = system.now()
        while issued < len(due_s) and due_s[issued] <= now:
            system.submit(issued)
            trial.lateness_ms.append(1000 * (now - due_s[issued]))
            issued += 1
            now = system.now()
        if judged < issued and due_s[judged] + bound_s <= now:
            done_s.update(system.wait(now))  # what is answered by now and not fetched yet is not late
        while judged < issued and due_s[judged] + bound_s <= now:
            trial.on_time += done_s.get(judged, math.inf) - due_s[judged] <= bound_s
            judged += 1
        trial.judged = max(0, judged - first)
        while oldest in done_s:
            oldest += 1
        ended = issued == len(due_s) and judged >= issued
        if oldest < issued and now - due_s[oldest] > HOPELESS * bound_s:
            trial.verdict, trial.reason = "failed", f"a query waited for more than {HOPELESS} bounds"
            break
        if ended or trial.judged >= look:
            look = math.ceil(NEXT_LOOK * max(trial.judged, look))
            share = share_interval(trial.on_time, trial.judged)
            if share.high < goal.share:
                trial.verdict, trial.reason = "failed", f"{share.value:.2%} within the bound"
                break
            if share.low >= goal.share and (ended or now >= start + goal.warmup_s + goal.seconds):
                trial.verdict = "passed"
                break
        if ended:
            trial.reason = f"{trial.on_time} of {trial.judged} within the bound when the time was up"
            break
        next_s = min([now + bound_s, *due_s[issued : issued + 1]])
        done_s.update(system.wait(next_s))
    trial.wall_s = system.now() - start
    left = issued - (system.cancel() if trial.verdict == "failed" else 0)
    while len(done_s) < left:
        done_s.update(system.wait(math.inf))
    latency_s = {i: done_s[i] - due_s[i] for i in range(first, judged) if i in done_s}
    # again, now that all is fetched: a thread may have been kept from handing over an answer that was in time
    trial.on_time = sum(s <= bound_s for s in latency_s.values())
    trial.latency_ms = [round(1000 * s, 3) for s in latency_s.values()]
    trial.unanswered = trial.judged - len(latency_s)
    late_ms = float(np.quantile(trial.lateness_ms, 0.99)) if trial.lateness_ms else 0.0
    if trial.passed and late_ms > LATE_SHARE * 1000 * bound_s:
        trial.verdict, trial.reason = "void", f"the generator was {late_ms:.1f} ms late (p99)"
    elif trial.passed and goal.steady and grows(list(latency_s), list(latency_s.values()), due_s, bound_s):
        trial.verdict, trial.reason = "failed", "the backlog grows"
    return trial


def grows(numbers: Sequence[int], latency_s: Sequence[float], due_s: Sequence[float], bound_s: float) -> bool:
    """Whether latencies, rising from the first third to the last as they did, would pass the bound within GROWTH_S."""
    third = len(numbers) // 3
    if not third:
        return False
    rise_s = float(np.median(latency_s[-third:]) - np.median(latency_s[:third]))
    apart_s = float(np.mean([due_s[i] for i in numbers[-third:]]) - np.mean([due_s[i] for i in numbers[:third]]))
    return rise_s / apart_s * GROWTH_S > bound_s


def run_closed(system: System, per_query: int, goal: Goal, *, max_seconds: float, samples: int) -> list[float]:
    """Latencies (s) of queries of `per_query` videos, each due when the one before is answered: for the goal's seconds
    and until there are as many as `samples`, at most `max_seconds`; the goal's warm-up is not counted."""
    latency_s: list[float] = []
    start = due = system.now()
    for query in count():
        for number in range(query * per_query, (query + 1) * per_query):
            system.submit(number)
        answered: list[float] = []
        while len(answered) < per_query:
            answered += [at for _, at in system.wait(math.inf)]
        counted_s = due - start - goal.warmup_s
        if counted_s >= 0 and query >= goal.warmup_queries:
            latency_s.append(max(answered) - due)
        due = max(answered)
        if due - start >= max_seconds or (counted_s >= goal.seconds and len(latency_s) >= samples):
            break
    return latency_s


def burst_rate(system: System, queries: int) -> float:
    """Queries a second where all arrive at once."""
    start = system.now()
    for number in range(queries):
        system.submit(number)
    answered: list[float] = []
    while len(answered) < queries:
        answered += [at for _, at in system.wait(math.inf)]
    return queries / (max(answered) - start)
