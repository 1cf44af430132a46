"""Schedules of arrivals: when each query is due, and which video it asks for. Independent of any system."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from heapq import heapify, heapreplace
from itertools import count

import numpy as np


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
