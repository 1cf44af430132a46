"""A network in two parts: what it computes of each segment alone, and the rest, which looks across segments.

A window that slides by a segment shares all of its segments but one with the window before. What the first part makes
of them need not be computed again: in TDN the S-TDM, the stem, Res2, and Res3 up to its first L-TDM.

Shapes: B clips, T segments, L frames in a segment, N = B·T, H, W pixels, C colours.
"""

from __future__ import annotations

from typing import TypeGuard

import torch
from torch import Tensor, nn

from tdn_bench.models.classifier import FrameClassifier
from tdn_bench.models.inference import InferenceClassifier
from tdn_bench.models.network import SegmentNetwork
from tdn_bench.models.resnet import Bottleneck, ConvBN

Features = tuple[Tensor, ...]  # each (N, …): of every segment


class SegmentHead(nn.Module):
    """uint8 segments (N, L, H, W, C) → what the network makes of each of them alone."""

    def __init__(self, classifier: FrameClassifier | InferenceClassifier, cut: tuple[int, int] | None) -> None:
        super().__init__()
        self.classifier, self.cut = classifier, cut

    def forward(self, segments: Tensor) -> Features:
        network = self.classifier.network
        assert isinstance(network, SegmentNetwork)
        pictures, motion = self.classifier.inputs(segments.permute(0, 1, 4, 2, 3))
        x = network.start(pictures, motion)
        for stage, blocks in network.stages():
            for index, block in enumerate(blocks):
                if (stage, index) == self.cut:
                    kept = block.start(x) if _starts_alone(block) else (x,)
                    return kept if motion is None else (*kept, motion)
                x = block(x)
            x, motion = network.join(stage, x, motion)
        return (network.classify(x),)


class ClipTail(nn.Module):
    """What `SegmentHead` made of the T segments of B clips, in their order → float32 logits (B, num_classes).

    Changes nothing of what it is given."""

    def __init__(self, network: SegmentNetwork, cut: tuple[int, int] | None) -> None:
        super().__init__()
        self.network, self.cut = network, cut

    def forward(self, *features: Tensor) -> Tensor:
        network = self.network
        if self.cut is None:
            return self._mean(features[0])
        motion = None if network.short_term is None else features[-1]
        kept = features if motion is None else features[:-1]
        x = kept[0]
        for stage, blocks in network.stages():
            for index, block in enumerate(blocks):
                if (stage, index) == self.cut:
                    x = block.finish(*kept) if _starts_alone(block) else block(x)
                elif (stage, index) > self.cut:
                    x = block(x)
            if stage >= self.cut[0]:
                x, motion = network.join(stage, x, motion)
        return self._mean(network.classify(x))

    def _mean(self, scores: Tensor) -> Tensor:
        return scores.unflatten(0, (-1, self.network.num_segments)).mean(1).float()


def split(classifier: nn.Module) -> tuple[SegmentHead, ClipTail] | None:
    """A network, as `Network.build` makes it or rewritten for inference, in two parts that share its weights; None for
    one that looks across segments from its first layer on, or keeps no segments apart (I3D, all-frames networks)."""
    network = getattr(classifier, "network", None)
    if not isinstance(classifier, FrameClassifier | InferenceClassifier) or not isinstance(network, SegmentNetwork):
        return None
    if network.all_frames or network.pool is not None or type(network.stem) is not ConvBN:
        return None
    cut = first_across(network)
    return SegmentHead(classifier, cut), ClipTail(network, cut)


def first_across(network: SegmentNetwork) -> tuple[int, int] | None:
    """(stage, index) of the first block that looks across segments; None where none does."""
    for stage, blocks in network.stages():
        for index, block in enumerate(blocks):
            alone = isinstance(block, Bottleneck) and block.temporal is None
            if not alone or type(block.conv1) is not ConvBN or type(block.conv2) is not ConvBN:
                return stage, index
    return None


def _starts_alone(block: nn.Module) -> TypeGuard[Bottleneck]:
    """Whether a block looks across segments only behind its first convolution."""
    return isinstance(block, Bottleneck) and type(block.conv1) is ConvBN


def join_segments(features: list[Features]) -> Features:
    """Features of single segments, in their order, as `ClipTail` takes them."""
    return tuple(torch.cat(parts) for parts in zip(*features, strict=True))
