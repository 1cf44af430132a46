"""The kernels' numbers against a loop in float64; `test_gate_kernel.py` runs this, with TRITON_INTERPRET=1 or a GPU."""

import copy
import os

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tdn_bench.models.gate_kernel import gated_temporal_conv, gated_temporal_conv_from_squeezed, why_no_kernel
from tdn_bench.models.resnet import ConvBN
from tdn_bench.models.temporal_difference import (
    LongTermDifference,
    TemporalConv,
    TemporalDifference,
    use_gate_kernel,
)

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
FLOATS = (torch.float32, torch.float16, torch.bfloat16)
# B, T, c, H, W: odd numbers of pixels, channels that fill no tile and more than one, videos with a single segment
SIZES = [(1, 1, 64, 3, 3), (3, 2, 80, 5, 7), (1, 3, 20, 1, 1), (3, 8, 32, 4, 4), (1, 16, 64, 5, 3), (2, 3, 130, 3, 7)]


def loop(x: Tensor, z_forward: Tensor, z_backward: Tensor, weight: Tensor, segments: int) -> Tensor:
    """One video and one segment after another."""
    s = x + 0.5 * x * ((torch.sigmoid(z_forward) - 0.5) + (torch.sigmoid(z_backward) - 0.5))
    out = []
    for first in range(0, x.shape[0], segments):
        for t in range(segments):
            total = torch.zeros_like(x[0])
            for tap in (0, 1, 2):
                if 0 <= t + tap - 1 < segments:
                    total = total + weight[:, 0, tap, None, None] * s[first + t + tap - 1]
            out.append(total)
    return torch.stack(out)


def expanded(y: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """One segment after another."""
    return torch.stack([(weight @ one.flatten(1) + bias[:, None]).unflatten(1, one.shape[1:]) for one in y])


def maps(*shape: int, kind: torch.dtype = torch.float32, count: int = 3) -> list[Tensor]:
    torch.manual_seed(0)
    return [
        (2 * torch.randn(shape)).to(DEVICE, kind).contiguous(memory_format=torch.channels_last) for _ in range(count)
    ]


def double(*tensors: Tensor) -> list[Tensor]:
    """Leaves in float64, with the very values that the kernel is given."""
    return [t.detach().double().cpu().requires_grad_() for t in tensors]


def check(found: Tensor, wanted: Tensor, kind: torch.dtype = torch.float32) -> None:
    """Within 10⁻⁵ of the wanted values' size; in half precision within two units in the last place of size + value."""
    size = wanted.square().mean().sqrt()
    error = (found.detach().double().cpu() - wanted.detach()).abs()
    if kind == torch.float32:
        assert (error.max() <= 1e-5 * size).item()
    else:  # the interpreter cuts bfloat16 off, where a GPU rounds
        assert (error <= 2 * torch.finfo(kind).eps * (size + wanted.abs())).all().item()


def test_kernels_can_run_here():
    assert why_no_kernel(DEVICE) is None


@pytest.mark.parametrize("kind", FLOATS, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_output_and_gradients(size, kind):
    b, t, c, h, w = size
    inputs = [*maps(b * t, c, h, w, kind=kind), torch.randn(c, 1, 3, device=DEVICE)]  # weights stay in float32
    grad = torch.randn(b * t, c, h, w, device=DEVICE).to(kind)  # not channels-last
    leaves = [i.requires_grad_() for i in inputs]
    out = gated_temporal_conv(*leaves, t)
    assert out.dtype == kind
    assert out.is_contiguous(memory_format=torch.channels_last)
    reference = double(*inputs)
    wanted = loop(*reference, t)
    check(out, wanted, kind)
    found = torch.autograd.grad(out, leaves, grad, retain_graph=True)
    for mine, theirs, leaf in zip(found, torch.autograd.grad(wanted, reference, *double(grad)), leaves, strict=True):
        assert mine.dtype == leaf.dtype
        check(mine, theirs, leaf.dtype)
    again = torch.autograd.grad(out, leaves, grad)
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))


def test_gradients_by_finite_differences():
    inputs = [*maps(6, 20, 3, 2), torch.randn(20, 1, 3, device=DEVICE)]
    leaves = [i.requires_grad_() for i in inputs]
    gated_temporal_conv(*leaves, 3).square().sum().backward()
    exact = [e.detach() for e in double(*inputs)]
    for i, leaf in enumerate(leaves):
        step = torch.zeros(leaf.shape, dtype=torch.float64)
        step.view(-1)[:: step.numel() // 5] = 1e-5
        ends = [loop(*exact[:i], exact[i] + sign * step, *exact[i + 1 :], 3).square().sum() for sign in (1, -1)]
        slope = (leaf.grad.double().cpu() * step).sum() / 1e-5
        assert slope.item() == pytest.approx((ends[0] - ends[1]).item() / 2e-5, rel=1e-4)


@pytest.mark.parametrize("kind", FLOATS[: 2 if INTERPRETED else 3], ids=str)  # its tl.dot has no bfloat16
@pytest.mark.parametrize("squeezed", [4, 5, 8, 16, 32])
@pytest.mark.parametrize("size", SIZES[:: 2 if INTERPRETED else 1], ids=str)
def test_output_from_squeezed(size, squeezed, kind):
    b, t, c, h, w = size
    (x,) = maps(b * t, c, h, w, kind=kind, count=1)
    y = maps(b * t, squeezed, h, w, kind=kind, count=2)
    expand = torch.randn(c, squeezed, device=DEVICE).to(kind) / squeezed**0.5
    bias, weight = torch.randn(c, device=DEVICE), torch.randn(c, 1, 3, device=DEVICE)
    found = gated_temporal_conv_from_squeezed(x, *y, expand, bias, weight, t)
    assert found.dtype == kind
    assert found.is_contiguous(memory_format=torch.channels_last)
    x, y_forward, y_backward, expand, bias, weight = double(x, *y, expand, bias, weight)
    check(found, loop(x, expanded(y_forward, expand, bias), expanded(y_backward, expand, bias), weight, t), kind)


def test_time_backwards():
    x, z_forward, z_backward = maps(8, 20, 3, 3)
    weight = torch.randn(20, 1, 3, device=DEVICE)
    back = [m.unflatten(0, (2, 4)).flip(1).flatten(0, 1) for m in (x, z_forward, z_backward)]
    found = gated_temporal_conv(*back, weight, 4)
    check(found, loop(*double(*back, weight), 4))
    forth = gated_temporal_conv(x, z_forward, z_backward, weight, 4)
    assert ((found - forth.unflatten(0, (2, 4)).flip(1).flatten(0, 1)).abs().max() > 0.1).item()


@torch.inference_mode()
def test_modules_of_the_network():
    torch.manual_seed(0)
    gate, conv = LongTermDifference(64, 4), TemporalConv(64, 4)
    for parameter in (*gate.parameters(), *conv.parameters()):
        nn.init.normal_(parameter, 0.2, 0.5)
    gate, conv = gate.to(DEVICE), conv.to(DEVICE)
    (x,) = maps(8, 64, 6, 6, count=1)
    gate(x)  # moves the running statistics away from 0 and 1
    seen: list[Tensor] = []
    gate.eval().expand.register_forward_hook(lambda _, inputs, output: seen.extend((*inputs, output)))
    wanted = conv(gate(x)).double().cpu()
    seen = [m.contiguous(memory_format=torch.channels_last) for m in seen]
    y, z = seen[::2], seen[1::2]
    check(gated_temporal_conv(x, *z, conv.weight, 4), wanted)
    gate.expand.fold()
    expand = gate.expand.conv
    check(gated_temporal_conv_from_squeezed(x, *y, expand.weight.flatten(1), expand.bias, conv.weight, 4), wanted)
    assert not torch.allclose(F.sigmoid(z[0]), torch.tensor(0.5, device=DEVICE), atol=0.1)  # the gates do something


@pytest.mark.parametrize("folded", [False, True])
def test_a_block_with_the_kernels_is_the_block(folded):
    torch.manual_seed(0)
    plain = TemporalDifference(64, 4)
    for parameter in plain.parameters():
        nn.init.normal_(parameter, 0.2, 0.5)
    plain = plain.to(DEVICE)
    if folded:
        plain.eval()
        for module in plain.modules():
            if isinstance(module, ConvBN):
                module.fold()
    fused = copy.deepcopy(plain)
    use_gate_kernel(fused)
    results = []
    for block in (plain, fused):
        x = maps(8, 64, 6, 6, count=1)[0].requires_grad_(not folded)
        with torch.set_grad_enabled(not folded):
            out = block(x)
            grads = torch.autograd.grad(out.square().mean(), [x, *block.parameters()]) if not folded else []
        results.append([out.detach(), *grads])
    for found, wanted in zip(results[1], results[0], strict=True):
        assert (found - wanted).abs().max() <= 1e-4 * wanted.abs().max() + 1e-7  # some gradients are zero


def test_from_squeezed_refuses_a_gradient():
    x, y = maps(4, 20, 2, 2, count=1)[0].requires_grad_(), maps(4, 4, 2, 2, count=2)
    out = gated_temporal_conv_from_squeezed(
        x, *y, *(torch.ones(s, device=DEVICE) for s in ((20, 4), (20,), (20, 1, 3))), 2
    )
    with pytest.raises(RuntimeError, match="no autograd formula"):
        out.sum().backward()
