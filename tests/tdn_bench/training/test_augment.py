"""RandAugment's operations against PIL's, and what they must not do to a clip."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps

from tdn_bench.training import augment
from tdn_bench.training.augment import randaugment

AMOUNTS = (-1.0, -0.55, 0.0, 0.3, 1.0)
PILS = {
    augment.brightness: lambda image, a: ImageEnhance.Brightness(image).enhance(1 + 0.9 * a),
    augment.contrast: lambda image, a: ImageEnhance.Contrast(image).enhance(1 + 0.9 * a),
    augment.saturation: lambda image, a: ImageEnhance.Color(image).enhance(1 + 0.9 * a),
    augment.posterize: lambda image, a: ImageOps.posterize(image, 8 - int(4 * abs(a))),
    augment.solarize: lambda image, a: ImageOps.solarize(image, round(256 * (1 - abs(a)))),
    augment.identity: lambda image, a: image,
}


def frame(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (20, 24, 3), dtype=np.uint8)


@pytest.mark.parametrize("amount", AMOUNTS)
@pytest.mark.parametrize("operation", augment.OPERATIONS)
def test_an_operation_on_one_frame_is_pils(operation, amount: float) -> None:
    image = frame()
    found = operation(torch.from_numpy(image)[None, None], amount)[0, 0]
    wanted = np.asarray(PILS[operation](Image.fromarray(image), amount))
    assert found.dtype == torch.uint8
    assert np.abs(found.numpy().astype(int) - wanted.astype(int)).max() <= 1  # of rounding


def test_every_operation_is_compared() -> None:
    assert PILS.keys() == set(augment.OPERATIONS)


@pytest.mark.parametrize("operation", augment.OPERATIONS)
def test_pixels_stay_where_they_are_and_frames_change_alike(operation) -> None:
    """Each level depends on its own pixel alone (and the clip's mean): frames in another order, or mirrored, come out
    so; a still clip stays still."""
    clip = torch.from_numpy(np.stack([frame(i) for i in range(10)])).view(2, 5, 20, 24, 3)
    for amount in AMOUNTS:
        out = operation(clip, amount)
        assert torch.equal(operation(clip.flip(3), amount), out.flip(3))
        assert torch.equal(operation(clip.flip(0, 1), amount), out.flip(0, 1))
        still = operation(clip[:1, :1].expand(2, 5, -1, -1, -1), amount)
        assert torch.equal(still, still[:1, :1].expand_as(still))


def test_clips_are_changed_by_their_own_draws_and_left_as_they_are_themselves() -> None:
    frames = torch.from_numpy(frame()).expand(16, 2, 5, -1, -1, -1).contiguous()
    before = frames.clone()
    out = randaugment(frames, 2, 5.0, np.random.default_rng(0))
    again = randaugment(frames, 2, 5.0, np.random.default_rng(0))
    assert torch.equal(frames, before)
    assert torch.equal(out, again)
    assert len({tuple(clip.flatten().tolist()) for clip in out}) > 4
    assert torch.equal(randaugment(frames, 2, 0.0, np.random.default_rng(0)), frames)
