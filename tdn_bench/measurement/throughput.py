"""From video file to label, timed: `python -m tdn_bench.throughput --engine trt`.

ms/video as the paper's Table 5 has it: batches of 16, loading included. The engine is first checked against
eager float32 on the same clips; warm-up is left out; the videos of whole passes over a split are counted.
"""

from __future__ import annotations

import math
import resource
import sys
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from engines import ENGINES, Engine, EngineUnavailable, create_engine, default_precision, why_unavailable
from pipelines.clip import ClipBatch, ClipSpec
from pipelines.ledger import IDLE, WORK, Ledger
from pipelines.loader import ClipLoader
from pipelines.manifest import Manifest
from tdn_bench.cli.flags import EngineFlags, LoaderFlags, NetworkFlags, pick_device
from tdn_bench.cli.run import run_command
from tdn_bench.correctness.logits import Agreement, check_engine, plain
from tdn_bench.correctness.scores import Scores
from tdn_bench.errors import UserError
from tdn_bench.measurement.gpu_monitor import GpuMonitor
from tdn_bench.measurement.interference import MIN_BATCHES, MIN_SECONDS, Watch, half_width, warm_up
from tdn_bench.measurement.statistics import TooFewSamples, percentile, samples_for_percentile
from tdn_bench.measurement.time_breakdown import close, save_trace
from tdn_bench.records.environment import machine_name
from tdn_bench.records.record import Record, check_folder, make_record, write_record

REAL_TIME_FRAMES_PER_S = 25
SYNTHETIC_DATA = Path("runs/synthetic")
CHECKED_BATCHES, CHECKED_CLIPS = 2, 16  # at least


@dataclass(frozen=True, kw_only=True)
class Throughput(EngineFlags, NetworkFlags, LoaderFlags):
    """Measure ms/video from file to label with one engine, or the loader alone. Without --data a small synthetic
    set is rendered once; without --checkpoint weights are fresh, and no accuracy is stated."""

    engine: Literal["eager", "compile", "aoti", "onnx", "openvino", "trt", "torch-trt", "none"] = "eager"
    """What runs the network; `none` measures the loader alone. `tdn-bench doctor` says which are ready."""
    precision: Literal["auto", "fp32", "tf32", "bf16", "fp16", "int8", "fp8"] = "auto"
    """Of the network's arithmetic; auto is fp32 on a CPU and fp16 on a GPU."""
    subset: Literal["train", "validation"] = "validation"
    """Which videos."""
    batch_size: int = 16
    """Videos in a batch (16 in the paper's Table 5)."""
    seconds: float = 10
    """Measure whole passes over the split for at least this long (a figure wants at least 3 s and 10 batches; 0 is one
    pass)."""
    interval: float | None = None
    """Measure on until the 95 % interval of ms/video is at most ± this share (0.01: 1 %), up to --max-seconds.
    With --compare: of the ratio, 0.01 where not given."""
    max_seconds: float = 120
    """The most that --interval or --compare may take."""
    warmup_batches: int = 4
    """At least so many batches are run and not counted; more until they no longer get faster, at most 20 s."""
    compare: tuple[str, str] | None = None
    """A B: compare two configurations, in fresh processes that take turns. Each is field=value,… or @commit:
    `engine=eager engine=openvino,precision=int8`, `@main @HEAD`, `backend=pyav backend=dali`."""
    confidence: float = 0.99
    """Of all intervals of --compare together."""
    device: str = "auto"
    """cuda, cuda:1, cpu; auto takes a GPU where there is one."""
    trace: Path | None = None
    """Write what every thread did when, for Perfetto (ui.perfetto.dev) or chrome://tracing."""
    name: str | None = None
    """Name of the record; default: made of engine, precision and backend."""
    results: Path | None = None
    """Folder for the record; default: results/<machine>/."""


def resolve(config: Throughput) -> Throughput:
    """Fill every default that depends on the checkpoint, the machine or missing data: a record then shows all."""
    if config.trace is not None:
        check_folder("--trace", config.trace.parent)
        if config.trace.is_dir():
            raise UserError(f"--trace {config.trace}: is a folder; name a file")
    if config.batch_size < 1 or config.seconds < 0 or config.warmup_batches < 0:
        raise UserError("--batch-size must be at least 1, --seconds and --warmup-batches at least 0")
    if (config.interval is not None and config.interval <= 0) or not 0 < config.confidence < 1:
        raise UserError(f"--interval {config.interval} must be above 0, --confidence {config.confidence} in (0, 1)")
    device = config.device
    if config.engine == "openvino" and device == "auto":
        device = "cpu"  # OpenVINO does not run on NVIDIA's GPUs
    device = str(pick_device(device))
    # found out here, before any video is rendered or read
    if config.engine != "none" and (reason := why_unavailable(config.engine, device)) is not None:
        raise EngineUnavailable(f"engine {config.engine!r} on {device}: {reason}")
    precision = config.precision
    if precision == "auto":
        precision = "fp32" if config.engine == "none" else default_precision(config.engine, device)  # type: ignore[assignment]
    data = config.data
    if data is None and config.train_list is None and config.manifest is None:
        from pipelines.synthetic import make_dataset

        print(f"no --data: measuring on synthetic videos in {SYNTHETIC_DATA}", file=sys.stderr)
        data = make_dataset(SYNTHETIC_DATA, train=8, validation=64, workers=config.workers)
    return replace(config.resolved(), device=device, precision=precision, data=data)


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
    """What else is to be said of a measurement: its warm-up, what went on beside it, and whether that disturbed it."""

    figures: dict[str, float]
    gpu_samples: dict[str, list[float]]
    status: str
    reasons: list[str]


def run_batches(
    loader: ClipLoader,
    classify: Callable[[Tensor], Tensor] | None,
    passes: int,
    more: Callable[[Timings], bool] = lambda _: False,
) -> tuple[Timings, Scores | None]:
    """Take `passes` whole passes over the loader's videos, and as many again while there is to be `more`, timing every
    batch until its logits are on the host; scores are of the first pass."""
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
    for q in (50, 90, 99):
        with suppress(TooFewSamples):
            p = percentile(per_video_ms, q)
            found |= {f"p{q}_ms_per_video": p.value, f"p{q}_low_ms_per_video": p.low, f"p{q}_high_ms_per_video": p.high}
    return found


def figures(timings: Timings, num_segments: int, frames_per_segment: int) -> dict[str, object]:
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
def checked_engine(
    config: Throughput, loader: ClipLoader, manifest: Manifest, spec: ClipSpec
) -> Iterator[tuple[Engine, Agreement]]:
    """The engine of a resolved choice, and how far it is from eager fp32 on the loader's first clips.

    Raises EngineMismatch where it is not the network."""
    classifier = config.build(len(manifest.classes), loader.device)
    checked = max(CHECKED_BATCHES, -(-CHECKED_CLIPS // config.batch_size))
    clips = [b.frames for b in islice(loader.epoch(), checked)]
    engine_spec = config.engine_spec(spec.shape, config.batch_size, config.precision, str(loader.device))
    calibration = config.calibration(config.precision, manifest, spec, config)
    with create_engine(
        config.engine, classifier, engine_spec, calibration=calibration, cache=config.kept_in()
    ) as engine:
        with create_engine("eager", classifier, plain(engine_spec)) as reference:
            agreement = check_engine(engine, reference, clips, config.precision)
        del calibration, classifier, reference, clips
        yield engine, agreement


def measure(config: Throughput) -> Record:
    """Check, warm up, measure; return the record (not yet written)."""
    if config.engine not in (*ENGINES, "none"):
        raise UserError(f"unknown engine {config.engine!r}; choose one of {', '.join(ENGINES)}, none")
    config = resolve(config)
    device = torch.device(config.device)
    torch.backends.cudnn.allow_tf32 = False  # fp32 means fp32: the reference that engines are held to is
    manifest, spec = config.open(), config.clip_spec()
    ledger = Ledger(device, trace=config.trace is not None)
    found: dict[str, object] = {}
    details: dict[str, object] = {}
    with ClipLoader(
        manifest.split(config.subset), spec, config.batch_size, backend=config.backend, device=device,
        workers=config.workers, policy=config.bad_clip_policy(), ledger=ledger,
    ) as loader:  # fmt: skip
        if config.engine == "none":
            timings, scores, run = _timed(loader, None, config)
        else:
            with checked_engine(config, loader, manifest, spec) as (engine, agreement):
                timings, scores, run = _timed(loader, engine, config)
                found |= {"build_s": engine.build_s}
                details |= {"engine": engine.details(), "agreement_with_eager_fp32": asdict(agreement)}
    account = close(ledger)
    found |= figures(timings, spec.num_segments, spec.frames_per_segment)
    found |= account.figures(sum(timings.videos)) | run.figures
    details["ledger"] = account.threads
    details["caches"] = "files: read before (check, warm-up, earlier passes) where they fit into memory"
    reasons = [*run.reasons, *account.reasons()]
    status = "unstable" if reasons and run.status == "stable" else run.status
    if config.trace is not None:
        save_trace(ledger, config.trace)
    bad_clips = loader.bad_clips
    found["bad_clips"] = len(bad_clips)
    # Of the process from its start, so with the reference's and the builder's share.
    found["peak_host_memory_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if device.type == "cuda":
        found["peak_torch_memory_bytes"] = torch.cuda.max_memory_allocated(device)
    if scores is not None and config.checkpoint is not None:
        found |= {"top1_percent": scores.top(1), "top5_percent": scores.top(5)}
    if bad_clips.reasons:
        details["bad_clips"] = bad_clips.reasons
    backend = loader.decoder.name
    label = backend if config.engine == "none" else f"{config.engine}-{config.precision}-{backend}"
    samples = {k: v for k, v in asdict(timings).items() if isinstance(v, list)}
    samples |= {f"gpu_{k}": v for k, v in run.gpu_samples.items()}
    return make_record(
        "loader" if config.engine == "none" else "throughput",
        config.name or label,
        figures=found,
        samples=samples,
        settings=asdict(config) | {"backend": backend},
        device=device,
        manifest=manifest,
        details=details,
        status=status,
        status_reasons=reasons,
    )


def _timed(
    loader: ClipLoader, classify: Callable[[Tensor], Tensor] | None, config: Throughput
) -> tuple[Timings, Scores | None, Run]:
    """Warm up until nothing gets faster, then measure whole passes for long enough, watched."""

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
        return (time.perf_counter() - start) / len(batch)

    warm = warm_up(work, min_calls=max(2, config.warmup_batches))
    stream.close()  # and with it its threads
    if loader.device.type == "cuda":
        torch.cuda.synchronize(loader.device)
        torch.cuda.reset_peak_memory_stats(loader.device)
    per_pass_s = warm["warmup_s"] / sum(videos) * len(loader.videos)
    passes = max(1, math.ceil(config.seconds / per_pass_s), MIN_BATCHES // len(loader) if config.seconds else 0)

    def more(timings: Timings) -> bool:
        if not config.seconds:
            return False
        per_video = [t / n for t, n in zip(timings.interval_s, timings.videos, strict=True)]
        if sum(timings.interval_s) < max(MIN_SECONDS, config.seconds) or len(per_video) < MIN_BATCHES:
            return True
        narrow = config.interval is None or half_width(per_video) <= config.interval
        return not narrow and sum(timings.interval_s) < config.max_seconds

    with GpuMonitor(loader.device) as monitor, Watch() as watch:
        timings, scores = run_batches(loader, classify, passes, more)
    # partly filled batches cost more a video: they are no drift
    full = [t for t, n in zip(timings.interval_s, timings.videos, strict=True) if n == config.batch_size]
    status, reasons = watch.verdict(full, monitor.samples)
    short = sum(timings.interval_s) < MIN_SECONDS or len(timings.videos) < MIN_BATCHES
    if short:
        reasons.append(f"measured for less than {MIN_SECONDS:g} s or {MIN_BATCHES} batches")
    if not warm["warmup_stable"]:
        reasons.append(f"still getting faster after {warm['warmup_s']:.0f} s of warm-up")
    run = Run(warm | watch.figures | monitor.figures(), monitor.samples, status, reasons)
    return timings, scores, run


def summary(record: Record) -> str:
    """The figures a person looks for first."""
    f, s = record.figures, record.settings
    stages = {stage: f[f"ledger_{stage}_ms"] for stage in (*WORK, IDLE)}
    quantiles = [f"p{q} {f[f'p{q}_ms_per_video']:.2f} [{f[f'p{q}_low_ms_per_video']:.2f}, "
                 f"{f[f'p{q}_high_ms_per_video']:.2f}]" for q in (50, 90, 99) if f"p{q}_ms_per_video" in f]  # fmt: skip
    refused = [f"p{q} needs {samples_for_percentile(q)}" for q in (50, 90, 99) if f"p{q}_ms_per_video" not in f]
    half = f["ms_per_video_half_width_percent"]
    lines = [
        f"{record.name}: {f['ms_per_video']:.2f} ms/video{'' if half is None else f' ± {half:.1f} %'} "
        f"({', '.join([*quantiles, *refused])}; {f['videos']} videos in "
        f"{f['batches']} batches of up to {s['batch_size']}), {f['clips_per_s']:.1f} clips/s, "
        f"{f['frames_per_s']:.0f} frames/s ({'real time' if f['real_time'] else 'not real time'})",
        "  work per video: " + ", ".join(f"{stage} {ms:.2f} ms" for stage, ms in stages.items() if ms),
        f"  bottleneck {f['bottleneck']}: its threads are busy {f['overlap_efficiency']:.0%} of the time; at most "
        f"{f['ledger_unexplained_percent']:.1f} % of any thread's time is unexplained",
        *(f"  {record.status}: {reason}" for reason in record.status_reasons),
    ]
    if "agreement_with_eager_fp32" in record.details:
        a = record.details["agreement_with_eager_fp32"]
        lines.append(
            f"  against eager fp32 on {a['clips']} clips: largest difference {a['max_difference']:.1e} standard "
            f"deviations, same class on {a['top1_percent']:.1f} %, rank correlation "
            f"{a['rank_correlation']:.4f}; built in {f['build_s']:.1f} s"
        )
    if "top1_percent" in f:
        lines.append(f"  accuracy: top-1 {f['top1_percent']:.2f} %, top-5 {f['top5_percent']:.2f} %")
    if f["bad_clips"]:
        lines.append(f"  {f['bad_clips']} videos could not be used; the record lists them")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure ms/video from file to label; writes a record."""
    import tyro

    config = tyro.cli(Throughput, args=argv, prog="tdn-bench throughput")
    if config.compare is not None:
        from tdn_bench.regression.comparison import compare

        record = compare(config)
    else:
        record = measure(config)
        print(summary(record))
    folder = config.results or Path("results") / machine_name(pick_device(str(record.settings["device"])))
    print(f"record: {write_record(record, folder)}")


if __name__ == "__main__":
    raise SystemExit(run_command(main))
