"""The time that a comparison may take, and what its rounds of fresh processes take of it.

Most of a round is not measuring: processes start, build their engines and get warm. So what is left for turns is what
the rounds that a verdict needs leave of --max-seconds; where they leave nothing, that is said as soon as it is known.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from tdn_bench.errors import UserError

RESERVE_S = 5.0  # for the start of the command, and for the verdict
SURE = 0.5  # of what a first, cold round took: later ones are quicker, but not by more


class OutOfTime(UserError):
    """The time is over in the midst of a round."""


class Budget:
    """`max_seconds` from now on, by `clock` (seconds), for at least `min_rounds` rounds."""

    def __init__(self, max_seconds: float, min_rounds: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._max_seconds, self._min_rounds, self._begun = max_seconds, min_rounds, clock()
        self._rounds, self._reserve_s = 0, RESERVE_S
        self._start_s = self._turn_s = 0.0  # of a round: the most so far; of a turn of all workers

    @property
    def enough(self) -> bool:
        """Whether there are as many rounds as a verdict needs."""
        return self._rounds >= self._min_rounds

    def left_s(self) -> float:
        """What is left, apart from the reserve."""
        return self._begun + self._max_seconds - self._reserve_s - self.clock()

    def passed_s(self) -> float:
        """Seconds since it began."""
        return self.clock() - self._begun

    def keep(self, seconds: float) -> None:
        """Keep as long for what follows the last round, beside RESERVE_S."""
        self._reserve_s = RESERVE_S + seconds

    def next_round_s(self, wanted_s: float, min_turns: int) -> float | None:
        """How long the next round may take turns, at most `wanted_s`; it takes `min_turns` turns in any case. None
        where there is neither time for one more round nor need. Raises UserError where there is need."""
        needed = self._min_rounds - self._rounds
        least_s = self._start_s + min_turns * self._turn_s
        if needed <= 0 and self.left_s() < least_s:
            return None
        self._check(needed * least_s)
        turns_s = self.left_s() / max(needed, 1) - self._start_s
        return max(0.0, min(wanted_s, turns_s - 2 * self._turn_s))  # an even number of turns ends it, so late by two

    def is_ready(self, start_s: float, turn_s: float, min_turns: int) -> None:
        """The workers of a round are ready after `start_s`, and one turn of all took `turn_s`. Raises UserError where
        the rounds that are needed cannot take place, by far."""
        needed = self._min_rounds - self._rounds
        self._check((needed - 1) * SURE * start_s + needed * min_turns * SURE * turn_s)

    def took(self, start_s: float, turn_s: float) -> None:
        """A round is over: its start and end without its turns, and one turn."""
        self._rounds += 1
        self._start_s, self._turn_s = max(self._start_s, start_s), max(self._turn_s, turn_s)

    def timeout(self) -> float:
        """How long to wait for a worker. Raises OutOfTime where there is no time left."""
        if (left_s := self.left_s()) <= 0:
            raise OutOfTime(self._refusal("are not over by then"))
        return left_s

    def _check(self, needed_s: float) -> None:
        if needed_s > 0 and needed_s > self.left_s():
            total_s = self._max_seconds - self.left_s() + needed_s
            raise UserError(self._refusal(f"take about {10 * math.ceil(total_s / 10)} s here"))

    def _refusal(self, what: str) -> str:
        rounds = f"{self._min_rounds} rounds of fresh processes, which a verdict needs,"
        return f"--max-seconds {self._max_seconds:g}: {rounds} {what}; give it more, or measure fewer engines or videos"
