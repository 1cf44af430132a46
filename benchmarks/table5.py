"""The seven networks of the paper's Table 5, from video file to label, in turns: `python benchmarks/table5.py`.

All networks are in one process. In a round each of them takes one turn, in an order that moves on by one from round to
round: it decodes its own frames of the round's video (eight, sixteen or forty of them) on one thread and classifies
them. A busy machine slows all of them, and what is stated is the ratio to TSN's turn of the same round: the median over
rounds with its distribution-free 95 % interval. The paper's are times on one V100 at batch 16.

I3D is tested with two clips × three crops of 32 frames: all are loaded, one is classified, and its time counts six
times. Networks are eager, with batch norms folded, and have 174 classes.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from pipelines.clip import ClipSpec
from pipelines.cpu import decode_clip
from pipelines.ledger import NOBODY
from pipelines.manifest import Video, as_video
from pipelines.plan import plan_evaluation
from pipelines.synthetic import draw_scene, encode, render
from tdn_bench.cli import pick_device, run_command
from tdn_bench.cli.progress import progress
from tdn_bench.errors import UserError
from tdn_bench.measurement.statistics import percentile
from tdn_bench.models import FrameClassifier, create_model
from tdn_bench.models.complexity import measure
from tdn_bench.models.variants import VARIANTS
from tdn_bench.records import PUBLISHED, make_record, record_folder, write_record

NUM_CLASSES, BASELINE, MIN_ROUNDS = 174, "tsn", 6  # rounds: fewer bound no median
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Segments and views of Table 5; the others have 8 segments and one view.
SEGMENTS, VIEWS = {"tsm": 16, "i3d": 32}, {"i3d": (2, 3)}


@dataclass(frozen=True)
class Benchmark:
    """Time Table 5's networks in turns, and write a record."""

    videos: tuple[Path, ...] = ()
    """Video files, one a round; default: made ones."""
    networks: tuple[str, ...] = tuple(str(row.variant) for row in PUBLISHED if row.table == "5")
    """Variants (`tdn-bench list`); TSN is always among them."""
    backbone: str = "resnet50"
    """resnet50, resnet101 or resnet_small."""
    size: int = 224
    """Height and width, pixels."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Autocast to this."""
    rounds: int = 11
    """Timed turns of each network, at least 6."""
    device: str = "auto"
    """cuda, cuda:1, cpu; auto takes a GPU where there is one."""
    results: Path | None = None
    """Folder for the record; default: runs/benchmarks. To publish: results/<machine>."""


class TimedNetwork:
    """A network and the clips that it reads."""

    def __init__(self, variant: str, config: Benchmark, device: torch.device) -> None:
        torch.manual_seed(0)
        segments, (clips, crops) = SEGMENTS.get(variant, 8), VIEWS.get(variant, (1, 1))
        model = f"{variant}_{config.backbone}"
        network = create_model(model, num_classes=NUM_CLASSES, num_segments=segments, dropout=0)
        self.classify = FrameClassifier(network).eval().fold_batch_norm().to(device)
        frames = VARIANTS[variant].frames_per_segment
        self.spec = ClipSpec(segments, frames, config.size, num_clips=clips, num_crops=crops)  # type: ignore[arg-type]
        self.gmacs = measure(model, num_segments=segments, size=config.size).total.macs / 1e9
        self.device, self.dtype = device, DTYPES[config.precision]

    def turn(self, video: Video) -> tuple[float, float]:
        """Milliseconds to load all views of a video, and to classify them."""
        start = time.perf_counter()
        clip = decode_clip(plan_evaluation(video, self.spec), self.spec, NOBODY)
        views = clip.view(self.spec.num_views, *self.spec.shape)
        loaded = time.perf_counter()
        self._logits(views[:1])
        classified = time.perf_counter()
        return 1000 * (loaded - start), 1000 * (classified - loaded) * self.spec.num_views

    @torch.inference_mode()
    def _logits(self, frames: Tensor) -> Tensor:
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            logits = self.classify(frames.to(self.device)).cpu()
        assert logits.isfinite().all()
        return logits


def take_turns(networks: dict[str, TimedNetwork], videos: Sequence[Video], rounds: int) -> dict[str, list[list[float]]]:
    """Loading and network time of every turn, in ms; one round before is not counted."""
    times: dict[str, list[list[float]]] = {name: [[], []] for name in networks}
    names = list(networks)
    with progress("Timing", rounds + 1, "rounds") as advance:
        for number in range(-1, rounds):
            first = number % len(names)
            for name in names[first:] + names[:first]:
                turn = networks[name].turn(videos[number % len(videos)])
                if number >= 0:
                    for kept, ms in zip(times[name], turn, strict=True):
                        kept.append(ms)
            advance(1)
    return times


def figures_of(times: dict[str, list[list[float]]], networks: dict[str, TimedNetwork]) -> dict[str, Any]:
    """Of each network: medians in ms, its ratio to TSN over rounds with the interval, multiply-adds."""
    total = {name: [a + b for a, b in zip(*of, strict=True)] for name, of in times.items()}
    found: dict[str, Any] = {}
    for name, (loading, network) in times.items():
        ratios = [own / base for own, base in zip(total[name], total[BASELINE], strict=True)]
        ratio = percentile(ratios, 50)
        found[name] = {
            "ms_per_video": statistics.median(total[name]),
            "loading_ms": statistics.median(loading),
            "network_ms": statistics.median(network),
            "ratio": ratio.value,
            "ratio_low": ratio.low,
            "ratio_high": ratio.high,
            "gmacs": networks[name].gmacs,
            "views": networks[name].spec.num_views,
        }
    return found


def made_video(folder: Path) -> Path:
    """A synthetic clip."""
    path = folder / "clip.webm"
    path.write_bytes(encode(render(draw_scene(0, 0))))
    return path


def main(argv: Sequence[str] | None = None) -> None:
    """Time, print the ratios, write a record."""
    import tyro

    config = tyro.cli(Benchmark, args=argv, prog="benchmarks/table5.py")
    results = record_folder(config.results, "benchmarks")
    if config.rounds < MIN_ROUNDS:
        raise UserError(f"--rounds {config.rounds}: at least {MIN_ROUNDS} are needed for an interval of the median")
    if unknown := [name for name in config.networks if name not in VARIANTS]:
        raise UserError(f"--networks {unknown[0]}: unknown; `tdn-bench list` names all")
    device = pick_device(config.device)
    with ExitStack() as stack:
        paths = config.videos or (made_video(Path(stack.enter_context(tempfile.TemporaryDirectory()))),)
        videos = [as_video(path) for path in paths]
        names = dict.fromkeys((BASELINE, *config.networks))
        networks = {name: TimedNetwork(name, config, device) for name in names}
        times = take_turns(networks, videos, config.rounds)
    figures = figures_of(times, networks)
    print(f"{'':10s}{'ms/video':>10s}{'loading':>10s}{'network':>10s}   ÷ TSN [95 %]        published")
    published = {row.variant: row.ms_per_video for row in PUBLISHED if row.table == "5"}
    for name, f in figures.items():
        ms, base = published.get(name), published[BASELINE]
        theirs = f"{ms / base:.2f}" if ms and base else "–"
        times_ms = "".join(f"{f[key]:10.1f}" for key in ("ms_per_video", "loading_ms", "network_ms"))
        interval = f"{f['ratio']:.2f} [{f['ratio_low']:.2f}, {f['ratio_high']:.2f}]"
        print(f"{name:10s}{times_ms}   {interval:22s}{theirs}")
    record = make_record(
        "benchmark",
        f"table5-{config.backbone}-{config.precision}",
        figures=figures,
        samples={
            f"{name}_{what}_ms": of[i] for name, of in times.items() for i, what in enumerate(("loading", "network"))
        },
        settings=asdict(config),
        device=device,
        details={"threads": torch.get_num_threads()},
    )
    print(f"record: {write_record(record, results)}")


if __name__ == "__main__":
    raise SystemExit(run_command(main))
