"""How long it takes from video file to label, where the time goes, and what the figures are worth."""

from tdn_bench.measurement.gpu_monitor import GpuMonitor
from tdn_bench.measurement.interference import Watch
from tdn_bench.measurement.statistics import (
    PERCENTILES,
    Change,
    Interval,
    TooFewSamples,
    change,
    half_width,
    percentile,
    rate_interval,
    samples_for_percentile,
    share_interval,
)
from tdn_bench.measurement.throughput import OutputFlags, Throughput, TimingFlags, measure, run_batches
from tdn_bench.measurement.time_breakdown import TimeBreakdown, break_down, save_trace

__all__ = [
    "PERCENTILES",
    "Change",
    "GpuMonitor",
    "Interval",
    "OutputFlags",
    "Throughput",
    "TimeBreakdown",
    "TimingFlags",
    "TooFewSamples",
    "Watch",
    "break_down",
    "change",
    "half_width",
    "measure",
    "percentile",
    "rate_interval",
    "run_batches",
    "samples_for_percentile",
    "save_trace",
    "share_interval",
]
