"""Scenarios as MLPerf Inference names them, decoding included, and live streams.

A query is a video file, answered when its logits are on the host. Latencies count from the scheduled arrival, and a
percentile that the samples do not bound on both sides is refused, not printed.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from statistics import median
from typing import Any, Protocol

from tdn_bench.cli import BuildFlags, WorkloadFlags, settings_of
from tdn_bench.cli.progress import progress
from tdn_bench.cli.ranges import DAY_S, LEAST, MAX_SEED, check_ranges
from tdn_bench.errors import UserError
from tdn_bench.loadgen.arrivals import Schedule, live_streams, poisson
from tdn_bench.loadgen.driver import Goal, Trial, run_schedule
from tdn_bench.loadgen.findings import Findings
from tdn_bench.loadgen.search import search
from tdn_bench.loadgen.serving import Service, open_service
from tdn_bench.measurement.gpu_monitor import GpuMonitor
from tdn_bench.measurement.interference import Watch
from tdn_bench.measurement.statistics import Interval, rate_interval, samples_for_percentile, share_interval
from tdn_bench.measurement.throughput import OutputFlags, Throughput, TimingFlags, measure
from tdn_bench.measurement.time_breakdown import MOST_UNEXPLAINED_PERCENT, save_trace
from tdn_bench.records import Record, make_record

BOUND_MEDIANS = 5  # the default bound of Server, in medians of SingleStream's latency


@dataclass(frozen=True, kw_only=True)
class Offline:
    """All videos at once, in whole passes: videos per second, as `tdn-bench throughput` measures, with an interval."""

    workload: WorkloadFlags = field(default_factory=WorkloadFlags)
    timing: TimingFlags = field(default_factory=TimingFlags)
    output: OutputFlags = field(default_factory=OutputFlags)

    def run(self) -> Record:
        """`tdn-bench throughput`, and the interval of its rate."""
        _check_engine(self.workload)
        record = measure(Throughput(workload=self.workload, timing=self.timing, output=self.output))
        found = Findings()
        found.interval("videos", "per_s", rate_interval(record.samples["videos"], record.samples["interval_s"]))
        found.figures |= record.figures
        name, settings = self.output.name or f"offline-{record.name}", {**record.settings, "scenario": "offline"}
        return replace(record, kind="scenario", name=name, figures=found.figures, settings=settings)


@dataclass(frozen=True, kw_only=True)
class QueryFlags:
    """What the scenarios with latencies share."""

    seconds: float = 10
    """Measure for at least this long, in seconds, and until there are enough samples for the percentiles. In a search
    for the highest load, a trial passes after this long at the earliest."""
    max_seconds: float = 60
    """End after this long at the latest, in seconds, and refuse percentiles that lack samples. A trial that is still
    undecided counts as failed. At a low load a trial takes as long as its samples need."""
    warmup_seconds: float = 1
    """Do not count queries from the first seconds, nor those that fill the first --warmup-batches."""
    warmup_batches: int = 4
    """Batches at the start that are not counted."""
    batch_wait_ms: float = 0
    """How long a batch waits for more decoded videos, in milliseconds."""
    seed: int = 0
    """Seed for the order of videos and for arrivals."""

    def check(self) -> None:
        """Raise UserError for a number that no run could have."""
        check_ranges(
            self,
            seconds=(0, DAY_S),
            max_seconds=(LEAST, DAY_S),
            warmup_seconds=(0, 3600),
            warmup_batches=(0, 100_000),
            batch_wait_ms=(0, 60_000),
            seed=(0, MAX_SEED),
        )
        if self.seconds > self.max_seconds:
            raise UserError(
                f"--seconds {self.seconds:g} is more than --max-seconds {self.max_seconds:g}; raise that, too"
            )

    def goal(self, batch_size: int, bound_ms: float = math.inf, share: float = 0.99, steady: bool = False) -> Goal:
        """When a trial passes, and what is warm-up (the one place that says)."""
        warmup_queries = self.warmup_batches * batch_size
        return Goal(bound_ms / 1000, share, self.seconds, self.warmup_seconds, warmup_queries, steady)


def _any_batch() -> WorkloadFlags:
    """A batch is whatever is decoded when the network is free, up to --batch-size."""
    return WorkloadFlags(build=BuildFlags(dynamic_batch=True))


class Scenario(Protocol):
    """A scenario with latencies: its flags, and what it does with a service."""

    @property
    def workload(self) -> WorkloadFlags: ...
    @property
    def queries(self) -> QueryFlags: ...
    @property
    def output(self) -> OutputFlags: ...
    def find(self, service: Service) -> Findings: ...


@dataclass(frozen=True, kw_only=True)
class SingleStream:
    """One video at a time, the next when the label of the last is there: p90 latency."""

    workload: WorkloadFlags = field(default_factory=lambda: WorkloadFlags(batch_size=1))
    queries: QueryFlags = field(default_factory=QueryFlags)
    output: OutputFlags = field(default_factory=OutputFlags)

    def find(self, service: Service) -> Findings:
        return _in_turn(service, self.queries, 1, 90)

    def run(self) -> Record:
        return _run("single-stream", self)


@dataclass(frozen=True, kw_only=True)
class MultiStream:
    """Queries of several videos, answered with the last label, the next query then: p99 latency."""

    workload: WorkloadFlags = field(default_factory=_any_batch)
    queries: QueryFlags = field(default_factory=QueryFlags)
    output: OutputFlags = field(default_factory=OutputFlags)
    samples_per_query: int = 8
    """Videos in a query."""

    def find(self, service: Service) -> Findings:
        return _in_turn(service, self.queries, self.samples_per_query, 99)

    def run(self) -> Record:
        return _run("multi-stream", self)


@dataclass(frozen=True, kw_only=True)
class Server:
    """Poisson arrivals: the highest rate at which p99 latency is within a bound."""

    workload: WorkloadFlags = field(default_factory=_any_batch)
    queries: QueryFlags = field(default_factory=lambda: QueryFlags(seconds=5, max_seconds=20))
    output: OutputFlags = field(default_factory=OutputFlags)
    latency_bound_ms: float | None = None
    """The latency that the percentile must stay within. Default: five times the median of single queries, which is
    measured first."""
    percentile: float = 99
    """The percentile of the latency that must stay within the bound."""
    rate_resolution: float = 0.05
    """Stop when the highest rate that passed and the lowest that failed are this share apart."""

    def find(self, service: Service) -> Findings:
        bound_ms = self.latency_bound_ms
        if bound_ms is None:
            single_ms, _ = service.closed(1, 1, self.queries.max_seconds, samples_for_percentile(50))
            bound_ms = BOUND_MEDIANS * median(single_ms)
        burst = service.burst()
        found = highest(
            service,
            self.queries,
            partial(poisson, videos=service.videos),
            self.queries.goal(service.workload.batch_size, bound_ms, self.percentile / 100),
            guess=0.75 * burst,
            lowest=burst / 64,
            resolution=self.rate_resolution,
            rate_of_one=1,
            unit="queries/s",
        )
        found.figures |= {"latency_bound_ms": bound_ms, "burst_queries_per_s": burst}
        return found

    def run(self) -> Record:
        return _run("server", self)


@dataclass(frozen=True, kw_only=True)
class LiveStreams:
    """How many live streams run in real time at once.

    A stream plays videos back to back, each by its own frames: encoded frames arrive at --fps, a clip is due when the
    last frame of its video has arrived, and is decoded then. Every stream is joined at its own random moment.
    """

    workload: WorkloadFlags = field(default_factory=_any_batch)
    queries: QueryFlags = field(default_factory=lambda: QueryFlags(seconds=10, max_seconds=30))
    output: OutputFlags = field(default_factory=OutputFlags)
    fps: float = 25
    """Frames per second of each stream."""
    deadline_ms: float = 1000
    """When a label is due, counted from the clip's last frame."""
    on_time: float = 0.99
    """The share of labels that must be on time."""
    rate_resolution: float = 0.05
    """Stop when the most streams that passed and the fewest that failed are this share apart, or differ by one."""

    def find(self, service: Service) -> Findings:
        lengths_s = service.loader.videos.column("num_frames")[service.positions] / self.fps
        mean_s, burst = float(lengths_s.mean()), service.burst()
        found = highest(
            service,
            self.queries,
            partial(live_streams, lengths_s=lengths_s),
            self.queries.goal(service.workload.batch_size, self.deadline_ms, self.on_time, steady=True),
            guess=0.75 * burst * mean_s,
            lowest=1,
            resolution=self.rate_resolution,
            rate_of_one=1 / mean_s,
            unit="streams",
        )
        found.figures |= {"mean_video_s": mean_s, "burst_queries_per_s": burst}
        return found

    def run(self) -> Record:
        return _run("live-streams", self)


SCENARIOS: Mapping[str, Callable[..., Any]] = {
    "offline": Offline,
    "single-stream": SingleStream,
    "multi-stream": MultiStream,
    "server": Server,
    "live-streams": LiveStreams,
}


def _in_turn(service: Service, queries: QueryFlags, per_query: int, q: float) -> Findings:
    """SingleStream and MultiStream: a query when the one before is answered, until there are samples for the q-th
    percentile."""
    latency_ms, usage = service.closed(per_query, queries.seconds, queries.max_seconds, samples_for_percentile(q))
    found = Findings(usage, {"latency_ms": latency_ms})
    found.latencies(latency_ms)
    return found


def highest(
    service: Service,
    queries: QueryFlags,
    schedule: Callable[[float, float, int], Schedule],
    goal: Goal,
    *,
    guess: float,
    lowest: float,
    resolution: float,
    rate_of_one: float,
    unit: str,
) -> Findings:
    """Trials until the highest load that reaches the goal is known, and was confirmed with other arrivals. A load of
    one brings `rate_of_one` queries a second."""
    trials: list[Trial] = []
    threads: list[list[dict[str, Any]]] = []
    samples = goal.warmup_queries + 1.5 * samples_for_percentile(100 * goal.share)  # so many bear a late one

    def trial(load: float, seed: int) -> bool:
        seconds = goal.warmup_s + max(queries.max_seconds, samples / (load * rate_of_one))
        arrivals = schedule(load, seconds, seed)
        # drawn once: a bar that moves would make the generator late
        shown = progress(f"Trial {len(trials) + 1}: {load:.4g} {unit}, at most {seconds:.0f} s", None, "", still=True)
        with shown, service.pipeline(arrivals.videos.__getitem__) as pipeline:
            done = run_schedule(pipeline, arrivals, goal, load, seed)
            done.usage = service.usage(pipeline)
        threads.append(service.threads)
        trials.append(done)
        print(f"{load:.4g} {unit}: {done.verdict}{f' ({done.reason})' if done.reason else ''}", file=sys.stderr)
        return done.passed

    def passes(load: float) -> bool:  # what fails is tried again: something else may have used the machine
        return trial(load, seed) or (trials[-1].verdict != "undecided" and trial(load, seed + 1))

    seed, whole = queries.seed, unit == "streams"
    confirms = partial(trial, seed=seed + 2)
    best, refused = search(passes, confirms, guess, resolution=resolution, lowest=lowest, whole=whole)
    found = Findings({unit.replace("/", "_per_"): best, f"rejected_{unit.replace('/', '_per_')}": refused})
    found.figures["trials"] = len(trials)
    for number, done in enumerate(trials):
        found.samples[f"trial_{number:02d}_latency_ms"] = done.latency_ms
        found.samples[f"trial_{number:02d}_lateness_ms"] = [round(late_ms, 3) for late_ms in done.lateness_ms]
    kept = ("load", "seed", "verdict", "reason", "judged", "on_time", "unanswered", "wall_s", "usage")
    found.details["trials"] = [{name: getattr(done, name) for name in kept} for done in trials]
    if best is not None:
        number, confirmed = next((i, t) for i, t in reversed([*enumerate(trials)]) if t.passed and t.load == best)
        found.figures |= confirmed.usage
        service.threads = threads[number]
        found.latencies(confirmed.latency_ms)
        share = share_interval(confirmed.on_time, confirmed.judged)
        found.interval("on_time", "percent", Interval(100 * share.value, 100 * share.low, 100 * share.high))
    return found


def _check(scenario: Scenario) -> None:
    """Raise UserError for a number that no run could have, and a place where nothing can be written."""
    _check_engine(scenario.workload)
    scenario.output.check()
    scenario.queries.check()
    limits = {
        "samples_per_query": (1, 10_000),
        "latency_bound_ms": (0.001, 1000 * DAY_S),
        "deadline_ms": (0.001, 1000 * DAY_S),
        "rate_resolution": (0.001, 1),
        "fps": (0.01, 1000),
        "on_time": (0.01, 0.9999),
        "percentile": (1, 99.99),
    }
    check_ranges(scenario, **{name: of for name, of in limits.items() if hasattr(scenario, name)})


def _check_engine(workload: WorkloadFlags) -> None:
    if workload.engine == "none":
        raise UserError("--engine none: a scenario needs an engine; `tdn-bench doctor` says which are ready")


def _run(name: str, scenario: Scenario) -> Record:
    """Run a scenario with latencies; return the record (not yet written)."""
    _check(scenario)
    workload, queries, output = scenario.workload.resolve(), scenario.queries, scenario.output
    with open_service(
        workload,
        queries.goal(workload.batch_size),
        seed=queries.seed,
        batch_wait_s=queries.batch_wait_ms / 1000,
        trace=output.trace is not None,
    ) as service:
        with GpuMonitor(workload.device) as monitor, Watch() as watch:
            found = scenario.find(service)
        found.figures |= watch.figures | monitor.figures()
        status, reasons = watch.verdict(gpu=monitor.samples)
        if output.trace is not None:
            save_trace(service.loader.ledger, output.trace)
        found.describe(service)
        found.details |= workload.network.class_details(service.manifest.classes)
        backend = service.loader.decoder.name
    if (share := found.figures.get("ledger_unexplained_percent", 0.0)) > MOST_UNEXPLAINED_PERCENT:
        status = "unstable" if status == "stable" else status
        reasons.append(f"{share:.1f} % of a thread's time is unexplained")
    return make_record(
        "scenario",
        output.name or f"{name}-{workload.engine}-{workload.precision}-{backend}",
        figures=found.figures,
        samples=found.samples,
        settings=settings_of(scenario) | settings_of(workload) | {"scenario": name, "backend": backend},
        device=workload.device,
        manifest=service.manifest,
        details=found.details,
        status=status,
        status_reasons=reasons,
    )
