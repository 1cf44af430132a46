"""TDN's own modules: what is written for speed gives the bits of the plain form."""

import pytest
import torch

from tdn_bench.models.resnet import ResNetConfig
from tdn_bench.models.temporal_difference import LongTermDifference, LongTermOptions, ShortTermDifference


@pytest.mark.parametrize("options", [LongTermOptions(), LongTermOptions(operation="average", bidirectional=False)])
def test_training_computes_the_same_bits_in_channels_last(options: LongTermOptions) -> None:
    """What is written for speed in training: the same numbers, and no tensor leaves channels-last on the way."""
    torch.manual_seed(0)
    module = LongTermDifference(32, 4, reduction=4, options=options).eval()
    x = torch.randn(8, 32, 6, 6).contiguous(memory_format=torch.channels_last)
    wanted = module.directions(x)
    module.training = True  # itself, not its batch norms: they would take other statistics
    found = module.directions(x)
    for ours, expected in zip(found, wanted, strict=True):
        assert (ours is None) == (expected is None)
        if ours is not None and expected is not None:
            assert torch.equal(ours, expected)
            assert ours.is_contiguous(memory_format=torch.channels_last)

    motion = ShortTermDifference(ResNetConfig((1, 1, 1, 1), 8), 4).eval()
    segments = torch.randn(4, 5, 64, 64, 3).permute(0, 1, 4, 2, 3)
    still = motion(segments)
    motion.training = True
    assert torch.equal(motion(segments), still)
