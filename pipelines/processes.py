"""Processors, work divided over processes, and how Ctrl-C ends it."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def map_in_processes(work: Callable[[T], R], items: Sequence[T], workers: int, chunksize: int = 1) -> Iterator[R]:
    """What `work` makes of each item, in order, by `workers` new processes that take `chunksize` items at a time.

    Ctrl-C reaches all processes of a terminal. It is the caller's alone: each of the others would print a traceback.
    They finish what they hold, as they do when the caller stops listening for another reason, and begin nothing more.
    """
    # spawn: a fork of a process with threads (DALI, OpenMP) can deadlock
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            try:
                results = pool.map(work, items, chunksize=chunksize)  # starts the processes, which inherit the mask
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)  # here an interruption that was held back is raised
            yield from results
        finally:
            pool.shutdown(cancel_futures=True)
