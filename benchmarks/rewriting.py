"""What each rewriting for inference gains, and what those would that were dropped; `python benchmarks/rewriting.py`.

One TDN in several forms, each built by the same engine, called in turn in one process (A B C … A B C …); ratios are of
medians. The forms that `tdn_bench.models.inference` uses are added one after the other; the dropped ones are each put
in the place of a part of the last. All forms must give the same logits before anything is timed.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from engine_speed import make_frames, make_network
from torch import Tensor, nn

from engines import EngineSpec, create_engine
from tdn_bench.cli import pick_device, run_command
from tdn_bench.correctness.logits import TOLERANCE, compare_logits
from tdn_bench.errors import UserError
from tdn_bench.models import FrameClassifier
from tdn_bench.models.temporal_difference import LongTermDifference, ShortTermDifference, TemporalConv
from tdn_bench.records import make_record, record_folder, write_record

FINAL = "one frame normalised"


@dataclass(frozen=True)
class Benchmark:
    """Time the forms in turn, and write a record."""

    engine: str = "openvino"
    """Which engine runs them."""
    precision: str = "fp32"
    """In which precision."""
    backbone: str = "resnet50"
    """resnet50, resnet101 or resnet_small."""
    batch_size: int = 1
    """Clips."""
    size: int = 224
    """Height and width, pixels."""
    rounds: int = 9
    """Timed calls of each."""
    device: str = "auto"
    """cuda, cuda:1, cpu; auto takes a GPU where there is one."""
    results: Path | None = None
    """Folder for the record; default: runs/benchmarks. To publish: results/<machine>."""


class ExpandedTogether(LongTermDifference):
    """Both directions in one call to the end: maps of c channels are joined and split."""

    def forward(self, x: Tensor) -> Tensor:
        f = self.squeeze(x)
        s, f = (y.unflatten(0, (-1, self.num_segments)) for y in (self.smooth(f), f))
        edge = torch.zeros_like(f[:, :1])
        forward = torch.cat((s[:, 1:] - f[:, :-1], edge), 1).flatten(0, 1)
        backward = torch.cat((edge, s[:, :-1] - f[:, 1:]), 1).flatten(0, 1)
        gates = self.gate(self.scales(torch.cat((forward, backward))))
        return torch.addcmul(x, x, gates[: len(x)] + gates[len(x) :], value=0.5)


class ZeroDifferencesLeftOut(LongTermDifference):
    """The last segment's forward difference and the first one's backward are not computed: they are zero, and what the
    two scales (batch norms folded) make of zero is one value a channel."""

    def directions(self, x: Tensor) -> tuple[Tensor, Tensor]:
        t, f = self.num_segments, self.squeeze(x)
        s, f = (y.unflatten(0, (-1, t)) for y in (self.smooth(f), f))
        both = torch.cat((s[:, 1:] - f[:, :-1], s[:, :-1] - f[:, 1:]), 1).flatten(0, 1)  # (B·2(T−1), r, H, W)
        y = self.scales(both).unflatten(0, (-1, 2 * (t - 1)))
        still = (self.full_scale.conv.bias + self.half_scale.conv.bias).div(3).view(1, 1, -1, 1, 1)
        still = still.expand(y.shape[0], 1, *y.shape[2:])
        forward, backward = torch.cat((y[:, : t - 1], still), 1), torch.cat((still, y[:, t - 1 :]), 1)
        return forward.flatten(0, 1), backward.flatten(0, 1)


class DifferencesInTheWeights(ShortTermDifference):
    """The frames are pooled, and their differences taken by the stem's weights: 15 channels for 12."""

    def forward(self, segments: Tensor) -> Tensor:
        weight = self.stem.conv.weight.unflatten(1, (4, 3))
        none = torch.zeros_like(weight[:, :1])
        weight = (torch.cat((none, weight), 1) - torch.cat((weight, none), 1)).flatten(1, 2)
        x = F.avg_pool2d(segments.flatten(1, 2).contiguous(memory_format=torch.channels_last), 2)
        x = F.conv2d(x, weight, self.stem.conv.bias, stride=2, padding=3)
        return F.max_pool2d(x.relu(), 3, stride=2, padding=1)


class PoolInTheWeights(ShortTermDifference):
    """Pooling and convolution as one, 14×14 with stride 4: four times the multiply-adds."""

    def forward(self, segments: Tensor) -> Tensor:
        weight = self.stem.conv.weight.repeat_interleave(2, 2).repeat_interleave(2, 3) / 4
        x = (segments[:, 1:] - segments[:, :-1]).flatten(1, 2).contiguous(memory_format=torch.channels_last)
        x = F.conv2d(x, weight, self.stem.conv.bias, stride=4, padding=6)
        return F.max_pool2d(x.relu(), 3, stride=2, padding=1)


class SlicesForConvolution(TemporalConv):
    """Three products of a map with one weight a channel, shifted and summed."""

    def forward(self, x: Tensor) -> Tensor:
        video = x.unflatten(0, (-1, self.num_segments))
        w = self.weight.permute(2, 1, 0)[..., None, None]  # (3, 1, c, 1, 1)
        edge = torch.zeros_like(video[:, :1])
        before, after = torch.cat((edge, video[:, :-1]), 1), torch.cat((video[:, 1:], edge), 1)
        return (before * w[0] + video * w[1] + after * w[2]).flatten(0, 1)


def turn_into(network: nn.Module, old: type[nn.Module], new: type[nn.Module]) -> nn.Module:
    """Every `old` in `network` becomes a `new`, which has the same attributes."""
    for module in network.modules():
        if type(module) is old:
            module.__class__ = new
    return network


def make_forms(classifier: FrameClassifier, engine: str) -> dict[str, nn.Module]:
    """The forms by name; the first is the plain network, the third the one that is used."""
    final = copy.deepcopy(classifier).for_inference(engine)
    conv3d = any(m.as_conv3d for m in final.modules() if isinstance(m, TemporalConv))
    folded = copy.deepcopy(classifier).fold_batch_norm()
    other = copy.deepcopy(final)
    for form, in_3d in ((folded, conv3d), (other, not conv3d)):
        for module in form.modules():
            if isinstance(module, TemporalConv):
                module.as_conv3d = in_3d
    change = lambda old, new: turn_into(copy.deepcopy(final), old, new)  # noqa: E731
    return {
        "plain": classifier,
        "batch norm folded": folded,
        FINAL: final,
        "dropped: zero differences left out": change(LongTermDifference, ZeroDifferencesLeftOut),
        "dropped: gates of both directions in one call": change(LongTermDifference, ExpandedTogether),
        "dropped: differences in the stem's weights": change(ShortTermDifference, DifferencesInTheWeights),
        "dropped: pooling in the stem's weights": change(ShortTermDifference, PoolInTheWeights),
        f"dropped: temporal convolution in {'2-D' if conv3d else '3-D'}": other,
        "dropped: temporal convolution by slices": change(TemporalConv, SlicesForConvolution),
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Compare, print the ratios, write a record."""
    import tyro

    config = tyro.cli(Benchmark, args=argv, prog="benchmarks/rewriting.py")
    results = record_folder(config.results, "benchmarks")
    if min(config.rounds, config.batch_size) < 1:
        raise UserError("batch size and rounds must be at least 1")
    device = pick_device(config.device)
    classifier = make_network("tdn", config.backbone).to(device)
    frames = make_frames("tdn", config.batch_size, config.size).to(device)
    shape: tuple[int, int, int, int, int] = tuple(frames.shape[1:])  # type: ignore[assignment]
    spec = EngineSpec(shape, config.batch_size, config.precision, str(device), rewrite=False)
    with torch.inference_mode():
        wanted = classifier(frames).cpu()
    with torch.no_grad():
        forms = make_forms(classifier, config.engine)
    calls, figures = {}, {}
    for name, form in forms.items():
        calls[name] = partial(create_engine(config.engine, form, spec), frames)
        difference = figures[f"{name}_difference"] = compare_logits(calls[name]().cpu(), wanted).max_difference
        if config.precision == "fp32" and not difference <= TOLERANCE["fp32"]:
            raise UserError(f"{name}: differs by {difference:.1e} of the logits' deviation; nothing was timed")
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(-2, config.rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if turn >= 0:
                samples[name].append(1000 * (time.perf_counter() - start))
    ms = {name: statistics.median(times) for name, times in samples.items()}
    names = list(ms)
    print(f"{config.engine} {config.precision}, {config.backbone}, batch {config.batch_size}")
    for i, name in enumerate(names):
        before = FINAL if name.startswith("dropped") else names[max(i - 1, 0)]
        figures |= {
            f"{name}_ms": ms[name],
            f"{name}_against": before,
            f"{name}_gain_percent": 100 * (ms[before] / ms[name] - 1),
        }  # type: ignore[dict-item]
        print(f"  {name:48s}{ms[name]:9.1f} ms {100 * (ms[before] / ms[name] - 1):+7.1f} % against: {before}")
    record = make_record(
        "benchmark",
        f"rewriting-{config.engine}-{config.precision}",
        figures=figures,
        samples={f"{name}_ms": times for name, times in samples.items()},
        settings=asdict(config),
        device=device,
        details={"threads": torch.get_num_threads()},
    )
    print(f"record: {write_record(record, results)}")


if __name__ == "__main__":
    raise SystemExit(run_command(main))
