"""Frame indices: the authors' validation sampling entry by entry, and what must hold of any random draw."""

import json
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.paths import DATA

from pipelines.manifest import Videos
from pipelines.sampling import center_frame_indices, evenly_spaced, random_frame_indices
from pipelines.video import Sample, Video, VideoFile

REFERENCE = json.loads((DATA / "val_frame_indices.json").read_text())
CASES = [(int(t), int(n), indices) for t, rows in REFERENCE.items() for n, indices in rows.items()]

lengths = st.integers(1, 400)
segments = st.sampled_from([1, 2, 3, 8, 16])
run_lengths = st.sampled_from([1, 2, 5])
seeds = st.integers(0, 2**32)


@pytest.mark.parametrize(("num_segments", "num_frames", "expected"), CASES)
def test_centre_indices_are_the_authors(num_segments: int, num_frames: int, expected: list[int]) -> None:
    indices = center_frame_indices(num_frames, num_segments)
    assert indices.dtype == np.int64
    assert indices.shape == (num_segments, 5)
    assert indices.ravel().tolist() == expected


def assert_consecutive(indices: np.ndarray, num_frames: int) -> None:
    """Each segment reads on from its start, one frame at a time, and repeats the last frame past the end."""
    for segment in indices.tolist():
        for before, after in pairwise(segment):
            assert after == before + 1 or before == after == num_frames - 1


@given(lengths, segments, run_lengths)
def test_centre_indices_are_sorted_runs_inside_the_video(num_frames: int, num_segments: int, run: int) -> None:
    indices = center_frame_indices(num_frames, num_segments, run)
    assert indices.shape == (num_segments, run)
    assert 0 <= indices.min() <= indices.max() < num_frames
    assert (np.diff(indices[:, 0]) >= 0).all()
    assert_consecutive(indices, num_frames)


@given(lengths, segments, run_lengths, seeds)
def test_random_indices_are_sorted_runs_inside_the_video(
    num_frames: int, num_segments: int, run: int, seed: int
) -> None:
    indices = random_frame_indices(num_frames, num_segments, np.random.default_rng(seed), run)
    assert indices.dtype == np.int64
    assert indices.shape == (num_segments, run)
    assert 0 <= indices.min() <= indices.max() < num_frames
    assert (np.diff(indices[:, 0]) >= 0).all()
    assert_consecutive(indices, num_frames)


@given(st.integers(0, 400), st.sampled_from([8, 16]), seeds)
def test_random_starts_keep_to_their_own_stretch(extra: int, num_segments: int, seed: int) -> None:
    num_frames = num_segments + 4 + extra  # long enough for one start a segment
    stretch = (num_frames - 4) // num_segments
    starts = random_frame_indices(num_frames, num_segments, np.random.default_rng(seed))[:, 0]
    assert (starts // stretch).tolist() == list(range(num_segments))


def test_random_starts_reach_every_place_of_their_stretch() -> None:
    rng = np.random.default_rng(0)
    starts = np.stack([random_frame_indices(36, 8, rng)[:, 0] for _ in range(200)])  # stretches of 4
    assert [sorted(set(column)) for column in starts.T.tolist()] == [list(range(4 * k, 4 * k + 4)) for k in range(8)]


@pytest.mark.parametrize("num_frames", range(1, 13))
def test_random_indices_of_short_videos(num_frames: int) -> None:
    """Up to T frames every segment starts at 0; from there to T + 3 the starts are anywhere in 0 … N − 5."""
    rng = np.random.default_rng(0)
    starts = np.stack([random_frame_indices(num_frames, 8, rng)[:, 0] for _ in range(100)])
    expected = {0} if num_frames <= 8 else set(range(num_frames - 4))
    assert set(starts.ravel().tolist()) == expected
    assert (np.diff(starts) >= 0).all()


def test_the_last_frame_is_repeated_past_the_end() -> None:
    expected = [[0, 1, 2, 2, 2]] * 4
    assert center_frame_indices(3, 4).tolist() == expected
    assert random_frame_indices(3, 4, np.random.default_rng(0)).tolist() == expected


@pytest.mark.parametrize("arguments", [(0, 8, 5), (-1, 8, 5), (10, 0, 5), (10, 8, 0)])
def test_wrong_numbers_are_refused(arguments: tuple[int, int, int]) -> None:
    frames, num_segments, run = arguments
    with pytest.raises(ValueError, match="must be at least 1, not"):
        center_frame_indices(frames, num_segments, run)
    with pytest.raises(ValueError, match="must be at least 1, not"):
        random_frame_indices(frames, num_segments, np.random.default_rng(0), run)


@given(st.integers(0, 300), st.integers(1, 400))
def test_evenly_spaced_items(count: int, most: int) -> None:
    """As many as there are up to that number, in order, from the first on, at one distance, up to the end."""
    items = list(range(count))
    taken = evenly_spaced(items, most)
    assert len(taken) == min(count, most)
    assert taken[:1] == items[:1]
    gaps = {after - before for before, after in pairwise(taken)}
    assert len(gaps) <= 1
    assert all(gap >= 1 for gap in gaps)
    assert count - len(taken) * max(gaps, default=count) < most
    assert evenly_spaced(tuple(items), most) == tuple(taken)


def test_evenly_spaced_videos_are_videos() -> None:
    rows = [Video(Sample(f"v{i}", f"/v{i}", 0, "train"), VideoFile()) for i in range(11)]
    taken = evenly_spaced(Videos.of(rows), 4)
    assert isinstance(taken, Videos)
    assert [video.id for video in taken] == ["v0", "v2", "v4", "v6"]
