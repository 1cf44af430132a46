"""Mixup and CutMix against pixel-by-pixel formulations; labels of flipped clips; the loss of two labels."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from pipelines.annotations import flip_labels
from tdn_bench.recipes import Modern
from tdn_bench.training.mixing import cross_entropy, draw_box, mix, step_rng

BOTH = Modern(mixup_alpha=0.4, cutmix_alpha=1.0)
CLASSES = ("Pushing [something] from left to right", "Pushing [something] from right to left", "Folding [something]")


def clips(count: int = 4) -> torch.Tensor:
    draw = torch.Generator().manual_seed(3)
    return torch.randint(0, 256, (count, 2, 5, 12, 10, 3), dtype=torch.uint8, generator=draw)


@given(st.integers(0, 2**32), st.integers(2, 5))
def test_mixup_is_the_weighted_mean_of_two_clips_of_the_batch(seed: int, count: int) -> None:
    frames, labels = clips(count), torch.arange(count)
    mixed = mix(frames, labels, replace(BOTH, cutmix_alpha=0), np.random.default_rng(seed))
    assert 0 <= mixed.share <= 1
    for clip, own, partner in zip(mixed.frames, labels.tolist(), mixed.partners.tolist(), strict=True):
        assert own != partner
        wanted = mixed.share * frames[own].double() + (1 - mixed.share) * frames[partner].double()
        assert (clip.double() - wanted).abs().max() <= 0.5001


@given(st.integers(0, 2**32), st.integers(2, 5))
def test_cutmix_puts_one_box_of_the_partner_into_every_frame(seed: int, count: int) -> None:
    frames, labels = clips(count), torch.arange(count)
    mixed = mix(frames, labels, replace(BOTH, mixup_alpha=0), np.random.default_rng(seed))
    twice = mix(frames + 1, labels, replace(BOTH, mixup_alpha=0), np.random.default_rng(seed))
    assert torch.equal(twice.frames, mixed.frames + 1)  # uint8 wraps: each pixel is one clip's or the other's, whole
    masks = set()
    for clip, own, partner in zip(mixed.frames, labels.tolist(), mixed.partners.tolist(), strict=True):
        inside = (clip != frames[own]).any(-1).flatten(0, 1).any(0)
        assert torch.equal(clip[:, :, inside], frames[partner][:, :, inside])
        masks.add(tuple(inside.flatten().tolist()))
    assert len(masks) == 1  # random pixels differ in one of 10 frames, surely
    (mask,) = masks
    assert mixed.share == pytest.approx(1 - sum(mask) / 120)


@given(st.integers(0, 2**32), st.floats(0, 1))
def test_a_box_lies_in_the_picture_and_is_no_larger_than_drawn(seed: int, area: float) -> None:
    top, left, bottom, right = draw_box(48, 64, area, np.random.default_rng(seed))
    assert 0 <= top <= bottom <= 48
    assert 0 <= left <= right <= 64
    side = area**0.5
    assert (bottom - top) <= 48 * side + 0.5
    assert (right - left) <= 64 * side + 0.5


def test_a_mix_of_a_flipped_clip_and_one_that_is_not_keeps_each_ones_label() -> None:
    """The plan gave the flipped clip its mirror image's label; whatever is mixed, a label goes with its own pixels."""
    mirrored = flip_labels(CLASSES)
    assert mirrored == (1, 0, 2)
    plain = torch.full((1, 2, 5, 12, 10, 3), 10, dtype=torch.uint8)  # "left to right", as it was filmed
    flipped = torch.full((1, 2, 5, 12, 10, 3), 200, dtype=torch.uint8)  # "left to right", flipped: "right to left"
    frames, labels = torch.cat([plain, flipped]), torch.tensor([0, mirrored[0]])
    for seed in range(20):
        mixed = mix(frames, labels, BOTH, np.random.default_rng(seed))
        for clip, own, partner, level, other in zip(
            mixed.frames, labels.tolist(), mixed.partners.tolist(), (10, 200), (200, 10), strict=True
        ):
            assert (own, partner) == ((0, 1) if level == 10 else (1, 0))
            mean = mixed.share * level + (1 - mixed.share) * other
            assert clip.double().mean() == pytest.approx(mean, abs=0.51)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_the_loss_is_that_of_soft_labels(share: float, smoothing: float) -> None:
    logits, labels, partners = torch.randn(5, 7), torch.tensor([0, 1, 2, 3, 4]), torch.tensor([4, 0, 1, 2, 3])
    soft = share * F.one_hot(labels, 7).double() + (1 - share) * F.one_hot(partners, 7).double()
    soft = (1 - smoothing) * soft + smoothing / 7
    wanted = -(soft * logits.double().log_softmax(1)).sum(1).mean()
    found = cross_entropy(logits, labels, partners, share, smoothing)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-6, atol=1e-6)


def test_draws_are_those_of_the_seeded_step_and_both_kinds_come_up() -> None:
    found = []
    for _ in range(2):
        torch.manual_seed(5)
        found.append(mix(clips(), torch.arange(4), BOTH, step_rng()))
    assert torch.equal(found[0].frames, found[1].frames)
    assert found[0].share == found[1].share
    kinds = set()
    for seed in range(10):
        frames = torch.tensor([0, 200], dtype=torch.uint8).view(2, 1, 1, 1, 1, 1).expand(2, 1, 5, 16, 16, 3)
        pixels = mix(frames, torch.arange(2), BOTH, np.random.default_rng(seed)).frames
        kinds.add(set(pixels.unique().tolist()) <= {0, 200})
    assert kinds == {True, False}
