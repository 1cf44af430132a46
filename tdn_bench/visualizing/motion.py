"""What TDN's own modules make of a clip: the S-TDM's differences and motion, the L-TDM's gates, as the network computes
them, caught on their way.

Shapes: T segments, L frames in a segment, C colours, c channels, H, W pixels, h, w cells.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tdn_bench.errors import UserError
from tdn_bench.models import FrameClassifier, SegmentNetwork
from tdn_bench.models.temporal_difference import LongTermDifference, ShortTermDifference
from tdn_bench.visualizing.grad_cam import STAGES, Stage


@dataclass(frozen=True)
class Motion:
    """The S-TDM of one clip. `differences`: of the consecutive frames of each segment, normalised, (T, L−1, C, H/2,
    W/2). `features`: what its stem makes of them, and what joins the appearance, (T, c, H/8, W/8)."""

    differences: Tensor
    features: Tensor


@dataclass(frozen=True)
class Gates:
    """The L-TDM of one clip in the last block of a stage that has one: σ − ½, (T, c, h, w), with one gate a channel
    (T, c, 1, 1). `backward` is None where it looks at the next segment only."""

    block: str
    forward: Tensor
    backward: Tensor | None


def short_term(network: SegmentNetwork, model: str) -> ShortTermDifference:
    """The network's S-TDM. Raises UserError where it has none, or none of differences."""
    if network.short_term is None:
        raise UserError(f"--show differences: {model} has no S-TDM; leave it out")
    if network.short_term.options.operation != "difference":
        raise UserError(f"--show differences: the S-TDM of {model} reads frames, not differences; leave it out")
    return network.short_term


def long_term(network: SegmentNetwork, model: str, stage: Stage) -> tuple[str, LongTermDifference]:
    """The name and the L-TDM of the stage's last block that has one. Raises UserError where there is none, or no
    gate in it."""
    found = [(name, m) for name, m in network.named_modules() if isinstance(m, LongTermDifference)]
    here = [(name.partition(".temporal")[0], m) for name, m in found if name.startswith(f"{stage}.")]
    if not found:
        raise UserError(f"--show gates: {model} has no L-TDM; leave it out")
    if not here:
        stages = [s for s in STAGES if any(name.startswith(f"{s}.") for name, _ in found)]
        raise UserError(f"--show gates: {model} has no L-TDM in {stage}; use --stage {' or '.join(stages)}")
    if here[-1][1].options.fusion == "addition":
        raise UserError(f"--show gates: the L-TDM of {model} adds, without a gate; leave it out")
    return here[-1]


@contextmanager
def _caught(module: nn.Module, what: str) -> Iterator[list[Tensor]]:
    """The inputs or outputs of every call of a module, in order; copies, as the next layer may write into them."""
    found: list[Tensor] = []

    def note(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        found.append((output if what == "output" else inputs[0]).clone())

    handle = module.register_forward_hook(note)
    try:
        yield found
    finally:
        handle.remove()


def see_motion(classifier: FrameClassifier, frames: Tensor, module: ShortTermDifference) -> Motion:
    """The S-TDM on one clip, uint8 (1, T, L, H, W, C)."""
    with torch.inference_mode(), _caught(module.stem, "input") as halved, _caught(module, "output") as features:
        classifier(frames)
    pairs = frames.shape[2] - 1
    return Motion(halved[0].unflatten(1, (pairs, -1)), features[0])


def see_gates(classifier: FrameClassifier, frames: Tensor, block: str, module: LongTermDifference) -> Gates:
    """The L-TDM on one clip, uint8 (1, T, L, H, W, C)."""
    with torch.inference_mode(), _caught(module.expand, "output") as expanded:
        classifier(frames)
    forward, *backward = (torch.sigmoid(y) - 0.5 for y in expanded)
    return Gates(block, forward, backward[0] if backward else None)
