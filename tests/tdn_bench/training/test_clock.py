"""Laps against times that are known, on a CPU's clock and on events as a GPU has them."""

import time
from typing import Any

import pytest
import torch

from tdn_bench.training.clock import PARTS, StepClock

TIMES = [("wait", 1.0), ("forward", 2.0), ("backward", 4.0), ("forward", 1.0), ("backward", 3.0), ("all_reduce", 0.5)]
WANTED = {"other": 0, "wait": 1, "forward": 3, "backward": 7, "all_reduce": 0.5, "optimizer": 2}


class Event:
    """As torch.cuda.Event, on a clock that the test turns; read only after somebody waited."""

    now_ms = 0.0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing
        self.done = False

    def record(self, stream: object) -> None:
        self.at_ms = Event.now_ms

    def synchronize(self) -> None:
        self.done = True

    def elapsed_time(self, end: "Event") -> float:
        assert end.done
        return end.at_ms - self.at_ms


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_laps_are_booked_by_step_and_part(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    monkeypatch.setattr(time, "perf_counter", lambda: Event.now_ms / 1000)
    clock = StepClock(torch.device(device))

    def laps(*times: tuple[str, float]) -> None:
        for part, ms in times:
            Event.now_ms += ms
            clock.lap(part)

    laps(("forward", 5.0))  # not started: booked nowhere
    assert clock.take() == []
    clock.start()
    laps(*TIMES, ("optimizer", 2.0), ("other", 9.0), ("wait", 1.0))
    (first,) = clock.take()
    assert first == pytest.approx(WANTED)
    assert clock.take() == []
    laps(*TIMES[1:], ("optimizer", 2.0))
    laps(*TIMES, ("optimizer", 2.0))
    assert clock.take() == [pytest.approx(WANTED | {"other": 9}), pytest.approx(WANTED)]
    assert tuple(first) == PARTS
    clock.start()
    laps(("optimizer", 2.0))
    assert clock.take() == [pytest.approx(dict.fromkeys(PARTS, 0) | {"optimizer": 2})]


def test_the_parts_are_all_of_the_time() -> None:
    clock = StepClock(torch.device("cpu"))
    clock.start()
    begun = time.perf_counter()
    for _ in range(20):
        for part in ("other", "wait", "forward", "backward", "optimizer"):
            time.sleep(0.0005)
            clock.lap(part)
    whole_ms = 1000 * (time.perf_counter() - begun)
    taken: list[dict[str, Any]] = clock.take()
    assert len(taken) == 20
    assert sum(sum(step.values()) for step in taken) == pytest.approx(whole_ms, rel=0.02)
