"""Plans: pure functions of seed, epoch and place; crops inside the picture; shards that leave nothing out."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.clip import ClipSpec
from pipelines.plan import (
    ClipPlan,
    center_crop,
    epoch_order,
    multi_scale_crop,
    plan_evaluation,
    plan_training,
    shard,
)
from pipelines.sampling import center_frame_indices
from pipelines.video import Sample, Video, VideoFile

SPEC = ClipSpec()
sizes = st.integers(1, 500)
seeds = st.integers(0, 2**32)


def make_video(label: int = 0, num_frames: int = 60, width: int = 320, height: int = 240) -> Video:
    return Video(Sample("v", "/v.webm", label, "train"), VideoFile(width=width, height=height, num_frames=num_frames))


def train(seed: int = 0, epoch: int = 0, position: int = 0, video: Video | None = None) -> ClipPlan:
    video = video or make_video()
    return plan_training(video, SPEC, seed=seed, epoch=epoch, position=position, flipped_labels=(1, 0, 2))


def fields(plan: ClipPlan) -> tuple[object, ...]:
    return plan.frames.tolist(), plan.crop, plan.flip, plan.label


@given(seeds, st.integers(0, 99), st.integers(0, 10**6))
def test_training_plan_is_a_pure_function(seed: int, epoch: int, position: int) -> None:
    plan = train(seed, epoch, position)
    np.random.default_rng(seed).random()  # other draws in between change nothing
    np.random.seed(0)  # nor does the global state
    assert fields(plan) == fields(train(seed, epoch, position))
    others = [train(seed + 1, epoch, position), train(seed, epoch + 1, position), train(seed, epoch, position + 1)]
    assert all(plan.frames.tolist() != other.frames.tolist() for other in others)


def test_flip_comes_every_other_time_and_takes_the_labels_mirror_image() -> None:
    for label, mirrored in ((0, 1), (1, 0), (2, 2)):
        plans = [train(position=i, video=make_video(label)) for i in range(400)]
        assert {plan.flip: plan.label for plan in plans} == {False: label, True: mirrored}
        assert all(plan.label == (mirrored if plan.flip else label) for plan in plans)
        assert 150 < sum(plan.flip for plan in plans) < 250  # five standard deviations of a fair coin


@given(sizes, sizes, seeds)
def test_training_crop_lies_inside_the_picture(width: int, height: int, seed: int) -> None:
    x, y, w, h = multi_scale_crop(width, height, SPEC.crop_scales, np.random.default_rng(seed))
    assert 0 <= x < x + w <= width
    assert 0 <= y < y + h <= height


def test_training_crops_are_the_authors() -> None:
    """Shapes at most one scale apart, and thirteen places: a quarter grid's corners, edges, centre, inner four."""
    width, height = 400, 300
    crops = {multi_scale_crop(width, height, SPEC.crop_scales, np.random.default_rng(i)) for i in range(6000)}
    sides = [300, 262, 225, 198]  # int(300 × 1, .875, .75, .66)
    neighbours = {(w, h) for i, w in enumerate(sides) for j, h in enumerate(sides) if abs(i - j) <= 1}
    places = {(0, 0), (4, 0), (0, 4), (4, 4), (2, 2), (0, 2), (4, 2), (2, 0), (2, 4), (1, 1), (3, 1), (1, 3), (3, 3)}
    rooms = [(w, h, (width - w) // 4, (height - h) // 4) for w, h in neighbours]
    assert crops == {(across * x, down * y, w, h) for w, h, x, y in rooms for across, down in places}


@given(sizes, sizes, st.sampled_from([1.0, 0.875, 0.5]))
def test_centre_crop_is_a_square_in_the_middle(width: int, height: int, ratio: float) -> None:
    x, y, w, h = center_crop(width, height, ratio)
    assert w == h
    assert abs(w - ratio * min(width, height)) <= 0.5 or w == 1
    assert x >= 0
    assert y >= 0
    assert abs(width - w - 2 * x) <= 1  # as much on the left as on the right
    assert abs(height - h - 2 * y) <= 1


def test_evaluation_plan() -> None:
    plan = plan_evaluation(make_video(label=2, width=427), SPEC)
    assert plan.frames.tolist() == center_frame_indices(60, 8).tolist()
    assert (plan.crop, plan.flip, plan.label) == ((108, 15, 210, 210), False, 2)  # 224/256 of 240 is 210
    longer = dataclasses.replace(SPEC, num_segments=16, frames_per_segment=3)
    assert plan_evaluation(make_video(), longer).frames.shape == (16, 3)


@given(st.integers(0, 300), seeds, st.integers(0, 99))
def test_epoch_order_is_a_permutation_of_its_own(count: int, seed: int, epoch: int) -> None:
    order = epoch_order(count, seed=seed, epoch=epoch, shuffle=True)
    assert sorted(order.tolist()) == list(range(count))
    assert order.tolist() == epoch_order(count, seed=seed, epoch=epoch, shuffle=True).tolist()
    assert epoch_order(count, seed=seed, epoch=epoch, shuffle=False).tolist() == list(range(count))
    if count > 20:
        assert order.tolist() != epoch_order(count, seed=seed, epoch=epoch + 1, shuffle=True).tolist()
        assert order.tolist() != epoch_order(count, seed=seed + 1, epoch=epoch, shuffle=True).tolist()


@given(st.integers(0, 300), st.integers(1, 16), st.booleans())
def test_shards_are_disjoint_and_complete_or_equal(count: int, world_size: int, equal: bool) -> None:
    order = epoch_order(count, seed=1, epoch=2, shuffle=True)
    shards = [shard(order, rank=rank, world_size=world_size, equal=equal).tolist() for rank in range(world_size)]
    visited = [position for part in shards for position in part]
    assert len(set(visited)) == len(visited)
    lengths = {len(part) for part in shards}
    if equal:
        assert lengths == {count // world_size}
    else:
        assert sorted(visited) == list(range(count))
        assert max(lengths) - min(lengths) <= 1


@pytest.mark.parametrize("rank", [-1, 2])
def test_a_rank_outside_the_world_is_a_mistake(rank: int) -> None:
    with pytest.raises(AssertionError):
        shard(np.arange(4), rank=rank, world_size=2, equal=True)
