"""The one network: a 2-D ResNet over the segments of a clip. `tdn_bench.models.variants` says what goes into it.

Provenance: TSN, Wang et al., arXiv 1608.00859; TDN, Wang et al., arXiv 2012.10071, Sec. 3.4.

Shapes: B videos, T segments, L frames in a segment, C colours, H, W pixels, N = B·T (B·T·L with all frames).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tdn_bench.models.resnet import (
    EXPANSION,
    Bottleneck,
    ConvBN,
    MakeBlock,
    ResNetConfig,
    Stage,
    init_weights,
    make_stage,
)
from tdn_bench.models.temporal_difference import FRAMES_PER_SEGMENT, ShortTermDifference
from tdn_bench.models.temporal_modules import SpatioTemporalMotion

MIN_SIZE = 64  # Res5 is then 2×2, the smallest that the L-TDM's half scale can pool


class SegmentNetwork(nn.Module):
    """A 2-D ResNet over the T segments of a clip, segment scores averaged.

    `make_block` builds every bottleneck, and with it what looks across segments. `short_term` adds the S-TDM around
    the stem and Res2. It reads the centre frame of each segment's L, with `all_frames` every frame. `stem` stands for
    the usual one, `pool` comes after Res2 (I3D).
    """

    variant: str | None = None  # its name in `variants.VARIANTS`

    def __init__(
        self,
        config: ResNetConfig,
        num_classes: int,
        num_segments: int,
        make_block: MakeBlock = Bottleneck,
        *,
        short_term: ShortTermDifference | None = None,
        all_frames: bool = False,
        stem: nn.Module | None = None,
        pool: nn.Module | None = None,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.num_segments, self.all_frames = num_segments, all_frames
        self.stem = stem or ConvBN(3, config.width, 7, stride=2)
        self.short_term = short_term
        self.res2 = make_stage(config, 2, make_block)
        self.pool = pool
        self.res3 = make_stage(config, 3, make_block)
        self.res4 = make_stage(config, 4, make_block)
        self.res5 = make_stage(config, 5, make_block)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(config.channels(5) * EXPANSION, num_classes)
        self.apply(init_weights)
        for module in self.modules():
            if isinstance(module, SpatioTemporalMotion):
                module.start_motion()
        nn.init.normal_(self.classifier.weight, 0, 0.001)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, clip: Tensor) -> Tensor:
        """Map a normalised clip (B, T, L, C, H, W) to logits (B, num_classes).

        Raises ValueError for another T than the network's, sizes below 64, and, where more than the centre frame is
        read, another L than 5.
        """
        self.check(clip)
        return self.score(*self.inputs(clip.flatten(0, 1))).unflatten(0, (clip.shape[0], -1)).mean(1)

    def inputs(self, segments: Tensor) -> tuple[Tensor, Tensor | None]:
        """Segments (N, L, C, H, W) as `score` takes them."""
        motion = None if self.short_term is None else self.short_term(segments)
        return self.pictures(segments), motion

    def pictures(self, segments: Tensor) -> Tensor:
        """What the backbone reads of segments (N, L, C, H, W): their centre frames, or all (N·L, C, H, W)."""
        return segments.flatten(0, 1) if self.all_frames else segments[:, segments.shape[1] // 2]

    def score(self, pictures: Tensor, motion: Tensor | None) -> Tensor:
        """Pictures (N, C, H, W), and what the S-TDM made of their segments, to scores (N, num_classes)."""
        x = self.start(pictures, motion)
        for stage, blocks in self.stages():
            x, motion = self.join(stage, blocks(x), motion)
        return self.classify(x)

    def stages(self) -> tuple[tuple[int, Stage], ...]:
        """Res2 … Res5 with their numbers."""
        return (2, self.res2), (3, self.res3), (4, self.res4), (5, self.res5)

    def checkpoint_activations(self) -> None:
        """Keep, in training, the inputs of bottlenecks alone; see `Stage`."""
        for module in self.modules():
            if isinstance(module, Stage):
                module.recompute = True

    def start(self, pictures: Tensor, motion: Tensor | None) -> Tensor:
        """What Res2 takes: the stem's features, motion joined."""
        x = self.stem(pictures.contiguous(memory_format=torch.channels_last)).relu_()
        x = F.max_pool2d(x, 3, stride=2, padding=1)
        return x if self.short_term is None or motion is None else self.short_term.fuse(x, motion)

    def join(self, stage: int, x: Tensor, motion: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """What follows a stage: the S-TDM's copy of it, whose motion joins x; I3D's pooling. Returns both."""
        if self.pool is not None and stage == 2:
            x = self.pool(x)
        if self.short_term is None or motion is None:
            return x, motion
        copy = {2: self.short_term.res2, 3: self.short_term.res3}.get(stage)
        if copy is None:
            return x, motion
        motion = copy(motion)
        return self.short_term.fuse(x, motion), motion

    def classify(self, x: Tensor) -> Tensor:
        """Res5's features (N, c, h, w) to scores (N, num_classes)."""
        return self.classifier(self.dropout(x.mean((2, 3))))

    def check(self, clip: Tensor) -> None:
        fixed = self.short_term is not None or self.all_frames
        if clip.shape[1] != self.num_segments or (fixed and clip.shape[2] != FRAMES_PER_SEGMENT):
            frames = f"{FRAMES_PER_SEGMENT} frames" if fixed else "any number of frames"
            raise ValueError(
                f"this network takes {self.num_segments} segments of {frames}, "
                f"clip has shape {tuple(clip.shape)}, read as (B, T, L, C, H, W)"
            )
        if min(clip.shape[-2:]) < MIN_SIZE:
            raise ValueError(f"height and width must be at least {MIN_SIZE}, not {tuple(clip.shape[-2:])}")
