"""Which frames of a video a clip reads (TDN's released sampling, after TSN, arXiv 1608.00859, Sec. 3.1), and which
videos of a list a short run takes.

All indices are zero-based. N is the video's number of frames, T segments, L consecutive frames in each.
"""

from __future__ import annotations

from typing import Protocol, Self, TypeVar

import numpy as np

FRAMES_PER_SEGMENT = 5


class Sliceable(Protocol):
    """A sequence whose slices are of its own kind: a list, a tuple, a manifest's `Videos`."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: slice, /) -> Self: ...


Items = TypeVar("Items", bound=Sliceable)


def evenly_spaced(items: Items, most: int) -> Items:
    """At most `most` (1 or more) items in their order, at equal distances from the first on."""
    return items[:: max(1, len(items) // most)][:most]


def spread(count: int, most: int) -> np.ndarray:
    """int64 indices of at most `most` (1 or more) of `count` items, spread over all of them: the first is 0, and the
    ends of the list are as near as the middle. (`evenly_spaced` leaves out the end where `most` does not divide.)"""
    return np.arange(count) if count <= most else np.arange(most) * count // most


def center_frame_indices(
    num_frames: int, num_segments: int, frames_per_segment: int = FRAMES_PER_SEGMENT
) -> np.ndarray:
    """Return the (T, L) int64 indices of validation and of the one-clip test: the middle of each segment.

    Args:
        num_frames: N. A video shorter than the clip repeats its last frame.
        num_segments: T.
        frames_per_segment: L.

    Raises:
        ValueError: One of the numbers is below 1.
    """
    _check(num_frames, num_segments, frames_per_segment)
    starts = np.zeros(num_segments, np.int64)
    if num_frames > num_segments + frames_per_segment - 1:
        tick = (num_frames - frames_per_segment + 1) / num_segments
        starts = np.array([int(tick / 2 + tick * k) for k in range(num_segments)], np.int64)
    return _consecutive(starts, num_frames, frames_per_segment)


def random_frame_indices(
    num_frames: int,
    num_segments: int,
    rng: np.random.Generator,
    frames_per_segment: int = FRAMES_PER_SEGMENT,
) -> np.ndarray:
    """Return (T, L) int64 indices drawn for training: one start per segment, uniform within it.

    Args:
        num_frames: N. A video shorter than the clip repeats its last frame.
        num_segments: T.
        rng: What is drawn from; the same state gives the same indices.
        frames_per_segment: L.

    Raises:
        ValueError: One of the numbers is below 1.
    """
    _check(num_frames, num_segments, frames_per_segment)
    average = (num_frames - frames_per_segment + 1) // num_segments
    if average > 0:
        starts = np.arange(num_segments) * average + rng.integers(average, size=num_segments)
    elif num_frames > num_segments and num_frames >= frames_per_segment:
        starts = np.sort(rng.integers(num_frames - frames_per_segment + 1, size=num_segments))
    else:
        starts = np.zeros(num_segments, np.int64)
    return _consecutive(starts, num_frames, frames_per_segment)


def _check(num_frames: int, num_segments: int, frames_per_segment: int) -> None:
    if min(num_frames, num_segments, frames_per_segment) < 1:
        raise ValueError(
            "num_frames, num_segments and frames_per_segment must be at least 1, "
            f"not {num_frames}, {num_segments}, {frames_per_segment}"
        )


def _consecutive(starts: np.ndarray, num_frames: int, frames_per_segment: int) -> np.ndarray:
    """L frames from each start, the last frame repeated past the end."""
    frames = starts[:, None] + np.arange(frames_per_segment)
    return np.minimum(frames, num_frames - 1).astype(np.int64)
