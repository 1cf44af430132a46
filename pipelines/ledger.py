"""Where the time of a run goes: each thread books its work by stage, where it happens, and its waiting as idle.

Whoever reports a run's time breakdown holds what a thread booked against the time that it lived. Seconds are wall time:
threads that share a core book more than they compute, and `cpu_s` shows it.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

IDLE = "idle"
# In a video's order; `copy` is into the batch and to the device, `copy_back` the logits' way to the host. A run has
# `infer`, or `train`: the whole step.
WORK = ("plan", "open", "read", "demux", "decode", "augment", "copy", "infer", "train", "copy_back")
MAX_SPANS = 200_000  # that a trace keeps of a thread: some 40 MB
Span = tuple[str, float, float, str]  # stage, or "" for a whole task; start, end; video or batch


class Lane:
    """One thread's page of the ledger, which no other thread writes to. `seconds` holds what it booked, by stage.

    Between `begin` and `end` a clock runs, which `lap` reads; all times are seconds of `time.perf_counter`.
    """

    def __init__(self, name: str = "", since_s: float = -math.inf, trace: bool = False) -> None:
        self.name, self.what, self.thread = name, "", threading.current_thread()
        self.born_s = self.last_s = self.begun_s = time.perf_counter()
        self.idle_from_s: float | None = None
        self.restart(since_s, trace)

    def restart(self, since_s: float, trace: bool) -> None:
        """Forget all before."""
        self.since_s, self.until_s = since_s, math.inf
        self.seconds = dict.fromkeys((*WORK, IDLE), 0.0)
        self.cpu_s = 0.0
        self.spans: list[Span] | None = [] if trace else None

    @property
    def pool(self) -> str:
        """The threads that share its work: "decode" of "decode_3"."""
        return self.name.partition("_")[0]

    @property
    def busy_s(self) -> float:
        """Seconds that were booked to work."""
        return sum(self.seconds[stage] for stage in WORK)

    def add(self, stage: str, start_s: float, end_s: float, what: str = "") -> None:
        """Book a span to one of WORK or IDLE: what of it lies in the measured period."""
        if start_s < self.since_s:
            start_s = self.since_s
        if end_s > self.until_s:
            end_s = self.until_s
        if end_s > start_s:
            self.seconds[stage] += end_s - start_s
            if self.spans is not None:
                self.keep(stage, start_s, end_s, what)

    def keep(self, name: str, start_s: float, end_s: float, what: str) -> None:
        """Note a span for the trace, where one is wanted."""
        if self.spans is not None and len(self.spans) < MAX_SPANS:
            self.spans.append((name, start_s, end_s, what))

    def begin(self, what: str = "") -> None:
        """A task begins: until now the thread had none."""
        self.begun_s = self.last_s = time.perf_counter()
        if self.idle_from_s is not None:
            self.add(IDLE, self.idle_from_s, self.last_s)
        self.what, self.idle_from_s, self._cpu_s = what, None, time.thread_time()

    def lap(self, stage: str) -> None:
        """Book the time since the task began or the last lap."""
        now = time.perf_counter()
        self.add(stage, self.last_s, now, self.what)
        self.last_s = now

    def end(self) -> None:
        """The task is done."""
        self.idle_from_s = time.perf_counter()
        self.cpu_s += time.thread_time() - self._cpu_s
        self.keep("", max(self.begun_s, self.since_s), self.idle_from_s, self.what)


class _Nobody(Lane):
    """The lane of a ledger that is off: nothing is booked."""

    def add(self, stage: str, start_s: float, end_s: float, what: str = "") -> None: ...
    def begin(self, what: str = "") -> None: ...
    def lap(self, stage: str) -> None: ...
    def end(self) -> None: ...


NOBODY = _Nobody()


class Ledger:
    """The lanes of all threads of a run, and those of its GPU. `start` and `stop` are the consumer's to call, while
    no other thread is at work: they bound the measured period, and what straddles them is cut.

    Args:
        device: Where the network runs; work on a GPU is timed by its own events.
        on: False books nothing, and costs next to nothing.
        trace: Keep every span, at most MAX_SPANS a thread, for a trace.
    """

    def __init__(self, device: torch.device | str = "cpu", *, on: bool = True, trace: bool = False) -> None:
        self.device, self.on, self.trace = torch.device(device), on, trace
        self.lanes: list[Lane] = []
        self.device_lanes: list[Lane] = []
        self.since_s, self.until_s = -math.inf, math.inf
        self._local = threading.local()
        self._zero: torch.cuda.Event | None = None  # when the GPU's clock stood at since_s
        self._open: list[tuple[Lane, str, torch.cuda.Event, torch.cuda.Event, str]] = []  # begun, nobody waited

    def lane(self) -> Lane:
        """That of the thread that asks."""
        if not self.on:
            return NOBODY
        if not hasattr(self._local, "lane"):
            name = threading.current_thread().name
            self._local.lane = Lane(name, self.since_s, self.trace)
            self._local.device_lane = Lane(f"{self.device.type}-{name}", self.since_s, self.trace)
            self.lanes.append(self._local.lane)
            self.device_lanes.append(self._local.device_lane)
        return self._local.lane

    @contextmanager
    def on_device(self, stage: str, what: str = "", *, wait: bool = True) -> Iterator[None]:
        """Time work on a GPU by events on the thread's current stream, and wait for it; or, so that the host may run
        ahead, book it at `stop`. On a CPU the thread's own clock tells all."""
        if self._zero is None:
            yield
            return
        self.lane()
        stream = torch.cuda.current_stream(self.device)
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record(stream)
        yield
        end.record(stream)
        if wait:
            self._book(self._local.device_lane, stage, begin, end, what)
        else:
            self._open.append((self._local.device_lane, stage, begin, end, what))

    def _book(self, lane: Lane, stage: str, begin: torch.cuda.Event, end: torch.cuda.Event, what: str) -> None:
        assert self._zero is not None
        end.synchronize()
        start_s = self.since_s + self._zero.elapsed_time(begin) / 1000
        lane.add(stage, start_s, start_s + begin.elapsed_time(end) / 1000, what)

    def start(self) -> None:
        """The measured period begins; the calling thread is the consumer."""
        self.consumer = self.lane()
        if self.on and self.device.type == "cuda":
            self._zero = torch.cuda.Event(enable_timing=True)
            self._zero.record(torch.cuda.current_stream(self.device))
            self._zero.synchronize()
        self.since_s = time.perf_counter()
        self.lanes = [lane for lane in self.lanes if lane.thread.is_alive()]
        self.device_lanes = [lane for lane in self.device_lanes if lane.thread.is_alive()]
        for lane in (*self.lanes, *self.device_lanes):
            lane.restart(self.since_s, self.trace)
        self.consumer.name = "consumer"
        self.consumer.begin("run")

    def stop(self) -> None:
        """The measured period ends."""
        self.consumer.end()
        self.until_s = time.perf_counter()
        for lane in (*self.lanes, *self.device_lanes):
            lane.until_s = self.until_s
            if lane.idle_from_s is not None:
                lane.add(IDLE, lane.idle_from_s, self.until_s)
                lane.idle_from_s = self.until_s
        for work in self._open:
            self._book(*work)
        self._open.clear()


OFF = Ledger(on=False)
