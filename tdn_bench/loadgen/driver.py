"""Load for a system under test: schedules of arrivals, the generator that keeps to them, verdicts, the search for the
highest load. Nothing here knows what a query is; what answers them is a `System`, whose clock the generator reads.

A latency counts from the *scheduled* arrival: a generator that waited for the system would hide what it delays.
"""

from __future__ import annotations

import math
import queue
import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from heapq import heapify, heapreplace
from itertools import count
from typing import Any, Protocol, Self

import numpy as np
from scipy import stats as distributions

from pipelines.ledger import IDLE, OFF, Ledger
from tdn_bench.measurement.statistics import Interval

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
class Schedule:
    """Arrivals, seconds from the start of a trial, ascending; and the video that each asks for."""

    due_s: Sequence[float]
    videos: Sequence[int]


@lru_cache(maxsize=8)
def _pass(number: int, videos: int, seed: int) -> np.ndarray:
    return np.random.default_rng((seed, number)).permutation(videos)


def nth_video(number: int, videos: int, seed: int) -> int:
    """The position that query `number` asks for: pass after pass over `videos` videos, each shuffled, so that none is
    asked for more often than another by more than one."""
    return int(_pass(number // videos, videos, seed)[number % videos])


def poisson(rate_per_s: float, seconds: float, seed: int, *, videos: int) -> Schedule:
    """Arrivals independent of each other and of any system: exponential gaps, for `seconds`."""
    rng = np.random.default_rng(seed)
    expected = rate_per_s * seconds
    due_s = np.cumsum(rng.exponential(1 / rate_per_s, int(expected + 10 * math.sqrt(expected) + 100)))
    due_s = due_s[due_s < seconds]
    return Schedule(due_s.tolist(), [nth_video(i, videos, seed) for i in range(len(due_s))])


def live_streams(streams: float, seconds: float, seed: int, *, lengths_s: Sequence[float]) -> Schedule:
    """`streams` streams that play videos of `lengths_s` back to back: a clip is due when its last frame has arrived.
    A trial joins each stream at a random moment of its first video."""
    lengths_s = [float(length) for length in lengths_s]
    rng, order = np.random.default_rng(seed), (nth_video(i, len(lengths_s), seed) for i in count())
    first = [next(order) for _ in range(int(streams))]
    ends = [(lengths_s[v] * rng.random(), stream, v) for stream, v in enumerate(first)]
    heapify(ends)
    due_s, videos = [], []
    while ends[0][0] < seconds:
        at, stream, video = ends[0]
        due_s.append(at)
        videos.append(video)
        following = next(order)
        heapreplace(ends, (at + lengths_s[following], stream, following))
    return Schedule(due_s, videos)


def share_interval(successes: int, total: int, confidence: float = 0.95) -> Interval:
    """A share and its Clopper-Pearson interval. The lower end of the share of latencies within a bound reaches 0.99
    exactly where the upper end of their p99 (`stats.percentile`) is within the bound."""
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


def search(
    passes: Callable[[float], bool],
    confirms: Callable[[float], bool],
    guess: float,
    *,
    resolution: float,
    lowest: float,
    whole: bool = False,
) -> tuple[float | None, float]:
    """The highest load that passes and is confirmed, and the lowest that was refused, no more than `resolution` apart
    (a share; of `whole` loads at least one). Doubles or halves from a guess until it has both, then bisects. Where a
    load is not confirmed it goes back by growing steps, and bisects what it went back too far; None where nothing down
    to `lowest` passes."""

    def step(load: float) -> float:
        return max(1, math.floor(load * resolution)) if whole else load * resolution

    best, refused = None, math.inf
    load = max(lowest, math.floor(guess)) if whole else guess
    while best is None or refused == math.inf:
        if passes(load):
            best = load
        else:
            refused = load
        if refused < math.inf and best is None and load <= lowest:
            return None, refused
        load = load * 2 if refused == math.inf else max(lowest, load // 2 if whole else load / 2)

    def bisect(passes: Callable[[float], bool], best: float, refused: float) -> tuple[float, float]:
        while refused - best > step(best):
            middle = (best + refused) // 2 if whole else (best + refused) / 2
            best, refused = (middle, refused) if passes(middle) else (best, middle)
        return best, refused

    best, refused = bisect(passes, best, refused)
    share = 1 + resolution
    while not confirms(best):
        refused, best, share = best, min(best - 1, best // share) if whole else best / share, share * share
        if best < lowest:
            return None, refused
    return bisect(confirms, best, refused)


class Pipeline:
    """Queries through threads that decode and one that runs the network on what is decoded by then, or within
    `batch_wait_s` of the first.

    `decode` takes numbers of queries, at most `decode_batch`, and returns a clip or None for each; `classify` takes
    the clips of a batch and returns when their labels are on the host. A query without a clip is answered by that.
    Both book their stages in their thread's lane of the ledger, whose period begins here and ends with `usage`.
    """

    def __init__(
        self,
        decode: Callable[[list[int]], Iterable[Any]],
        classify: Callable[[list[Any]], None],
        *,
        threads: int,
        decode_batch: int,
        batch_size: int,
        batch_wait_s: float = 0,
        ledger: Ledger = OFF,
    ) -> None:
        self._ledger = ledger
        self._decode, self._classify, self._decode_batch = decode, classify, decode_batch
        self._batch_size, self._batch_wait_s, self._decoders = batch_size, batch_wait_s, threads
        self._arrived: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        # bounded: clips are large, and decoding ahead of the network gains nothing
        self._decoded: queue.Queue[tuple[int, Any] | None] = queue.Queue(2 * batch_size)
        self._answers: queue.SimpleQueue[tuple[int, float] | BaseException] = queue.SimpleQueue()
        self._start, self._busy = time.perf_counter(), {"decoder": 0.0, "engine": 0.0}
        self._lock = threading.Lock()
        self._batches = self._clips = 0
        targets = {f"query_{i}": self._decode_all for i in range(threads)} | {"engine": self._classify_all}
        self._threads = [
            threading.Thread(target=self._guard, args=(t,), name=name, daemon=True) for name, t in targets.items()
        ]
        ledger.start()
        for thread in self._threads:
            thread.start()

    def now(self) -> float:
        return time.perf_counter()

    def submit(self, number: int) -> None:
        self._arrived.put(number)

    def wait(self, until_s: float) -> list[tuple[int, float]]:
        answers: list[tuple[int, float]] = []
        start = self.now()
        timeout = None if until_s == math.inf else max(0, until_s - start)
        with suppress(queue.Empty):
            while True:
                answer = self._answers.get_nowait() if answers else self._answers.get(timeout=timeout)
                if isinstance(answer, BaseException):
                    raise answer
                answers.append(answer)
        self._ledger.lane().add(IDLE, start, self.now())
        return answers

    def cancel(self) -> int:
        return len(_taken(self._arrived))

    def usage(self) -> dict[str, float]:
        """Since the start: batches, their mean size, and the share of the time that decoders and engine were busy."""
        self._ledger.stop()
        wall_s = self.now() - self._start
        return {
            "batches": self._batches,
            "mean_batch_size": self._clips / max(1, self._batches),
            "decoder_occupancy_percent": 100 * self._busy["decoder"] / (wall_s * self._decoders),
            "engine_occupancy_percent": 100 * self._busy["engine"] / wall_s,
        }

    def _guard(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:  # noqa: BLE001  # raised again by `wait`, in the thread that can end the run
            self._answers.put(error)

    def _decode_all(self) -> None:
        while (number := self._arrived.get()) is not None:
            numbers = [number, *(n for n in _taken(self._arrived, self._decode_batch - 1) if n is not None)]
            lane = self._ledger.lane()
            lane.begin(f"query {number}")
            start = self.now()
            clips = self._decode(numbers)
            lane.end()
            with self._lock:
                self._busy["decoder"] += self.now() - start
            for done, clip in zip(numbers, clips, strict=True):
                if clip is None:
                    self._answers.put((done, self.now()))
                else:
                    self._decoded.put((done, clip))

    def _classify_all(self) -> None:
        while (item := self._decoded.get()) is not None:
            batch, wait_until_s = [item], self.now() + self._batch_wait_s
            while len(batch) < self._batch_size:
                try:
                    item = self._decoded.get(timeout=max(0, wait_until_s - self.now()))
                except queue.Empty:
                    break
                if item is None:
                    return
                batch.append(item)
            lane = self._ledger.lane()
            lane.begin(f"batch {self._batches}")
            start = self.now()
            self._classify([clip for _, clip in batch])
            done = self.now()
            lane.end()
            self._busy["engine"] += done - start
            self._batches, self._clips = self._batches + 1, self._clips + len(batch)
            for number, _ in batch:
                self._answers.put((number, done))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.cancel()
        decoders, engine = self._threads[:-1], self._threads[-1]
        while any(thread.is_alive() for thread in decoders):
            if not engine.is_alive():  # it failed: nobody else takes what they decoded
                _taken(self._decoded)
            for thread in decoders:
                self._arrived.put(None)
                thread.join(0.05)
        if engine.is_alive():
            self._decoded.put(None)
            engine.join()


def _taken(source: queue.SimpleQueue[Any] | queue.Queue[Any], most: float = math.inf) -> list[Any]:
    """What a queue holds now, at most `most`."""
    found: list[Any] = []
    with suppress(queue.Empty):
        while len(found) < most:
            found.append(source.get_nowait())
    return found
