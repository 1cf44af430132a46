"""Commands in processes of their own: their memory, threads and failures stay their own."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence


class Command:
    """`python -m module flags`, started, with `threads` of torch's where given; its stdout is this process's."""

    def __init__(self, module: str, flags: Sequence[str], threads: int | None = None) -> None:
        environment = os.environ | ({"OMP_NUM_THREADS": str(threads)} if threads is not None else {})
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  # a pipe that nobody empties would stop it at 64 KiB
        self._process = subprocess.Popen([sys.executable, "-m", module, *flags], stderr=self._errors, env=environment)

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def wait(self) -> str | None:
        """Wait for its end; return its error in one line, if any."""
        status = self._process.wait()
        self._errors.seek(0)
        lines = [line for line in self._errors.read().decode(errors="replace").splitlines() if line.strip()]
        self._errors.close()
        if status == 0:
            return None
        return lines[-1].removeprefix("error: ") if lines else f"exit status {status}"

    def stop(self) -> None:
        """End it, and wait until it has ended."""
        self._process.terminate()
        self._process.wait()
