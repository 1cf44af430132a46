"""tdn_bench: train, measure and guard Temporal Difference Networks, from video file to label."""

import os
import sys
from typing import TYPE_CHECKING

from pipelines.exports import lazy_exports

if TYPE_CHECKING:
    from tdn_bench.recognizer import load_recognizer

__all__ = ["load_recognizer"]

# Before torch loads OpenMP. Its threads spin while they wait, by default, and then take the processors away from
# the threads that decode video, or from whatever else runs.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# `python -m tdn_bench.COMMAND` is being looked for (Python says so). Its imports take seconds, before `run_command`:
# how they end is said in the same way.
if sys.argv[:1] == ["-m"] and any(word.startswith("tdn_bench") for word in sys.orig_argv):
    from tdn_bench.errors import begin, end

    sys.excepthook = lambda kind, error, trace: sys.exit(end(error))
    begin()

__version__ = "0.1.0"
__getattr__, __dir__ = lazy_exports(__name__, {"recognizer": ("load_recognizer",)})
