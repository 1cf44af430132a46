"""Multiply-adds, parameters, activations and arithmetic intensity of any network, by stage: no weights, no data.

The network runs on torch's meta device, and every convolution and matrix product that it calls is counted: whatever a
network is made of, nothing is counted that does not run, and nothing that runs is missed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from tdn_bench.errors import UserError
from tdn_bench.models.network import MIN_SIZE
from tdn_bench.models.variants import create_model, find_variant

_aten = torch.ops.aten


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
