"""Networks that tests share."""

import torch
from torch import Tensor, nn

from tdn_bench.models import FrameClassifier, create_model
from tdn_bench.models.temporal_difference import TemporalConv
from tdn_bench.models.variants import VARIANTS


def make(variant: str, num_segments: int = 4, backbone: str = "resnet_small") -> FrameClassifier:
    """A network every part of which matters to its logits."""
    torch.manual_seed(0)
    network = create_model(f"{variant}_{backbone}", num_classes=7, num_segments=num_segments).eval()
    for module in network.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            nn.init.uniform_(module.running_mean, -0.3, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.2 if backbone == "resnet101" else 1.5)  # deeper: else they explode
            nn.init.uniform_(module.bias, -0.3, 0.3)
        if isinstance(module, TemporalConv):
            nn.init.normal_(module.weight, std=3**-0.5)
    return FrameClassifier(network).eval()


def make_frames(variant: str, num_segments: int = 4, batch: int = 2, height: int = 64, width: int = 70) -> Tensor:
    frames = VARIANTS[variant].frames_per_segment
    shape = (batch, num_segments, frames, height, width, 3)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
