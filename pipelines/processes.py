"""Processors, work divided over processes, and how Ctrl-C ends it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def max_workers() -> int:
    """More threads or processes than this gain nothing here, and thousands take the machine down."""
    return 16 * cores()


def _end_with_parent() -> None:
    """Let this process end when the one that started it has: it would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="parent").start()


def map_in_processes(work: Callable[[T], R], items: Sequence[T], workers: int, chunksize: int = 1) -> Iterator[R]:
    """What `work` makes of each item, in order, by `workers` new processes that take `chunksize` items at a time.

    Ctrl-C reaches all processes of a terminal. It is the caller's alone: each of the others would print a traceback.
    They finish what they hold, as they do when the caller stops listening for another reason, and begin nothing more.
    Where the caller's process is killed they end at once. Raises BrokenProcessPool where one of them is killed.
    """
    workers = max(1, min(workers, max_workers(), -(-len(items) // chunksize)))
    # spawn: a fork of a process with threads (DALI, OpenMP) can deadlock
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=spawn, initializer=_end_with_parent) as pool:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            try:
                results = pool.map(work, items, chunksize=chunksize)  # starts the processes, which inherit the mask
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)  # here an interruption that was held back is raised
            yield from results
        finally:
            pool.shutdown(cancel_futures=True)
