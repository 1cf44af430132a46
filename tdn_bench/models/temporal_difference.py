"""The temporal modules of TDN: S-TDM, L-TDM and the depthwise temporal convolution.

Provenance: Wang et al., "TDN: Temporal Difference Networks for Efficient Action Recognition" (CVPR 2021,
arXiv 2012.10071), Sections 3.2 and 3.3. Where the paper and the authors' released network differ, the
released one is followed, because the published weights belong to it; each such place says so.

Shapes: B videos, T segments, L frames in a segment, C colours, N = B·T, c channels, H, W pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tdn_bench.models.resnet import ConvBN, ResNetConfig, make_stage


def upsample_to(x: Tensor, like: Tensor) -> Tensor:
    """Nearest-neighbour upsampling of x to the height and width of `like` (the paper says bilinear)."""
    return F.interpolate(x, size=like.shape[-2:], mode="nearest")


class ShortTermDifference(nn.Module):
    """S-TDM: motion around the centre frame of each segment, added to the RGB features (Eqs. 2 and 3).

    The L−1 consecutive differences of a segment's frames, at half the resolution, go through a stem of
    their own and a copy of Res2; both results join the RGB path as `rgb_share`·rgb + `motion_share`·motion.
    """

    def __init__(self, config: ResNetConfig, num_segments: int, num_frames: int = 5) -> None:
        super().__init__()
        self.stem = ConvBN(3 * (num_frames - 1), config.width, 7, stride=2, bias=False)
        self.res2 = make_stage(config, 2)
        # The released networks weigh motion by 0.5 with 8 segments, by 0.25 with any other number.
        self.rgb_share, self.motion_share = (0.5, 0.5) if num_segments == 8 else (0.75, 0.25)

    def forward(self, segments: Tensor) -> Tensor:
        """Map (N, L, C, H, W) to the motion features (N, c, H/8, W/8)."""
        difference = (segments[:, 1:] - segments[:, :-1]).flatten(1, 2)  # (N, (L-1)·C, H, W)
        x = F.avg_pool2d(difference.contiguous(memory_format=torch.channels_last), 2)
        x = self.stem(x).relu_()
        return F.max_pool2d(x, 3, stride=2, padding=1)

    def fuse(self, rgb: Tensor, motion: Tensor) -> Tensor:
        """Add motion, upsampled to rgb's size, to rgb (N, c, H, W)."""
        return (self.rgb_share * rgb).add(upsample_to(motion, rgb), alpha=self.motion_share)


class LongTermDifference(nn.Module):
    """L-TDM: re-weighs features by their difference to the neighbouring segments (Eqs. 4 to 7).

    f, the features squeezed to c/r channels, is compared with the smoothed f of the next and of the
    previous segment; both differences pass through the same multi-scale layers to a gate per channel and
    pixel. The released network subtracts 0.5 from the gate, so that no motion means no change.
    """

    def __init__(self, channels: int, num_segments: int, reduction: int = 16) -> None:
        super().__init__()
        squeezed = channels // reduction
        self.num_segments = num_segments
        self.squeeze = ConvBN(channels, squeezed, 1, bias=False)
        self.smooth = nn.Conv2d(squeezed, squeezed, 3, padding=1, groups=squeezed, bias=False)
        self.full_scale = ConvBN(squeezed, squeezed, 3, bias=False)
        self.half_scale = ConvBN(squeezed, squeezed, 3, bias=False)
        self.expand = ConvBN(squeezed, channels, 1, bias=False)

    def gate(self, difference: Tensor) -> Tensor:
        """Map a difference (N, c/r, H, W) to a gate in (−0.5, 0.5), (N, c, H, W)."""
        half = upsample_to(self.half_scale(F.avg_pool2d(difference, 2)), difference)
        mean = self.full_scale(difference).add_(half).add_(difference).div_(3)
        return torch.sigmoid(self.expand(mean)) - 0.5

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, c, H, W) to the same shape, each segment compared with its two neighbours."""
        f = self.squeeze(x)
        n = f.shape[0]
        video = (n // self.num_segments, self.num_segments, *f.shape[1:])
        s = self.smooth(f).view(video)
        f = f.view(video)  # (B, T, c/r, H, W)
        edge = torch.zeros_like(f[:, :1])
        forward = torch.cat((s[:, 1:] - f[:, :-1], edge), 1).flatten(0, 1)
        backward = torch.cat((edge, s[:, :-1] - f[:, 1:]), 1).flatten(0, 1)
        if self.training:  # each direction has its own batch statistics, as in the released training code
            gates = self.gate(forward) + self.gate(backward)
        else:  # one call for both: the same numbers, and 39 convolutions fewer in ResNet-50
            both = self.gate(torch.cat((forward, backward)))
            gates = both[:n] + both[n:]
        return torch.addcmul(x, x, gates, value=0.5)  # x + x·gates/2 in one pass over memory


class TemporalConv(nn.Module):
    """Depthwise convolution over T, kernel 3, zero padding, no bias; starts as a shift (Sec. 3.4).

    Runs as a 2-D depthwise convolution with kernel (3, 1) on (B, c, T, H·W): in channels-last both the
    way there and back are views, and the vendor libraries have a fast kernel for it, which they lack for
    Conv1d over a permuted tensor (`benchmarks/temporal_conv.py` measures the two).
    """

    def __init__(self, channels: int, num_segments: int) -> None:
        super().__init__()
        self.num_segments = num_segments
        weight = torch.zeros(channels, 1, 3)
        eighth = channels // 8
        weight[:eighth, :, 2] = 1  # takes t+1
        weight[eighth : 2 * eighth, :, 0] = 1  # takes t−1
        weight[2 * eighth :, :, 1] = 1
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, c, H, W) to the same shape."""
        n, c, h, w = x.shape
        t = self.num_segments
        y = x.permute(0, 2, 3, 1).reshape(n // t, t, h * w, c).permute(0, 3, 1, 2)  # (B, c, T, H·W)
        y = F.conv2d(y, self.weight.unsqueeze(-1), padding=(1, 0), groups=c)
        return y.permute(0, 2, 3, 1).reshape(n, h, w, c).permute(0, 3, 1, 2)


class TemporalDifference(nn.Sequential):
    """What a TDN bottleneck calls between its 1×1 and its 3×3 convolution: L-TDM, then temporal convolution."""

    def __init__(self, channels: int, num_segments: int) -> None:
        super().__init__()
        self.difference = LongTermDifference(channels, num_segments)
        self.conv = TemporalConv(channels, num_segments)
