"""The temporal modules that TDN is compared with, one small class each.

Provenance: TSM (arXiv 1811.08383), TEINet (1911.09435), STM (1908.02486), TEA (2004.01398), TAM (2005.06803), GST
(1909.13130), I3D as the baseline of non-local networks (1711.07971). Where authors released code (TSM, TEA, TAM, GST)
it is followed; where a paper leaves something open, the class says what was chosen.

Shapes: B videos, T segments, N = B·T, c channels, H, W pixels. Every module maps (N, c, H, W) to the same shape, or
to (N, c', H/stride, W/stride), and stays in channels-last: what crosses segments works on (B, T, H, W, c), a view.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from tdn_bench.models.resnet import ConvBN
from tdn_bench.models.temporal_difference import TemporalConv


def by_video(x: Tensor, num_segments: int) -> Tensor:
    """(N, c, H, W) → (B, T, H, W, c); in channels-last a view."""
    return x.permute(0, 2, 3, 1).unflatten(0, (-1, num_segments))


def by_segment(video: Tensor) -> Tensor:
    """(B, T, H, W, c) → (N, c, H, W) in channels-last, a view."""
    return video.flatten(0, 1).permute(0, 3, 1, 2)


def shift(x: Tensor, num_segments: int, fold: int) -> Tensor:
    """TSM's shift of (N, c, H, W): the first `fold` channels come from t+1, the next `fold` from t−1; zeros enter."""
    video = by_video(x, num_segments)
    ahead, behind, rest = video[..., :fold], video[..., fold : 2 * fold], video[..., 2 * fold :]
    edge = torch.zeros_like(ahead[:, :1])
    ahead, behind = torch.cat((ahead[:, 1:], edge), 1), torch.cat((edge, behind[:, :-1]), 1)
    return by_segment(torch.cat((ahead, behind, rest), -1))


class ShiftedConvBN(ConvBN):
    """TSM in its residual placement: the input of a block's first convolution, not of its shortcut, is shifted by one
    segment, an eighth of the channels each way (Sec. 3.2, 4.2)."""

    def __init__(self, c_in: int, c_out: int, kernel: int, num_segments: int) -> None:
        super().__init__(c_in, c_out, kernel)
        self.num_segments, self.fold_channels = num_segments, c_in // 8

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(shift(x, self.num_segments, self.fold_channels))


class InflatedConvBN(ConvBN):
    """A 3-D convolution, `depth` × kernel × kernel, over segments (stride 1, zero padding) and pixels, then batch norm.

    The `depth` neighbours of a segment are stacked as channels, time-major, for one 2-D convolution: the same sums,
    with the kernels that every library has for channels-last. weight (c_out, depth·c_in, k, k).
    """

    def __init__(
        self, c_in: int, c_out: int, kernel: int, depth: int, num_segments: int, *, stride: int = 1, bias: bool = True
    ) -> None:
        super().__init__(depth * c_in, c_out, kernel, stride=stride, bias=bias)
        self.depth, self.num_segments = depth, num_segments

    def forward(self, x: Tensor) -> Tensor:
        video = by_video(x, self.num_segments)
        t, reach = self.num_segments, self.depth // 2
        padded = F.pad(video, (0, 0, 0, 0, 0, 0, reach, reach))  # zeros before the first and after the last segment
        stacked = torch.cat([padded[:, i : i + t] for i in range(self.depth)], -1)
        return super().forward(by_segment(stacked))


class TemporalPool(nn.Module):
    """Max-pooling over T, kernel 3, stride 2 (I3D's pool2): (N, c, H, W) → (B·⌈T/2⌉, c, H, W)."""

    def __init__(self, num_segments: int) -> None:
        super().__init__()
        self.num_segments = num_segments

    def forward(self, x: Tensor) -> Tensor:
        video = by_video(x, self.num_segments)
        b, t, h, w, c = video.shape
        pooled = F.max_pool2d(video.reshape(b, 1, t, h * w * c), (3, 1), stride=(2, 1), padding=(1, 0))
        return by_segment(pooled.reshape(b, (t + 1) // 2, h, w, c))


class MotionEnhanced(nn.Module):
    """TEINet's MEM: a gate per channel from the difference of spatially pooled features of t and t+1 (Eqs. 1 to 4).

    The last segment has no successor and passes unchanged.
    """

    def __init__(self, channels: int, num_segments: int, reduction: int = 8) -> None:
        super().__init__()
        self.num_segments = num_segments
        self.own = nn.Linear(channels, channels // reduction)
        self.next = nn.Linear(channels, channels // reduction)
        self.expand = nn.Linear(channels // reduction, channels)

    def forward(self, x: Tensor) -> Tensor:
        pooled = x.mean((2, 3)).unflatten(0, (-1, self.num_segments))  # (B, T, c)
        gate = torch.sigmoid(self.expand(self.next(pooled[:, 1:]) - self.own(pooled[:, :-1])))
        gate = torch.cat((gate, torch.ones_like(gate[:, :1])), 1)
        return x * gate.flatten(0, 1)[:, :, None, None]


class TemporalEnhancementInteraction(nn.Sequential):
    """TEINet's module: MEM, then TIM, a depthwise temporal convolution that starts as a shift."""

    def __init__(self, channels: int, num_segments: int) -> None:
        super().__init__()
        self.enhance = MotionEnhanced(channels, num_segments)
        self.interact = TemporalConv(channels, num_segments)


class SpatioTemporalMotion(nn.Module):
    """STM in place of the 3×3 convolution: CSTM (depthwise temporal, then 3×3) + CMM, one batch norm over the sum.

    CMM: features squeezed to c/16; their smoothed value at t+1 minus that at t, zero at the last segment, expanded
    (Sec. 3.2). With a stride its last 1×1 convolution takes every other pixel: the paper does not say.
    """

    def __init__(self, channels: int, num_segments: int, *, stride: int = 1, reduction: int = 16) -> None:
        super().__init__()
        squeezed = channels // reduction
        self.num_segments, self.stride = num_segments, stride
        self.temporal = TemporalConv(channels, num_segments)
        self.conv = nn.Conv2d(channels, channels, 3, stride=stride, padding=1)
        self.squeeze = nn.Conv2d(channels, squeezed, 1, bias=False)
        self.smooth = nn.Conv2d(squeezed, squeezed, 3, padding=1, groups=squeezed, bias=False)
        self.expand = nn.Conv2d(squeezed, channels, 1, bias=False)
        self.bn: nn.BatchNorm2d | nn.Identity = nn.BatchNorm2d(channels)

    def start_motion(self) -> None:
        """Start CMM's convolutions small, as torch does: no batch norm follows them before the sum, and the backbone's
        start, which a squeezing convolution multiplies the variance by, would drown the other summand."""
        for conv in (self.squeeze, self.smooth, self.expand):
            conv.reset_parameters()

    def motion(self, x: Tensor) -> Tensor:
        f = self.squeeze(x)
        own, smooth = by_video(f, self.num_segments), by_video(self.smooth(f), self.num_segments)
        change = torch.cat((smooth[:, 1:] - own[:, :-1], torch.zeros_like(own[:, :1])), 1)
        # Not by a strided convolution: the gradient of one with 8 input channels crashes oneDNN (torch 2.13, CPU).
        return self.expand(by_segment(change[:, :, :: self.stride, :: self.stride]))

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(self.temporal(x)) + self.motion(x))

    def fold(self) -> None:
        """Fold the batch norm into both summands, in place (inference only)."""
        if isinstance(self.bn, nn.BatchNorm2d):
            bn = self.bn.eval()
            scale = (bn.weight.double() * (bn.running_var.double() + bn.eps).rsqrt()).to(bn.weight.dtype)  # type: ignore[union-attr]
            self.conv = fuse_conv_bn_eval(self.conv.eval(), bn)
            with torch.no_grad():
                self.expand.weight.mul_(scale.view(-1, 1, 1, 1))
            self.bn = nn.Identity()


class MotionExcitation(nn.Module):
    """TEA's ME: a gate in (−0.5, 0.5) per channel from the pooled difference to the next segment; x + x⊙gate."""

    def __init__(self, channels: int, num_segments: int, reduction: int = 16) -> None:
        super().__init__()
        squeezed = channels // reduction
        self.num_segments = num_segments
        self.squeeze = ConvBN(channels, squeezed, 1, bias=False)
        self.smooth = nn.Conv2d(squeezed, squeezed, 3, padding=1, groups=squeezed, bias=False)
        self.expand = ConvBN(squeezed, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        f = self.squeeze(x)
        own, smooth = (y.mean((2, 3)).unflatten(0, (-1, self.num_segments)) for y in (f, self.smooth(f)))  # (B, T, c/r)
        change = torch.cat((smooth[:, 1:] - own[:, :-1], torch.zeros_like(own[:, :1])), 1)
        gate = torch.sigmoid(self.expand(change.flatten(0, 1)[:, :, None, None])) - 0.5
        return torch.addcmul(x, x, gate)


class TemporalAggregation(nn.Module):
    """TEA's MTA in place of the 3×3 convolution: four groups of channels, each but the last through a temporal and a
    3×3 convolution, each after the first with the result of the one before added (Res2Net, arXiv 1904.01169).

    The first block of a stage adds nothing, because of its stride, and pools its last group.
    """

    GROUPS = 4

    def __init__(self, width: int, num_segments: int, *, stride: int, first: bool) -> None:
        super().__init__()
        spatial = range(self.GROUPS - 1)
        self.width, self.stride, self.first = width, stride, first
        self.shifts = nn.ModuleList([TemporalConv(width, num_segments, shifted=0) for _ in spatial])
        self.shifts.append(TemporalConv(width, num_segments, shifted=width // 2))
        self.convs = nn.ModuleList([ConvBN(width, width, 3, stride=stride) for _ in spatial])

    def forward(self, x: Tensor) -> Tensor:
        *groups, last = x.split(self.width, 1)
        done: list[Tensor] = []
        for group, temporal, conv in zip(groups, self.shifts, self.convs, strict=False):
            y = group if self.first or not done else group + done[-1]
            done.append(conv(temporal(y)).relu())
        last = self.shifts[-1](last)
        return torch.cat((*done, F.avg_pool2d(last, 3, self.stride, padding=1) if self.first else last), 1)


class TemporalAdaptive(nn.Module):
    """TANet's TAM: a gate per channel and segment (local branch), and a temporal kernel of three taps per channel and
    video (global branch), both made from the spatially pooled features (Eqs. 2 to 7)."""

    def __init__(self, channels: int, num_segments: int) -> None:
        super().__init__()
        self.num_segments = t = num_segments
        self.kernel = nn.Sequential(
            nn.Linear(t, 2 * t, bias=False), nn.BatchNorm1d(2 * t), nn.ReLU(), nn.Linear(2 * t, 3, bias=False)
        )
        self.gate = nn.Sequential(
            nn.Conv1d(channels, channels // 4, 3, padding=1, bias=False),
            nn.BatchNorm1d(channels // 4),
            nn.ReLU(),
            nn.Conv1d(channels // 4, channels, 1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        pooled = x.mean((2, 3)).unflatten(0, (-1, self.num_segments)).transpose(1, 2)  # (B, c, T)
        gate = torch.sigmoid(self.gate(pooled)).transpose(1, 2)[:, :, None, None]  # (B, T, 1, 1, c)
        taps = self.kernel(pooled.flatten(0, 1)).softmax(-1).unflatten(0, pooled.shape[:2])  # (B, c, 3)
        before, own, after = taps[:, None, None, None].unbind(-1)  # each (B, 1, 1, 1, c)
        video = by_video(x, self.num_segments) * gate
        edge = torch.zeros_like(video[:, :1])
        earlier, later = torch.cat((edge, video[:, :-1]), 1), torch.cat((video[:, 1:], edge), 1)
        return by_segment(earlier * before + video * own + later * after)


class GroupedSpatioTemporal(nn.Module):
    """GST in place of the 3×3 convolution: half of the channels through a spatial 3×3 to three quarters of the output,
    the other half through a 3×3×3 to the last quarter (α = 4, β = 2)."""

    def __init__(self, channels: int, num_segments: int, *, stride: int = 1) -> None:
        super().__init__()
        half, quarter = channels // 2, channels // 4
        self.divide = half
        self.spatial = ConvBN(half, channels - quarter, 3, stride=stride, bias=False)
        self.temporal = InflatedConvBN(half, quarter, 3, 3, num_segments, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((self.spatial(x[:, : self.divide]), self.temporal(x[:, self.divide :])), 1)
