"""What the system asks of a training run by signals: to save, or to save and stop."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from tdn_bench.errors import Terminated

SAVE, STOP = 1, 2  # flags, as the processes of a run agree on them
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SAVING = (signal.SIGUSR1,)  # SLURM's warning, with `#SBATCH --signal=USR1@120`
# torchrun hands on a Ctrl-C that its processes have got from the terminal already: that is no second one.
SAME_KEY_S = 2.0


class Asked:
    """What was asked of this process. Before it trains, while nothing could be saved, a signal ends it at once."""

    def __init__(self) -> None:
        self.waits = False  # for the end of a step
        self.number: int | None = None  # of the signal that stops the run
        self.save = False
        self._since = 0.0

    @property
    def flags(self) -> int:
        return SAVE * self.save | STOP * (self.number is not None)

    def stop(self) -> None:
        """End as the signal would have; where another process got it, as by SIGTERM. Raises KeyboardInterrupt."""
        if self.number == signal.SIGINT:
            raise KeyboardInterrupt
        raise Terminated(self.number or signal.SIGTERM)

    def stop_if_asked(self) -> None:
        """`stop`, where this process was told to. Raises KeyboardInterrupt."""
        if self.number is not None:
            self.stop()

    def note(self, number: int, frame: FrameType | None) -> None:
        """The signals' handler. A second Ctrl-C does not wait for a step to end."""
        now = time.monotonic()
        if number in SAVING:
            self.save = True
        elif not self.waits:
            self.number = number
            self.stop()
        elif self.number is None:
            self.number, self._since = number, now
        elif number == signal.SIGINT and now - self._since > SAME_KEY_S:
            raise KeyboardInterrupt


@contextmanager
def listening() -> Iterator[Asked]:
    """Note signals in place of ending by them. What was ignored before (`nohup`) stays so; outside the main thread,
    where Python lets nobody listen, nothing is ever asked."""
    asked = Asked()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = {n: signal.getsignal(n) for n in (*STOPPING, *SAVING)}
    heard = [number for number, handler in before.items() if handler is not signal.SIG_IGN]
    for number in heard:
        signal.signal(number, asked.note)
    try:
        yield asked
    finally:
        for number in heard:
            signal.signal(number, before[number])
