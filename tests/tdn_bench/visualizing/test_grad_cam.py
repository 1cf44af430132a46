"""Grad-CAM against its two equations, worked out by hand; and that heat lies where the evidence is."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from support.networks import make, make_frames
from support.planted import PIXELS, SEGMENTS, planted

from tdn_bench.visualizing.grad_cam import (
    STAGES,
    STRIDES,
    cell_pixels,
    default_stage,
    grad_cam,
    middle_frames,
    to_pixels,
)

PLANTED = planted()


def handed_on(network, clip):
    """What Res2 hands on, after Sec. 3.4 of the TDN paper."""
    segments = clip.flatten(0, 1)
    pictures = segments.flatten(0, 1) if network.all_frames else segments[:, segments.shape[1] // 2]
    x = F.max_pool2d(network.stem(pictures).relu(), 3, 2, 1)
    s = network.short_term
    if s is not None:
        motion = s(segments)
        x = network.res2(s.fuse(x, motion))
        a = s.fuse(x, s.res2(motion))
    else:
        a = network.res2(x)
    return a


def logits_from(network, stage, a, videos):
    """The logits from what a stage hands on."""
    if stage == "res2" and network.pool is not None:
        a = network.pool(a)
    for later in STAGES[STAGES.index(stage) + 1 :]:
        a = getattr(network, later)(a)
    return network.classifier(a.mean((2, 3))).unflatten(0, (videos, -1)).mean(1)


def by_hand(classifier, frames, target, stage):
    network = classifier.network
    clip = (frames.permute(0, 1, 2, 5, 3, 4).float() - classifier.mean) / classifier.std
    a = handed_on(network, clip)
    for later in STAGES[1 : STAGES.index(stage) + 1]:
        if later == "res3" and network.pool is not None:
            a = network.pool(a)
        a = getattr(network, later)(a)
    a = a.detach().requires_grad_()
    logits_from(network, stage, a, len(clip))[0, target].backward()
    maps = []
    for features, gradient in zip(a.detach(), a.grad, strict=True):  # each map by itself
        weights = [g.mean() for g in gradient]  # Eq. 1
        maps.append(sum(w * f for w, f in zip(weights, features, strict=True)).clamp(min=0))  # Eq. 2
    return torch.stack(maps)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("variant", ["tdn", "s_tdm", "tsn", "tanet", "i3d", "tsm++"])
def test_grad_cam_is_its_two_equations(variant, stage):
    classifier, frames = make(variant), make_frames(variant, batch=1)
    target = next(c for c in range(7) if by_hand(classifier, frames, c, stage).max() > 0)
    expected = by_hand(classifier, frames, target, stage)
    classifier.requires_grad_(False)
    found = grad_cam(classifier, frames, target, stage)
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * float(expected.max()))


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["res3", "res5"])
def test_every_network_has_a_map_for_some_of_its_frames(stage):
    from tdn_bench.models.variants import VARIANTS

    for variant in VARIANTS:
        classifier, frames = make(variant), make_frames(variant, batch=1)
        maps = grad_cam(classifier, frames, 0, stage)
        middles = middle_frames(classifier.network, len(maps), frames.shape[2])
        assert len(middles) == len(maps), variant
        assert 0 <= middles.min() <= middles.max() < frames.shape[1] * frames.shape[2], variant
        assert maps.isfinite().all(), variant
        assert maps.shape[2] == -(-70 // STRIDES[stage]) or variant == "i3d"


def test_the_middle_frames_of_maps():
    tdn, tsn, every, i3d = (make(v).network for v in ("tdn", "tsn", "tsn++", "i3d"))
    assert middle_frames(tdn, 4, 5).tolist() == [2, 7, 12, 17]
    assert middle_frames(tsn, 4, 1).tolist() == [0, 1, 2, 3]
    assert middle_frames(every, 20, 5).tolist() == list(range(20))
    assert middle_frames(i3d, 4, 1).tolist() == [0, 1, 2, 3]  # before the pooling
    assert middle_frames(i3d, 2, 1).tolist() == [0, 2]


@pytest.mark.parametrize(("size", "stage"), [(224, "res5"), (112, "res4"), (64, "res3"), (256, "res5"), (208, "res5")])
def test_the_default_stage_has_seven_cells(size, stage):
    assert default_stage(size) == stage


@given(st.integers(64, 512), st.integers(1, 5))
def test_the_pixels_of_a_cell_are_the_stride(size, halvings):
    cells = size
    for _ in range(halvings):
        cells = (cells + 1) // 2  # a stride of 2, padded
    assert cell_pixels(size, cells) == 2**halvings


@given(st.integers(2, 9), st.sampled_from([4, 8, 16, 32]), st.randoms(use_true_random=False))
def test_over_the_pictures_heat_is_linear_between_cells(cells, stride, random):
    size = cells * stride
    row = [random.random() for _ in range(cells)]
    column = [random.random() for _ in range(cells)]
    maps = torch.tensor(column)[:, None] * torch.tensor(row)
    expected = [np.interp(np.arange(size), stride * np.arange(cells), values) for values in (column, row)]
    found = to_pixels(maps[None], size)[0]
    np.testing.assert_allclose(found, np.outer(*expected), atol=1e-5)


@settings(max_examples=12)
@given(st.sampled_from(STAGES[:3]), st.integers(1, 15), st.integers(1, 15))
def test_heat_lies_on_the_planted_spot(stage, row, column):
    """A spot on any cell of the stage: the heat's peak is there, to the pixel, and there is none far from it."""
    stride = STRIDES[stage]
    y, x = (stride * (place % (PIXELS // stride)) for place in (row, column))
    frames = torch.zeros(1, SEGMENTS, 1, PIXELS, PIXELS, 3, dtype=torch.uint8)
    frames[:, 1, :, max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2] = 255
    heat = to_pixels(grad_cam(PLANTED, frames, 0, stage), PIXELS)
    assert heat[[0, 2, 3]].max() == 0  # in the other segments there is none
    assert divmod(int(heat[1].argmax()), PIXELS) == (y, x)
    far = torch.ones(PIXELS, PIXELS, dtype=torch.bool)
    far[max(y - 3 * stride, 0) : y + 3 * stride + 1, max(x - 3 * stride, 0) : x + 3 * stride + 1] = False
    assert heat[1][far].sum() == 0
