"""Every network by name: `<variant>_<backbone>`. To add one, write its function and its line in VARIANTS.

Each function takes (backbone, classes, T, dropout) and says in its blocks where its temporal module goes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from tdn_bench.catalogue import did_you_mean
from tdn_bench.models.network import SegmentNetwork
from tdn_bench.models.resnet import RESNET50, RESNET101, RESNET_SMALL, Bottleneck, Place, ResNetConfig
from tdn_bench.models.temporal_difference import (
    FRAMES_PER_SEGMENT,
    LongTermOptions,
    ShortTermDifference,
    ShortTermOptions,
    TemporalConv,
    TemporalDifference,
)
from tdn_bench.models.temporal_modules import (
    GroupedSpatioTemporal,
    InflatedConvBN,
    MotionExcitation,
    ShiftedConvBN,
    SpatioTemporalMotion,
    TemporalAdaptive,
    TemporalAggregation,
    TemporalEnhancementInteraction,
    TemporalPool,
)

RELEASED_SHORT, RELEASED_LONG = ShortTermOptions(), LongTermOptions()


def tdn(
    config: ResNetConfig,
    classes: int,
    t: int,
    dropout: float,
    *,
    short: ShortTermOptions | None = RELEASED_SHORT,
    long: LongTermOptions | None = RELEASED_LONG,
) -> SegmentNetwork:
    """TDN: S-TDM around the stem and Res2, L-TDM and temporal convolution in Res3 … Res5 (arXiv 2012.10071, Sec. 3.4);
    without `short` or `long`, the other alone."""

    def block(at: Place) -> Bottleneck:
        here = long is not None and at.stage in long.stages
        return Bottleneck(at, temporal=TemporalDifference(at.channels, t, long) if here and long else None)

    motion = ShortTermDifference(config, t, short) if short is not None else None
    return SegmentNetwork(config, classes, t, block, short_term=motion, dropout=dropout)


def tsn(config: ResNetConfig, classes: int, t: int, dropout: float, *, all_frames: bool = False) -> SegmentNetwork:
    """TSN: nothing looks across segments (arXiv 1608.00859)."""
    return SegmentNetwork(config, classes, t, all_frames=all_frames, dropout=dropout)


def tconv(config: ResNetConfig, classes: int, t: int, dropout: float, *, all_frames: bool = False) -> SegmentNetwork:
    """T-Conv: TDN's depthwise temporal convolution alone, in Res3 … Res5."""
    times = t * FRAMES_PER_SEGMENT if all_frames else t

    def block(at: Place) -> Bottleneck:
        return Bottleneck(at, temporal=TemporalConv(at.channels, times) if at.stage > 2 else None)

    return SegmentNetwork(config, classes, t, block, all_frames=all_frames, dropout=dropout)


def tsm(config: ResNetConfig, classes: int, t: int, dropout: float, *, all_frames: bool = False) -> SegmentNetwork:
    """TSM: shift before the first convolution of every block, of every other one in ResNet-101 (arXiv 1811.08383)."""
    times = t * FRAMES_PER_SEGMENT if all_frames else t
    every = 2 if config.blocks[2] >= 23 else 1

    def block(at: Place) -> Bottleneck:
        shifted = at.index % every == 0
        return Bottleneck(at, conv1=ShiftedConvBN(at.c_in, at.channels, 1, times) if shifted else None)

    return SegmentNetwork(config, classes, t, block, all_frames=all_frames, dropout=dropout)


def teinet(config: ResNetConfig, classes: int, t: int, dropout: float, *, all_frames: bool = False) -> SegmentNetwork:
    """TEINet: motion enhancement and temporal interaction in every block (arXiv 1911.09435)."""
    times = t * FRAMES_PER_SEGMENT if all_frames else t

    def block(at: Place) -> Bottleneck:
        return Bottleneck(at, temporal=TemporalEnhancementInteraction(at.channels, times))

    return SegmentNetwork(config, classes, t, block, all_frames=all_frames, dropout=dropout)


def stm(config: ResNetConfig, classes: int, t: int, dropout: float) -> SegmentNetwork:
    """STM: spatio-temporal and motion features in place of every 3×3 convolution (arXiv 1908.02486)."""

    def block(at: Place) -> Bottleneck:
        return Bottleneck(at, conv2=SpatioTemporalMotion(at.channels, t, stride=at.stride))

    return SegmentNetwork(config, classes, t, block, dropout=dropout)


def tea(config: ResNetConfig, classes: int, t: int, dropout: float) -> SegmentNetwork:
    """TEA: motion excitation and temporal aggregation in every block, on Res2Net's 26w × 4s (arXiv 2004.01398)."""

    def block(at: Place) -> Bottleneck:
        group = at.channels * 26 // 64
        width = group * TemporalAggregation.GROUPS
        aggregation = TemporalAggregation(group, t, stride=at.stride, first=at.index == 0)
        return Bottleneck(at, temporal=MotionExcitation(width, t), conv2=aggregation, width=width, activated=True)

    return SegmentNetwork(config, classes, t, block, dropout=dropout)


def tanet(config: ResNetConfig, classes: int, t: int, dropout: float) -> SegmentNetwork:
    """TANet: a temporal kernel made for each video, in every block (arXiv 2005.06803)."""

    def block(at: Place) -> Bottleneck:
        return Bottleneck(at, temporal=TemporalAdaptive(at.channels, t))

    return SegmentNetwork(config, classes, t, block, dropout=dropout)


def gst(config: ResNetConfig, classes: int, t: int, dropout: float) -> SegmentNetwork:
    """GST: grouped spatial and spatio-temporal convolutions in place of every 3×3 (arXiv 1909.13130)."""

    def block(at: Place) -> Bottleneck:
        return Bottleneck(at, conv2=GroupedSpatioTemporal(at.channels, t, stride=at.stride))

    return SegmentNetwork(config, classes, t, block, dropout=dropout)


def i3d(config: ResNetConfig, classes: int, t: int, dropout: float) -> SegmentNetwork:
    """I3D: 5×7×7 stem, the first 1×1 convolution inflated to 3×1×1 in Res2 and in every other block from Res3 on.

    The inflation is that of the non-local baseline (arXiv 1711.07971). Strides are those of the 32-frame network that
    the TDN paper cites with 153 G multiply-adds (arXiv 1806.01810): none over time but a pooling after Res2, and none
    in Res5.
    """

    def block(at: Place) -> Bottleneck:
        times = t if at.stage == 2 else (t + 1) // 2
        first = 1 if at.stage == 5 and config.blocks[3] > 1 else 0  # of three blocks in Res5 the middle one
        inflated = at.stage == 2 or at.index % 2 == first
        at = replace(at, stride=1) if at.stage == 5 else at
        return Bottleneck(at, conv1=InflatedConvBN(at.c_in, at.channels, 1, 3, times) if inflated else None)

    stem = InflatedConvBN(3, config.width, 7, 5, t, stride=2)
    return SegmentNetwork(config, classes, t, block, stem=stem, pool=TemporalPool(t), dropout=dropout)


Build = Callable[[ResNetConfig, int, int, float], SegmentNetwork]


@dataclass(frozen=True)
class Variant:
    """How a network is built, and which clips it takes: T segments of L frames."""

    build: Build
    what: str
    frames_per_segment: int = 1
    num_segments: int = 8


def _ablation(
    what: str, short: ShortTermOptions | None = RELEASED_SHORT, long: LongTermOptions | None = RELEASED_LONG
) -> Variant:
    frames = FRAMES_PER_SEGMENT if short is not None else 1
    return Variant(partial(tdn, short=short, long=long), what, frames)


def _plus_plus(build: Callable[..., SegmentNetwork], what: str) -> Variant:
    return Variant(
        partial(build, all_frames=True), f"{what}, all 8 × 5 frames through the backbone", FRAMES_PER_SEGMENT
    )


VARIANTS: dict[str, Variant] = {
    "tdn": Variant(tdn, "TDN as released", FRAMES_PER_SEGMENT),
    "s_tdm": _ablation("TDN with the S-TDM alone", long=None),
    "l_tdm": _ablation("TDN with the L-TDM (and temporal convolution) alone", short=None),
    "tsn": Variant(tsn, "TSN, the 2-D baseline"),
    "tconv": Variant(tconv, "depthwise temporal convolution alone"),
    "tsm": Variant(tsm, "TSM, temporal shift"),
    "teinet": Variant(teinet, "TEINet"),
    "stm": Variant(stm, "STM"),
    "tea": Variant(tea, "TEA, on Res2Net blocks"),
    "tanet": Variant(tanet, "TANet"),
    "gst": Variant(gst, "GST"),
    "i3d": Variant(i3d, "I3D, 32 frames", num_segments=32),
    "tsn++": _plus_plus(tsn, "TSN"),
    "tconv++": _plus_plus(tconv, "T-Conv"),
    "tsm++": _plus_plus(tsm, "TSM"),
    "teinet++": _plus_plus(teinet, "TEINet"),
    # Table 1a: what difference does
    "tdn_s_concat": _ablation("S-TDM of frames, not differences", ShortTermOptions("concat")),
    "tdn_l_average": _ablation("L-TDM of averages, not differences", long=LongTermOptions("average")),
    "tdn_s_concat_l_average": _ablation(
        "no difference in either", ShortTermOptions("concat"), LongTermOptions("average")
    ),
    # Table 1b: how the S-TDM's motion joins appearance
    "tdn_s_gate": _ablation("S-TDM: F⊙σ(H)", ShortTermOptions(fusion="gate")),
    "tdn_s_channel_gate": _ablation("S-TDM: F⊙σ(H), per channel", ShortTermOptions(fusion="channel_gate")),
    "tdn_s_residual_gate": _ablation("S-TDM: F + F⊙σ(H)", ShortTermOptions(fusion="residual_gate")),
    "tdn_s_residual_channel_gate": _ablation(
        "S-TDM: F + F⊙σ(H), per channel", ShortTermOptions(fusion="residual_channel_gate")
    ),
    # Table 1c: the parts of the L-TDM
    "tdn_l_addition": _ablation("L-TDM: F + M", long=LongTermOptions(fusion="addition")),
    "tdn_l_channel_gate": _ablation("L-TDM: one gate a channel", long=LongTermOptions(fusion="channel_gate")),
    "tdn_l_one_scale": _ablation("L-TDM: one scale", long=LongTermOptions(multi_scale=False)),
    "tdn_l_forward": _ablation("L-TDM: the next segment only", long=LongTermOptions(bidirectional=False)),
    # Table 1d: which stages
    "tdn_s1_l2345": _ablation(
        "S-TDM after the stem, L-TDM from Res2 on", ShortTermOptions(stages=1), LongTermOptions(stages=(2, 3, 4, 5))
    ),
    "tdn_s123_l45": _ablation(
        "S-TDM up to Res3, L-TDM from Res4 on", ShortTermOptions(stages=3), LongTermOptions(stages=(4, 5))
    ),
}

BACKBONES: dict[str, ResNetConfig] = {"resnet50": RESNET50, "resnet101": RESNET101, "resnet_small": RESNET_SMALL}

_MODELS = {f"{v}_{b}": (v, config) for v in VARIANTS for b, config in BACKBONES.items()}


def list_models() -> list[str]:
    """Names that `create_model` takes."""
    return list(_MODELS)


def find_variant(name: str) -> Variant:
    """The variant that a model's name stands for. Raises ValueError for an unknown name."""
    if name not in _MODELS:
        some = f"; choose one of {', '.join(list_models()[:6])}, … (`tdn-bench list` names all)"
        raise ValueError(f"unknown model {name!r}{did_you_mean(name, _MODELS) or some}")
    return VARIANTS[_MODELS[name][0]]


def create_model(
    name: str, *, num_classes: int, num_segments: int | None = None, dropout: float = 0.5
) -> SegmentNetwork:
    """Build a network with fresh weights; its input is a float clip (B, T, L, C, H, W).

    `num_segments`, T, is 8 unless given (32 of I3D). Raises ValueError for an unknown name, fewer than 2 segments or
    fewer than 1 class.
    """
    variant = find_variant(name)
    num_segments = variant.num_segments if num_segments is None else num_segments
    if num_segments < 2:
        raise ValueError(f"num_segments must be at least 2, not {num_segments}")
    if num_classes < 1:
        raise ValueError(f"num_classes must be at least 1, not {num_classes}")
    variant_name, config = _MODELS[name]
    network = variant.build(config, num_classes, num_segments, dropout)
    network.variant = variant_name
    return network
