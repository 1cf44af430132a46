"""Mixup and CutMix: each clip mixed with another one of its batch, and the loss that goes with it.

What is mixed are a batch's clips as the plan made them. A flipped clip has its mirror image's label already, so a mix
of a flipped clip and one that is not holds the right label of each.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tdn_bench.recipes import Modern


class Mixed(NamedTuple):
    """Clips that are each made of two."""

    frames: Tensor  # uint8 (B, T, L, H, W, C)
    partners: Tensor  # int64 (B,): labels of the clips that were mixed in
    share: float  # of the clips' own labels; the partners' is the rest


def step_rng() -> np.random.Generator:
    """A generator of this step's draws, from torch's on the CPU, which is seeded before every step: the draws are a
    pure function of seed, epoch, step and process."""
    return np.random.default_rng(int(torch.randint(2**63 - 1, ())))


def mix(frames: Tensor, labels: Tensor, options: Modern, rng: np.random.Generator) -> Mixed:
    """Mix each clip with another one of the batch; all frames of a clip alike, at the same share in all clips.

    A process mixes the clips of its own share of a step: which clips meet depends on the number of processes. Pixels
    are rounded to whole levels, so that the network gets uint8 as always.

    Args:
        frames: uint8 (B, T, L, H, W, C).
        labels: int64 (B,), of the clips as they are, flipped or not.
        options: With `mixup_alpha` or `cutmix_alpha` above 0; where both are, a fair coin decides.
        rng: Draws share, partners and box.
    """
    assert options.mixes
    shift = int(rng.integers(1, len(frames))) if len(frames) > 1 else 0  # never a clip with itself
    others, partners = frames.roll(shift, 0), labels.roll(shift, 0)
    cut = rng.random() < 0.5 if options.mixup_alpha and options.cutmix_alpha else options.cutmix_alpha > 0
    alpha = options.cutmix_alpha if cut else options.mixup_alpha
    share = float(rng.beta(alpha, alpha))
    if not cut:
        mixed = torch.lerp(others.float(), frames.float(), share).round_().to(torch.uint8)
        return Mixed(mixed, partners, share)
    height, width = frames.shape[3:5]
    top, left, bottom, right = draw_box(height, width, 1 - share, rng)
    mixed = frames.clone()
    mixed[:, :, :, top:bottom, left:right] = others[:, :, :, top:bottom, left:right]
    return Mixed(mixed, partners, 1 - (bottom - top) * (right - left) / (height * width))


def draw_box(height: int, width: int, area: float, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """CutMix's box: top, left, bottom, right in pixels. It covers `area` (a share) of the picture before it is cut off
    at the picture's edges; its centre is drawn evenly."""
    h, w = (round(side * math.sqrt(area)) for side in (height, width))
    y, x = int(rng.integers(height)) - h // 2, int(rng.integers(width)) - w // 2
    return max(y, 0), max(x, 0), min(y + h, height), min(x + w, width)


def cross_entropy(logits: Tensor, labels: Tensor, partners: Tensor, share: float, smoothing: float) -> Tensor:
    """Mean cross-entropy () of logits (B, classes) against labels (B,) and, at what `share` leaves, `partners` (B,).
    That of two labels is the sum of each one's, by its share."""
    loss = F.cross_entropy(logits, labels, label_smoothing=smoothing)
    if share == 1:  # not mixed
        return loss
    return share * loss + (1 - share) * F.cross_entropy(logits, partners, label_smoothing=smoothing)
