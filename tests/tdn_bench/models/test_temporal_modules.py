"""Every temporal module against a slow, obvious formulation (a loop over segments), its gradient, and what time does.

The slow ones work on one video at a time, a list of T tensors (c, H, W); a segment outside the video is zeros.
"""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tdn_bench.models import create_model
from tdn_bench.models.resnet import RESNET_SMALL, ConvBN
from tdn_bench.models.temporal_difference import (
    LongTermDifference,
    LongTermOptions,
    ShortTermDifference,
    ShortTermOptions,
    TemporalConv,
)
from tdn_bench.models.temporal_modules import (
    GroupedSpatioTemporal,
    InflatedConvBN,
    MotionEnhanced,
    MotionExcitation,
    ShiftedConvBN,
    SpatioTemporalMotion,
    TemporalAdaptive,
    TemporalAggregation,
    TemporalEnhancementInteraction,
    TemporalPool,
)

Video = list[Tensor]  # T × (c, H, W)
C = 32


def at(video: Video, t: int) -> Tensor:
    return video[t] if 0 <= t < len(video) else torch.zeros_like(video[0])


def norm(x: Tensor, bn: nn.Module) -> Tensor:
    """Batch norm of (c, …) in eval mode, written out."""
    shape = (-1, *[1] * (x.dim() - 1))
    scale = bn.weight / (bn.running_var + bn.eps).sqrt()
    return (x - bn.running_mean.view(shape)) * scale.view(shape) + bn.bias.view(shape)


def conv(x: Tensor, layer: nn.Conv2d) -> Tensor:
    return F.conv2d(x[None], layer.weight, layer.bias, layer.stride, layer.padding, groups=layer.groups)[0]


def conv_bn(x: Tensor, layer: ConvBN) -> Tensor:
    return norm(conv(x, layer.conv), layer.bn)


def temporal_conv(m: TemporalConv, video: Video) -> Video:
    taps = [m.weight[:, 0, k].view(-1, 1, 1) for k in range(3)]
    return [sum(taps[k] * at(video, t + k - 1) for k in range(3)) for t in range(len(video))]


def shifted(m: ShiftedConvBN, video: Video) -> Video:
    eighth = video[0].shape[0] // 8
    out = []
    for t in range(len(video)):
        x = video[t].clone()
        x[:eighth] = at(video, t + 1)[:eighth]
        x[eighth : 2 * eighth] = at(video, t - 1)[eighth : 2 * eighth]
        out.append(conv_bn(x, m))
    return out


def inflated(m: InflatedConvBN, video: Video) -> Video:
    """One 3-D convolution; its kernel (c_out, c_in, depth, k, k) is read out of the stacked one."""
    c_out, stacked, k, _ = m.conv.weight.shape
    kernel = m.conv.weight.view(c_out, m.depth, stacked // m.depth, k, k).transpose(1, 2)
    stride = (1, *m.conv.stride)
    y = F.conv3d(torch.stack(video, 1)[None], kernel, m.conv.bias, stride, (m.depth // 2, k // 2, k // 2))[0]
    return [norm(x, m.bn) for x in y.unbind(1)]


def enhanced(m: MotionEnhanced, video: Video) -> Video:
    pooled = [x.mean((1, 2)) for x in video]
    out = [
        torch.sigmoid(m.expand(m.next(pooled[t + 1]) - m.own(pooled[t]))).view(-1, 1, 1) * video[t]
        for t in range(len(video) - 1)
    ]
    return [*out, video[-1]]


def interaction(m: TemporalEnhancementInteraction, video: Video) -> Video:
    return temporal_conv(m.interact, enhanced(m.enhance, video))


def spatio_temporal_motion(m: SpatioTemporalMotion, video: Video) -> Video:
    f = [conv(x, m.squeeze) for x in video]
    spatial = [conv(x, m.conv) for x in temporal_conv(m.temporal, video)]
    out = []
    for t, x in enumerate(spatial):
        change = conv(f[t + 1], m.smooth) - f[t] if t + 1 < len(video) else torch.zeros_like(f[t])
        out.append(norm(x + conv(change, m.expand)[:, :: m.stride, :: m.stride], m.bn))
    return out


def excitation(m: MotionExcitation, video: Video) -> Video:
    f = [conv_bn(x, m.squeeze) for x in video]
    out = []
    for t, x in enumerate(video):
        change = conv(f[t + 1], m.smooth) - f[t] if t + 1 < len(video) else torch.zeros_like(f[t])
        gate = torch.sigmoid(conv_bn(change.mean((1, 2), keepdim=True), m.expand)) - 0.5
        out.append(x + x * gate)
    return out


def aggregation(m: TemporalAggregation, video: Video) -> Video:
    groups = [[x[i * m.width : (i + 1) * m.width] for x in video] for i in range(4)]
    done: list[Video] = []
    for i in range(3):
        source = groups[i] if m.first or i == 0 else [g + d for g, d in zip(groups[i], done[-1], strict=True)]
        done.append([torch.relu(conv_bn(x, m.convs[i])) for x in temporal_conv(m.shifts[i], source)])
    last = temporal_conv(m.shifts[3], groups[3])
    done.append([F.avg_pool2d(x[None], 3, m.stride, 1)[0] for x in last] if m.first else last)
    return [torch.cat([d[t] for d in done]) for t in range(len(video))]


def adaptive(m: TemporalAdaptive, video: Video) -> Video:
    t, c = len(video), video[0].shape[0]
    pooled = torch.stack([x.mean((1, 2)) for x in video], 1)  # (c, T)
    (first, bn, _, second), local = m.kernel, m.gate
    taps = []
    for channel in range(c):
        hidden = torch.relu(norm(first.weight @ pooled[channel], bn))
        taps.append((second.weight @ hidden).softmax(0))
    y = F.conv1d(pooled[None], local[0].weight, padding=1)[0]
    gate = torch.sigmoid(local[3].weight[:, :, 0] @ torch.relu(norm(y, local[1])))  # (c, T)
    gated = [video[i] * gate[:, i].view(-1, 1, 1) for i in range(t)]
    k = torch.stack(taps)  # (c, 3)
    return [sum(k[:, j].view(-1, 1, 1) * at(gated, i + j - 1) for j in range(3)) for i in range(t)]


def grouped(m: GroupedSpatioTemporal, video: Video) -> Video:
    half = video[0].shape[0] // 2
    spatial = [conv_bn(x[:half], m.spatial) for x in video]
    temporal = inflated(m.temporal, [x[half:] for x in video])
    return [torch.cat(pair) for pair in zip(spatial, temporal, strict=True)]


def long_term(m: LongTermDifference, video: Video) -> Video:
    o = m.options
    f = [conv_bn(x, m.squeeze) for x in video]
    s = [conv(x, m.smooth) for x in f]
    out = []
    for t, x in enumerate(video):
        total = torch.zeros_like(x)
        for neighbour in (t + 1, t - 1) if o.bidirectional else (t + 1,):
            inside = 0 <= neighbour < len(video)
            d = torch.zeros_like(f[t])
            if inside:
                d = s[neighbour] - f[t] if o.operation == "difference" else (s[neighbour] + f[t]) / 2
            y = d
            if o.multi_scale:
                half = conv_bn(F.avg_pool2d(d[None], 2)[0], m.half_scale)
                y = (d + conv_bn(d, m.full_scale) + F.interpolate(half[None], d.shape[-2:], mode="nearest")[0]) / 3
            if o.fusion == "channel_gate":
                y = y.mean((1, 2), keepdim=True)
            y = conv_bn(y, m.expand)
            total = total + (y if o.fusion == "addition" else torch.sigmoid(y) - 0.5)
        total = total / 2 if o.bidirectional else total
        out.append(x + total if o.fusion == "addition" else x + x * total)
    return out


Slow = Callable[[nn.Module, Video], Video]
MODULES: dict[str, tuple[Callable[[int], nn.Module], Slow]] = {
    "T-Conv": (lambda t: TemporalConv(C, t), temporal_conv),
    "TSM": (lambda t: ShiftedConvBN(C, 8, 1, t), shifted),
    "I3D 3×1×1": (lambda t: InflatedConvBN(C, 8, 1, 3, t), inflated),
    "I3D 5×7×7": (lambda t: InflatedConvBN(C, 4, 7, 5, t, stride=2), inflated),
    "MEM": (lambda t: MotionEnhanced(C, t), enhanced),
    "TEINet": (lambda t: TemporalEnhancementInteraction(C, t), interaction),
    "STM": (lambda t: SpatioTemporalMotion(C, t), spatio_temporal_motion),
    "STM stride 2": (lambda t: SpatioTemporalMotion(C, t, stride=2), spatio_temporal_motion),
    "ME": (lambda t: MotionExcitation(C, t), excitation),
    "MTA": (lambda t: TemporalAggregation(C // 4, t, stride=1, first=False), aggregation),
    "MTA first": (lambda t: TemporalAggregation(C // 4, t, stride=2, first=True), aggregation),
    "TAM": (lambda t: TemporalAdaptive(C, t), adaptive),
    "GST": (lambda t: GroupedSpatioTemporal(C, t), grouped),
    "GST stride 2": (lambda t: GroupedSpatioTemporal(C, t, stride=2), grouped),
    "L-TDM": (lambda t: LongTermDifference(C, t), long_term),
    "L-TDM average": (lambda t: LongTermDifference(C, t, options=LongTermOptions("average")), long_term),
    "L-TDM addition": (lambda t: LongTermDifference(C, t, options=LongTermOptions(fusion="addition")), long_term),
    "L-TDM channel": (lambda t: LongTermDifference(C, t, options=LongTermOptions(fusion="channel_gate")), long_term),
    "L-TDM one scale": (lambda t: LongTermDifference(C, t, options=LongTermOptions(multi_scale=False)), long_term),
    "L-TDM forward": (lambda t: LongTermDifference(C, t, options=LongTermOptions(bidirectional=False)), long_term),
}
LOCAL = [name for name in MODULES if name != "TAM"]  # a segment's output depends on its near neighbours alone
REVERSIBLE = ["L-TDM", "L-TDM average", "L-TDM addition", "L-TDM channel", "L-TDM one scale"]  # past and future alike


def make(name: str, segments: int, seed: int = 0) -> nn.Module:
    """A module in float64 and eval mode, every parameter and statistic away from its start."""
    torch.manual_seed(seed)
    module = MODULES[name][0](segments).double().eval()
    for p in module.parameters():
        nn.init.normal_(p, 0, 0.3)
    for m in module.modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm):
            m.running_mean.normal_(0, 0.2)  # type: ignore[union-attr]
            m.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
            nn.init.uniform_(m.weight, 0.5, 1.5)
    return module


def slowly(name: str, module: nn.Module, x: Tensor, segments: int) -> Tensor:
    videos = [list(video.unbind()) for video in x.split(segments)]
    return torch.stack([y for video in videos for y in MODULES[name][1](module, video)])


@pytest.mark.parametrize("name", MODULES)
@settings(max_examples=8, deadline=None)
@given(
    segments=st.integers(2, 16),
    videos=st.integers(1, 2),
    height=st.integers(2, 7),
    width=st.integers(2, 7),
    channels_last=st.booleans(),
)
def test_forward_and_backward_are_a_loop_over_segments(
    name: str, segments: int, videos: int, height: int, width: int, channels_last: bool
) -> None:
    module = make(name, segments)
    x = torch.randn(videos * segments, C, height, width, dtype=torch.float64)
    x = x.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format).requires_grad_()
    fast, slow = module(x), slowly(name, module, x, segments)
    assert fast.shape == slow.shape
    torch.testing.assert_close(fast, slow, rtol=1e-9, atol=1e-9)
    weight = torch.randn_like(slow)
    needed = [x, *module.parameters()]
    for a, b in zip(
        torch.autograd.grad((fast * weight).sum(), needed, allow_unused=True),
        torch.autograd.grad((slow * weight).sum(), needed, allow_unused=True),
        strict=True,
    ):
        # a loop over two segments may never touch a parameter that the fast one multiplies by zero
        a, b = (torch.zeros(()).double() if g is None else g for g in (a, b))
        torch.testing.assert_close(*torch.broadcast_tensors(a, b), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("name", MODULES)
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    module = make(name, 3)
    x = torch.randn(3, C, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: module(x)[..., 0], x, fast_mode=True)


@pytest.mark.parametrize("name", LOCAL)
@settings(max_examples=5, deadline=None)
@given(st.integers(6, 12), st.data())
def test_a_change_of_one_segment_reaches_its_near_neighbours_only(
    name: str, segments: int, data: st.DataObject
) -> None:
    module = make(name, segments)
    reach = {"I3D 5×7×7": 2, "TEINet": 2, "MTA": 3}.get(name, 1)  # MTA: three in a row
    changed = data.draw(st.integers(0, segments - 1))
    x = torch.randn(segments, C, 4, 4, dtype=torch.float64)
    y = x.clone()
    y[changed] += 1
    differs = (module(x) - module(y)).flatten(1).abs().amax(1) > 1e-12
    assert set(differs.nonzero().flatten().tolist()) <= set(range(changed - reach, changed + reach + 1))
    assert differs[changed]


@pytest.mark.parametrize("name", LOCAL)
@settings(max_examples=5, deadline=None)
@given(st.integers(8, 12))
def test_a_clip_that_starts_later_gives_the_same_features_later(name: str, segments: int) -> None:
    module = make(name, segments)
    x = torch.randn(segments + 1, C, 4, 4, dtype=torch.float64)
    early, late = module(x[:-1]), module(x[1:])
    torch.testing.assert_close(early[4:-3], late[3:-4])


@pytest.mark.parametrize("name", REVERSIBLE)
@settings(max_examples=5, deadline=None)
@given(st.integers(2, 16))
def test_both_directions_make_the_long_term_module_blind_to_which_is_which(name: str, segments: int) -> None:
    module = make(name, segments)
    x = torch.randn(segments, C, 4, 5, dtype=torch.float64)
    torch.testing.assert_close(module(x.flip(0)), module(x).flip(0))


@settings(max_examples=10, deadline=None)
@given(st.integers(2, 16))
def test_a_reversed_clip_is_a_reversed_kernel(segments: int) -> None:
    module, x = make("T-Conv", segments), torch.randn(segments, C, 3, 3, dtype=torch.float64)
    forwards = module(x)
    with torch.no_grad():
        module.weight.copy_(module.weight.flip(-1))
    torch.testing.assert_close(module(x.flip(0)), forwards.flip(0))


@pytest.mark.parametrize("segments", [2, 3, 5, 8])
def test_pooling_over_time_takes_the_largest_of_three(segments: int) -> None:
    x = torch.randn(2 * segments, 4, 3, 5)
    wanted = []
    for video in x.split(segments):
        for centre in range(0, segments, 2):
            wanted.append(video[max(0, centre - 1) : centre + 2].amax(0))
    assert torch.equal(TemporalPool(segments)(x), torch.stack(wanted))


@pytest.mark.parametrize("name", ["STM", "STM stride 2", "GST", "GST stride 2", "TSM", "I3D 5×7×7", "ME", "MTA"])
def test_folding_batch_norm_changes_nothing(name: str) -> None:
    module, x = make(name, 4), torch.randn(8, C, 6, 5, dtype=torch.float64)
    wanted = module(x)
    for m in list(module.modules()):
        if isinstance(m, (ConvBN, SpatioTemporalMotion)):
            m.fold()
    assert not any(isinstance(m, nn.BatchNorm2d) for m in module.modules())
    torch.testing.assert_close(module(x), wanted)


def test_modules_start_as_their_papers_say() -> None:
    x = torch.rand(8, C, 3, 3)
    video = list(x.unbind())
    eighth = C // 8
    for start in (TemporalConv(C, 8), TemporalEnhancementInteraction(C, 8).interact):
        y = start(x)
        assert torch.equal(y[:-1, :eighth], x[1:, :eighth])
        assert torch.equal(y[1:, eighth : 2 * eighth], x[:-1, eighth : 2 * eighth])
        assert torch.equal(y[:, 2 * eighth :], x[:, 2 * eighth :])
    aggregation = TemporalAggregation(C // 4, 8, stride=1, first=False)
    assert all(torch.equal(s(x[:, :8]), x[:, :8]) for s in aggregation.shifts[:3])  # Sec. 3.2 of TEA: identity
    last = aggregation.shifts[3](x[:, :8])
    assert torch.equal(last[0, :4], video[1][:4])
    assert torch.equal(last[1, 4:8], video[0][4:8])


def test_stms_motion_starts_no_louder_than_its_other_half() -> None:
    torch.manual_seed(0)
    network = create_model("stm_resnet_small", num_classes=2, num_segments=8)
    for block in (network.res2[0], network.res5[0]):
        module = block.conv2
        x = torch.randn(8, module.conv.in_channels, 8, 8).relu()
        with torch.inference_mode():
            assert module.motion(x).std() < module.conv(module.temporal(x)).std()


def slow_short_term(m: ShortTermDifference, segments: Tensor, rgb: Tensor) -> Tensor:
    """Eqs. 2 and 3, and Table 1b's other fusions, one segment at a time: stem's motion joined to rgb (n, c, H, W)."""
    out = []
    for frames, f in zip(segments, rgb, strict=True):
        if m.options.operation == "difference":
            pictures = [frames[i + 1] - frames[i] for i in range(4)]
        else:
            pictures = list(frames)
        x = F.avg_pool2d(torch.cat(pictures)[None], 2)[0]
        h = F.max_pool2d(torch.relu(conv_bn(x, m.stem))[None], 3, 2, 1)
        h = F.interpolate(h, f.shape[-2:], mode="nearest")[0]
        fusion = m.options.fusion
        if fusion == "addition":
            out.append(m.rgb_share * f + m.motion_share * h)
            continue
        gate = torch.sigmoid(h if fusion in ("gate", "residual_gate") else h.mean((1, 2), keepdim=True))
        out.append(f * gate + (f if fusion.startswith("residual") else 0))
    return torch.stack(out)


@pytest.mark.parametrize("operation", ["difference", "concat"])
@pytest.mark.parametrize("fusion", ["addition", "gate", "residual_gate", "channel_gate", "residual_channel_gate"])
def test_short_term_difference_as_its_equations(operation: str, fusion: str) -> None:
    torch.manual_seed(0)
    module = ShortTermDifference(RESNET_SMALL, 8, ShortTermOptions(operation, fusion)).double().eval()  # type: ignore[arg-type]
    segments = torch.randn(2, 5, 3, 64, 64, dtype=torch.float64)
    rgb = torch.randn(2, 32, 16, 16, dtype=torch.float64)
    torch.testing.assert_close(module.fuse(rgb, module(segments)), slow_short_term(module, segments, rgb))
