"""Which frames a window samples, when it is due, and what the ring keeps."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.clip import ClipSpec
from pipelines.sampling import center_frame_indices
from tdn_bench.errors import UserError
from tdn_bench.watching.window import Ring, WindowPlan, plan_windows


def spec_of(segments: int, frames: int = 5, size: int = 8) -> ClipSpec:
    return ClipSpec(segments, frames, size=size)


@given(st.integers(2, 16), st.sampled_from([1, 5]), st.integers(1, 400), st.integers(0, 90), st.integers(0, 1000))
def test_on_the_grid_windows_share_their_segments_and_are_sampled_as_an_evaluation_samples(
    segments, frames, length, every, moved
):
    plan = plan_windows(spec_of(segments, frames), length, every or None, grid=True)
    assert plan.cell is not None
    end = plan.length - 1 + moved * plan.hop
    window = plan.frames(end)
    # What an evaluation samples of a video of just these frames.
    assert (window - (end + 1 - plan.length) == center_frame_indices(plan.length, segments, frames)).all()
    cells = plan.hop // plan.cell
    assert cells * plan.cell == plan.hop
    after = plan.frames(end + plan.hop)
    if cells < segments:
        assert (after[: segments - cells] == window[cells:]).all()
    # A whole number of frames from segment to segment, as near to what was asked for as that allows.
    assert plan.length == segments * plan.cell + frames - 1
    assert abs(plan.length - length) <= segments / 2 or plan.cell == 2
    assert plan.reads(0)
    assert all(plan.reads(int(frame)) for frame in window.ravel())


@given(st.integers(2, 9), st.integers(1, 90), st.integers(1, 50))
def test_off_the_grid_windows_are_taken_to_the_frame(segments, length, every):
    plan = plan_windows(spec_of(segments), length, every, grid=False)
    assert (plan.length, plan.hop) == (length, every)
    assert (plan.frames(length - 1) == center_frame_indices(length, segments)).all()


def test_a_tenth_of_the_pictures_of_a_long_window_are_read():
    plan = plan_windows(spec_of(4), 200, None, grid=True)
    read = [frame for frame in range(plan.length, 5000) if plan.reads(frame)]
    ends = range(plan.length - 1 + 4 * plan.hop, 4900, plan.hop)
    sampled = {int(f) for end in ends for f in plan.frames(end).ravel() if f >= plan.length}
    assert set(read) >= sampled
    assert len(read) < 0.11 * 5000


def test_windows_are_due_after_their_newest_frame():
    plan = WindowPlan(spec_of(2), 10, 3, None)
    assert [plan.due(n) for n in (0, 9, 10, 12, 13, 16)] == [0, 0, 1, 1, 2, 3]


@given(st.lists(st.integers(0, 7), max_size=60), st.integers(1, 9), st.booleans())
def test_the_ring_gives_the_newest_window_and_counts_the_others(steps, hop, restarts):
    """Against a list that keeps everything. A step pushes frames, then takes; 7 restarts."""
    plan = WindowPlan(spec_of(2, size=1), 6, hop, None)
    ring, since, due_before, skipped_before = Ring(plan), 0, 0, 0
    for step in steps:
        if step == 7 and restarts:
            skipped_before += plan.due(ring.count - since) - due_before
            ring.restart()
            since, due_before = ring.count, 0
            continue
        for _ in range(step):
            number = ring.count
            ring.push(np.full((1, 1, 3), number % 256, np.uint8), float(number), number / 10)
        ends = [since + 5 + k * hop for k in range(plan.due(ring.count - since))]
        window = ring.take()
        if len(ends) <= due_before:
            assert window is None
            continue
        assert window is not None
        assert window.end == ends[-1]
        assert window.skipped == len(ends) - due_before - 1 + skipped_before
        due_before, skipped_before = len(ends), 0
        assert (window.arrived_s, window.position_s) == (window.end, window.end / 10)
        assert (ring.read(window.frames)[..., 0, 0, 0].numpy() == window.frames % 256).all()


def test_the_last_frames_are_a_window_where_there_was_none():
    ring = Ring(plan_windows(spec_of(4), 24, None, grid=True))
    assert ring.take(last=True) is None
    for number in range(9):
        ring.push(np.zeros((8, 8, 3), np.uint8), number, 0.0)
    window = ring.take(last=True)
    assert window is not None
    assert (window.frames == center_frame_indices(9, 4)).all()
    assert ring.take(last=True) is None
    for number in range(24):
        ring.push(np.zeros((8, 8, 3), np.uint8), number, 0.0)
    assert ring.take(last=True) is not None
    ring.push(np.zeros((8, 8, 3), np.uint8), 0.0, 0.0)
    assert ring.take(last=True) is None  # its frames had a label


def test_a_window_that_no_memory_holds_is_refused():
    with pytest.raises(UserError, match=r"--window-frames 1000004: .* GB"):
        plan_windows(spec_of(4, size=224), 1_000_004, None, grid=True).check_memory()
