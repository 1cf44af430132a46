"""Where the time of optimisation steps goes, by the clock of the device that takes them."""

from __future__ import annotations

import time
from itertools import pairwise

import torch

# In a step's order. `all_reduce` is what is left of the exchange of gradients when the last of them is computed; what
# runs beside the backward pass costs nothing. `other`: reading losses, saving, logging, agreeing with other processes.
PARTS = ("other", "wait", "forward", "backward", "all_reduce", "optimizer")


class StepClock:
    """Books the time since the lap before to a part; a step ends with the lap of its optimizer.

    The ledger has a thread's bookings of a whole epoch; this clock has every step by itself, on the device's own time.
    On a GPU a lap is an event in its stream, which nobody waits for until `take`. There `wait` and `other` are the time
    that the GPU stood idle: what the host does meanwhile costs nothing. Until it is started it books nothing.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._laps: list[tuple[str, float | torch.cuda.Event]] = []

    def start(self) -> None:
        """The first step's time begins; laps of before are forgotten."""
        self._laps = [("", self._now())]

    def lap(self, part: str) -> None:
        """Book the time since the last lap to one of PARTS."""
        if self._laps:
            self._laps.append((part, self._now()))

    def _now(self) -> float | torch.cuda.Event:
        if self._device.type == "cpu":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    def take(self) -> list[dict[str, float]]:
        """Milliseconds by part of every step that ended since the last call. Waits for the last one's end on a GPU."""
        ends = [i for i, (part, _) in enumerate(self._laps) if part == "optimizer"]
        if not ends:
            return []
        laps, self._laps = self._laps[: ends[-1] + 1], self._laps[ends[-1] :]
        self._laps[0] = ("", self._laps[0][1])
        steps = [dict.fromkeys(PARTS, 0.0)]
        for (_, before), (part, now) in pairwise(laps):
            steps[-1][part] += _elapsed_ms(before, now)
            if part == "optimizer":
                steps.append(dict.fromkeys(PARTS, 0.0))
        return steps[:-1]


def _elapsed_ms(before: float | torch.cuda.Event, now: float | torch.cuda.Event) -> float:
    if isinstance(before, float):
        assert isinstance(now, float)
        return 1000 * (now - before)
    assert not isinstance(now, float)
    now.synchronize()
    return before.elapsed_time(now)
