"""The residual backbone: convolution + batch norm, the bottleneck, and the stages.

Provenance: He et al., "Deep Residual Learning for Image Recognition" (arXiv 1512.03385), with the stride of
a stage on its 3×3 convolution and a bias in every convolution, as in the network that TDN was released with.

Shapes: N = videos × segments, C channels, H, W pixels. Everything here is 4-D and runs in channels-last.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils.checkpoint import checkpoint

EXPANSION = 4  # a bottleneck's output channels ÷ its inner channels


@dataclass(frozen=True)
class ResNetConfig:
    """Bottlenecks in each of Res2 … Res5, and the inner channels of Res2 (doubled from stage to stage)."""

    blocks: tuple[int, int, int, int]
    width: int = 64

    def channels(self, stage: int) -> int:
        """Inner channels of stage 2 … 5."""
        return self.width << (stage - 2)


RESNET50 = ResNetConfig((3, 4, 6, 3))
RESNET101 = ResNetConfig((3, 4, 23, 3))
RESNET_SMALL = ResNetConfig((1, 1, 1, 1), width=32)  # for machines without a GPU: demo, tests, CI


class ConvBN(nn.Module):
    """A convolution followed by batch norm; `fold` merges the two for inference."""

    def __init__(self, c_in: int, c_out: int, kernel: int, *, stride: int = 1, bias: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, kernel, stride=stride, padding=kernel // 2, bias=bias)
        self.bn: nn.BatchNorm2d | nn.Identity = nn.BatchNorm2d(c_out)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))

    def fold(self) -> None:
        """Fold the batch norm's running statistics into the convolution, in place (inference only)."""
        if isinstance(self.bn, nn.BatchNorm2d):
            self.conv = fuse_conv_bn_eval(self.conv.eval(), self.bn.eval())
            self.bn = nn.Identity()


@dataclass(frozen=True)
class Place:
    """Where a bottleneck stands: `index` counts from 0 in `stage` 2 … 5; `channels` are its inner ones."""

    stage: int
    index: int
    c_in: int
    channels: int
    stride: int


class Bottleneck(nn.Module):
    """1×1 → (temporal module) → 3×3 → 1×1, with a residual connection.

    A network that looks across segments puts its module at one of three places, and nowhere else inside a block:
    `temporal`, called between the 1×1 and the 3×3 convolution, maps (N, channels, H, W) to the same shape (TDN,
    T-Conv, TEINet, TANet, TEA); `conv1` stands for the first 1×1 convolution (TSM, I3D); `conv2` for the 3×3
    convolution with its stride (STM, GST, TEA). `width`: inner channels, where they are not the place's; `activated`:
    `conv2` has applied its own ReLUs (both TEA).
    """

    def __init__(
        self,
        at: Place,
        *,
        conv1: nn.Module | None = None,
        temporal: nn.Module | None = None,
        conv2: nn.Module | None = None,
        width: int | None = None,
        activated: bool = False,
    ) -> None:
        super().__init__()
        self.activated = activated
        c_out, width = at.channels * EXPANSION, width or at.channels
        self.conv1 = conv1 or ConvBN(at.c_in, width, 1)
        self.temporal = temporal
        self.conv2 = conv2 or ConvBN(width, width, 3, stride=at.stride)
        self.conv3 = ConvBN(width, c_out, 1)
        self.downsample = ConvBN(at.c_in, c_out, 1, stride=at.stride) if at.stride != 1 or at.c_in != c_out else None

    def forward(self, x: Tensor) -> Tensor:
        return self.finish(*self.start(x))

    def start(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What comes before the temporal module: its input, and the residual connection's."""
        identity = x if self.downsample is None else self.downsample(x)
        return self.conv1(x).relu_(), identity  # in place: neither batch norm nor convolution needs its output again

    def finish(self, y: Tensor, identity: Tensor) -> Tensor:
        """The temporal module and what follows it; neither argument is changed."""
        if self.temporal is not None:
            y = self.temporal(y)
        y = self.conv2(y)
        y = y if self.activated else y.relu_()
        return self.conv3(y).add_(identity).relu_()


MakeBlock = Callable[[Place], nn.Module]


class Stage(nn.Sequential):
    """The bottlenecks of a stage, one after the other.

    With `recompute` training keeps the input of each alone, and computes what is inside anew in the backward pass
    (activation checkpointing, Chen et al., arXiv 1604.06174): the same numbers in less memory and more time.
    """

    recompute = False

    def forward(self, x: Tensor) -> Tensor:
        for block in self:
            if self.recompute and torch.is_grad_enabled():
                x = checkpoint(block, x, use_reentrant=False, context_fn=partial(_contexts, block))
            else:
                x = block(x)
        return x


def _contexts(block: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Of the forward pass, and of the same computed anew."""
    return nullcontext(), _statistics_kept(block)


@contextmanager
def _statistics_kept(block: nn.Module) -> Iterator[None]:
    """Batch norms count a batch once: within, what they take over goes nowhere. They normalise by the batch's own
    statistics, so what stands there does not matter."""
    norms = [m for m in block.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training]
    kept = [(norm, name, buffer) for norm in norms for name, buffer in norm.named_buffers()]
    for norm, name, buffer in kept:
        setattr(norm, name, torch.empty_like(buffer))
    try:
        yield
    finally:
        for norm, name, buffer in kept:
            setattr(norm, name, buffer)


def make_stage(config: ResNetConfig, stage: int, make_block: MakeBlock = Bottleneck) -> Stage:
    """Build Res`stage` (2 … 5), each of its blocks by `make_block`."""
    channels = config.channels(stage)
    c_in = config.width if stage == 2 else channels // 2 * EXPANSION
    blocks = []
    for index in range(config.blocks[stage - 2]):
        blocks.append(make_block(Place(stage, index, c_in, channels, 2 if index == 0 and stage > 2 else 1)))
        c_in = channels * EXPANSION
    return Stage(*blocks)


def init_weights(module: nn.Module) -> None:
    """He-normal convolutions, unit batch norm, zero biases (for `module.apply`)."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
