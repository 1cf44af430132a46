"""What a clip is, and the batch that every backend hands over.

Shape legend, used everywhere in this project:
    B videos   T segments   L frames in a segment   H, W pixels   C colours (RGB)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

COLOURS = 3


@dataclass(frozen=True)
class ClipSpec:
    """How one video becomes one clip: T·L frames (`num_segments` · `frames_per_segment`), cropped and resized to
    size × size pixels.

    `crop_ratio` is the share of the short side that the centre crop of an evaluation keeps: 224 of 256 in the
    one-clip protocol of the paper. `crop_scales` are the shares that a training crop's sides may take.
    An evaluation sees `num_clips` × `num_crops` views of a video: one centred clip, or clips drawn at random
    (seeded by the video's id); its centre crop, or 3 squares that span the short side (`crop_ratio` is not read).
    """

    num_segments: int = 8
    frames_per_segment: int = 5
    size: int = 224
    crop_ratio: float = 224 / 256
    crop_scales: tuple[float, ...] = (1.0, 0.875, 0.75, 0.66)
    num_clips: int = 1
    num_crops: Literal[1, 3] = 1

    @property
    def num_views(self) -> int:
        """Clips that an evaluation makes of one video."""
        return self.num_clips * self.num_crops

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        """(T, L, H, W, C)"""
        return self.num_segments, self.frames_per_segment, self.size, self.size, COLOURS


@dataclass(frozen=True)
class ClipBatch:
    """frames: uint8 (B, T, L, H, W, C) on the device that uses them; labels: int64 (B,), −1 = unknown.

    With several views of a video, B counts views: a video's views stand together, clip by clip, and share its id.
    `number` counts the batches of what a loader was asked for, those that came to nothing too; `replacements` the
    replacement samples that were drawn for this one.
    """

    frames: Tensor
    labels: Tensor
    ids: tuple[str, ...]
    number: int = 0
    replacements: int = 0

    def __len__(self) -> int:
        return len(self.ids)
