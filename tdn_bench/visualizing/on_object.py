"""How much of Grad-CAM's heat lies on the moving object of a synthetic clip, whose place the renderer knows.

Shapes: M maps of a clip, H, W pixels of the picture that the network reads.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipelines.plan import ClipPlan
from pipelines.synthetic import Scene, object_masks


@dataclass(frozen=True)
class ObjectShare:
    """Of one clip: the share of its heat within the object's mask, and the mask's share of the pictures, which is what
    heat that knows nothing of the object would have. `heat` is NaN where there is none."""

    heat: float
    area: float


def masks_of(scene: Scene, plan: ClipPlan, frames: np.ndarray, size: int) -> Tensor:
    """bool (M, size, size): where the object is in the clip's `frames` (M,), which count through its T·L, as the plan
    crops and scales them."""
    x, y, width, height = plan.crop
    masks = object_masks(scene, plan.frames.ravel()[frames])[:, y : y + height, x : x + width]
    scaled = F.interpolate(
        torch.from_numpy(masks)[None].float(), (size, size), mode="bilinear", antialias=True, align_corners=False
    )
    return scaled[0] > 0.5


def dilated(masks: Tensor, pixels: int) -> Tensor:
    """Masks (M, H, W) with all pixels that have one of the mask within so many rows and columns."""
    grown = F.max_pool2d(masks[None].float(), 2 * pixels + 1, stride=1, padding=pixels)
    return grown[0] > 0


def share_on_object(heat: Tensor, masks: Tensor) -> ObjectShare:
    """Of heat (M, H, W), not below 0, and masks (M, H, W)."""
    assert heat.shape == masks.shape
    assert heat.min() >= 0
    total = float(heat.double().sum())
    inside = float(heat.double()[masks].sum())
    return ObjectShare(inside / total if total else math.nan, float(masks.double().mean()))
