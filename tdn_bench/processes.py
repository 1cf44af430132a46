"""Commands in processes of their own: their memory, threads and failures stay their own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence


def start(module: str, flags: Sequence[str], threads: int | None = None) -> subprocess.Popen[str]:
    """Start `python -m module flags`, with `threads` of torch's where given."""
    environment = os.environ | ({"OMP_NUM_THREADS": str(threads)} if threads is not None else {})
    command = [sys.executable, "-m", module, *flags]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)


def finish(process: subprocess.Popen[str]) -> str | None:
    """Wait for a command; return its error in one line, if any."""
    _, err = process.communicate()
    if process.returncode == 0:
        return None
    lines = [line for line in err.splitlines() if line.strip()]
    return lines[-1].removeprefix("error: ") if lines else f"exit status {process.returncode}"
