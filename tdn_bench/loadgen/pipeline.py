"""Video files to labels under load: threads that decode, and one that runs the network on what is decoded by then."""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, Self

from pipelines.ledger import IDLE, OFF, Ledger


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
