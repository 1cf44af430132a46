"""Check, then measure, everything a GPU machine can do: `python -m tdn_bench.gpu_suite`.

Each step runs in a process of its own and writes a record; a step that has passed with the same code, settings
and versions is not run again, so that an interrupted run goes on where it stopped. Without a GPU the same steps
run at toy size on the CPU, as a dry run: it shows that the suite works, and its figures mean nothing.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import pairwise, product
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from engines import (
    ENGINES,
    PRECISIONS,
    QUANTISED,
    EngineSpec,
    create_engine,
    default_precision,
    supported_precisions,
    why_unavailable,
)
from engines.base import DTYPES
from pipelines.clip import ClipSpec
from pipelines.errors import BadClip
from pipelines.loader import create_decoder
from pipelines.manifest import OK, Video, as_video
from pipelines.plan import ClipPlan
from pipelines.processes import cores
from pipelines.sampling import random_frame_indices
from pipelines.synthetic import make_dataset
from tdn_bench.cli.flags import NetworkFlags, pick_device
from tdn_bench.cli.run import run_command
from tdn_bench.correctness.logits import check_engine, plain
from tdn_bench.errors import UserError
from tdn_bench.measurement.throughput import Throughput, measure
from tdn_bench.models import FrameClassifier
from tdn_bench.models.gate_kernel import why_no_kernel
from tdn_bench.models.temporal_difference import use_gate_kernel
from tdn_bench.recipes import Precision, Recipe
from tdn_bench.records.environment import machine_name, versions
from tdn_bench.records.record import Record, latest_records, make_record, utc_now, write_record
from tdn_bench.training.loop import TrainStep, train

KIND = "gpu_suite"
NUM_CLASSES = 174  # Something-Something V2's
LOSS_TOLERANCE = 0.05  # between precisions, after three steps; a share of the loss
MEASURED_CALLS = (5, 200)  # at least, at most

CODECS = {  # codec: (encoder, file ending, options); key frames every 12, so that decoders must seek
    "vp9": ("libvpx-vp9", "webm", {"deadline": "realtime", "cpu-used": "8", "g": "12"}),
    "h264": ("libx264", "mp4", {"preset": "veryfast", "bf": "2", "g": "12"}),
    "mpeg4": ("mpeg4", "mp4", {"bf": "2", "g": "12", "b": "2000000"}),
}
CPU_DALI_CODECS = ("vp9",)  # of these; a GPU decodes them all


@dataclass(frozen=True, kw_only=True)
class GpuSuite:
    """Check, then measure, decoder, loader, training step, engines and the whole path; a table comes last."""

    device: str = "auto"
    """cuda, cuda:1, cpu; auto takes a GPU where there is one. On a CPU everything is a dry run at toy size."""
    results: Path | None = None
    """Folder for the records; default: results/<machine>/gpu-suite, for a dry run runs/gpu-suite-dry."""
    data: Path | None = None
    """Videos in Something-Something V2's layout; default: synthetic ones, rendered once."""
    only: tuple[str, ...] = ()
    """Run only these steps, in their usual order; default: all."""
    again: bool = False
    """Run steps again that have passed before."""
    step: str | None = None
    """Run one step here, in this process, and end (what the suite starts for each of its steps)."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much of everything. Sizes of pictures are (width, height), pixels."""

    model: str
    num_segments: int
    size: int
    ceiling_precision: str
    matrix_side: int
    copy_bytes: int
    clip_sizes: tuple[tuple[int, int], ...]
    clip_frames: int
    plans_per_clip: int
    train_videos: int
    validation_videos: int
    loader_batches: tuple[int, ...]
    loader_s: float
    train_precisions: tuple[str, ...]  # fp32 first
    train_compiled: tuple[str, ...]  # precisions in which the network is also compiled
    train_batch: int
    train_epochs: int
    train_compiler: str  # a back end of torch.compile
    engine_precisions: tuple[str, ...]
    engine_batches: tuple[int, ...]
    compile_batches: tuple[int, ...]  # each takes the compiler up to a minute; none in a dry run
    timing_s: float
    path_engines: tuple[str, ...]
    path_batch: int
    path_s: float
    step_timeout_s: float
    threads: int | None  # of OpenMP; default: one a core


def full() -> Sizes:
    """For a GPU: the paper's network and clip."""
    return Sizes(
        model="tdn_resnet50", num_segments=8, size=224,
        ceiling_precision="bf16", matrix_side=16384, copy_bytes=4 * 2**30,
        clip_sizes=((160, 120), (320, 240), (161, 121)), clip_frames=120, plans_per_clip=8,
        train_videos=512, validation_videos=256, loader_batches=(1, 4, 16, 64), loader_s=5,
        train_precisions=("fp32", "bf16", "fp16"), train_compiled=("fp32", "bf16", "fp16"),
        train_batch=32, train_epochs=3, train_compiler="inductor",
        engine_precisions=PRECISIONS, engine_batches=(1, 16, 64, 256), compile_batches=(1, 16, 64, 256),
        timing_s=2, path_engines=ENGINES, path_batch=16, path_s=10, step_timeout_s=1500, threads=None,
    )  # fmt: skip


def dry() -> Sizes:
    """For a CPU: as little as shows that every step works."""
    return Sizes(
        model="tdn_resnet_small", num_segments=4, size=64,
        ceiling_precision="fp32", matrix_side=512, copy_bytes=2**24,
        clip_sizes=((160, 120), (161, 121)), clip_frames=30, plans_per_clip=2,
        train_videos=8, validation_videos=8, loader_batches=(4,), loader_s=0,
        train_precisions=("fp32", "bf16"), train_compiled=("fp32",),
        train_batch=2, train_epochs=2, train_compiler="aot_eager",
        engine_precisions=("fp32",), engine_batches=(2,), compile_batches=(),
        timing_s=0, path_engines=("eager",), path_batch=4, path_s=0, step_timeout_s=600,
        threads=1,  # several would wait for each other on a busy machine
    )  # fmt: skip


@dataclass(frozen=True)
class Run:
    """What every step is given."""

    sizes: Sizes
    device: torch.device
    folder: Path  # of the records
    data: Path | None = None

    def settings(self) -> dict[str, Any]:
        """What a record must agree in to stand for this run, as JSON gives it back."""
        found = asdict(self.sizes) | {"device": str(self.device), "data": self.data, "code": code_digest()}
        return json.loads(json.dumps(found, default=str))

    def dataset(self) -> Path:
        """The videos, rendered on first use."""
        if self.data is not None:
            return self.data
        root = Path("runs/gpu-suite-data")
        return make_dataset(root, train=self.sizes.train_videos, validation=self.sizes.validation_videos)

    def network(self) -> FrameClassifier:
        """The network with the same fresh weights every time, in eval mode."""
        flags = NetworkFlags(model=self.sizes.model, num_segments=self.sizes.num_segments, size=self.sizes.size)
        return flags.build(NUM_CLASSES, self.device)

    def frames(self, batch: int) -> Tensor:
        """Noise: uint8 (batch, T, L, H, W, C) on the device."""
        shape = (batch, *ClipSpec(self.sizes.num_segments, size=self.sizes.size).shape)
        noise = torch.Generator(self.device).manual_seed(0)
        return torch.randint(0, 256, shape, dtype=torch.uint8, device=self.device, generator=noise)


@dataclass(frozen=True)
class Row:
    """A line of the table; arithmetic is also shown as a share of the ceiling."""

    figure: str
    value: str
    tflop_per_s: float | None = None


@dataclass
class Outcome:
    """What a step found. `failures` are the checks that did not hold, a line each."""

    rows: list[Row] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    samples: dict[str, list[float]] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def expect(self, holds: bool, otherwise: str) -> None:
        if not holds:
            self.failures.append(otherwise)


def code_digest() -> str:
    """sha256 over the project's Python files: tells changed code apart where git cannot."""
    root = Path(__file__).resolve().parents[2]
    paths = sorted(p for package in ("engines", "pipelines", "tdn_bench") for p in (root / package).rglob("*.py"))
    h = hashlib.sha256()
    for path in paths:
        h.update(f"{path.relative_to(root)}\n".encode() + path.read_bytes())
    return h.hexdigest()


def time_calls(call: Callable[[], object], device: torch.device, seconds: float) -> list[float]:
    """Milliseconds of each of some calls: as many as fill `seconds`, 5 to 200, after a warm-up.

    On a GPU events of the current stream time them, so that the host's launches do not count.
    """
    cuda = device.type == "cuda"

    def finish() -> float:
        if cuda:
            torch.cuda.synchronize(device)
        return time.perf_counter()

    for _ in range(2):  # the first may compile or choose algorithms
        start = finish()
        call()
        once_s = finish() - start
    least, most = MEASURED_CALLS
    count = min(most, max(least, math.ceil(seconds / once_s)))
    if not cuda:
        times = [time.perf_counter()]
        for _ in range(count):
            call()
            times.append(time.perf_counter())
        return [1000 * (b - a) for a, b in pairwise(times)]
    with torch.cuda.device(device):
        events = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
        events[0].record()
        for event in events[1:]:
            call()
            event.record()
    finish()
    return [a.elapsed_time(b) for a, b in pairwise(events)]


def ceilings(run: Run) -> Outcome:
    """The most that the device can do: a large matrix product and a large copy within its memory."""
    n, precision = run.sizes.matrix_side, run.sizes.ceiling_precision
    a = torch.randn(n, n, device=run.device).to(DTYPES[precision])
    product = torch.empty_like(a)
    matmul_ms = time_calls(partial(torch.mm, a, a, out=product), run.device, run.sizes.timing_s)
    found = Outcome()
    finite = bool(product.isfinite().all())
    found.expect(finite, f"a product of {n} × {n} matrices holds values that are not finite")
    del a, product
    source = torch.zeros(run.sizes.copy_bytes, dtype=torch.uint8, device=run.device)
    target = torch.empty_like(source)
    copy_ms = time_calls(partial(target.copy_, source), run.device, run.sizes.timing_s)
    found.samples = {"matmul_ms": matmul_ms, "copy_ms": copy_ms}
    found.figures = {
        "matmul_tflop_per_s": 2 * n**3 / statistics.median(matmul_ms) / 1e9,
        "copy_gb_per_s": 2 * run.sizes.copy_bytes / statistics.median(copy_ms) / 1e6,  # read and written
    }
    found.rows = [
        Row(f"matrix product, {precision}, {n} × {n}", f"{found.figures['matmul_tflop_per_s']:.3g} TFLOP/s"),
        Row(f"copy of {run.sizes.copy_bytes / 2**20:.0f} MiB", f"{found.figures['copy_gb_per_s']:.3g} GB/s"),
    ]
    return found


def numbered_frames(count: int, width: int, height: int) -> np.ndarray:
    """uint8 (count, H, W, 3): above, the frame's number as eight black or white bars; below, moving colours."""
    assert count <= 256
    number = np.arange(count)[:, None, None]
    x, y = np.arange(width), np.arange(height)[:, None]
    bars = np.broadcast_to(255 * (number >> (x * 8 // width) & 1), (count, height, width))[..., None]
    phase = 2 * np.pi * (x / width + y / height + number / 40)[..., None] + np.arange(3)
    return np.where((y < height // 2)[..., None], bars, 127 + 100 * np.sin(phase)).astype(np.uint8)


def read_numbers(frames: Tensor, flip: bool) -> np.ndarray:
    """The numbers that frames uint8 (…, H, W, 3) carry, an int64 array (…). W must be a multiple of 32."""
    height, width = frames.shape[-3:-1]
    top = frames[..., height // 8 : 3 * height // 8, :, :].float().mean((-3, -1))
    bar, margin = width // 8, width // 32
    bits = (top.flip(-1) if flip else top).unflatten(-1, (8, bar))[..., margin : bar - margin].mean(-1) > 127
    return (bits.cpu().numpy() << np.arange(8)).sum(-1)


def write_numbered(path: Path, codec: str, count: int, width: int, height: int) -> None:
    """Encode numbered frames. Raises av.error.FFmpegError where the encoder is missing or refuses the size."""
    import av

    encoder, _, options = CODECS[codec]
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(encoder, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for image in numbered_frames(count, width, height):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


def decoder(run: Run) -> Outcome:
    """DALI on the device gives the frames asked for, as PyAV does, and refuses broken files and wrong indices."""
    import av

    found = Outcome()
    if run.device.type == "cuda":
        try:
            ctypes.CDLL("libnvcuvid.so.1")
        except OSError as e:
            found.failures.append(f"no video decoder ({e}); a container needs NVIDIA_DRIVER_CAPABILITIES with video")
    differences: list[float] = []
    checked = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "garbage").write_bytes(np.random.default_rng(0).bytes(20_000))
        for codec, (_, ending, _) in CODECS.items():
            for width, height in run.sizes.clip_sizes:
                label = f"{codec} {width}×{height}"
                path = folder / f"{codec}-{width}x{height}.{ending}"
                try:
                    write_numbered(path, codec, run.sizes.clip_frames, width, height)
                except (av.error.FFmpegError, ValueError) as e:  # ValueError: no such encoder
                    found.details[label] = f"not made: {getattr(e, 'strerror', None) or e}"
                    continue
                video = as_video(path, label)
                if video.file.status != OK or video.file.num_frames != run.sizes.clip_frames:
                    found.failures.append(f"{label}: scanned as {video.file}")
                    continue
                checked += 1
                if run.device.type == "cpu" and codec not in CPU_DALI_CODECS:
                    _expect_refused_codec(run, video, found)
                else:
                    differences += _compare_decoders(run, video, found)
                    _expect_broken_left_out(run, video, folder, found)
    found.samples["rgb_difference"] = differences
    found.figures["files_checked"] = checked
    found.rows = [Row("files checked", f"{checked}, {len(found.details)} not made")]
    if differences:
        found.figures["rgb_difference_mean"] = statistics.fmean(differences)
        found.rows.append(Row("mean RGB difference from PyAV", f"{found.figures['rgb_difference_mean']:.2f} of 255"))
    return found


def _plan(video: Video, frames: np.ndarray, flip: bool = False) -> ClipPlan:
    return ClipPlan(video, frames, (0, 0, video.file.width, video.file.height), flip, 0)


def _decode(
    run: Run, plans: list[ClipPlan], backend: Literal["dali", "pyav"] = "dali"
) -> list[tuple[Tensor, np.ndarray] | BadClip]:
    """Clips on the CPU with the numbers read off them."""
    decoder = create_decoder(backend, ClipSpec(run.sizes.num_segments, size=64), run.device, cores())
    clips = decoder(plans)
    decoder.close()
    return [
        clip if isinstance(clip, BadClip) else (clip.cpu(), read_numbers(clip, plan.flip))
        for clip, plan in zip(clips, plans, strict=True)
    ]


def _compare_decoders(run: Run, video: Video, found: Outcome) -> list[float]:
    """Both backends read the frames that random plans ask for; returns their mean RGB differences."""
    rng, count, segments = np.random.default_rng(0), video.file.num_frames, run.sizes.num_segments
    plans = []
    for i in range(run.sizes.plans_per_clip):
        plans.append(_plan(video, random_frame_indices(count, segments, rng), flip=bool(i % 2)))
        plans.append(_plan(video, rng.integers(count, size=(segments, 5))))  # in any order, some repeated
    decoded = {backend: _decode(run, plans, backend) for backend in ("dali", "pyav")}  # type: ignore[arg-type]
    for backend, clips in decoded.items():
        for plan, clip in zip(plans, clips, strict=True):
            if isinstance(clip, BadClip):
                found.failures.append(f"{video.id}: {backend}: {clip.reason}")
            elif not np.array_equal(clip[1], plan.frames):
                wrong = (clip[1] != plan.frames).sum()
                found.failures.append(f"{video.id}: {backend} returned {wrong} of {plan.frames.size} frames wrong")
    pairs = zip(decoded["dali"], decoded["pyav"], strict=True)
    both = [(a[0], b[0]) for a, b in pairs if not isinstance(a, BadClip) and not isinstance(b, BadClip)]
    return [(a.float() - b.float()).abs().mean().item() for a, b in both]


def _expect_refused_codec(run: Run, video: Video, found: Outcome) -> None:
    [clip] = _decode(run, [_plan(video, np.arange(5)[None].repeat(run.sizes.num_segments, 0))])
    named = isinstance(clip, BadClip) and f"cannot decode {video.file.codec}" in clip.reason
    found.expect(named, f"{video.id}: DALI on the CPU did not refuse {video.file.codec} by name")


def _expect_broken_left_out(run: Run, video: Video, folder: Path, found: Outcome) -> None:
    """A cut file, a file of garbage and an index past the end are bad clips; the others of the batch are intact."""
    whole = Path(video.path)
    cut = folder / f"cut-{whole.name}"
    cut.write_bytes(whole.read_bytes()[: video.file.bytes // 2])
    frames = np.linspace(0, video.file.num_frames - 1, run.sizes.num_segments * 5).astype(np.int64)
    frames = frames.reshape(run.sizes.num_segments, 5)
    good, past = _plan(video, frames), _plan(video, frames + 1)
    broken = {
        name: replace(good, video=replace(video, sample=replace(video.sample, path=str(path))))
        for name, path in (("a cut file", cut), ("a file of garbage", folder / "garbage"))
    } | {"an index past the end": past}
    clips = _decode(run, [good, *broken.values(), good])
    for name, clip in zip(broken, clips[1:-1], strict=True):
        found.expect(isinstance(clip, BadClip), f"{video.id}: {name} was not refused")
    for clip in (clips[0], clips[-1]):
        intact = not isinstance(clip, BadClip) and np.array_equal(clip[1], frames)
        found.expect(intact, f"{video.id}: a sound clip beside broken ones was lost or changed")


def odd_clips(run: Run) -> Outcome:
    """Awkward clips whose frames carry their number, by every decoder: one may refuse a clip, none may return a wrong
    frame."""
    from pipelines.odd_clips import make_odd_clips
    from tdn_bench.correctness.decoder_parity import SPEC, check_video, open_decoders

    found = Outcome()
    verdicts: dict[str, Counter[str]] = {}
    decoders = open_decoders(SPEC, run.device, cores())
    with tempfile.TemporaryDirectory() as folder:
        for clip in make_odd_clips(Path(folder)):
            case = check_video(as_video(clip.path, clip.name), decoders, 0, clip)
            found.details[clip.name] = {backend: str(returned) for backend, returned in case.returned.items()}
            for backend, returned in case.returned.items():
                verdicts.setdefault(backend, Counter())[returned.verdict] += 1
                found.expect(returned.verdict != "wrong", f"{clip.name} by {backend}: {returned}")
    for backend, counts in verdicts.items():
        name = backend.replace("-", "_")
        found.figures |= {f"{name}_{verdict}": counts[verdict] for verdict in ("exact", "refused", "wrong")}
        found.rows.append(Row(f"odd clips by {backend}", f"{counts['exact']} exact, {counts['refused']} refused"))
    return found


def loader(run: Run) -> Outcome:
    """Clips/s of every backend that fills the device's memory, and of DALI on the CPU, by batch size."""
    found = Outcome()
    best: dict[str, float] = {}
    where = str(run.device)
    for backend, device in dict.fromkeys((("pyav", where), ("dali", "cpu"), ("dali", where))):
        for batch in run.sizes.loader_batches:
            config = Throughput(
                engine="none", model=run.sizes.model, num_segments=run.sizes.num_segments, size=run.sizes.size,
                data=run.dataset(), batch_size=batch, seconds=run.sizes.loader_s, warmup_batches=2,
                device=device, backend=backend,  # type: ignore[arg-type]
            )  # fmt: skip
            record = measure(config)
            label = f"{backend}_{device.replace(':', '')}_batch{batch}"
            found.figures |= {f"{label}_{k}": v for k, v in record.figures.items()}
            found.samples |= {f"{label}_{k}": list(v) for k, v in record.samples.items()}
            found.expect(not record.figures["bad_clips"], f"{label}: bad clips: {record.details.get('bad_clips')}")
            rate = record.figures["clips_per_s"]
            best[f"{backend} {device}"] = max(rate, best.get(f"{backend} {device}", 0))
            busy = record.figures.get("gpu_nvdec_percent")
            note = f", video decoder {busy:.0f} % busy" if busy is not None else ""
            found.rows.append(Row(f"{backend} on {device}, batch {batch}", f"{rate:.1f} clips/s{note}"))
    found.figures["dali_over_pyav"] = best[f"dali {where}"] / best[f"pyav {where}"]
    found.rows.append(Row(f"dali on {where} : pyav, each at its best", f"{found.figures['dali_over_pyav']:.2f}"))
    return found


def count_flops(classifier: nn.Module, frames: Tensor, *, backward: bool) -> int:
    """Floating-point operations (two a multiply-add) of one pass, counted on a copy without data."""
    import copy

    from torch.utils.flop_counter import FlopCounterMode

    meta = copy.deepcopy(classifier).to("meta")
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(backward):
        logits = meta(torch.empty_like(frames, device="meta"))
        if backward:
            logits.sum().backward()
    return counter.get_total_flops()


def train_step(run: Run) -> Outcome:
    """One optimisation step with the data on the device, by precision, layout of the weights, and compiler.

    The activations are in channels-last either way: the network makes them so.
    """
    sizes = run.sizes
    found = Outcome()
    frames = run.frames(sizes.train_batch)
    labels = torch.arange(sizes.train_batch, device=run.device) % NUM_CLASSES
    flops = count_flops(run.network().train(), frames, backward=True)
    expected = None
    cases = [(p, layout, False) for p in sizes.train_precisions for layout in ("channels_last", "contiguous")]
    cases += [(p, "channels_last", True) for p in sizes.train_compiled]
    for precision, layout, compiled in cases:
        label = f"{precision}_{layout}_{'compiled' if compiled else 'eager'}"
        classifier = run.network().train()
        classifier.network.dropout.p = 0  # type: ignore[union-attr]  # so that precisions can be compared
        memory_format = torch.channels_last if layout == "channels_last" else torch.contiguous_format
        classifier.to(memory_format=memory_format)  # type: ignore[call-overload]
        step = TrainStep(classifier, Recipe(), precision, run.device)
        if run.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(run.device)
        try:
            if compiled:
                step.classifier = torch.compile(classifier, backend=sizes.train_compiler)  # type: ignore[assignment]
            losses = [step(frames, labels, 0).item() for _ in range(3)]
            expected = expected or losses[-1]  # the first case: fp32, eager
            if not abs(losses[-1] - expected) <= LOSS_TOLERANCE * expected:  # so written that NaN fails
                found.failures.append(f"{label}: losses {losses} do not end near fp32's {expected:.4f}; not timed")
                continue
            samples = time_calls(partial(step, frames, labels, 0), run.device, sizes.timing_s)
        except RuntimeError as e:  # out of memory, or the compiler's: the other cases still count
            found.failures.append(f"{label}: {_first_line(e)}")
            continue
        finally:
            torch._dynamo.reset()
        ms = statistics.median(samples)
        found.samples |= {f"{label}_ms": samples, f"{label}_loss": losses}
        found.figures |= {
            f"{label}_ms_per_step": ms,
            f"{label}_clips_per_s": 1000 * sizes.train_batch / ms,
            f"{label}_tflop_per_s": flops / ms / 1e9,
        }
        value = f"{ms:.1f} ms/step, {1000 * sizes.train_batch / ms:.1f} clips/s"
        if run.device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(run.device)
            found.figures[f"{label}_peak_torch_memory_bytes"] = peak
            value += f", {peak / 2**30:.1f} GiB"
        title = label.replace("channels_last", "channels-last").replace("_", ", ")
        found.rows.append(Row(title, value, flops / ms / 1e9))
    return found


def train_data(run: Run) -> Outcome:
    """Training fed by the DALI loader: how much of the time goes into waiting for data."""
    sizes = run.sizes
    precision: Precision = "bf16" if "bf16" in sizes.train_precisions else "fp32"
    with tempfile.TemporaryDirectory() as output:
        recipe = Recipe(
            name="gpu-suite", data=run.dataset(), model=sizes.model, num_segments=sizes.num_segments,
            size=sizes.size, batch_size=sizes.train_batch, epochs=sizes.train_epochs, lr=1e-4, precision=precision,
            device=str(run.device), backend="dali", evaluate_every=sizes.train_epochs, output=Path(output),
        )  # fmt: skip
        result = train(recipe, progress=False)
    last = result.epochs[-1]  # the first epochs warm up
    found = Outcome()
    found.expect(result.bad_clips == 0, f"{result.bad_clips} clips could not be used")
    found.figures = {"clips_per_s": last.clips_per_s, "wait_share": last.wait_share, "loss": last.loss, **result.ledger}
    found.samples = {"clips_per_s": [e.clips_per_s for e in result.epochs]}
    title = f"training, {precision}, eager, DALI"
    found.rows = [Row(title, f"{last.clips_per_s:.1f} clips/s, {last.wait_share:.0%} waiting for data")]
    return found


def engine(run: Run, *, name: str) -> Outcome:
    """One engine in each of its precisions and batch sizes: first against eager fp32, then alone, data in place."""
    found = Outcome()
    if (reason := why_unavailable(name, str(run.device))) is not None:
        found.rows = [Row(name, f"not run: {reason}")]
        return found
    torch.backends.cudnn.allow_tf32 = False  # fp32 means fp32, else it would not agree with itself
    sizes = run.sizes
    batches = sizes.compile_batches if name in ("compile", "aoti") else sizes.engine_batches
    if not batches:
        found.rows = [Row(name, "not run: left out of a dry run")]
        return found
    classifier = run.network()
    flops = count_flops(classifier, run.frames(1), backward=False)
    found.figures["gflop_per_video"] = flops / 1e9
    precisions = set(sizes.engine_precisions) & set(supported_precisions(name, str(run.device)))
    # TDN's blocks with the Triton kernels too, in the engines that can run them
    kernels = (False, True) if name == "compile" and why_no_kernel(run.device) is None else (False,)
    for kernel, precision in product(kernels, sorted(precisions)):
        if kernel:
            use_gate_kernel(classifier)
        for batch in batches:
            label = f"{precision}_batch{batch}{'_gate_kernel' if kernel else ''}"
            frames = run.frames(batch)
            spec = EngineSpec(tuple(frames.shape[1:]), batch, precision, str(run.device))  # type: ignore[arg-type]
            try:
                calibration = [run.frames(1)] if precision in QUANTISED else None
                with create_engine(name, classifier, spec, calibration=calibration) as built:
                    with create_engine("eager", run.network(), plain(spec)) as reference:
                        agreement = check_engine(built, reference, [frames], precision)
                    samples = time_calls(partial(built, frames), run.device, sizes.timing_s)
                    if run.device.type == "cuda":  # of all that holds any: TensorRT's memory is not torch's
                        free, total = torch.cuda.mem_get_info(run.device)
                        found.figures[f"{label}_card_in_use_bytes"] = total - free
                    found.figures[f"{label}_build_s"] = built.build_s
                    found.details[label] = {"engine": built.details(), "agreement_with_eager_fp32": asdict(agreement)}
            except (RuntimeError, UserError) as e:  # cannot be built, disagrees, out of memory: the others still count
                found.failures.append(f"{name} {label}: {_first_line(e)}")
                continue
            ms = statistics.median(samples) / batch
            found.samples[f"{label}_ms"] = samples
            found.figures |= {f"{label}_ms_per_video": ms, f"{label}_tflop_per_s": flops / ms / 1e9}
            title = f"{name}, {precision}, batch {batch}{', gate kernel' if kernel else ''}"
            found.rows.append(Row(title, f"{ms:.3f} ms/video", flops / ms / 1e9))
    return found


def path(run: Run) -> Outcome:
    """From file to label with every engine that is ready; `tdn_bench.throughput` writes a record of each, too."""
    found, sizes = Outcome(), run.sizes
    for name in sizes.path_engines:
        if (reason := why_unavailable(name, str(run.device))) is not None:
            found.rows.append(Row(name, f"not run: {reason}"))
            continue
        flags = {
            "engine": name, "device": run.device, "model": sizes.model, "num-segments": sizes.num_segments,
            "size": sizes.size, "batch-size": sizes.path_batch, "seconds": sizes.path_s, "data": run.dataset(),
            "precision": default_precision(name, str(run.device)), "results": run.folder, "name": f"path-{name}",
        }  # fmt: skip
        started = utc_now()
        arguments = [text for flag, value in flags.items() for text in (f"--{flag}", str(value))]
        error = run_module("tdn_bench.throughput", arguments, sizes)
        if error is not None:
            found.failures.append(f"{name}: {error}")
            continue
        [record] = (r for r in latest_records(run.folder, started) if r.name == f"path-{name}")
        f = record.figures
        found.figures |= {f"{name}_ms_per_video": f["ms_per_video"], f"{name}_clips_per_s": f["clips_per_s"]}
        value = f"{f['ms_per_video']:.2f} ms/video, {f['clips_per_s']:.1f} clips/s"
        found.rows.append(Row(f"{name}, {flags['precision']}, batch {sizes.path_batch}", value))
    return found


STEPS: dict[str, Callable[[Run], Outcome]] = {
    "ceilings": ceilings,
    "decoder": decoder,
    "odd-clips": odd_clips,
    "loader": loader,
    "train-step": train_step,
    "train-data": train_data,
    **{f"engine-{name}": partial(engine, name=name) for name in ENGINES},
    "path": path,
}


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def run_module(module: str, arguments: Sequence[str], sizes: Sizes) -> str | None:
    """Run `python -m module` in a process of its own; None, or in one line why it failed."""
    command = [sys.executable, "-m", module, *arguments]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    if sizes.threads is not None:
        environment["OMP_NUM_THREADS"] = str(sizes.threads)
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=sizes.step_timeout_s, env=environment)
    except subprocess.TimeoutExpired:
        return f"did not end within {sizes.step_timeout_s:.0f} s"
    if done.returncode == 0:
        return None
    print(done.stderr, file=sys.stderr, end="", flush=True)  # the table has room for a line only
    if done.returncode < 0:
        return f"killed by signal {-done.returncode}"
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    return lines[-1].removeprefix("error: ") if lines else f"exit status {done.returncode}"


def run_step(name: str, run: Run) -> Record:
    """Run one step in this process and write its record."""
    found = STEPS[name](run)
    details = found.details | {"failures": found.failures, "rows": [asdict(row) for row in found.rows]}
    record = make_record(
        KIND, name, figures=found.figures, samples=found.samples, settings=run.settings(), device=run.device,
        details=details,
    )  # fmt: skip
    write_record(record, run.folder)
    return record


def find_record(name: str, run: Run, since: str = "") -> Record | None:
    """The step's newest record, if it is of this code, these settings, this device and these versions."""
    if not run.folder.is_dir():
        return None
    same = run.settings(), versions(), machine_name(run.device)
    for record in latest_records(run.folder, since):
        if (record.kind, record.name) == (KIND, name):
            return record if (record.settings, record.versions, record.machine["name"]) == same else None
    return None


@dataclass(frozen=True)
class Verdict:
    """How a step ended. `failures` is empty where it passed; without a record it broke off."""

    step: str
    record: Record | None
    failures: Sequence[str]
    earlier: bool = False

    @property
    def text(self) -> str:
        return "FAILED" if self.failures else "passed (earlier)" if self.earlier else "passed"


def supervise(name: str, run: Run, again: bool) -> Verdict:
    """Run one step in a process of its own, unless it has passed before."""
    before = None if again else find_record(name, run)
    if before is not None and not before.details["failures"]:
        return Verdict(name, before, (), earlier=True)
    started = utc_now()
    arguments = ["--step", name, "--device", str(run.device), "--results", str(run.folder)]
    arguments += ["--data", str(run.data)] if run.data is not None else []
    error = run_module("tdn_bench.gpu_suite", arguments, run.sizes)
    record = find_record(name, run, started)
    failures = list(record.details["failures"]) if record is not None else []
    if not failures and (error is not None or record is None):
        failures = [error or "left no record of this code: was it edited meanwhile?"]
    return Verdict(name, record, failures)


def table(verdicts: Sequence[Verdict]) -> str:
    """Each step's verdict, its failures and its headline figures; rates also as a share of the ceiling."""
    figures = next((v.record.figures for v in verdicts if v.step == "ceilings" and v.record is not None), {})
    ceiling = figures.get("matmul_tflop_per_s")
    lines = []
    for verdict in verdicts:
        lines.append(f"{verdict.step}: {verdict.text}")
        lines += [f"    ! {failure}" for failure in verdict.failures]
        for row in verdict.record.details["rows"] if verdict.record is not None else ():
            line, rate = f"    {row['figure']:42s} {row['value']}", row["tflop_per_s"]
            if rate is not None:
                line += f", {rate:.3g} TFLOP/s"
                line += f" = {rate / ceiling:.1%} of the matrix product" if ceiling is not None else ""
            lines.append(line)
    return "\n".join(lines)


def prepare(config: GpuSuite) -> Run:
    """Resolve the flags. Raises UserError for an unknown step or device."""
    unknown = {*config.only, *({config.step} if config.step else ())} - STEPS.keys()
    if unknown:
        raise UserError(f"unknown step {', '.join(sorted(unknown))}; choose of {', '.join(STEPS)}")
    device = pick_device(config.device)
    gpu = device.type == "cuda"
    folder = Path("results") / machine_name(device) / "gpu-suite" if gpu else Path("runs/gpu-suite-dry")
    return Run(full() if gpu else dry(), device, config.results or folder, config.data)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the steps and print the table. Ends with exit status 1 if a check failed."""
    import tyro

    config = tyro.cli(GpuSuite, args=argv, prog="tdn-bench gpu-suite")
    run = prepare(config)
    if config.step is not None:
        record = run_step(config.step, run)
        print(table([Verdict(config.step, record, record.details["failures"])]))
        raise SystemExit(bool(record.details["failures"]))
    verdicts, start = [], time.perf_counter()
    for name in [s for s in STEPS if s in config.only or not config.only]:
        print(f"[{time.perf_counter() - start:4.0f} s] {name}", flush=True)
        verdicts.append(supervise(name, run, config.again))
    dry_run = "" if run.device.type == "cuda" else " (a dry run on the CPU: its figures mean nothing)"
    print(f"\n{table(verdicts)}\n\nrecords: {run.folder}{dry_run}")
    if any(v.failures for v in verdicts):
        raise SystemExit(1)


if __name__ == "__main__":
    raise SystemExit(run_command(main))
