"""Networks rewritten for inference: the same logits to rounding, fewer passes over memory.

What each gains depends on the engine (`benchmarks/rewriting.py`, which also holds those that gained nothing):

- batch norms, and the division by the pixels' standard deviation, are folded into convolutions;
- only the centre frame of a segment is normalised: the S-TDM's differences cancel the mean;
- the temporal convolution takes the form that the engine is fastest with;
- for TensorRT, which could not be timed, what its builder makes the fewest and smallest kernels of
  (`InferenceLongTermDifference`, `ShiftedTemporalConv`).

The mean is subtracted, not folded into the stem's bias: its zero padding stands for mean-coloured pixels. Differences
are taken before they are pooled: differences of uint8 are exact in 16-bit types, pooled pixels are not.

Shapes: B videos, T segments, L frames in a segment, C colours, N = B·T, c channels, r squeezed channels, H, W pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tdn_bench.models.network import SegmentNetwork
from tdn_bench.models.resnet import ConvBN
from tdn_bench.models.temporal_difference import LongTermDifference, LongTermOptions, TemporalConv, upsample_to


def rewrite_modules(classifier: nn.Module, engine: str) -> None:
    """Give the modules of `classifier`, batch norms folded, the form that is fastest with `engine`, in place."""
    for module in list(classifier.modules()):
        for name, child in list(module.named_children()):
            if engine not in ("trt", "torch-trt"):
                continue
            if type(child) is LongTermDifference and child.options == LongTermOptions(stages=child.options.stages):
                setattr(module, name, InferenceLongTermDifference(child))
            elif type(child) is TemporalConv:
                setattr(module, name, ShiftedTemporalConv(child))
        if isinstance(module, TemporalConv):
            module.as_conv3d = engine == "onnx"


def can_fold_scaling(network: nn.Module) -> bool:
    """Whether the stems of `network` can take over the division by the pixels' standard deviation."""
    if not isinstance(network, SegmentNetwork) or type(network.stem) is not ConvBN:
        return False
    return network.short_term is None or network.short_term.options.operation == "difference"


class InferenceClassifier(nn.Module):
    """A `FrameClassifier` whose stems have taken over the division by the standard deviation, in place.

    `mean` and `std` are those of the pixels, (3, 1, 1), levels of 0 … 255."""

    def __init__(self, network: SegmentNetwork, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", mean, persistent=False)
        std = std.flatten()
        stems = [network.stem] if network.short_term is None else [network.stem, network.short_term.stem]
        for stem in stems:
            assert isinstance(stem, ConvBN)
            weight = stem.conv.weight
            weight.data /= std.repeat(weight.shape[1] // 3).view(1, -1, 1, 1)

    mean: Tensor

    def forward(self, frames: Tensor) -> Tensor:
        """uint8 frames (B, T, L, H, W, C) → float32 logits (B, num_classes)."""
        clip = frames.permute(0, 1, 2, 5, 3, 4)
        self.network.check(clip)
        scores = self.network.score(*self.inputs(clip.flatten(0, 1)))
        return scores.unflatten(0, (frames.shape[0], -1)).mean(1).float()

    def inputs(self, segments: Tensor) -> tuple[Tensor, Tensor | None]:
        """uint8 segments (N, L, C, H, W) as the network's `score` takes them."""
        network, dtype = self.network, self.mean.dtype
        motion = None if network.short_term is None else network.short_term(segments.to(dtype))
        return network.pictures(segments).to(dtype) - self.mean, motion


class InferenceLongTermDifference(nn.Module):
    """TDN's L-TDM (`LongTermDifference`), batch norms folded, without the differences that are zero: the last segment's
    forward and the first one's backward. Their gate is one value a channel, known beforehand.

    It gained nothing on a CPU (`benchmarks/rewriting.py`). TensorRT fuses it better, judged as below: 230 kernels for
    243, the gates' sum and product in the convolution before them.
    """

    def __init__(self, plain: LongTermDifference) -> None:
        super().__init__()
        assert plain.full_scale is not None
        assert plain.half_scale is not None
        self.num_segments = plain.num_segments
        self.squeeze, self.smooth, self.expand = plain.squeeze, plain.smooth, plain.expand
        self.full_scale, self.half_scale = plain.full_scale, plain.half_scale
        biases = []
        for layer in (self.full_scale.conv, self.half_scale.conv):  # their share of the mean of three
            assert layer.bias is not None
            layer.weight.data /= 3
            layer.bias.data /= 3
            biases.append(layer.bias.data)
        self.register_buffer(
            "still", torch.stack(biases).sum(0), persistent=False
        )  # what no difference at all comes to

    still: Tensor

    def directions(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What the gates are made of (`LongTermDifference.directions`)."""
        t = self.num_segments
        f = self.squeeze(x)
        s = self.smooth(f).unflatten(0, (-1, t))
        f = f.unflatten(0, (-1, t))  # (B, T, r, H, W)
        both = torch.cat((s[:, 1:] - f[:, :-1], s[:, :-1] - f[:, 1:]), 1).flatten(0, 1)  # (B·2(T−1), r, H, W)
        half = upsample_to(self.half_scale(F.avg_pool2d(both, 2)), both)
        y = torch.add(self.full_scale(both) + half, both, alpha=1 / 3).unflatten(0, (-1, 2 * (t - 1)))
        still = self.still.view(1, 1, -1, 1, 1).expand(y.shape[0], 1, *y.shape[2:])
        forward = torch.cat((y[:, : t - 1], still), 1).flatten(0, 1)
        backward = torch.cat((still, y[:, t - 1 :]), 1).flatten(0, 1)
        return forward, backward

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, c, H, W) to the same shape."""
        forward, backward = self.directions(x)
        gates = torch.sigmoid(self.expand(forward)) + torch.sigmoid(self.expand(backward))
        return x * (0.5 * gates + 0.5)  # = x + x⊙½(gate + gate), each gate σ − ½


class ShiftedTemporalConv(nn.Module):
    """`TemporalConv` as a weighted sum of the features and of their shifts by a segment either way.

    TensorRT makes one pointwise kernel of it, in int8 with the rounding that follows. Around `TemporalConv`'s 2-D form
    it copies twice, blind to the permutations being views; in 16 bits it pads the 3-D form's channels to twice as many.
    Judged by the layers of the built engine alone, never timed: TDN-ResNet50, 8 × 224 × 224, batch 1, TensorRT-RTX 1.7;
    kernels, and MB that they read and write, of the shifted / 2-D / 3-D form: fp16 230, 905 / 256, 985 / 234, 987;
    fp32 221, 1761 / 247, 1921 / 234, 1838; int8 279, 1420 / 305, 1500 / 305, 1563.
    """

    def __init__(self, plain: TemporalConv) -> None:
        super().__init__()
        self.num_segments = plain.num_segments
        self.weight = plain.weight

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, c, H, W) to the same shape."""
        x = x.unflatten(0, (-1, self.num_segments))  # (B, T, c, H, W)
        before, own, after = self.weight.view(-1, 3, 1, 1).unbind(1)
        edge = torch.zeros_like(x[:, :1])
        y = torch.cat((edge, x[:, :-1]), 1) * before + x * own + torch.cat((x[:, 1:], edge), 1) * after
        return y.flatten(0, 1)
