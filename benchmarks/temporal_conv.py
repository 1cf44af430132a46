"""The temporal modules as this project writes them against the plain formulation: `python benchmarks/temporal_conv.py`.

The plain one is what the paper's equations say, line by line, on NCHW tensors: Conv1d over a permuted tensor, the
L-TDM's gate called once a direction, multiplications written out. Both have the same weights; their outputs must
agree before anything is timed. The two are timed in turn (A B A B …), so that a busy machine slows both.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engines import exact_float32
from tdn_bench.cli import pick_device, run_command
from tdn_bench.errors import UserError
from tdn_bench.models import SegmentNetwork, create_model
from tdn_bench.models.temporal_difference import LongTermDifference, ShortTermDifference, TemporalConv, upsample_to
from tdn_bench.records import make_record, record_folder, write_record

NUM_SEGMENTS, SIZE, NUM_CLASSES = 8, 224, 174
STAGES = {"res3": (128, 28), "res4": (256, 14), "res5": (512, 7)}  # channels, height and width where most blocks are
TOLERANCE = 1e-4  # largest difference, as a share of the largest value


@dataclass(frozen=True)
class Benchmark:
    """Time the temporal modules against their plain formulation, and write a record."""

    device: str = "auto"
    """cuda, cuda:1, cpu; auto takes a GPU where there is one."""
    batch_size: int = 4
    """Clips in the temporal convolution's input."""
    network_batches: tuple[int, ...] = (1, 4)
    """Clips in the whole network's input."""
    rounds: int = 30
    """Timed calls of each formulation of the temporal convolution."""
    network_rounds: int = 8
    """Timed calls of each formulation of the whole network."""
    threads: int | None = None
    """Threads of torch on the CPU; default: one a core."""
    results: Path | None = None
    """Folder for the record; default: runs/benchmarks. To publish: results/<machine>."""


class PlainTemporalConv(nn.Module):
    """Conv1d over T, the pixels moved into the batch."""

    def __init__(self, ours: TemporalConv) -> None:
        super().__init__()
        self.num_segments, self.weight = ours.num_segments, nn.Parameter(ours.weight.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        video = x.view(n // self.num_segments, self.num_segments, c, h, w)
        y = video.permute(0, 3, 4, 2, 1).contiguous().view(-1, c, self.num_segments)  # (B·H·W, c, T)
        y = F.conv1d(y, self.weight, padding=1, groups=c)
        y = y.view(-1, h, w, c, self.num_segments).permute(0, 4, 3, 1, 2)  # (B, T, c, H, W)
        return y.contiguous().view(n, c, h, w)


class PlainLongTermDifference(nn.Module):
    """Eqs. 4 to 7, one direction after the other."""

    def __init__(self, ours: LongTermDifference) -> None:
        super().__init__()
        self.ours = ours  # for its layers; its forward and gate are not called

    def gate(self, difference: Tensor) -> Tensor:
        ours = self.ours
        half = upsample_to(ours.half_scale(F.avg_pool2d(difference, 2)), difference)
        full = ours.full_scale(difference)
        return torch.sigmoid(ours.expand(1 / 3 * difference + 1 / 3 * half + 1 / 3 * full)) - 0.5

    def forward(self, x: Tensor) -> Tensor:
        f = self.ours.squeeze(x)
        video = (-1, self.ours.num_segments, *f.shape[1:])
        s, f = self.ours.smooth(f).view(video), f.view(video)
        forward, backward = torch.zeros_like(f), torch.zeros_like(f)
        forward[:, :-1] = s[:, 1:] - f[:, :-1]
        backward[:, 1:] = s[:, :-1] - f[:, 1:]
        gate = 0.5 * self.gate(forward.flatten(0, 1)) + 0.5 * self.gate(backward.flatten(0, 1))
        return x + x * gate


class PlainShortTermDifference(nn.Module):
    """Eqs. 2 and 3 on NCHW tensors."""

    def __init__(self, ours: ShortTermDifference) -> None:
        super().__init__()
        self.ours, self.res2 = ours, ours.res2

    def forward(self, segments: Tensor) -> Tensor:
        frames = [segments[:, i] for i in range(segments.shape[1])]
        difference = torch.cat([b - a for a, b in pairwise(frames)], 1)
        x = torch.relu(self.ours.stem(F.avg_pool2d(difference, 2)))
        return F.max_pool2d(x, 3, stride=2, padding=1)

    def fuse(self, rgb: Tensor, motion: Tensor) -> Tensor:
        return self.ours.rgb_share * rgb + self.ours.motion_share * upsample_to(motion, rgb)


class PlainNetwork(nn.Module):
    """TDN's forward pass on NCHW tensors."""

    def __init__(self, ours: SegmentNetwork) -> None:
        super().__init__()
        ours = copy.deepcopy(ours).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        assert ours.short_term is not None
        self.short_term = PlainShortTermDifference(ours.short_term)
        for stage in (ours.res3, ours.res4, ours.res5):
            for block in stage:
                difference, conv = block.temporal  # type: ignore[misc]
                block.temporal = nn.Sequential(PlainLongTermDifference(difference), PlainTemporalConv(conv))
        self.ours = ours  # for its layers; its forward is not called

    def forward(self, clip: Tensor) -> Tensor:
        ours = self.ours
        segments = clip.flatten(0, 1)
        x = torch.relu(ours.stem(segments[:, 2].contiguous()))
        x = F.max_pool2d(x, 3, stride=2, padding=1)
        motion = self.short_term(segments)
        x = ours.res2(self.short_term.fuse(x, motion))
        x = self.short_term.fuse(x, self.short_term.res2(motion))
        x = ours.res5(ours.res4(ours.res3(x)))
        scores = ours.classifier(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return scores.view(-1, NUM_SEGMENTS, NUM_CLASSES).mean(1)


def check(name: str, ours: Tensor, plain: Tensor) -> float:
    """The largest difference as a share of the largest value. Raises UserError beyond the tolerance."""
    difference = ((ours - plain).abs().max() / plain.abs().max()).item()
    if not difference <= TOLERANCE:  # so written that NaN fails
        raise UserError(f"{name}: the two formulations differ by {difference:.1e} of the largest value; nothing timed")
    return difference


def interleave(
    ours: Callable[[], object], plain: Callable[[], object], rounds: int, device: torch.device
) -> tuple[list[float], list[float]]:
    """Milliseconds of each call of both, taken in turn after two calls each that are not counted."""
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(-2, rounds):
        for call, kept in zip((ours, plain), times, strict=True):
            start = time.perf_counter()
            call()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if turn >= 0:
                kept.append(1000 * (time.perf_counter() - start))
    return times


class Comparison:
    """Collects figures and samples, and prints a line for each pair."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.figures: dict[str, float] = {}
        self.samples: dict[str, list[float]] = {}

    def add(self, name: str, ours: Callable[[], object], plain: Callable[[], object], rounds: int) -> None:
        ours_ms, plain_ms = interleave(ours, plain, rounds, self.device)
        a, b = statistics.median(ours_ms), statistics.median(plain_ms)
        self.samples |= {f"{name}_ours_ms": ours_ms, f"{name}_plain_ms": plain_ms}
        self.figures |= {f"{name}_ours_ms": a, f"{name}_plain_ms": b, f"{name}_speedup": b / a}
        print(f"{name:32s} ours {a:9.2f} ms   plain {b:9.2f} ms   {b / a:5.2f}× as fast", flush=True)


def forward(module: nn.Module, x: Tensor) -> Tensor:
    with torch.inference_mode():
        return module(x)


def forward_backward(module: TemporalConv | PlainTemporalConv, x: Tensor, gradient: Tensor) -> tuple[Tensor, ...]:
    """Gradients of the input and of the weight."""
    x = x.detach().requires_grad_()
    return torch.autograd.grad(module(x), (x, module.weight), gradient)


def compare_convolution(found: Comparison, config: Benchmark) -> None:
    """The temporal convolution alone, in each stage's size."""
    for stage, (channels, side) in STAGES.items():
        ours = TemporalConv(channels, NUM_SEGMENTS).to(found.device)
        nn.init.normal_(ours.weight)
        plain = PlainTemporalConv(ours)
        x = torch.randn(config.batch_size * NUM_SEGMENTS, channels, side, side, device=found.device)
        x_ours = x.contiguous(memory_format=torch.channels_last)
        gradient = torch.randn_like(x)
        gradient_ours = gradient.contiguous(memory_format=torch.channels_last)
        name = f"conv_{stage}"
        found.figures[f"{name}_difference"] = check(name, forward(ours, x_ours), forward(plain, x))
        for a, b in zip(
            forward_backward(ours, x_ours, gradient_ours), forward_backward(plain, x, gradient), strict=True
        ):
            check(f"{name} gradient", a, b)
        found.add(f"{name}_forward", partial(forward, ours, x_ours), partial(forward, plain, x), config.rounds)
        calls = partial(forward_backward, ours, x_ours, gradient_ours), partial(forward_backward, plain, x, gradient)
        found.add(f"{name}_forward_backward", *calls, config.rounds)


def compare_networks(found: Comparison, config: Benchmark) -> None:
    """TDN-ResNet50, 8 segments, forward in eval mode: ours in channels-last, the plain one in NCHW."""
    ours = create_model("tdn_resnet50", num_classes=NUM_CLASSES, num_segments=NUM_SEGMENTS).to(found.device).eval()
    for module in ours.modules():
        if isinstance(module, TemporalConv):
            nn.init.normal_(module.weight, std=3**-0.5)  # a shift would hide a swap of past and future at few pixels
    plain = PlainNetwork(ours).eval()
    ours.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for batch in config.network_batches:
        clip = torch.randn(batch, NUM_SEGMENTS, 5, 3, SIZE, SIZE, device=found.device)
        name = f"tdn_resnet50_batch{batch}"
        with torch.inference_mode():
            found.figures[f"{name}_difference"] = check(name, ours(clip), plain(clip))
            found.add(name, partial(ours, clip), partial(plain, clip), config.network_rounds)


def main(argv: Sequence[str] | None = None) -> None:
    """Compare, print the ratios, write a record."""
    import tyro

    config = tyro.cli(Benchmark, args=argv, prog="benchmarks/temporal_conv.py")
    results = record_folder(config.results, "benchmarks")
    if min(config.batch_size, config.rounds, config.network_rounds, config.threads or 1, *config.network_batches) < 1:
        raise UserError("batch sizes and rounds must be at least 1")
    device = pick_device(config.device)
    exact_float32()  # float32 in full, or the two would not agree
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    torch.manual_seed(0)
    found = Comparison(device)
    compare_convolution(found, config)
    compare_networks(found, config)
    record = make_record(
        "benchmark",
        "temporal-conv",
        figures=found.figures,
        samples=found.samples,
        settings=asdict(config),
        device=device,
        details={"threads": torch.get_num_threads(), "precision": "fp32"},
    )
    print(f"record: {write_record(record, results)}")


if __name__ == "__main__":
    raise SystemExit(run_command(main))
