"""One optimisation step, against the authors' formulation of it, in turns: `python benchmarks/train_step.py`.

The authors' formulation is their released network's: fp32, NCHW, the temporal convolution as a Conv1d over a permuted
tensor, differences of frames taken pair by pair, SGD parameter by parameter. It has the same weights here, and must
give the same losses: nothing is written where the first two are further apart than rounding. In a round every form
takes one step on the round's clips, in an order that moves on by one; what is stated is the ratio of times of the same
round, the median over rounds with its distribution-free 95 % interval. Every form is a process of its own, since how
memory is kept is a process's affair: the authors' has glibc's defaults.
"""

from __future__ import annotations

import multiprocessing
import resource
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from engines.pytorch import keep_freed_memory
from tdn_bench.cli import pick_device, run_command
from tdn_bench.cli.progress import progress
from tdn_bench.errors import UserError
from tdn_bench.measurement.statistics import percentile
from tdn_bench.models import FrameClassifier, SegmentNetwork, create_model
from tdn_bench.models.temporal_difference import LongTermDifference, ShortTermDifference, TemporalConv, upsample_to
from tdn_bench.recipes import Optimization
from tdn_bench.records import make_record, record_folder, write_record
from tdn_bench.training import TrainStep

NUM_CLASSES, MIN_ROUNDS = 174, 6  # rounds: fewer bound no median
AUTHORS = "authors fp32"
FORMS = (AUTHORS, "tdn fp32", "tdn bf16", "tsn fp32", "tsn bf16")


@dataclass(frozen=True)
class Benchmark:
    """Time the forms of a training step in turns, and write a record."""

    backbone: str = "resnet50"
    """resnet50, resnet101 or resnet_small."""
    forms: tuple[str, ...] = FORMS
    """Which forms; the authors' is always among them."""
    batch_size: int = 2
    """Clips in a step."""
    size: int = 224
    """Height and width, pixels."""
    rounds: int = 18
    """Timed steps of each form, at least 6."""
    device: str = "auto"
    """cuda, cuda:1, cpu; auto takes a GPU where there is one."""
    results: Path | None = None
    """Folder for the record; default: runs/benchmarks. To publish: results/<machine>."""


class PermutedConv(TemporalConv):
    """The temporal convolution as the authors wrote it: Conv1d over (B·H·W, c, T)."""

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        t = self.num_segments
        y = x.view(n // t, t, c, h, w).permute(0, 3, 4, 2, 1).contiguous().view(-1, c, t)
        y = F.conv1d(y, self.weight, padding=1, groups=c)
        return y.view(n // t, h, w, c, t).permute(0, 4, 3, 1, 2).contiguous().view(n, c, h, w)


class PlainShortTerm(ShortTermDifference):
    """The S-TDM in NCHW: differences of frames pair by pair, joined, pooled."""

    def forward(self, segments: Tensor) -> Tensor:
        x1, x2, x3, x4, x5 = segments.contiguous().unbind(1)
        x = F.avg_pool2d(torch.cat((x2 - x1, x3 - x2, x4 - x3, x5 - x4), 1), 2)
        return F.max_pool2d(F.relu(self.stem(x)), 3, stride=2, padding=1)

    def fuse(self, rgb: Tensor, motion: Tensor) -> Tensor:
        return self.rgb_share * rgb + self.motion_share * upsample_to(motion, rgb)


class PlainLongTerm(LongTermDifference):
    """The L-TDM in NCHW: each direction for itself, scales and gates operation by operation."""

    def forward(self, x: Tensor) -> Tensor:
        t = self.num_segments
        f = self.squeeze(x)
        s = self.smooth(f)
        f, s = (y.view(-1, t, *y.shape[1:]) for y in (f, s))
        pad = (0, 0, 0, 0, 0, 0)
        forward = F.pad(s[:, 1:] - f[:, :-1], (*pad, 0, 1)).view(-1, *f.shape[2:])
        backward = F.pad(s[:, :-1] - f[:, 1:], (*pad, 1, 0)).view(-1, *f.shape[2:])
        gates = [torch.sigmoid(self.expand(self.scaled(y))) - 0.5 for y in (forward, backward)]
        return x + x * (0.5 * gates[0] + 0.5 * gates[1])

    def scaled(self, y: Tensor) -> Tensor:
        assert self.full_scale is not None
        assert self.half_scale is not None
        half = upsample_to(self.half_scale(F.avg_pool2d(y, 2)), y)
        return (self.full_scale(y) + half + y) / 3


class PlainNetwork(SegmentNetwork):
    """The network over NCHW pictures."""

    def start(self, pictures: Tensor, motion: Tensor | None) -> Tensor:
        x = F.max_pool2d(F.relu(self.stem(pictures.contiguous())), 3, stride=2, padding=1)
        assert self.short_term is not None
        assert motion is not None
        return self.short_term.fuse(x, motion)


PLAIN = {
    TemporalConv: PermutedConv,
    ShortTermDifference: PlainShortTerm,
    LongTermDifference: PlainLongTerm,
    SegmentNetwork: PlainNetwork,
}


class PlainStep(TrainStep):
    """SGD and clipping, parameter by parameter."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        for group in self.optimizer.param_groups:
            group["foreach"], group["fused"] = False, False

    def update(self, finite: Tensor) -> None:
        self.optimizer.step()


def make_form(name: str, config: Benchmark, device: torch.device) -> TrainStep:
    """A form's step, over weights that are the same for all forms of a network."""
    variant, precision = name.split()
    torch.manual_seed(0)
    model = f"{'tdn' if variant == 'authors' else variant}_{config.backbone}"
    network = create_model(model, num_classes=NUM_CLASSES, num_segments=8, dropout=0)
    classifier = FrameClassifier(network)
    make = TrainStep
    if name == AUTHORS:
        make = PlainStep
        for module in classifier.modules():
            module.__class__ = PLAIN.get(type(module), type(module))
        classifier.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    optimization = Optimization(batch_size=config.batch_size, lr=0.001)
    return make(classifier.train().to(device), optimization, precision, device)


def make_clips(name: str, config: Benchmark, number: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The clips of a round: TSN reads their centre frames."""
    generator = torch.Generator().manual_seed(number)
    shape = (config.batch_size, 8, 5, config.size, config.size, 3)
    frames = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, NUM_CLASSES, (config.batch_size,), generator=generator)
    return (frames[:, :, 2:3] if name.startswith("tsn") else frames).to(device), labels.to(device)


def work(name: str, config: Benchmark, pipe: Connection) -> None:
    """A form's process: a step for every number that comes, answered by milliseconds and loss; then the peak of its
    memory, in MB: a GPU's allocations, or what the process took on top of its libraries."""
    device = pick_device(config.device)
    if device.type == "cpu" and name != AUTHORS:
        keep_freed_memory()  # as `tdn-bench train` does
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step = make_form(name, config, device)
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    for number in iter(pipe.recv, None):
        frames, labels = make_clips(name, config, number, device)
        wait()
        begun = time.perf_counter()
        outcome = step(frames, labels, 0)
        wait()
        ms = 1000 * (time.perf_counter() - begun)
        pipe.send((ms, float(outcome.loss)))
    if device.type == "cuda":
        pipe.send(torch.cuda.max_memory_allocated(device) / 1e6)
    else:
        pipe.send((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e3)


@dataclass(frozen=True)
class Turns:
    """What one form's turns came to."""

    ms: list[float]
    losses: list[float]  # those of the first rounds, which are not timed, too
    peak_memory_mb: float


def take_turns(names: Sequence[str], config: Benchmark) -> dict[str, Turns]:
    """Let the forms, each in a process of its own, take turns: two rounds before those that are timed."""
    processes = multiprocessing.get_context("spawn")
    pipes: dict[str, Connection] = {}
    for name in names:
        pipes[name], theirs = processes.Pipe()
        processes.Process(target=work, args=(name, config, theirs), daemon=True).start()
        theirs.close()
    ms: dict[str, list[float]] = {name: [] for name in names}
    losses: dict[str, list[float]] = {name: [] for name in names}
    with progress("Timing", config.rounds + 2, "rounds") as advance:
        for number in range(config.rounds + 2):
            first = number % len(names)
            for name in (*names[first:], *names[:first]):
                pipes[name].send(number)
                taken, loss = pipes[name].recv()
                losses[name].append(loss)
                if number >= 2:
                    ms[name].append(taken)
            advance(1)
    for pipe in pipes.values():
        pipe.send(None)
    return {name: Turns(ms[name], losses[name], pipes[name].recv()) for name in names}


def figures_of(turns: dict[str, Turns], config: Benchmark) -> dict[str, Any]:
    """Of each form: median ms a video, how much quicker than the authors', how far its losses are from theirs; of TDN
    its ratio to TSN."""
    found: dict[str, Any] = {}
    authors = turns[AUTHORS]
    for name, of in turns.items():
        ms = of.ms
        speed_up = percentile([a / b for a, b in zip(authors.ms, ms, strict=True)], 50)
        found[name] = {
            "ms_per_video": statistics.median(ms) / config.batch_size,
            "fastest_ms_per_video": min(ms) / config.batch_size,
            "speed_up": speed_up.value,
            "speed_up_low": speed_up.low,
            "speed_up_high": speed_up.high,
            "peak_memory_mb": of.peak_memory_mb,
        }
        if not name.startswith("tsn"):
            found[name]["loss_apart_percent"] = 100 * max(map(_apart, authors.losses, of.losses))
        if name.startswith("tdn") and (base := name.replace("tdn", "tsn")) in turns:
            ratio = percentile([a / b for a, b in zip(ms, turns[base].ms, strict=True)], 50)
            found[name] |= {"over_tsn": ratio.value, "over_tsn_low": ratio.low, "over_tsn_high": ratio.high}
    return found


def _apart(a: float, b: float) -> float:
    return abs(a - b) / abs(a)


def main(argv: Sequence[str] | None = None) -> None:
    """Time, print the ratios, write a record."""
    import tyro

    config = tyro.cli(Benchmark, args=argv, prog="benchmarks/train_step.py")
    results = record_folder(config.results, "benchmarks")
    if config.rounds < MIN_ROUNDS:
        raise UserError(f"--rounds {config.rounds}: at least {MIN_ROUNDS} are needed for an interval of the median")
    if unknown := [name for name in config.forms if name not in FORMS]:
        raise UserError(f"--forms {unknown[0]}: unknown; choose some of {', '.join(FORMS)}")
    device = pick_device(config.device)
    turns = take_turns(list(dict.fromkeys((AUTHORS, *config.forms))), config)
    for name, of in turns.items():
        if name.startswith("tdn fp32") and (apart := max(map(_apart, turns[AUTHORS].losses[:2], of.losses[:2]))) > 1e-4:
            raise UserError(
                f"{name}: its loss is {apart:.2%} from the authors' formulation; that is no measure of speed"
            )
    figures = figures_of(turns, config)
    print(f"{'':14s}{'ms/video':>10s}   speed-up [95 %]        ÷ TSN [95 %]           memory, MB   loss apart, %")
    for name, f in figures.items():
        speed = f"{f['speed_up']:.2f} [{f['speed_up_low']:.2f}, {f['speed_up_high']:.2f}]"
        over = f"{f['over_tsn']:.2f} [{f['over_tsn_low']:.2f}, {f['over_tsn_high']:.2f}]" if "over_tsn" in f else "–"
        apart = f"{f['loss_apart_percent']:.4f}" if "loss_apart_percent" in f else "–"
        print(f"{name:14s}{f['ms_per_video']:10.1f}   {speed:23s}{over:23s}{f['peak_memory_mb']:10.0f}   {apart}")
    record = make_record(
        "benchmark",
        f"train-step-{config.backbone}",
        figures=figures,
        samples={f"{name}_ms": of.ms for name, of in turns.items()}
        | {f"{name}_loss": of.losses for name, of in turns.items()},
        settings=asdict(config),
        device=device,
        details={"threads": torch.get_num_threads()},
    )
    print(f"record: {write_record(record, results)}")


if __name__ == "__main__":
    raise SystemExit(run_command(main))
