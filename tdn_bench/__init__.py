"""tdn_bench: train, measure and guard Temporal Difference Networks, from video file to label."""

import os

# Before torch loads OpenMP. Its threads spin while they wait, by default, and then take the processors away from
# the threads that decode video, or from whatever else runs.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"
