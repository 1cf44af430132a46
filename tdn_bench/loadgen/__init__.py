"""Load for a system under test: arrivals, the driver that keeps to them, the search for the highest load, scenarios."""

from tdn_bench.loadgen.arrivals import Schedule, live_streams, poisson
from tdn_bench.loadgen.driver import Goal, System, Trial, burst_rate, run_closed, run_schedule
from tdn_bench.loadgen.pipeline import Pipeline
from tdn_bench.loadgen.scenarios import SCENARIOS, LiveStreams, MultiStream, Offline, Server, SingleStream
from tdn_bench.loadgen.serving import Service, open_service

__all__ = [
    "SCENARIOS",
    "Goal",
    "LiveStreams",
    "MultiStream",
    "Offline",
    "Pipeline",
    "Schedule",
    "Server",
    "Service",
    "SingleStream",
    "System",
    "Trial",
    "burst_rate",
    "live_streams",
    "open_service",
    "poisson",
    "run_closed",
    "run_schedule",
]
