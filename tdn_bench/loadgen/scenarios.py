"""Scenarios as MLPerf Inference names them, decoding included: `tdn-bench scenario offline|single-stream|…`.

A query is a video file, answered when its logits are on the host. Latencies count from the scheduled arrival, and a
percentile that the samples do not bound on both sides is refused, not printed.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from engines import Engine
from pipelines.errors import BadClip
from pipelines.ledger import Ledger
from pipelines.loader import ClipLoader
from pipelines.manifest import OK, Manifest
from tdn_bench.cli.run import run_command
from tdn_bench.correctness.logits import Agreement
from tdn_bench.errors import UserError
from tdn_bench.loadgen import driver as loads
from tdn_bench.loadgen.driver import Goal, Pipeline, Schedule, Trial
from tdn_bench.measurement.gpu_monitor import GpuMonitor
from tdn_bench.measurement.interference import Watch
from tdn_bench.measurement.statistics import Interval, TooFewSamples, percentile, samples_for_percentile
from tdn_bench.measurement.throughput import Throughput, checked_engine, measure, resolve
from tdn_bench.measurement.time_breakdown import MOST_UNEXPLAINED_PERCENT, close, save_trace
from tdn_bench.records.environment import machine_name
from tdn_bench.records.record import Record, make_record, write_record

BOUND_MEDIANS = 5  # the default bound of Server, in medians of SingleStream's latency


@dataclass(frozen=True, kw_only=True)
class Offline(Throughput):
    """All videos at once, whole passes: videos a second. What `tdn-bench throughput` measures, with its interval."""

    engine: Literal["eager", "compile", "aoti", "onnx", "openvino", "trt", "torch-trt"] = "eager"
    """What runs the network; `tdn-bench doctor` says which are ready."""


@dataclass(frozen=True, kw_only=True)
class Queries(Offline):
    """What the scenarios with latencies share."""

    ranged: bool = True
    """Build for every batch size up to the largest, not for that one alone: a smaller batch then costs less."""
    batch_size: int = 16
    """Most videos in a batch: whatever is decoded when the network is free, up to this many."""
    batch_wait_ms: float = 0
    """How long a batch waits for more videos to be decoded."""
    seconds: float = 10
    """Measure for at least this long, and until there are the samples that the percentiles need."""
    max_seconds: float = 60
    """End then at the latest, and refuse what lacks samples."""
    warmup_seconds: float = 1
    """Queries of the first so many seconds are not counted, nor is what fills the first --warmup-batches."""
    seed: int = 0
    """Of the order of videos and of arrivals."""

    def goal(self, bound_ms: float = math.inf, share: float = 0.99, steady: bool = False) -> Goal:
        """When a trial passes, and what is warm-up (the one place that says)."""
        warmup_queries = self.warmup_batches * self.batch_size
        return Goal(bound_ms / 1000, share, self.seconds, self.warmup_seconds, warmup_queries, steady)


@dataclass(frozen=True, kw_only=True)
class SingleStream(Queries):
    """One video at a time, the next when the label of the last is there: p90 latency."""

    batch_size: int = 1
    """What the engine is built for; a query is one video."""
    ranged: bool = False
    """Build for every batch size up to the largest, not for that one alone."""


@dataclass(frozen=True, kw_only=True)
class MultiStream(Queries):
    """Queries of several videos, answered with the last label, the next query then: p99 latency."""

    samples_per_query: int = 8
    """Videos in a query."""


@dataclass(frozen=True, kw_only=True)
class Server(Queries):
    """Poisson arrivals: the highest rate at which p99 latency is within a bound."""

    seconds: float = 5
    """A trial of a rate passes after this long at the earliest."""
    max_seconds: float = 20
    """A trial that is undecided then counts as failed; at a low load it takes as long as its samples do."""
    latency_bound_ms: float | None = None
    """What the percentile may be; default: five times the median of single queries, measured first."""
    percentile: float = 99
    """Which percentile of the latency is bound."""
    rate_resolution: float = 0.05
    """Stop where the highest rate that passed and the lowest that failed are this share apart."""


@dataclass(frozen=True, kw_only=True)
class LiveStreams(Queries):
    """How many live streams run in real time at once.

    A stream plays videos back to back, each by its own frames: encoded frames arrive at --fps, a clip is due when the
    last frame of its video has arrived, and is decoded then. Every stream is joined at its own random moment.
    """

    seconds: float = 10
    """A trial of a number of streams passes after this long at the earliest."""
    max_seconds: float = 30
    """A trial that is undecided then counts as failed; at a low load it takes as long as its samples do."""
    fps: float = 25
    """Frames a second of every stream."""
    deadline_ms: float = 1000
    """When the label is due, after the clip's last frame."""
    on_time: float = 0.99
    """The share of labels that must be in time."""
    rate_resolution: float = 0.05
    """Stop where the most streams that passed and the fewest that failed are this share apart, or one."""


@dataclass
class Ready:
    """An engine that agrees with the network, and videos for it."""

    config: Queries
    loader: ClipLoader
    engine: Engine
    manifest: Manifest
    agreement: Agreement
    positions: np.ndarray  # of the usable videos in the split
    undecoded: int = 0  # queries whose video could not be decoded
    threads: list[dict[str, Any]] = field(default_factory=list)  # of the run that counts, as the ledger has them

    @property
    def videos(self) -> int:
        return len(self.positions)

    @contextmanager
    def pipeline(self, video: Callable[[int], int]) -> Iterator[Pipeline]:
        """Fresh threads for one run, in which query n asks for the usable video `video(n)`."""
        config, loader, decoder, device = self.config, self.loader, self.loader.decoder, self.loader.device

        def decode(numbers: list[int]) -> list[Tensor | None]:
            lane = loader.ledger.lane()
            plans = [loader.plan(int(self.positions[video(n)]), 0) for n in numbers]
            lane.lap("plan")
            if device.type == "cuda":
                stream = torch.cuda.Stream(device)  # beside what the engine does
                with torch.cuda.stream(stream):
                    clips = decoder(plans)
                    stream.synchronize()
                lane.lap("augment")  # what DALI has launched
            else:
                clips = decoder(plans)
            for clip in clips:
                if isinstance(clip, BadClip):
                    self.undecoded += 1
                    loader.bad_clips.add(clip)
                    loader.bad_clips.check_share()
            return [None if isinstance(clip, BadClip) else clip for clip in clips]

        def classify(clips: list[Tensor]) -> None:
            lane = loader.ledger.lane()
            frames = torch.stack(clips)
            if frames.device.type != device.type:
                frames = frames.pin_memory().to(device, non_blocking=True)
            lane.lap("copy")
            with loader.ledger.on_device("infer"):
                logits = self.engine(frames)
            lane.lap("infer")
            logits.cpu()  # waits for a GPU
            lane.lap("copy_back")

        threads, at_once = (loader.workers, 1) if decoder.concurrent else (1, config.batch_size)
        with Pipeline(
            decode, classify, threads=threads, decode_batch=at_once,
            batch_size=config.batch_size, batch_wait_s=config.batch_wait_ms / 1000,
            ledger=loader.ledger,
        ) as pipeline:  # fmt: skip
            yield pipeline

    def usage(self, pipeline: Pipeline) -> dict[str, Any]:
        """How busy engine and decoders were, and the ledger's account of it: the run is over."""
        usage = pipeline.usage()
        account = close(self.loader.ledger)
        self.threads = account.threads
        clips = round(usage["batches"] * usage["mean_batch_size"])
        return usage | account.figures(max(1, clips))

    def closed(
        self, per_query: int, seconds: float, max_seconds: float, samples: int
    ) -> tuple[list[float], dict[str, Any]]:
        """Latencies (ms) of queries that wait for each other, and how busy engine and decoders were."""
        with self.pipeline(partial(loads.nth_video, videos=self.videos, seed=self.config.seed)) as pipeline:
            latency_s = loads.run_closed(
                pipeline,
                per_query,
                replace(self.config.goal(), seconds=seconds),
                max_seconds=max_seconds,
                samples=samples,
            )
            return [round(1000 * s, 3) for s in latency_s], self.usage(pipeline)

    def burst(self) -> float:
        """Queries a second where all arrive at once: a short Offline by the way that queries take, to start from."""
        with self.pipeline(partial(loads.nth_video, videos=self.videos, seed=self.config.seed)) as pipeline:
            loads.burst_rate(pipeline, 4 * self.config.batch_size)
            return loads.burst_rate(pipeline, 8 * self.config.batch_size)


@contextmanager
def ready(config: Queries) -> Iterator[Ready]:
    """Build the engine of a resolved choice, and hold it against eager fp32 on the first clips of the split."""
    device = torch.device(config.device)
    torch.backends.cudnn.allow_tf32 = False  # fp32 means fp32: the reference that engines are held to is
    manifest, spec = config.open(), config.clip_spec()
    loader = ClipLoader(
        manifest.split(config.subset), spec, config.batch_size, backend=config.backend, device=device,
        workers=config.workers, policy=config.bad_clip_policy(), ledger=Ledger(device, trace=config.trace is not None),
    )  # fmt: skip
    with loader, checked_engine(config, loader, manifest, spec) as (engine, agreement):
        yield Ready(config, loader, engine, manifest, agreement, np.flatnonzero(loader.videos.where("status", OK)))


@dataclass
class Findings:
    """What a scenario found, as a record holds it."""

    figures: dict[str, Any] = field(default_factory=dict)
    samples: dict[str, list[float]] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)

    def latencies(self, latency_ms: Sequence[float]) -> None:
        """p50, p90 and p99 with their intervals; what the samples do not bound is refused instead."""
        self.figures["queries"] = len(latency_ms)
        self.details["refused"] = []
        for q in (50, 90, 99):
            try:
                self.interval(f"p{q}_latency", "ms", percentile(latency_ms, q))
            except TooFewSamples as refusal:
                self.details["refused"].append(str(refusal))

    def interval(self, name: str, unit: str, found: Interval) -> None:
        """An estimate and the ends of its interval, with the unit last."""
        self.figures |= {
            f"{name}_{unit}": found.value, f"{name}_low_{unit}": found.low, f"{name}_high_{unit}": found.high
        }  # fmt: skip


def in_turn(ready: Ready, config: SingleStream | MultiStream) -> Findings:
    """SingleStream and MultiStream: a query when the one before is answered."""
    per_query, q = (config.samples_per_query, 99) if isinstance(config, MultiStream) else (1, 90)
    latency_ms, usage = ready.closed(per_query, config.seconds, config.max_seconds, samples_for_percentile(q))
    found = Findings(usage, {"latency_ms": latency_ms})
    found.latencies(latency_ms)
    return found


def highest(
    ready: Ready, schedule: Callable[[float, float, int], Schedule], goal: Goal, *,
    guess: float, lowest: float, resolution: float, rate_of_one: float, unit: str,
) -> Findings:  # fmt: skip
    """Trials until the highest load that reaches the goal is known, and was confirmed with other arrivals. A load of
    one brings `rate_of_one` queries a second."""
    trials: list[Trial] = []
    threads: list[list[dict[str, Any]]] = []
    samples = goal.warmup_queries + 1.5 * samples_for_percentile(100 * goal.share)  # so many bear a late one

    def trial(load: float, seed: int) -> bool:
        seconds = goal.warmup_s + max(ready.config.max_seconds, samples / (load * rate_of_one))
        arrivals = schedule(load, seconds, seed)
        with ready.pipeline(arrivals.videos.__getitem__) as pipeline:
            done = loads.run_schedule(pipeline, arrivals, goal, load, seed)
            done.usage = ready.usage(pipeline)
        threads.append(ready.threads)
        trials.append(done)
        print(f"{load:.4g} {unit}: {done.verdict}{f' ({done.reason})' if done.reason else ''}", file=sys.stderr)
        return done.passed

    def passes(load: float) -> bool:  # what fails is tried again: something else may have used the machine
        return trial(load, seed) or (trials[-1].verdict != "undecided" and trial(load, seed + 1))

    seed, whole = ready.config.seed, unit == "streams"
    best, refused = loads.search(
        passes, partial(trial, seed=seed + 2), guess,
        resolution=resolution, lowest=lowest, whole=whole,
    )  # fmt: skip
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
        ready.threads = threads[number]
        found.latencies(confirmed.latency_ms)
        share = loads.share_interval(confirmed.on_time, confirmed.judged)
        found.interval("on_time", "percent", Interval(100 * share.value, 100 * share.low, 100 * share.high))
    return found


def server(ready: Ready, config: Server) -> Findings:
    """The highest Poisson rate whose latency is within the bound."""
    bound_ms = config.latency_bound_ms
    if bound_ms is None:
        single_ms, _ = ready.closed(1, 1, config.max_seconds, samples_for_percentile(50))
        bound_ms = BOUND_MEDIANS * median(single_ms)
    burst = ready.burst()
    found = highest(
        ready, partial(loads.poisson, videos=ready.videos), config.goal(bound_ms, config.percentile / 100),
        guess=0.75 * burst, lowest=burst / 64, resolution=config.rate_resolution, rate_of_one=1, unit="queries/s",
    )  # fmt: skip
    found.figures |= {"latency_bound_ms": bound_ms, "burst_queries_per_s": burst}
    return found


def live(ready: Ready, config: LiveStreams) -> Findings:
    """The most live streams whose labels are in time."""
    lengths_s = ready.loader.videos.column("num_frames")[ready.positions] / config.fps
    mean_s, burst = float(lengths_s.mean()), ready.burst()
    found = highest(
        ready, partial(loads.live_streams, lengths_s=lengths_s),
        config.goal(config.deadline_ms, config.on_time, steady=True),
        guess=0.75 * burst * mean_s, lowest=1, resolution=config.rate_resolution, rate_of_one=1 / mean_s,
        unit="streams",
    )  # fmt: skip
    found.figures |= {"mean_video_s": mean_s, "burst_queries_per_s": burst}
    return found


def offline(config: Offline) -> Record:
    """`tdn-bench throughput`, and the interval of its rate."""
    record = measure(config)
    found = Findings()
    found.interval("videos", "per_s", loads.rate_interval(record.samples["videos"], record.samples["interval_s"]))
    found.figures |= record.figures
    name, settings = config.name or f"offline-{record.name}", {**record.settings, "scenario": "offline"}
    return replace(record, kind="scenario", name=name, figures=found.figures, settings=settings)


def check_flags(config: Queries) -> None:
    """Raise UserError for a number that no run could have, and for a flag that means nothing here."""
    if config.interval is not None:
        raise UserError(f"--interval {config.interval}: of scenario offline alone; here --seconds says how long")
    for name in ("samples_per_query", "latency_bound_ms", "rate_resolution", "fps", "deadline_ms"):
        if (value := getattr(config, name, None)) is not None and value <= 0:
            raise UserError(f"--{name.replace('_', '-')} {value}: must be above 0")
    for name in ("warmup_seconds", "batch_wait_ms", "max_seconds", "seed"):
        if getattr(config, name) < 0:
            raise UserError(f"--{name.replace('_', '-')} {getattr(config, name)}: must be at least 0")
    for name, most in (("on_time", 1), ("percentile", 100)):
        if not 0 < getattr(config, name, most / 2) < most:
            raise UserError(f"--{name.replace('_', '-')} {getattr(config, name)}: must be above 0 and below {most}")


def run(config: Offline) -> Record:
    """Run a scenario; return the record (not yet written)."""
    if config.compare is not None:
        raise UserError("--compare is `tdn-bench throughput`'s; a scenario runs one configuration")
    if not isinstance(config, Queries):
        return offline(config)
    check_flags(config)
    resolved = resolve(config)
    assert isinstance(resolved, Queries)
    config = resolved
    with ready(config) as r:
        with GpuMonitor(r.loader.device) as monitor, Watch() as watch:
            if isinstance(config, Server):
                found = server(r, config)
            elif isinstance(config, LiveStreams):
                found = live(r, config)
            else:
                assert isinstance(config, SingleStream | MultiStream)
                found = in_turn(r, config)
        found.figures |= watch.figures | monitor.figures()
        status, reasons = watch.verdict(gpu=monitor.samples)
        if (share := found.figures.get("ledger_unexplained_percent", 0.0)) > MOST_UNEXPLAINED_PERCENT:
            status = "unstable" if status == "stable" else status
            reasons.append(f"{share:.1f} % of a thread's time is unexplained")
        if config.trace is not None:
            save_trace(r.loader.ledger, config.trace)
        bad_clips = r.loader.bad_clips
        found.figures |= {
            "build_s": r.engine.build_s, "queries_not_decoded": r.undecoded, "bad_clips": len(bad_clips)
        }  # fmt: skip
        found.details |= {
            "engine": r.engine.details(),
            "ledger": r.threads,
            "agreement_with_eager_fp32": asdict(r.agreement),
        }
        if bad_clips.reasons:
            found.details["bad_clips"] = bad_clips.reasons
        backend = r.loader.decoder.name
    name = next(name for name, kind in SCENARIOS.items() if type(config) is kind)
    return make_record(
        "scenario",
        config.name or f"{name}-{config.engine}-{config.precision}-{backend}",
        figures=found.figures,
        samples=found.samples,
        settings=asdict(config) | {"scenario": name, "backend": backend},
        device=torch.device(config.device),
        manifest=r.manifest,
        details=found.details,
        status=status,
        status_reasons=reasons,
    )


def summary(record: Record) -> str:
    """The figures a person looks for first."""
    f, s, d = record.figures, record.settings, record.details

    def ends(name: str, unit: str) -> str:
        return f"{f[f'{name}_{unit}']:.1f} [{f[f'{name}_low_{unit}']:.1f}, {f[f'{name}_high_{unit}']:.1f}]"

    if "videos_per_s" in f:
        return f"{record.name}: {ends('videos', 'per_s')} videos/s ({f['videos']} videos in {f['wall_s']:.1f} s)"
    if "latency_bound_ms" in f:
        best, refused, unit = f["queries_per_s"], f["rejected_queries_per_s"], "queries/s"
        goal = f"p{s['percentile']:g} latency within {f['latency_bound_ms']:.1f} ms"
    elif "streams" in f:
        best, refused = f["streams"], f["rejected_streams"]
        unit = f"streams of {s['fps']:g} frames/s on this {'GPU' if s['device'].startswith('cuda') else 'machine'}"
        goal = f"{100 * s['on_time']:g} % of labels within {s['deadline_ms']:g} ms"
    else:
        best, refused, unit, goal = f["queries"], None, f"queries of {s.get('samples_per_query', 1)} videos", ""
    lines = [f"{record.name}: {best:.5g} {unit}" if best is not None else f"{record.name}: no load passed"]
    if refused is not None:
        share = f", {ends('on_time', 'percent')} %; confirmed" if best is not None else ""
        lines[0] += f" ({goal}{share}), {refused:.5g} refused, {f['trials']} trials"
    if best is not None:
        names = [f"p{q}" for q in (50, 90, 99) if f"p{q}_latency_ms" in f]
        lines.append("  latency: " + ", ".join(f"{q} {ends(f'{q}_latency', 'ms')} ms" for q in names))
        lines.append(
            f"  batches of {f['mean_batch_size']:.1f}, engine busy {f['engine_occupancy_percent']:.0f} %, decoders "
            f"{f['decoder_occupancy_percent']:.0f} %"
        )
    a = d["agreement_with_eager_fp32"]
    lines.append(f"  from eager fp32 {a['max_difference']:.1e} standard deviations; built in {f['build_s']:.1f} s")
    lines += [f"  refused: {refusal}" for refusal in d.get("refused", [])]
    lines += [f"  {record.status}: {reason}" for reason in record.status_reasons]
    if f["bad_clips"]:
        lines.append(f"  {f['bad_clips']} videos could not be used; {f['queries_not_decoded']} queries named one")
    return "\n".join(lines)


SCENARIOS: dict[str, Callable[..., Offline]] = {
    "offline": Offline,
    "single-stream": SingleStream,
    "multi-stream": MultiStream,
    "server": Server,
    "live-streams": LiveStreams,
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run a scenario; writes a record."""
    import tyro

    config = tyro.extras.subcommand_cli_from_dict(SCENARIOS, args=argv, prog="tdn-bench scenario")
    record = run(config)
    print(summary(record))
    folder = config.results or Path("results") / machine_name(torch.device(str(record.settings["device"])))
    print(f"record: {write_record(record, folder)}")


if __name__ == "__main__":
    raise SystemExit(run_command(main))
