"""Commands in processes of their own: their memory, threads and failures stay their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from typing import IO

from tdn_bench.cli.logs import inherited


def last_error_line(output: IO[bytes]) -> str | None:
    """The last line that a process wrote to a file and that says something; None where it said nothing."""
    output.seek(0)
    said = (line.strip() for line in output.read().decode(errors="replace").splitlines())
    lines = [line for line in said if line]
    return lines[-1].removeprefix("error: ") if lines else None


PATIENCE_S = 30  # for what a process does when it is asked to end
LIFELINE = "TDN_BENCH_LIFELINE"  # a variable: the end of a pipe whose other end closes with the process that started us


def end_with_parent() -> None:
    """In a process that a `Command` started: end as by SIGTERM when that command's own process is gone."""
    number = os.environ.pop(LIFELINE, None)  # not for the processes that this one starts
    if number is None:
        return

    def watch() -> None:
        os.read(int(number), 1)  # nobody writes: it returns at the end
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True, name="parent").start()


class Command:
    """`python -m module flags` in a process of its own, which imports from the same places as this one.

    `threads` are torch's (default: one per core). Its stdout is this process's; `quiet` throws it away. `stderr` is all
    that it wrote there, once it has ended. It ends with this process, however that ends.
    """

    def __init__(self, module: str, flags: Sequence[str], threads: int | None = None, *, quiet: bool = False) -> None:
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        if threads is not None:
            environment["OMP_NUM_THREADS"] = str(threads)
        environment |= inherited()
        self.stderr = ""
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  # a pipe that nobody empties would stop it at 64 KiB
        its_end, our_end = os.pipe()
        self._lifeline = os.fdopen(our_end, "wb")
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *flags],
            stdout=subprocess.DEVNULL if quiet else None,
            stderr=self._errors,
            env=environment | {LIFELINE: str(its_end)},
            pass_fds=[its_end],
        )
        os.close(its_end)

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def wait(self, timeout_s: float | None = None) -> str | None:
        """Wait for its end; return its error in one line, if any. One that takes longer than `timeout_s` is ended."""
        status = None
        try:
            status = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.stop()
        with self._lifeline, self._errors:
            last_line = last_error_line(self._errors)
            self._errors.seek(0)
            self.stderr = self._errors.read().decode(errors="replace")
        if status is None:
            return f"did not end within {timeout_s:.0f} s"
        if status == 0:
            return None
        return f"killed by signal {-status}" if status < 0 else last_line or f"exit status {status}"

    def stop(self) -> None:
        """End it, and wait until it has ended: of itself, or it is killed."""
        self._process.terminate()
        try:
            self._process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
