"""The networks: one segment-based network, which is TSN without temporal modules and TDN with them.

Provenance: TSN, Wang et al., arXiv 1608.00859; TDN, Wang et al., arXiv 2012.10071, Sec. 3.4.

Shapes: B videos, T segments, L frames in a segment, C colours, H, W pixels, N = B·T.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tdn_bench.models.resnet import (
    EXPANSION,
    RESNET50,
    RESNET101,
    RESNET_SMALL,
    ConvBN,
    ResNetConfig,
    init_weights,
    make_stage,
)
from tdn_bench.models.temporal_difference import ShortTermDifference, TemporalDifference

FRAMES_PER_SEGMENT = 5
MIN_SIZE = 64  # Res5 is then 2×2, the smallest that the L-TDM's half scale can pool
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class SegmentNetwork(nn.Module):
    """A 2-D ResNet over the T segments of a clip, segment scores averaged.

    `make_temporal(channels, T)` builds the module that every bottleneck of Res3, Res4 and Res5 calls;
    `short_term` adds the S-TDM around the stem and Res2.
    """

    def __init__(
        self,
        config: ResNetConfig,
        num_classes: int,
        num_segments: int,
        *,
        short_term: bool = False,
        make_temporal: Callable[[int, int], nn.Module] | None = None,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.num_segments = num_segments

        def temporal(channels: int) -> nn.Module:
            assert make_temporal is not None
            return make_temporal(channels, num_segments)

        in_late_stages = temporal if make_temporal is not None else None
        self.stem = ConvBN(3, config.width, 7, stride=2)
        self.short_term = ShortTermDifference(config, num_segments) if short_term else None
        self.res2 = make_stage(config, 2)
        self.res3 = make_stage(config, 3, in_late_stages)
        self.res4 = make_stage(config, 4, in_late_stages)
        self.res5 = make_stage(config, 5, in_late_stages)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(config.channels(5) * EXPANSION, num_classes)
        self.apply(init_weights)
        nn.init.normal_(self.classifier.weight, 0, 0.001)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, clip: Tensor) -> Tensor:
        """Map a normalised clip (B, T, L, C, H, W) to logits (B, num_classes)."""
        if clip.shape[1] != self.num_segments or clip.shape[2] != FRAMES_PER_SEGMENT:
            raise ValueError(
                f"this network takes {self.num_segments} segments of {FRAMES_PER_SEGMENT} frames, "
                f"clip has shape {tuple(clip.shape)}, read as (B, T, L, C, H, W)"
            )
        if min(clip.shape[-2:]) < MIN_SIZE:
            raise ValueError(f"height and width must be at least {MIN_SIZE}, not {tuple(clip.shape[-2:])}")
        segments = clip.flatten(0, 1)  # (N, L, C, H, W)
        centre = segments[:, FRAMES_PER_SEGMENT // 2].contiguous(memory_format=torch.channels_last)
        x = self.stem(centre).relu_()
        x = F.max_pool2d(x, 3, stride=2, padding=1)
        if self.short_term is None:
            x = self.res2(x)
        else:
            motion = self.short_term(segments)
            x = self.res2(self.short_term.fuse(x, motion))
            x = self.short_term.fuse(x, self.short_term.res2(motion))
        x = self.res5(self.res4(self.res3(x)))
        x = self.dropout(x.mean((2, 3)))  # (N, c)
        scores = self.classifier(x)
        return scores.view(-1, self.num_segments, scores.shape[1]).mean(1)


class FrameClassifier(nn.Module):
    """A network with its normalisation inside: what is trained, exported and timed.

    `forward` takes the pipeline's frames as they come, uint8 (B, T, L, H, W, C), and returns float32 logits
    (B, num_classes). Its arithmetic follows the dtype it is cast to (`.half()`, `.to(torch.bfloat16)`).
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.register_buffer("mean", 255 * torch.tensor(IMAGENET_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(IMAGENET_STD).view(3, 1, 1), persistent=False)

    mean: Tensor
    std: Tensor

    def forward(self, frames: Tensor) -> Tensor:
        clip = frames.permute(0, 1, 2, 5, 3, 4).to(self.mean.dtype)
        return self.network((clip - self.mean).div_(self.std)).float()

    def fold_batch_norm(self) -> FrameClassifier:
        """Fold every batch norm into the convolution before it, in place (inference only)."""
        for module in list(self.modules()):
            if isinstance(module, ConvBN):
                module.fold()
        return self


def _tdn(config: ResNetConfig, num_classes: int, num_segments: int, dropout: float) -> SegmentNetwork:
    return SegmentNetwork(
        config,
        num_classes,
        num_segments,
        short_term=True,
        make_temporal=TemporalDifference,
        dropout=dropout,
    )


def _tsn(config: ResNetConfig, num_classes: int, num_segments: int, dropout: float) -> SegmentNetwork:
    return SegmentNetwork(config, num_classes, num_segments, dropout=dropout)


_BUILDERS: dict[str, tuple[Callable[..., SegmentNetwork], ResNetConfig]] = {
    "tdn_resnet50": (_tdn, RESNET50),
    "tdn_resnet101": (_tdn, RESNET101),
    "tdn_resnet_small": (_tdn, RESNET_SMALL),
    "tsn_resnet50": (_tsn, RESNET50),
    "tsn_resnet101": (_tsn, RESNET101),
    "tsn_resnet_small": (_tsn, RESNET_SMALL),
}


def list_models() -> list[str]:
    """Names that `create_model` takes."""
    return list(_BUILDERS)


def create_model(name: str, *, num_classes: int, num_segments: int = 8, dropout: float = 0.5) -> SegmentNetwork:
    """Build a network with fresh weights; its input is a float clip (B, T, L, C, H, W).

    Raises ValueError for an unknown name, fewer than 2 segments or fewer than 1 class.
    """
    if name not in _BUILDERS:
        raise ValueError(f"unknown model {name!r}; choose one of {', '.join(_BUILDERS)}")
    if num_segments < 2:
        raise ValueError(f"num_segments must be at least 2, not {num_segments}")
    if num_classes < 1:
        raise ValueError(f"num_classes must be at least 1, not {num_classes}")
    build, config = _BUILDERS[name]
    return build(config, num_classes, num_segments, dropout)
