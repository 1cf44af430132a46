"""From video file to label, timed.

ms/video as the paper's Table 5 has it: batches of 16, loading included. The engine is first checked against
eager float32 on the same clips; warm-up is left out; the videos of whole passes over a split are counted.
"""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engines import Engine
from pipelines.clip import ClipBatch
from pipelines.ledger import Ledger
from pipelines.loader import ClipLoader
from pipelines.manifest import Manifest
from tdn_bench.cli import Workload, WorkloadFlags, settings_of
from tdn_bench.cli.progress import progress
from tdn_bench.cli.ranges import DAY_S, LEAST, check_ranges
from tdn_bench.correctness.engine_check import checked_engine
from tdn_bench.correctness.logits import LogitComparison
from tdn_bench.correctness.scores import Scores
from tdn_bench.measurement.gpu_monitor import GpuMonitor
from tdn_bench.measurement.interference import Watch
from tdn_bench.measurement.statistics import PERCENTILES, TooFewSamples, half_width, percentile
from tdn_bench.measurement.time_breakdown import break_down, save_trace
from tdn_bench.measurement.warm_up import warm_up
from tdn_bench.records import Record, check_file, check_folder, check_name, make_record

REAL_TIME_FRAMES_PER_S = 25
CHECKED_BATCHES, CHECKED_CLIPS = 2, 16  # at least
MIN_SECONDS, MIN_BATCHES = 3.0, 10  # that a figure wants


@dataclass(frozen=True, kw_only=True)
class TimingFlags:
    """How long is measured."""

    seconds: float = 10
    """Measure whole passes over the split for at least this long, in seconds. A stable figure needs at least 3 s and 10
    batches; 0 means one pass."""
    interval: float | None = None
    """Keep measuring until the 95 % interval of ms/video is at most ± this share (0.01: 1 %), or --max-seconds is over.
    With --compare it is the interval of the ratio; default there: 0.01."""
    max_seconds: float = 600
    """--interval: end when this many seconds were measured; a pass that has begun is finished. --compare: the longest
    that the whole command may take, starts and builds included."""
    warmup_batches: int = 4
    """Batches to run before counting begins, at least. Warm-up goes on until batches no longer get faster, for 20 s at
    most."""

    def check(self) -> None:
        """Raise UserError for a number that no run could have."""
        check_ranges(
            self, seconds=(0, DAY_S), interval=(LEAST, 1), max_seconds=(LEAST, DAY_S), warmup_batches=(0, 100_000)
        )


@dataclass(frozen=True, kw_only=True)
class OutputFlags:
    """What is written, and where."""

    trace: Path | None = None
    """Write a timeline of all threads to this file, for Perfetto (ui.perfetto.dev) or chrome://tracing."""
    name: str | None = None
    """Name of the record; default: from engine, precision and backend."""
    results: Path | None = None
    """Folder for the record; default: runs/<command>. To publish: results/<machine>."""

    def check(self) -> None:
        """Raise UserError for a place where nothing can be written, and a name that no file can have: before hours of
        work, not after."""
        check_name("--name", self.name)
        check_file("--trace", self.trace)
        if self.results is not None:
            check_folder("--results", self.results)


@dataclass(frozen=True, kw_only=True)
class Throughput:
    """Measure ms/video from file to label with one engine, or the loader alone."""

    workload: WorkloadFlags = field(default_factory=WorkloadFlags)
    timing: TimingFlags = field(default_factory=TimingFlags)
    output: OutputFlags = field(default_factory=OutputFlags)
    compare: tuple[str, str] | None = None
    """A B: which of two configurations is faster? Fresh processes take turns. Each is field=value,… or @commit:
    `engine=eager engine=openvino,precision=int8`, `@main @HEAD`, `backend=pyav backend=dali`."""
    confidence: float = 0.99
    """With --compare: confidence that all intervals hold together."""

    def check(self) -> None:
        """Raise UserError for what could not be measured or written."""
        self.output.check()
        self.timing.check()
        check_ranges(self, confidence=(0.5, 0.999999))


@dataclass
class Timings:
    """One value a batch: seconds from the last result to this one, of them waiting for data and running the
    engine, and the videos in it."""

    interval_s: list[float]
    wait_s: list[float]
    infer_s: list[float]
    videos: list[int]


@dataclass
class Run:
    """A measurement: its times, what the engine said of the first pass, its warm-up, and what disturbed it."""

    timings: Timings
    scores: Scores | None
    figures: dict[str, float]
    gpu_samples: dict[str, list[float]]
    status: str
    reasons: list[str]


def run_batches(
    loader: ClipLoader,
    classify: Callable[[Tensor], Tensor] | None,
    passes: int,
    more: Callable[[Timings], bool] = lambda _: False,
    advance: Callable[[float], object] = lambda seconds: None,
) -> tuple[Timings, Scores | None]:
    """Take `passes` whole passes over the loader's videos, and as many again while there is to be `more`, timing every
    batch until its logits are on the host; scores are of the first pass. `advance` gets the seconds of each."""
    timings, ledger = Timings([], [], [], []), loader.ledger
    ids: list[str] = []
    logits, labels = [], []

    def taken() -> Iterator[ClipBatch]:
        yield from loader.epoch(passes=passes)
        while more(timings):
            yield from loader.epoch(passes=passes)

    batches = taken()
    ledger.start()
    lane = ledger.lane()
    done = time.perf_counter()
    while True:
        waited_before = loader.wait_s
        batch = next(batches, None)
        if batch is None:
            break
        start = inferred = now = time.perf_counter()
        if classify is not None:
            what = f"batch {len(timings.videos)}"
            with ledger.on_device("infer", what):
                result = classify(batch.frames)
            inferred = time.perf_counter()
            result = result.float().cpu()
            now = time.perf_counter()
            lane.add("infer", start, inferred, what)
            lane.add("copy_back", inferred, now, what)
            if len(ids) < len(loader.videos):
                logits.append(result)
                labels.append(batch.labels.cpu())
                ids += batch.ids
        timings.interval_s.append(now - done)
        timings.wait_s.append(loader.wait_s - waited_before)
        timings.infer_s.append(inferred - start)
        timings.videos.append(len(batch))
        advance(now - done)
        done = now
    ledger.stop()
    if not logits:
        return timings, None
    seen = dict.fromkeys(ids)  # a batch may reach into the second pass
    first = len(seen)
    return timings, Scores(tuple(ids[:first]), torch.cat(logits)[:first, None], torch.cat(labels)[:first])


def percentiles(per_video_ms: np.ndarray) -> dict[str, float]:
    """p50, p90 and p99 over batches with their 95 % intervals; without those that the batches do not bound."""
    found: dict[str, float] = {}
    for q in PERCENTILES:
        with suppress(TooFewSamples):
            p = percentile(per_video_ms, q)
            found |= {f"p{q}_ms_per_video": p.value, f"p{q}_low_ms_per_video": p.low, f"p{q}_high_ms_per_video": p.high}
    return found


def timing_figures(timings: Timings, num_segments: int, frames_per_segment: int) -> dict[str, object]:
    """ms/video, percentiles and rates from raw timings. frames/s counts the T·L frames of a clip."""
    videos, wall_s = sum(timings.videos), sum(timings.interval_s)
    per_video_ms = 1000 * np.array(timings.interval_s) / np.array(timings.videos)
    frames_per_s = videos * num_segments * frames_per_segment / wall_s
    return {
        "videos": videos,
        "batches": len(timings.videos),
        "wall_s": wall_s,
        "ms_per_video": 1000 * wall_s / videos,
        "ms_per_video_half_width_percent": 100 * half_width(per_video_ms) if len(per_video_ms) > 1 else None,
        **percentiles(per_video_ms),
        "clips_per_s": videos / wall_s,
        "frames_per_s": frames_per_s,
        "real_time": bool(frames_per_s >= REAL_TIME_FRAMES_PER_S),
    }


@contextmanager
def open_engine(workload: Workload, loader: ClipLoader, manifest: Manifest) -> Iterator[tuple[Engine, LogitComparison]]:
    """The workload's engine, checked on the loader's first clips. Raises EngineMismatch where it is another network."""
    checked = max(CHECKED_BATCHES, -(-CHECKED_CLIPS // workload.batch_size))
    with ExitStack() as stack:
        with progress(f"Building and checking {workload.engine} {workload.precision}", None, ""):
            engine = checked_engine(
                workload.engine,
                workload.network.build(manifest.classes, workload.device),
                workload.engine_spec(),
                [batch.frames for batch in islice(loader.epoch(), checked)],
                calibration=workload.calibration(manifest),
                cache=workload.build.engine_cache,
            )
            checked_and_compared = stack.enter_context(engine)
        yield checked_and_compared


def measure(config: Throughput) -> Record:
    """Check, warm up, measure; return the record (not yet written). Raises UserError for flags that cannot be."""
    config.check()
    workload = config.workload.resolve()
    manifest = workload.open_data()
    ledger = Ledger(workload.device, trace=config.output.trace is not None)
    figures: dict[str, Any] = {}
    details: dict[str, Any] = {}
    with workload.open_loader(manifest.split(workload.subset), ledger) as loader:
        if workload.engine == "none":
            run = timed(loader, None, config.timing)
        else:
            with open_engine(workload, loader, manifest) as (engine, comparison):
                run = timed(loader, engine, config.timing)
                figures["build_s"] = engine.build_s
                details |= {"engine": engine.details(), "agreement_with_eager_fp32": asdict(comparison)}
                details |= workload.network.class_details(manifest.classes)
    if config.output.trace is not None:
        save_trace(ledger, config.output.trace)
    return _record(config, workload, manifest, loader, run, figures, details)


def _record(
    config: Throughput,
    workload: Workload,
    manifest: Manifest,
    loader: ClipLoader,
    run: Run,
    figures: dict[str, Any],
    details: dict[str, Any],
) -> Record:
    """The run as a record."""
    breakdown, spec, device = break_down(loader.ledger), loader.spec, loader.device
    figures |= timing_figures(run.timings, spec.num_segments, spec.frames_per_segment)
    figures |= breakdown.figures(sum(run.timings.videos)) | run.figures
    figures["bad_clips"] = len(loader.bad_clips)
    # Of the process from its start, so with the reference's and the builder's share.
    figures["peak_host_memory_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if device.type == "cuda":
        figures["peak_torch_memory_bytes"] = torch.cuda.max_memory_allocated(device)
    if run.scores is not None and workload.network.checkpoint is not None:
        figures |= {"top1_percent": run.scores.top(1), "top5_percent": run.scores.top(5)}
    details["ledger"] = breakdown.threads
    details["caches"] = "files: read before (check, warm-up, earlier passes) where they fit into memory"
    if loader.bad_clips.reasons:
        details["bad_clips"] = loader.bad_clips.by_path()
    reasons = [*run.reasons, *breakdown.reasons()]
    samples = {name: values for name, values in asdict(run.timings).items() if isinstance(values, list)}
    backend = loader.decoder.name
    alone = workload.engine == "none"
    return make_record(
        "loader" if alone else "throughput",
        config.output.name or (backend if alone else f"{workload.engine}-{workload.precision}-{backend}"),
        figures=figures,
        samples=samples | {f"gpu_{what}": values for what, values in run.gpu_samples.items()},
        settings=settings_of(config) | settings_of(workload) | {"backend": backend},
        device=device,
        manifest=manifest,
        details=details,
        status="unstable" if reasons and run.status == "stable" else run.status,
        status_reasons=reasons,
    )


def timed(loader: ClipLoader, classify: Callable[[Tensor], Tensor] | None, timing: TimingFlags) -> Run:
    """Warm up until nothing gets faster, then measure whole passes for long enough, watched."""
    warm, videos = _warm(loader, classify, timing)
    if loader.device.type == "cuda":
        torch.cuda.synchronize(loader.device)
        torch.cuda.reset_peak_memory_stats(loader.device)
    per_pass_s = warm["warmup_s"] / videos * len(loader.videos)
    passes = max(1, math.ceil(timing.seconds / per_pass_s), MIN_BATCHES // len(loader) if timing.seconds else 0)

    def more(timings: Timings) -> bool:
        if not timing.seconds:
            return False
        per_video = [t / n for t, n in zip(timings.interval_s, timings.videos, strict=True)]
        if sum(timings.interval_s) < max(MIN_SECONDS, timing.seconds) or len(per_video) < MIN_BATCHES:
            return True
        narrow = timing.interval is None or half_width(per_video) <= timing.interval
        return not narrow and sum(timings.interval_s) < timing.max_seconds

    likely_s = passes * per_pass_s if timing.interval is None else timing.max_seconds
    shown = progress("Measuring", likely_s, "s", still=True)
    with shown as advance, GpuMonitor(loader.device) as monitor, Watch() as watch:
        timings, scores = run_batches(loader, classify, passes, more, advance)
    # partly filled batches cost more a video: they are no drift
    full = [t for t, n in zip(timings.interval_s, timings.videos, strict=True) if n == loader.batch_size]
    status, reasons = watch.verdict(full, monitor.samples)
    if sum(timings.interval_s) < MIN_SECONDS or len(timings.videos) < MIN_BATCHES:
        reasons.append(f"measured for less than {MIN_SECONDS:g} s or {MIN_BATCHES} batches")
    if not warm["warmup_stable"]:
        reasons.append(f"still getting faster after {warm['warmup_s']:.0f} s of warm-up")
    return Run(timings, scores, warm | watch.figures | monitor.figures(), monitor.samples, status, reasons)


def _warm(
    loader: ClipLoader, classify: Callable[[Tensor], Tensor] | None, timing: TimingFlags
) -> tuple[dict[str, float | bool], int]:
    """What the warm-up says of itself, and how many videos it took."""

    def endless() -> Generator[ClipBatch]:
        while True:
            yield from loader.epoch()

    stream, videos = endless(), []

    def work() -> float:
        start = time.perf_counter()
        batch = next(stream)
        if classify is not None:
            classify(batch.frames).cpu()
        videos.append(len(batch))
        advance(len(batch))
        return (time.perf_counter() - start) / len(batch)

    with progress("Warming up", None, still=True) as advance:
        warm = warm_up(work, min_calls=max(2, timing.warmup_batches))
    stream.close()  # and with it its threads
    return warm, sum(videos)
