"""Which frames, which crop, which flip: a pure function of seed, epoch and the video's place in its split.

Nothing here reads a file, so a plan is the same on every backend, machine and number of workers, and a run
can be resumed at any epoch.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from pipelines.clip import ClipSpec
from pipelines.sampling import center_frame_indices, random_frame_indices
from pipelines.video import Video, clip_name

# Offsets of the 13 positions, in quarters of the room that is left (x, y): corners and edges, centre, inner four.
CROP_POSITIONS = (
    *((x, y) for x in (0, 2, 4) for y in (0, 2, 4)),
    *((x, y) for x in (1, 3) for y in (1, 3)),
)


@dataclass(frozen=True)
class ClipPlan:
    """What to do with one video: which frames, which part of the picture, which size; flip; label."""

    video: Video
    frames: np.ndarray  # int64 (clips·T, L), zero-based
    crop: tuple[int, int, int, int]  # x, y, width, height in pixels of the upright picture
    flip: bool
    label: int
    resized: tuple[int, int] | None = None  # width, height that the crop is resized to; None: the clip's square
    windows: tuple[tuple[int, int], ...] = ((0, 0),)  # x, y of the squares taken from it then, one view each

    @cached_property
    def wanted(self) -> np.ndarray:
        """int64 (F,): the distinct frames, ascending: what a decoder decodes, each once."""
        return np.unique(self.frames)


def center_crop(width: int, height: int, ratio: float) -> tuple[int, int, int, int]:
    """The square in the middle that spans `ratio` of the short side: x, y, width, height."""
    side = max(1, round(ratio * min(width, height)))
    return (width - side) // 2, (height - side) // 2, side, side


def multi_scale_crop(
    width: int, height: int, scales: tuple[float, ...], rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """The authors' training crop: x, y, width, height, at one of thirteen places.

    Both sides are one of `scales` of the short side, at most one step of that list apart.
    """
    short = min(width, height)
    steps = len(scales)
    shapes = [(i, j) for i in range(steps) for j in range(steps) if abs(i - j) <= 1]
    i, j = shapes[rng.integers(len(shapes))]
    w, h = max(1, int(short * scales[i])), max(1, int(short * scales[j]))
    across, down = CROP_POSITIONS[rng.integers(len(CROP_POSITIONS))]
    return across * ((width - w) // 4), down * ((height - h) // 4), w, h


def three_windows(width: int, height: int, size: int) -> tuple[tuple[int, int], tuple[tuple[int, int], ...]]:
    """The authors' three crops: the size that the picture is scaled to, short side `size`, and the top left
    corners of the squares at its left (or top), centre and right (or bottom), on their quarter grid."""
    short = min(width, height)
    across, down = (int(size * side / short) for side in (width, height))
    steps = ((across - size) // 4, (down - size) // 4)
    return (across, down), tuple((k * steps[0], k * steps[1]) for k in (0, 2, 4))


def plan_evaluation(video: Video, spec: ClipSpec) -> ClipPlan:
    """The views of an evaluation: one centred clip, or clips drawn at random; the centre crop, or three crops.

    The draw depends on the video's name alone (`clip_name` of its id): the views are the same in every run, list and
    backend, and for a file by itself as for the data set that it is of.
    """
    count, width, height = video.file.num_frames, video.file.width, video.file.height
    if spec.num_clips == 1:
        frames = center_frame_indices(count, spec.num_segments, spec.frames_per_segment)
    else:
        rng = np.random.default_rng(list(hashlib.sha256(os.fsencode(clip_name(video.id))).digest()))
        draws = range(spec.num_clips)
        frames = np.concatenate(
            [random_frame_indices(count, spec.num_segments, rng, spec.frames_per_segment) for _ in draws]
        )
    if spec.num_crops == 1:
        return ClipPlan(video, frames, center_crop(width, height, spec.crop_ratio), False, video.sample.label)
    resized, windows = three_windows(width, height, spec.size)
    return ClipPlan(video, frames, (0, 0, width, height), False, video.sample.label, resized, windows)


def plan_training(
    video: Video, spec: ClipSpec, *, seed: int, epoch: int, position: int, flipped_labels: tuple[int, ...]
) -> ClipPlan:
    """Random frames, multi-scale crop, flip with probability ½; a flip takes the label's mirror image.

    `position` is the video's place in its split: the draw does not depend on order, batch or rank. `flipped_labels`
    holds the mirror image of each label, see `annotations.flip_labels`.
    """
    rng = np.random.default_rng((seed, epoch, position))
    frames = random_frame_indices(video.file.num_frames, spec.num_segments, rng, spec.frames_per_segment)
    crop = multi_scale_crop(video.file.width, video.file.height, spec.crop_scales, rng)
    flip = bool(rng.integers(2))
    label = flipped_labels[video.sample.label] if flip else video.sample.label
    return ClipPlan(video, frames, crop, flip, label)


def replacement(count: int, *, seed: int, epoch: int, position: int, attempt: int) -> int:
    """Which of `count` usable videos replaces a bad one: the same on every rank, backend and resumption."""
    return int(np.random.default_rng((seed, epoch, position, 1 + attempt)).integers(count))


def epoch_order(count: int, *, seed: int, epoch: int, shuffle: bool) -> np.ndarray:
    """The order in which an epoch visits positions 0 … count−1: int64 (count,)."""
    if not shuffle:
        return np.arange(count)
    return np.random.default_rng((seed, epoch)).permutation(count)


def shard(order: np.ndarray, *, rank: int, world_size: int, equal: bool) -> np.ndarray:
    """This rank's part. `equal` drops the tail so that all ranks take as many steps (training); without it
    every position is visited by exactly one rank (evaluation)."""
    assert 0 <= rank < world_size
    if equal:
        order = order[: len(order) // world_size * world_size]
    return order[rank::world_size]
