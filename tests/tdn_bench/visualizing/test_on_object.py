"""The share of heat on the object: of heat whose place is known, and of the demo's networks where they were trained."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import binary_dilation
from support.paths import ROOT

from pipelines.plan import ClipPlan, center_crop
from pipelines.synthetic import HEIGHT, WIDTH, draw_scene, object_masks
from pipelines.video import Sample, Video, VideoFile
from tdn_bench.visualizing.on_object import dilated, masks_of, share_on_object


def plan_of(scene, frames, ratio=1.0):
    video = Video(
        Sample("0", "/0.webm", 0, "validation"), VideoFile(width=WIDTH, height=HEIGHT, num_frames=scene.frames)
    )
    return ClipPlan(video, np.asarray(frames), center_crop(WIDTH, HEIGHT, ratio), False, 0)


def test_planted_heat_is_all_of_it_or_none_and_even_heat_is_the_area():
    masks = torch.rand(4, 64, 64) > 0.7
    area = masks.float().mean().item()
    inside, outside, even = (
        share_on_object(heat, masks) for heat in (masks * 3.0, ~masks * 0.1, torch.ones(4, 64, 64))
    )
    assert inside.heat == 1
    assert outside.heat == 0
    assert even.heat == pytest.approx(area)
    assert inside.area == pytest.approx(area)
    assert math.isnan(share_on_object(torch.zeros(4, 64, 64), masks).heat)


@settings(max_examples=15)
@given(st.integers(0, 9))
def test_dilation_is_scipys(pixels):
    masks = torch.rand(2, 40, 40, generator=torch.Generator().manual_seed(pixels)) > 0.99
    square = np.ones((2 * pixels + 1, 2 * pixels + 1), bool)
    for mask, grown in zip(masks, dilated(masks, pixels), strict=True):
        assert np.array_equal(grown, binary_dilation(mask, square))


@pytest.mark.parametrize("ratio", [1.0, 0.875])
def test_masks_are_cropped_and_scaled_as_the_pictures_are(ratio):
    scene = draw_scene(0, 3)
    plan = plan_of(scene, [[0, 1, 2, 3, 4], [20, 21, 22, 23, 24]], ratio)
    found = masks_of(scene, plan, np.array([2, 7]), 32)
    side = round(ratio * HEIGHT)
    left, top = (WIDTH - side) // 2, (HEIGHT - side) // 2
    whole = object_masks(scene, np.array([2, 22]))[:, top : top + side, left : left + side]
    if side % 32 == 0:  # a pixel is a block of pixels; those that the border halves may go either way
        blocks = whole.reshape(2, 32, side // 32, 32, side // 32).mean((2, 4))
        clear = (blocks == 0) | (blocks == 1)
        assert np.array_equal(found.numpy()[clear], blocks[clear] == 1)
    assert found.float().mean().item() == pytest.approx(whole.mean(), abs=0.01)


@pytest.mark.slow
def test_tdn_looks_at_the_object_more_than_chance_and_more_than_tsn():
    """What the published record says, on a quarter of its clips; of networks that `make demo` has trained."""
    from tdn_bench.cli import DataFlags
    from tdn_bench.visualizing.looking import Looker, load_subjects

    demo = ROOT / "runs" / "demo"
    checkpoints = [demo / kind / "best.safetensors" for kind in ("tdn", "tsn")]
    if not all(path.exists() for path in checkpoints):
        pytest.skip("no trained networks: `make demo` makes them")
    cpu = torch.device("cpu")
    subjects = load_subjects(checkpoints, cpu)
    manifest = DataFlags(data=demo / "data").open(progress=False)
    above = {subject.label: [] for subject in subjects}
    with Looker.open(subjects, stage="res3", device=cpu) as looker:
        for video in manifest.split("validation")[:40]:
            for subject in subjects:
                clip = looker.read(video, subject)
                label = subject.trained.classes.index(manifest.classes[video.sample.label])
                heat, middles = looker.heat(subject, clip, label)
                masks = masks_of(draw_scene(0, int(video.id)), clip.plan, middles, heat.shape[-1])
                share = share_on_object(torch.from_numpy(heat), masks)
                above[subject.label].append(share.heat - share.area)
    tdn, tsn = (np.nanmean(values) for values in above.values())
    assert tdn > 0.05
    assert tdn > tsn
