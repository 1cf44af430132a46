"""`tdn-bench train` on several processes, one of which comes to grief: FAULT says how (kill, stop, raise), RANK
which, by FAULTY_RANK. It does so in the third step of a run's first start."""

import os
import signal
import sys
from pathlib import Path

from pipelines.errors import DataError
from tdn_bench.cli import run_command
from tdn_bench.train import main
from tdn_bench.training import TrainStep


def step(self, frames, labels, epoch, original=TrainStep.__call__):  # type: ignore[no-untyped-def]
    step.calls += 1  # type: ignore[attr-defined]
    mark = Path(os.environ["FAULT_MARK"])
    if step.calls == 3 and os.environ["RANK"] == os.environ["FAULTY_RANK"] and not mark.exists():
        mark.write_text(f"{os.getpid()}")
        if (fault := os.environ["FAULT"]) == "raise":
            raise DataError("a.webm: cannot be read; repair it")
        os.kill(os.getpid(), signal.SIGKILL if fault == "kill" else signal.SIGSTOP)
    return original(self, frames, labels, epoch)


step.calls = 0  # type: ignore[attr-defined]
TrainStep.__call__ = step  # type: ignore[method-assign]

if __name__ == "__main__":
    raise SystemExit(run_command(main, sys.argv[1:]))
