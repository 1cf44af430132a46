"""Where the time went: what a ledger's threads booked, by stage; what is unexplained, the bottleneck, the overlap.

The *ledger* (`pipelines.ledger`) is where every thread books its work and its waiting while it runs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.files import write_whole
from pipelines.ledger import IDLE, MAX_SPANS, WORK, Lane, Ledger
from tdn_bench.errors import UserError

MOST_UNEXPLAINED_PERCENT = 5


@dataclass(frozen=True)
class TimeBreakdown:
    """What the lanes of a measured period come to. A pool is the threads that share their work."""

    stages_s: dict[str, float]  # summed over threads; what a GPU did is by its own clock; idle is the consumer's
    threads: list[dict[str, Any]]  # one row a lane that worked
    unexplained_percent: float  # the largest share of a thread's time that it did not book
    overlap_efficiency: float  # time booked as work by the busiest pool ÷ (its threads × wall)
    bottleneck: str  # that pool's largest stage

    def figures(self, videos: int) -> dict[str, object]:
        """As a record has them, stages in milliseconds a video."""
        return {f"ledger_{stage}_ms": 1000 * seconds / videos for stage, seconds in self.stages_s.items()} | {
            "ledger_unexplained_percent": self.unexplained_percent,
            "overlap_efficiency": self.overlap_efficiency,
            "bottleneck": self.bottleneck,
        }

    def reasons(self) -> list[str]:
        """Why these figures are not to be relied on; empty where they are."""
        return [
            f"{row['unexplained_percent']:.1f} % of the time of thread {row['thread']} is unexplained"
            for row in self.threads
            if abs(row.get("unexplained_percent", 0)) > MOST_UNEXPLAINED_PERCENT
        ]


def break_down(ledger: Ledger) -> TimeBreakdown:
    """The breakdown of the time between the ledger's start and stop."""
    host = [lane for lane in ledger.lanes if lane.busy_s or lane is ledger.consumer]
    device = [lane for lane in ledger.device_lanes if lane.busy_s]
    pools: dict[str, list[Lane]] = {}
    threads: list[dict[str, Any]] = []
    for lane in (*host, *device):
        pools.setdefault(lane.pool, []).append(lane)
        life_s = ledger.until_s - max(ledger.since_s, lane.born_s)
        row = {"thread": lane.name, "wall_s": life_s, "busy_percent": 100 * lane.busy_s / life_s}
        row |= {f"{stage}_s": seconds for stage, seconds in lane.seconds.items() if seconds}
        if lane in host:
            unexplained_s = life_s - lane.busy_s - lane.seconds[IDLE]
            row |= {"unexplained_percent": 100 * unexplained_s / life_s, "cpu_s": lane.cpu_s}
        threads.append(row)
    busy_s = {name: sum(lane.busy_s for lane in lanes) / len(lanes) for name, lanes in pools.items()}
    busiest = pools[max(busy_s, key=busy_s.__getitem__)] if pools else []
    work_s = {stage: _sum(busiest, stage) for stage in WORK}
    return TimeBreakdown(
        {stage: _sum(device, stage) or _sum(host, stage) for stage in WORK} | {IDLE: ledger.consumer.seconds[IDLE]},
        threads,
        max((abs(row.get("unexplained_percent", 0)) for row in threads), default=0),
        max(busy_s.values(), default=0) / (ledger.until_s - ledger.since_s),
        max(work_s, key=work_s.__getitem__),
    )


def _sum(lanes: list[Lane], stage: str) -> float:
    return sum(lane.seconds[stage] for lane in lanes)


def save_trace(ledger: Ledger, path: Path) -> None:
    """`write_trace` for a command: raises UserError."""
    try:
        write_trace(ledger, path)
    except OSError as e:
        raise UserError(f"--trace {path}: cannot be written ({e.strerror})") from e


def write_trace(ledger: Ledger, path: Path) -> None:
    """The measured period for Perfetto or chrome://tracing, in µs: a row a thread, tasks with their stages below them.
    Raises OSError."""
    events: list[dict[str, Any]] = []
    full = []
    for tid, lane in enumerate((*ledger.lanes, *ledger.device_lanes)):
        if not lane.spans:
            continue
        if len(lane.spans) == MAX_SPANS:
            full.append(lane.name)
        place = {"pid": 1, "tid": tid}
        events.append({"ph": "M", "name": "thread_name", **place, "args": {"name": lane.name}})
        for stage, start_s, end_s, what in sorted(lane.spans, key=lambda span: (span[1], -span[2])):
            at = {"ts": round(1e6 * (start_s - ledger.since_s), 3), "dur": round(1e6 * (end_s - start_s), 3)}
            events.append({"ph": "X", "name": stage or what, **place, **at, "args": {"of": what}})
    note = {"cut": f"only the first {MAX_SPANS} spans of {', '.join(full)}"} if full else {}
    write_whole(path, json.dumps({"traceEvents": events, "displayTimeUnit": "ms", "otherData": note}).encode())
