"""Multiply-adds, parameters, activations and arithmetic intensity of any network, by stage: no weights, no data.

The network runs on torch's meta device, and every convolution and matrix product that it calls is counted: whatever a
network is made of, nothing is counted that does not run, and nothing that runs is missed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
import tyro
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from tdn_bench.cli.run import run_command
from tdn_bench.errors import UserError
from tdn_bench.models import create_model, find_variant
from tdn_bench.models.network import MIN_SIZE
from tdn_bench.models.variants import BACKBONES, VARIANTS
from tdn_bench.records.published import Published, published_for

_aten = torch.ops.aten
BYTES_PER_VALUE = {"fp32": 4, "fp16": 2}


@dataclass
class Stage:
    """What one part of a network does for one clip. `values` are numbers moved: inputs, weights and outputs of every
    convolution and matrix product, each once (an elementwise operation is taken to be fused into them)."""

    macs: int = 0
    parameters: int = 0
    activations: int = 0  # elements that convolutions and matrix products put out
    values: int = 0

    def intensity(self, bytes_per_value: int) -> float:
        """Floating-point operations per byte moved, 2 a multiply-add."""
        return 2 * self.macs / (bytes_per_value * self.values) if self.values else 0.0


@dataclass
class Complexity:
    """One clip of (T, L, C, H, W) through a network, in eval mode."""

    model: str
    clip: tuple[int, ...]
    stages: dict[str, Stage] = field(default_factory=dict)

    @property
    def total(self) -> Stage:
        parts = self.stages.values()
        return Stage(
            *(sum(getattr(p, name) for p in parts) for name in ("macs", "parameters", "activations", "values"))
        )


class _Counter(TorchDispatchMode):
    """Counts every convolution and matrix product into the stage that is running."""

    def __init__(self) -> None:
        super().__init__()
        self.stages: dict[str, Stage] = {}
        self.running = ["other"]

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        macs = _multiply_adds(func, args, out)
        if macs is not None:
            stage = self.stages.setdefault(self.running[-1], Stage())
            stage.macs += macs
            stage.activations += out.numel()
            stage.values += out.numel() + sum(a.numel() for a in args if isinstance(a, Tensor))
        return out


def _multiply_adds(func: Any, args: tuple[Any, ...], out: Any) -> int | None:
    """Of one call; None of what is neither a convolution nor a matrix product."""
    packet = func.overloadpacket if hasattr(func, "overloadpacket") else func
    if packet is _aten.convolution:
        assert not args[6], "a transposed convolution is counted otherwise"
        return out.numel() * prod(args[1].shape[1:])
    if packet is _aten.addmm:
        return out.numel() * args[1].shape[1]
    if packet in (_aten.mm, _aten.bmm):
        return out.numel() * args[0].shape[-1]
    return None


@contextmanager
def _stage_hooks(network: nn.Module, counter: _Counter) -> Iterator[None]:
    """Note which of the network's direct children is running."""

    def enter(name: str) -> Any:
        return lambda module, args: counter.running.append(name)

    def leave(module: nn.Module, args: Any, out: Any) -> None:
        counter.running.pop()

    hooks = []
    for name, child in _parts(network):
        hooks += [child.register_forward_pre_hook(enter(name)), child.register_forward_hook(leave)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _parts(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The stages, and the S-TDM's parts, whose stages the network calls on their own."""
    for name, child in network.named_children():
        if name == "short_term":
            yield from ((f"short_term.{part}", module) for part, module in child.named_children())
        else:
            yield name, child


def measure(model: str, *, num_classes: int = 174, num_segments: int | None = None, size: int = 224) -> Complexity:
    """Count one clip. Raises UserError for an unknown model and for sizes and segments that it does not take."""
    try:
        variant = find_variant(model)
        with torch.device("meta"):
            network = create_model(model, num_classes=num_classes, num_segments=num_segments).eval()
    except ValueError as e:
        raise UserError(str(e)) from e
    if size < MIN_SIZE:
        raise UserError(f"--size {size}: must be at least {MIN_SIZE} pixels")
    clip = (network.num_segments, variant.frames_per_segment, 3, size, size)
    counter = _Counter()
    with torch.no_grad(), _stage_hooks(network, counter), counter:
        network(torch.empty(1, *clip, device="meta"))
    found = Complexity(model, clip)
    for name, part in _parts(network):
        if stage := counter.stages.pop(name, None):
            stage.parameters = sum(p.numel() for p in part.parameters())
            found.stages[name] = stage
    assert not counter.stages, f"counted outside every stage: {list(counter.stages)}"
    assert found.total.parameters == sum(p.numel() for p in network.parameters())
    return found


@dataclass(frozen=True, kw_only=True)
class Flags:
    """Multiply-adds, parameters, activations and arithmetic intensity of networks, beside published counts."""

    models: tyro.conf.Positional[tuple[str, ...]] = ()
    """Networks (`tdn-bench list`); default: every variant, with --backbone."""
    backbone: str = "resnet50"
    """Backbone of the default."""
    num_segments: int | None = None
    """T; default: the network's."""
    num_classes: int = 174
    """Classes (174 of Something-Something)."""
    size: int = 224
    """Height and width, pixels."""
    stages: bool = False
    """A line for each stage, not only for each network; the default for a single network."""


def published_gmacs(model: str, num_segments: int) -> Published | None:
    """The first published row that counts this network's multiply-adds at this T."""
    variant, _, backbone = model.rpartition("_resnet")
    for row in published_for(variant):
        first = row.frames.split()[0]
        if row.gmacs and row.backbone == f"resnet{backbone}" and first == str(num_segments) and "+" not in row.frames:
            return row
    return None


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    config = tyro.cli(Flags, args=argv, prog="tdn-bench complexity")
    if config.backbone not in BACKBONES:
        raise UserError(f"--backbone {config.backbone}: choose one of {', '.join(BACKBONES)}")
    models = config.models or tuple(f"{v}_{config.backbone}" for v in VARIANTS)
    wide = max(24, *map(len, models)) + 2
    print(
        f"{'one clip, eval mode':{wide}s}{'clip T × L':>12s}{'G mult-adds':>13s}{'published':>11s}{'M params':>10s}"
        f"{'M activations':>15s}{'flop/byte fp32':>16s}{'fp16':>8s}"
    )
    for model in models:
        found = measure(model, num_classes=config.num_classes, num_segments=config.num_segments, size=config.size)
        row = published_gmacs(model, found.clip[0]) if config.size == 224 else None
        note = f"{row.gmacs:g} (T{row.table})" if row else "–"
        print(_line(model, wide, f"{found.clip[0]} × {found.clip[1]}", found.total, note))
        if config.stages or len(models) == 1:
            for name, stage in found.stages.items():
                print(_line(f"  {name}", wide, "", stage, ""))


def _line(name: str, wide: int, clip: str, stage: Stage, note: str) -> str:
    fp32, fp16 = (stage.intensity(BYTES_PER_VALUE[p]) for p in ("fp32", "fp16"))
    return (
        f"{name:{wide}s}{clip:>12s}{stage.macs / 1e9:13.3f}{note:>11s}{stage.parameters / 1e6:10.3f}"
        f"{stage.activations / 1e6:15.2f}{fp32:16.1f}{fp16:8.1f}"
    )


if __name__ == "__main__":
    raise SystemExit(run_command(main))
