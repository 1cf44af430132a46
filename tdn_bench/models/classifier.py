"""A network with its normalisation inside: frames as the pipeline hands them over in, logits out."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tdn_bench.models.inference import InferenceClassifier, can_fold_scaling, rewrite_modules
from tdn_bench.models.network import SegmentNetwork
from tdn_bench.models.resnet import ConvBN
from tdn_bench.models.temporal_modules import SpatioTemporalMotion

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


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
        return self.network(self.normalised(frames.permute(0, 1, 2, 5, 3, 4))).float()

    def normalised(self, pixels: Tensor) -> Tensor:
        """Pixels (…, C, H, W), levels of 0 … 255, as the network takes them."""
        return (pixels.to(self.mean.dtype) - self.mean).div_(self.std)

    def inputs(self, segments: Tensor) -> tuple[Tensor, Tensor | None]:
        """uint8 segments (N, L, C, H, W) as the network's `score` takes them."""
        assert isinstance(self.network, SegmentNetwork)
        return self.network.inputs(self.normalised(segments))

    def fold_batch_norm(self) -> FrameClassifier:
        """Fold every batch norm into the convolution before it, in place (inference only)."""
        for module in list(self.modules()):
            if isinstance(module, (ConvBN, SpatioTemporalMotion)):
                module.fold()
        return self

    def for_inference(self, engine: str) -> nn.Module:
        """This network, rewritten in place for inference by `engine` (a name of `engines.ENGINES`): the same logits to
        rounding, less work."""
        self.fold_batch_norm()
        rewrite_modules(self, engine)
        return InferenceClassifier(self.network, self.mean, self.std) if can_fold_scaling(self.network) else self
