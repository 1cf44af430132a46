"""tdn_bench: train, measure and guard Temporal Difference Networks, from video file to label."""

__version__ = "0.1.0"
