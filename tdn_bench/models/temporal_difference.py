"""The temporal modules of TDN: S-TDM, L-TDM and the depthwise temporal convolution, and what Table 1 varies in them.

Provenance: Wang et al., "TDN: Temporal Difference Networks for Efficient Action Recognition" (CVPR 2021,
arXiv 2012.10071), Sections 3.2 and 3.3. Where the paper and the authors' released network differ, the
released one is followed, because the published weights belong to it; each such place says so.

Shapes: B videos, T segments, L frames in a segment, C colours, N = B·T, c channels, H, W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engines import prepare_compiler
from tdn_bench.models.resnet import ConvBN, ResNetConfig, make_stage

FRAMES_PER_SEGMENT = 5


def upsample_to(x: Tensor, like: Tensor) -> Tensor:
    """Nearest-neighbour upsampling of x to the height and width of `like` (the paper says bilinear)."""
    return F.interpolate(x, size=like.shape[-2:], mode="nearest")


@dataclass(frozen=True)
class ShortTermOptions:
    """What Table 1 varies in the S-TDM; the defaults are TDN's.

    `operation` (Table 1a): the consecutive differences of a segment's frames, or the frames themselves.
    `fusion` (Table 1b): how motion H joins appearance F, H taken as it is ("addition", weighted F + H), or as a gate
    σ(H): F⊙σ(H) ("gate"), F + F⊙σ(H) ("residual_gate"), or the same with one gate a channel, σ(mean of H over
    H, W) ("channel_gate", "residual_channel_gate").
    `stages` (Table 1d): motion joins after the stem (1), after Res2 too (2), or after Res3 too (3).
    """

    operation: Literal["difference", "concat"] = "difference"
    fusion: Literal["addition", "gate", "residual_gate", "channel_gate", "residual_channel_gate"] = "addition"
    stages: Literal[1, 2, 3] = 2


class ShortTermDifference(nn.Module):
    """S-TDM: motion around the centre frame of each segment, added to the RGB features (Eqs. 2 and 3).

    The L−1 consecutive differences of a segment's frames, at half the resolution, go through a stem of
    their own and a copy of Res2; both results join the RGB path as `rgb_share`·rgb + `motion_share`·motion.
    """

    def __init__(self, config: ResNetConfig, num_segments: int, options: ShortTermOptions = ShortTermOptions()) -> None:
        super().__init__()
        self.options = options
        pictures = FRAMES_PER_SEGMENT - (options.operation == "difference")
        self.stem = ConvBN(3 * pictures, config.width, 7, stride=2, bias=False)
        self.res2 = make_stage(config, 2) if options.stages >= 2 else None
        self.res3 = make_stage(config, 3) if options.stages >= 3 else None
        # The released networks weigh motion by 0.5 with 8 segments, by 0.25 with any other number.
        self.rgb_share, self.motion_share = (0.5, 0.5) if num_segments == 8 else (0.75, 0.25)

    def forward(self, segments: Tensor) -> Tensor:
        """Map (N, L, C, H, W) to the motion features (N, c, H/8, W/8)."""
        differs = self.options.operation == "difference"
        pictures = segments[:, 1:] - segments[:, :-1] if differs else segments  # (N, L−1 or L, C, H, W)
        if self.training:  # pooled as they lie, then joined: a quarter is copied, once, into channels-last
            pooled = F.avg_pool2d(pictures.flatten(0, 1), 2).unflatten(0, (-1, pictures.shape[1]))
            x = pooled.permute(0, 3, 4, 1, 2).flatten(3).permute(0, 3, 1, 2)
        else:
            x = F.avg_pool2d(pictures.flatten(1, 2).contiguous(memory_format=torch.channels_last), 2)
        x = self.stem(x).relu_()
        return F.max_pool2d(x, 3, stride=2, padding=1)

    def fuse(self, rgb: Tensor, motion: Tensor) -> Tensor:
        """Let motion (N, c, h, w), upsampled to rgb's size, join rgb (N, c, H, W)."""
        fusion = self.options.fusion
        if fusion == "addition":
            return (self.rgb_share * rgb).add(upsample_to(motion, rgb), alpha=self.motion_share)
        if fusion in ("channel_gate", "residual_channel_gate"):
            gate = torch.sigmoid(motion.mean((2, 3), keepdim=True))
        else:
            gate = torch.sigmoid(upsample_to(motion, rgb))
        return torch.addcmul(rgb, rgb, gate) if fusion.startswith("residual") else rgb * gate


@dataclass(frozen=True)
class LongTermOptions:
    """What Table 1 varies in the L-TDM; the defaults are TDN's.

    `operation` (Table 1a): the difference to a neighbouring segment, or the average with it.
    `fusion` (Table 1c): a gate per channel and pixel ("gate"), a gate per channel, from the mean over H, W
    ("channel_gate"), or plain addition of the expanded features ("addition").
    `multi_scale`, `bidirectional` (Table 1c): without, the comparison alone instead of three scales, and with
    the next segment only. `stages` (Table 1d): the stages of the backbone whose blocks have it.
    """

    operation: Literal["difference", "average"] = "difference"
    fusion: Literal["gate", "channel_gate", "addition"] = "gate"
    multi_scale: bool = True
    bidirectional: bool = True
    stages: tuple[int, ...] = (3, 4, 5)


class LongTermDifference(nn.Module):
    """L-TDM: re-weighs features by their difference to the neighbouring segments (Eqs. 4 to 7).

    f, the features squeezed to c/r channels, is compared with the smoothed f of the next and of the
    previous segment; both differences pass through the same multi-scale layers to a gate per channel and
    pixel. The released network subtracts 0.5 from the gate, so that no motion means no change.
    """

    def __init__(
        self, channels: int, num_segments: int, reduction: int = 16, options: LongTermOptions = LongTermOptions()
    ) -> None:
        super().__init__()
        squeezed = channels // reduction
        self.num_segments, self.options = num_segments, options
        self.squeeze = ConvBN(channels, squeezed, 1, bias=False)
        self.smooth = nn.Conv2d(squeezed, squeezed, 3, padding=1, groups=squeezed, bias=False)
        self.full_scale = ConvBN(squeezed, squeezed, 3, bias=False) if options.multi_scale else None
        self.half_scale = ConvBN(squeezed, squeezed, 3, bias=False) if options.multi_scale else None
        self.expand = ConvBN(squeezed, channels, 1, bias=False)

    def scales(self, difference: Tensor) -> Tensor:
        """Map differences (N, c/r, H, W) to the mean of three scales, the same shape."""
        if self.full_scale is None or self.half_scale is None:
            return difference
        half = upsample_to(self.half_scale(F.avg_pool2d(difference, 2)), difference)
        return self.full_scale(difference).add_(half).add_(difference).div_(3)

    def gate(self, y: Tensor) -> Tensor:
        """Map scaled differences (N, c/r, H, W) to a gate in (−0.5, 0.5), (N, c, H, W) or (N, c, 1, 1); with the fusion
        "addition" to what is added."""
        if self.options.fusion == "channel_gate":
            y = y.mean((2, 3), keepdim=True)
        y = self.expand(y)
        return y if self.options.fusion == "addition" else torch.sigmoid(y) - 0.5

    def directions(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Map (N, c, H, W) to what the gates are made of, (N, c/r, H, W): scaled differences to the next segment, and,
        if bidirectional, to the previous one."""
        f = self.squeeze(x)
        if self.training:
            return self._directions_in_training(f)
        n = f.shape[0]
        s = self.smooth(f).unflatten(0, (-1, self.num_segments))
        f = f.unflatten(0, (-1, self.num_segments))  # (B, T, c/r, H, W)
        edge = torch.zeros_like(f[:, :1])
        forward = torch.cat((self._compare(s[:, 1:], f[:, :-1]), edge), 1).flatten(0, 1)
        if not self.options.bidirectional:
            return self.scales(forward), None
        backward = torch.cat((edge, self._compare(s[:, :-1], f[:, 1:])), 1).flatten(0, 1)
        both = self.scales(torch.cat((forward, backward)))  # one call while they are small; apart before they grow to c
        return both[:n], both[n:]

    def _directions_in_training(self, f: Tensor) -> tuple[Tensor, Tensor | None]:
        """The same of squeezed features, in channels-last throughout, which joining (B, T, c/r, H, W) would leave; each
        direction has its own batch statistics, as in the released training code."""
        s, f = (y.permute(0, 2, 3, 1).unflatten(0, (-1, self.num_segments)) for y in (self.smooth(f), f))
        edge = torch.zeros_like(f[:, :1])  # (B, 1, H, W, c/r)
        forward = torch.cat((self._compare(s[:, 1:], f[:, :-1]), edge), 1).flatten(0, 1).permute(0, 3, 1, 2)
        if not self.options.bidirectional:
            return self.scales(forward), None
        backward = torch.cat((edge, self._compare(s[:, :-1], f[:, 1:])), 1).flatten(0, 1).permute(0, 3, 1, 2)
        return self.scales(forward), self.scales(backward)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, c, H, W) to the same shape, each segment compared with its two neighbours."""
        forward, backward = self.directions(x)
        if backward is None:
            return self._fuse(x, self.gate(forward), 1.0)
        if self.training and self.options.fusion == "gate":
            # σ(y) − ½ = ½·tanh(y/2): in place, and of small differences bf16 keeps all digits, which it loses near ½
            gates = [self.expand(y).mul_(0.5).tanh_() for y in (forward, backward)]
            return self._fuse(x, gates[0] + gates[1], 0.25)
        return self._fuse(x, self.gate(forward) + self.gate(backward), 0.5)

    def _compare(self, neighbour: Tensor, own: Tensor) -> Tensor:
        return neighbour - own if self.options.operation == "difference" else (neighbour + own) / 2

    def _fuse(self, x: Tensor, gates: Tensor, share: float) -> Tensor:
        if self.options.fusion == "addition":
            return x.add(gates, alpha=share)
        return torch.addcmul(x, x, gates, value=share)  # x + share·x⊙gates in one pass over memory


class TemporalConv(nn.Module):
    """Depthwise convolution over T, kernel 3, zero padding, no bias; starts as a shift (Sec. 3.4).

    `shifted` channels start as copies of t+1, as many again as copies of t−1 (default: an eighth), the rest of t.

    Runs as a 2-D depthwise convolution with kernel (3, 1) on (B, c, T, H·W): in channels-last both the
    way there and back are views, and the vendor libraries have a fast kernel for it, which they lack for
    Conv1d over a permuted tensor (`benchmarks/temporal_conv.py` measures the two). `as_conv3d` is for an engine
    that is faster with the plain 3-D convolution.
    """

    as_conv3d = False

    def __init__(self, channels: int, num_segments: int, shifted: int | None = None) -> None:
        super().__init__()
        self.num_segments = num_segments
        weight = torch.zeros(channels, 1, 3)
        fold = channels // 8 if shifted is None else shifted
        weight[:fold, :, 2] = 1  # takes t+1
        weight[fold : 2 * fold, :, 0] = 1  # takes t−1
        weight[2 * fold :, :, 1] = 1
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, c, H, W) to the same shape."""
        n, c, h, w = x.shape
        t = self.num_segments
        if self.as_conv3d:
            video = x.unflatten(0, (-1, t)).transpose(1, 2)  # (B, c, T, H, W)
            y = F.conv3d(video, self.weight[..., None, None], padding=(1, 0, 0), groups=c)
            return y.transpose(1, 2).flatten(0, 1)
        y = x.permute(0, 2, 3, 1).reshape(n // t, t, h * w, c).permute(0, 3, 1, 2)  # (B, c, T, H·W)
        y = F.conv2d(y, self.weight.unsqueeze(-1), padding=(1, 0), groups=c)
        return y.permute(0, 2, 3, 1).reshape(n, h, w, c).permute(0, 3, 1, 2)


class TemporalDifference(nn.Sequential):
    """What a TDN bottleneck calls between its 1×1 and its 3×3 convolution: L-TDM, then temporal convolution."""

    def __init__(self, channels: int, num_segments: int, options: LongTermOptions = LongTermOptions()) -> None:
        super().__init__()
        self.difference = LongTermDifference(channels, num_segments, options=options)
        self.conv = TemporalConv(channels, num_segments)

    gate_kernel = False  # `gate_kernel.py` computes both, on CUDA; not seen to be faster yet, so on request only

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, c, H, W) to the same shape."""
        if not self.gate_kernel:
            return self.conv(self.difference(x))
        from tdn_bench.models.gate_kernel import gated_temporal_conv, gated_temporal_conv_from_squeezed

        expand, weight, t = self.difference.expand, self.conv.weight, self.conv.num_segments
        x = x.contiguous(memory_format=torch.channels_last)
        forward, backward = self.difference.directions(x)
        assert backward is not None
        forward, backward = (y.contiguous(memory_format=torch.channels_last) for y in (forward, backward))
        if isinstance(expand.bn, nn.Identity):  # folded, so for inference
            bias = expand.conv.bias
            return gated_temporal_conv_from_squeezed(
                x, forward, backward, expand.conv.weight.flatten(1), bias, weight, t
            )
        return gated_temporal_conv(x, expand(forward), expand(backward), weight, t)


def use_gate_kernel(network: nn.Module) -> None:
    """Let every block of a TDN compute its gates and temporal convolution by the Triton kernels. Raises ValueError
    where an L-TDM is not TDN's own, EngineError where compiled kernels have no private place."""
    prepare_compiler()
    for module in network.modules():
        if isinstance(module, TemporalDifference):
            options = module.difference.options
            if options != LongTermOptions(stages=options.stages):
                raise ValueError(f"the gate kernel computes TDN's own L-TDM, not {options}")
            module.gate_kernel = True
