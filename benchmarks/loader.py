"""This project's CPU loader against torchcodec and the authors' way: `python benchmarks/loader.py --vp9 FILE …`.

The authors' way: decord (where it is installed) or PyAV picks the frames, PIL crops, resizes and flips each of them,
they are stacked, made float32 and normalised, in the worker processes of a torch DataLoader. Ours ends with uint8,
because normalisation belongs to the network; so the authors' way is also timed without its last two steps. torchcodec
(where it is installed) decodes the same frames in one call, torch crops and resizes them to the same uint8. All get
the same plans (training's), and what they return must agree before anything is timed. Ways take turns, clip by clip
(CPU time of one thread) and epoch by epoch (clips/s of all cores), so that a busy machine slows all of them.
"""

from __future__ import annotations

import importlib.util
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pipelines.clip import ClipSpec
from pipelines.cpu import decode_clip
from pipelines.ledger import NOBODY
from pipelines.loader import ClipLoader
from pipelines.manifest import Video, Videos, as_video
from pipelines.plan import ClipPlan, plan_training
from pipelines.processes import cores
from tdn_bench.cli import run_command
from tdn_bench.errors import UserError
from tdn_bench.records import make_record, record_folder, write_record

MEAN = torch.tensor([0.485, 0.456, 0.406]).view(-1, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(-1, 1, 1)
TOLERANCE = 4  # mean difference of a pixel, of 255: libraries differ in colour conversion and in rounding
KINDS = {
    "vp9": ("libvpx-vp9", 427, 240, 48, 12),
    "h264": ("libx264", 340, 256, 300, 30),
    "mpeg4": ("mpeg4", 320, 240, 180, 25),
}
SUFFIXES = {"vp9": "webm", "h264": "mp4", "mpeg4": "avi"}


@dataclass(frozen=True)
class Benchmark:
    """Time the CPU loader against the authors' way, and write a record."""

    vp9: tuple[Path, ...] = ()
    """VP9 videos (Something-Something V2: 240 pixels high, some 48 frames); default: made ones."""
    h264: tuple[Path, ...] = ()
    """H.264 videos (Kinetics: short side 256, 300 frames); default: made ones."""
    mpeg4: tuple[Path, ...] = ()
    """MPEG-4 videos in AVI (UCF101: 320 × 240, some 180 frames); default: made ones."""
    rounds: int = 10
    """Times that every way takes each clip (in one thread), and epochs (on all cores)."""
    epoch_clips: int = 48
    """Clips in an epoch of the measurement on all cores."""
    batch_size: int = 8
    """Clips in a batch of that measurement."""
    workers: int | None = None
    """Processes of the DataLoader and threads of ours; default: one a core."""
    results: Path | None = None
    """Folder for the record; default: runs/benchmarks. To publish: results/<machine>."""


OPTIONS = {"vp9": {"crf": "32", "b": "0"}, "mpeg4": {"b": "1M", "g": "12"}}  # UCF101: a key frame in twelve
Way = Callable[[ClipPlan], Tensor]


def ours(spec: ClipSpec) -> Way:
    """uint8 (T, L, H, W, C)"""
    return lambda plan: decode_clip(plan, spec, NOBODY)


def with_pyav(plan: ClipPlan) -> list[Image.Image]:
    """The plan's distinct frames: decode from the start to the last of them."""
    wanted = set(plan.frames.ravel().tolist())
    pictures = []
    with av.open(plan.video.path) as container:
        for number, frame in enumerate(container.decode(video=0)):
            if number in wanted:
                pictures.append(frame.to_image())
            if number >= max(wanted):
                break
    return pictures


def with_decord(plan: ClipPlan) -> list[Image.Image]:
    import decord

    reader = decord.VideoReader(plan.video.path, num_threads=1)
    return [Image.fromarray(frame) for frame in reader.get_batch(np.unique(plan.frames).tolist()).asnumpy()]


def authors(spec: ClipSpec, pick: Callable[[ClipPlan], list[Image.Image]], floats: bool) -> Way:
    """float32 (T·L·C, H, W), normalised, or uint8 (H, W, T·L·C) without `floats`."""

    def load(plan: ClipPlan) -> Tensor:
        x, y, w, h = plan.crop
        pictures = [
            picture.crop((x, y, x + w, y + h)).resize((spec.size, spec.size), Image.Resampling.BILINEAR)
            for picture in pick(plan)
        ]
        if plan.flip:
            pictures = [picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for picture in pictures]
        order = np.searchsorted(np.unique(plan.frames), plan.frames.ravel())
        stacked = np.concatenate([pictures[i] for i in order], axis=2)
        if not floats:
            return torch.from_numpy(stacked)
        clip = torch.from_numpy(stacked).permute(2, 0, 1).contiguous().float().div(255)
        count = plan.frames.size
        return clip.sub_(MEAN.repeat(count, 1, 1)).div_(STD.repeat(count, 1, 1))

    return load


def with_torchcodec(spec: ClipSpec) -> Way:
    """uint8 (T·L, H, W, C), as a user of torchcodec would make it: one call for the frames, then torch."""
    from torchcodec.decoders import VideoDecoder

    def load(plan: ClipPlan) -> Tensor:
        decoder = VideoDecoder(plan.video.path, num_ffmpeg_threads=1, dimension_order="NHWC")
        frames = decoder.get_frames_at(indices=plan.wanted.tolist()).data
        x, y, w, h = plan.crop
        region = frames[:, y : y + h, x : x + w].permute(0, 3, 1, 2)
        small = F.interpolate(region, (spec.size, spec.size), mode="bilinear", antialias=True)
        small = small.flip(3) if plan.flip else small
        order = np.searchsorted(plan.wanted, plan.frames.ravel())
        return small.permute(0, 2, 3, 1)[torch.from_numpy(order)]

    return load


class Clips(Dataset):  # type: ignore[type-arg]
    """The authors' data set: a way applied to a list of plans."""

    def __init__(self, plans: Sequence[ClipPlan], way: Way) -> None:
        self.plans, self.way = plans, way

    def __len__(self) -> int:
        return len(self.plans)

    def __getitem__(self, index: int) -> Tensor:
        return self.way(self.plans[index])


def make_videos(kind: str, folder: Path, count: int = 4) -> list[Path]:
    """Moving texture under noise, as costly to decode as filmed video of that size."""
    encoder, width, height, frames, rate = KINDS[kind]
    rng = np.random.default_rng(0)
    paths = []
    for number in range(count):
        shape = height // 8 + 32, width // 8 + 64
        grey, tint = (
            rng.integers(40, 215, (*shape, 1)),
            rng.integers(-24, 24, (*shape, 3)),
        )  # as faint as in filmed video
        coarse = (grey + tint).astype(np.uint8)
        scene = np.asarray(Image.fromarray(coarse).resize((width + 480, height + 240), Image.Resampling.BICUBIC))
        path = folder / f"{number}.{SUFFIXES[kind]}"
        with av.open(str(path), "w") as container:
            stream = container.add_stream(encoder, rate=rate, options=OPTIONS.get(kind, {}))
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            for i in range(frames):
                x, y = (int(240 + 230 * np.sin(i / 40 + number)), int(120 + 110 * np.cos(i / 31)))
                noise = rng.integers(-6, 6, (height, width, 1))
                picture = np.clip(scene[y : y + height, x : x + width] + noise, 0, 255).astype(np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode())
        paths.append(path)
    return paths


def read_videos(paths: Sequence[Path]) -> list[Video]:
    videos = [as_video(p, split="train") for p in paths]
    for video in videos:
        if video.file.status != "ok":
            raise UserError(f"{video.path}: {video.file.status}")
    return videos


def check_agreement(found: Tensor, wanted: Tensor, name: str) -> float:
    """Mean difference of a pixel; raises UserError where two ways do not return the same frames."""
    if wanted.dtype == torch.uint8:
        difference = found.flatten(0, 1).float() - wanted.float()
    else:
        ordered = found.permute(0, 1, 4, 2, 3).flatten(0, 2).float()  # (T·L·C, H, W)
        difference = ordered - (wanted * STD.repeat(len(wanted) // 3, 1, 1) + MEAN.repeat(len(wanted) // 3, 1, 1)) * 255
    mean = difference.abs().mean().item()
    if mean > TOLERANCE:
        raise UserError(f"{name}: it and ours differ by {mean:.1f} of 255 a pixel: not the same frames")
    return mean


def one_thread(plans: Sequence[ClipPlan], ways: dict[str, Way], rounds: int) -> dict[str, list[float]]:
    """CPU milliseconds a clip, all threads of the process counted, ways in turn."""
    cpu_ms: dict[str, list[float]] = {name: [] for name in ways}
    for round_ in range(rounds):
        for plan in plans:
            names = list(ways)
            for name in names[round_ % len(names) :] + names[: round_ % len(names)]:
                start = time.process_time()
                ways[name](plan)
                cpu_ms[name].append(1000 * (time.process_time() - start))
    return cpu_ms


def all_cores(
    videos: Videos, plans: Sequence[ClipPlan], spec: ClipSpec, ways: dict[str, Way], config: Benchmark, workers: int
) -> dict[str, list[float]]:
    """clips/s of whole epochs, loaders in turn; starting the workers is left out (an epoch before)."""
    clips_per_s: dict[str, list[float]] = {name: [] for name in ways}
    with ExitStack() as stack:
        epochs: dict[str, Callable[[], Iterator[Any]]] = {}
        for name, way in ways.items():
            if name == "ours":
                loader = stack.enter_context(
                    ClipLoader(videos, spec, config.batch_size, flipped_labels=(0,), backend="pyav", workers=workers)
                )
                epochs[name] = lambda loader=loader: loader.epoch(0)  # type: ignore[misc]
            else:
                theirs = DataLoader(Clips(plans, way), config.batch_size, num_workers=workers, persistent_workers=True)
                epochs[name] = lambda theirs=theirs: iter(theirs)  # type: ignore[misc]
        for round_ in range(1 + config.rounds):
            for name, epoch in epochs.items():
                start, clips = time.perf_counter(), 0
                for batch in epoch():
                    clips += len(batch)
                if round_:
                    clips_per_s[name].append(clips / (time.perf_counter() - start))
    return clips_per_s


def measure(kind: str, paths: Sequence[Path], config: Benchmark) -> tuple[dict[str, Any], dict[str, list[float]]]:
    """Figures and samples of one kind of video."""
    spec = ClipSpec()
    found = read_videos(paths)
    many = [found[i % len(found)] for i in range(config.epoch_clips)]
    videos = Videos.of(many)
    plans = [
        plan_training(video, spec, seed=0, epoch=0, position=i, flipped_labels=(0,)) for i, video in enumerate(many)
    ]
    pickers = {"authors_pyav": with_pyav}
    if importlib.util.find_spec("decord"):
        pickers["authors_decord"] = with_decord
    ways: dict[str, Way] = {"ours": ours(spec)}
    for name, pick in pickers.items():
        ways |= {name: authors(spec, pick, True), f"{name}_uint8": authors(spec, pick, False)}
    checked = list(pickers)
    if importlib.util.find_spec("torchcodec"):
        checked.append("torchcodec")
        ways["torchcodec"] = with_torchcodec(spec)
    figures: dict[str, Any] = {
        "frames": statistics.median(v.file.num_frames for v in found),
        "keyframe_spacing": statistics.median(v.file.keyframe_spacing for v in found),
    }
    for name in checked:
        figures[f"{name}_pixel_difference"] = max(
            check_agreement(ways["ours"](plan), ways[name](plan), name) for plan in plans[: len(found)]
        )
    cpu_ms = one_thread(plans[: max(len(found), 8)], ways, config.rounds)
    workers = config.workers or cores()
    clips_per_s = all_cores(videos, plans, spec, ways, config, workers)
    samples = {f"{name}_cpu_ms": v for name, v in cpu_ms.items()}
    samples |= {f"{name}_clips_per_s": v for name, v in clips_per_s.items()}
    for name in ways:
        figures[f"{name}_cpu_ms"] = statistics.median(cpu_ms[name])
        figures[f"{name}_clips_per_s"] = statistics.median(clips_per_s[name])
        if name != "ours":  # a ratio a pair of neighbours in time, and the median of these
            pairs = zip(cpu_ms[name], cpu_ms["ours"], strict=True)
            figures[f"cpu_time_{name}_to_ours"] = statistics.median(a / b for a, b in pairs)
            rates = zip(clips_per_s["ours"], clips_per_s[name], strict=True)
            figures[f"clips_per_s_ours_to_{name}"] = statistics.median(a / b for a, b in rates)
    return {f"{kind}_{k}": v for k, v in figures.items()}, {f"{kind}_{k}": v for k, v in samples.items()}


def main(argv: Sequence[str] | None = None) -> None:
    """Measure every kind and write a record."""
    import tyro

    config = tyro.cli(Benchmark, args=argv, prog="benchmarks/loader.py")
    results = record_folder(config.results, "benchmarks")
    torch.set_num_threads(1)
    figures: dict[str, Any] = {}
    samples: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind in KINDS:
            paths = getattr(config, kind)
            if not paths:
                (Path(folder) / kind).mkdir()
                paths = make_videos(kind, Path(folder) / kind)
            found, raw = measure(kind, paths, config)
            figures |= found
            samples |= raw
            for name, value in found.items():
                print(f"{name:50s}{value:10.2f}")
    device = torch.device("cpu")
    settings = asdict(replace(config, workers=config.workers or cores()))
    record = make_record("benchmark", "loader", figures=figures, samples=samples, settings=settings, device=device)
    print(f"record: {write_record(record, results)}")


if __name__ == "__main__":
    raise SystemExit(run_command(main))
