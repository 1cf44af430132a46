"""TDN's own modules: what is written for speed gives the bits of the plain form."""

import pytest
import torch
from torch import nn

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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_training_has_the_output_and_the_gradients_of_evaluation(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    module = LongTermDifference(32, 4, reduction=4).eval().to(dtype)
    x = torch.randn(8, 32, 6, 6, dtype=dtype).contiguous(memory_format=torch.channels_last).requires_grad_()
    weight = torch.randn(8, 32, 6, 6, dtype=dtype)
    found = []
    for training in (False, True):
        module.training = training
        y = module(x)
        found.append((y, torch.autograd.grad((y * weight).sum(), (x, *module.parameters()))))
    (wanted, expected), (y, gradients) = found
    rounding = 1e-5 if dtype == torch.float32 else 1e-12
    assert torch.allclose(y, wanted, rtol=rounding, atol=rounding)
    for ours, plain in zip(gradients, expected, strict=True):
        assert torch.allclose(ours, plain, rtol=10 * rounding, atol=10 * rounding)


def test_small_gates_keep_their_digits_in_bf16() -> None:
    """Near no motion sigmoid(y) is near one half, where bf16 has steps of 1/256: training does not go by it."""
    torch.manual_seed(0)
    module = LongTermDifference(16, 2, reduction=2).to(torch.bfloat16)
    x = torch.ones(2, 16, 2, 2, dtype=torch.bfloat16)
    values = torch.linspace(1e-3, 1e-2, 64).to(torch.bfloat16)
    y = values.view(1, 16, 2, 2).expand(2, -1, -1, -1).contiguous()
    module.expand = nn.Identity()  # type: ignore[assignment]
    module.directions = lambda x: (y.clone(), torch.zeros_like(y))  # type: ignore[method-assign]
    gates = []
    module._fuse = lambda x, gate, share: gates.append(share * gate) or x  # type: ignore[method-assign,func-returns-value]
    module(x)
    expected = 0.5 * (torch.sigmoid(y.double()) - 0.5)
    assert ((gates[0].double() - expected) / expected).abs().max() < 0.01
