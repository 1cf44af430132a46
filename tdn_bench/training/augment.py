"""RandAugment for clips, on the device: operations that change neither where things are nor which way they move.

Flips, shifts and turns are left out, since directions are classes (left and right, up and down, clockwise); flips are
the plan's, which swaps labels. All frames of a clip are changed alike: what flickers would be motion to a network that
takes differences of frames.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

MAX_STRENGTH = 10.0
GREY = (19595, 38470, 7471)  # of 65,536: the luma of ITU-R 601-2, as PIL rounds it

Operation = Callable[[Tensor, float], Tensor]


def randaugment(frames: Tensor, operations: int, strength: float, rng: np.random.Generator) -> Tensor:
    """Change each clip by `operations` operations drawn for it, one after the other, at `strength` of 10.

    Args:
        frames: uint8 (B, T, L, H, W, C); left as they are.
        operations: How many are drawn for a clip, with replacement.
        strength: From 0, nothing, to 10: factors of 0.1 or 1.9, 4 bits, every level turned round.
        rng: Draws which, and whether up or down.
    """
    clips = []
    for clip in frames:
        for draw, up in zip(rng.integers(len(OPERATIONS), size=operations), rng.random(operations), strict=True):
            clip = OPERATIONS[draw](clip, strength / MAX_STRENGTH * (1 if up < 0.5 else -1))
        clips.append(clip)
    return torch.stack(clips)


def identity(clip: Tensor, amount: float) -> Tensor:
    """The clip, uint8 (…, H, W, C), as it is."""
    return clip


def brightness(clip: Tensor, amount: float) -> Tensor:
    """Levels times 1 + 0.9 · amount, which is from −1 to 1."""
    return _blend(torch.zeros_like(clip), clip, 1 + 0.9 * amount)


def contrast(clip: Tensor, amount: float) -> Tensor:
    """Distance from the clip's mean grey times 1 + 0.9 · amount."""
    mean = _grey(clip).double().mean().add_(0.5).floor_()
    return _blend(mean.to(clip.dtype), clip, 1 + 0.9 * amount)


def saturation(clip: Tensor, amount: float) -> Tensor:
    """Distance of each pixel from its own grey times 1 + 0.9 · amount."""
    return _blend(_grey(clip).to(clip.dtype), clip, 1 + 0.9 * amount)


def posterize(clip: Tensor, amount: float) -> Tensor:
    """The upper 8 − 4 · |amount| bits of each level."""
    return clip & (256 - 2 ** int(4 * abs(amount)))


def solarize(clip: Tensor, amount: float) -> Tensor:
    """Levels from 256 · (1 − |amount|) on turned round."""
    return torch.where(clip >= min(255, round(256 * (1 - abs(amount)))), 255 - clip, clip) if amount else clip


OPERATIONS: tuple[Operation, ...] = (identity, brightness, contrast, saturation, posterize, solarize)


def _grey(clip: Tensor) -> Tensor:
    """int32 (…, H, W, 1): the luma of each pixel."""
    red, green, blue = clip.int().split(1, -1)
    return (GREY[0] * red + GREY[1] * green + GREY[2] * blue + 0x8000) >> 16


def _blend(from_: Tensor, clip: Tensor, factor: float) -> Tensor:
    """from_ + factor · (clip − from_), cut off at 0 and 255, rounded down: as PIL's `Image.blend`."""
    start = from_.float()
    return (start + factor * (clip.float() - start)).clamp_(0, 255).to(torch.uint8)
