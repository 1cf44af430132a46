"""The S-TDM's differences and the L-TDM's gates against the paper's equations, worked out segment by segment."""

import pytest
import torch
import torch.nn.functional as F
from support.networks import make, make_frames

from tdn_bench.errors import UserError
from tdn_bench.visualizing.motion import long_term, see_gates, see_motion, short_term

MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


def normalised(bn, x):
    """Batch norm with the running statistics, of (c, h, w)."""
    c = (slice(None), None, None)
    return (x - bn.running_mean[c]) / (bn.running_var[c] + bn.eps).sqrt() * bn.weight[c] + bn.bias[c]


def test_differences_and_motion_are_those_of_equation_2():
    classifier, frames = make("tdn"), make_frames("tdn", batch=1, width=64)
    module = short_term(classifier.network, "tdn")
    seen = see_motion(classifier, frames, module)
    assert seen.differences.shape == (4, 4, 3, 32, 32)
    for t, segment in enumerate(frames[0]):
        pictures = (segment / 255 - MEAN) / STD  # (L, H, W, C)
        halved = (
            pictures[:, 0::2, 0::2] + pictures[:, 1::2, 0::2] + pictures[:, 0::2, 1::2] + pictures[:, 1::2, 1::2]
        ) / 4
        pairs = [(halved[k + 1] - halved[k]).permute(2, 0, 1) for k in range(4)]
        for k, difference in enumerate(pairs):
            torch.testing.assert_close(seen.differences[t, k], difference, atol=1e-5, rtol=1e-4)
        stacked = torch.cat(pairs)[None]
        with torch.no_grad():
            convolved = F.conv2d(stacked, module.stem.conv.weight, stride=2, padding=3)[0]
            features = F.max_pool2d(normalised(module.stem.bn, convolved).clamp(min=0), 3, 2, 1)
        torch.testing.assert_close(seen.features[t], features, atol=1e-4, rtol=1e-4)


def slow_gate(module, own, neighbour):
    """Eqs. 4 to 7 for one segment (c, h, w) and the one it is compared with; None: at the end there is none."""
    f, other = (
        normalised(module.squeeze.bn, F.conv2d(x[None], module.squeeze.conv.weight)[0]) for x in (own, neighbour)
    )
    smooth = F.conv2d(other[None], module.smooth.weight, padding=1, groups=len(other))[0]
    return gate_of(module, smooth - f)


def gate_of(module, d):
    full = normalised(module.full_scale.bn, F.conv2d(d[None], module.full_scale.conv.weight, padding=1)[0])
    half = F.conv2d(F.avg_pool2d(d[None], 2), module.half_scale.conv.weight, padding=1)[0]
    half = normalised(module.half_scale.bn, half).repeat_interleave(2, 1).repeat_interleave(2, 2)
    scaled = (d + full + half) / 3
    return torch.sigmoid(normalised(module.expand.bn, F.conv2d(scaled[None], module.expand.conv.weight)[0])) - 0.5


@pytest.mark.parametrize("stage", ["res3", "res4"])
def test_gates_are_those_of_equations_4_to_7_and_what_the_network_uses(stage):
    classifier, frames = make("tdn"), make_frames("tdn", batch=1, width=64)
    block, module = long_term(classifier.network, "tdn", stage)
    assert block == f"{stage}.0"
    caught = {}
    handle = module.register_forward_hook(
        lambda _, inputs, output: caught.update(x=inputs[0].clone(), y=output.clone())
    )
    seen = see_gates(classifier, frames, block, module)
    handle.remove()
    x, y = caught["x"], caught["y"]
    assert seen.backward is not None
    with torch.no_grad():
        for t in range(4):
            nothing = torch.zeros_like(seen.forward[0, : module.smooth.weight.shape[0]])
            forward = slow_gate(module, x[t], x[t + 1]) if t < 3 else gate_of(module, nothing)
            backward = slow_gate(module, x[t], x[t - 1]) if t > 0 else gate_of(module, nothing)
            torch.testing.assert_close(seen.forward[t], forward, atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(seen.backward[t], backward, atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(y[t], x[t] + x[t] * (forward + backward) / 2, atol=1e-3, rtol=1e-3)


def test_one_direction_and_a_gate_a_channel():
    for variant, pixels, both in (("tdn_l_forward", 8, False), ("tdn_l_channel_gate", 1, True)):
        classifier, frames = make(variant), make_frames(variant, batch=1, width=64)
        seen = see_gates(classifier, frames, *long_term(classifier.network, variant, "res4"))
        assert seen.forward.shape[2:] == (pixels, pixels)
        assert (seen.backward is not None) == both


@pytest.mark.parametrize("variant", ["tsn", "l_tdm", "tea"])
def test_no_differences_without_an_s_tdm(variant):
    with pytest.raises(UserError, match=r"^--show differences: .* has no S-TDM"):
        short_term(make(variant).network, variant)


def test_an_s_tdm_of_frames_has_no_differences():
    with pytest.raises(UserError, match="reads frames, not differences"):
        short_term(make("tdn_s_concat").network, "it")


@pytest.mark.parametrize(
    ("variant", "stage", "why"),
    [
        ("tsn", "res3", "has no L-TDM; leave it out"),
        ("s_tdm", "res3", "has no L-TDM; leave it out"),
        ("tdn", "res2", "in res2; use --stage res3 or res4 or res5"),
        ("tdn_s123_l45", "res3", "in res3; use --stage res4 or res5"),
        ("tdn_l_addition", "res3", "adds, without a gate"),
    ],
)
def test_no_gates_where_there_are_none(variant, stage, why):
    with pytest.raises(UserError, match=why):
        long_term(make(variant).network, variant, stage)
