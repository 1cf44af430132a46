"""Small networks that `visualize` looks at: one whose heat is known, and what their checkpoints say."""

from pathlib import Path

import torch
from torch import nn

from tdn_bench.checkpoint import save_checkpoint
from tdn_bench.models import FrameClassifier, create_model
from tdn_bench.models.resnet import ConvBN

CLASSES = ("away", "closer", "down", "left", "right", "up", "<script>alert(1)</script>")
PIXELS, SEGMENTS = 64, 4


def planted(variant: str = "tsn") -> FrameClassifier:
    """A network whose every layer hands on the brightness beneath it (a 3×3 convolution: the sum around), and whose
    first class is that brightness: what is bright is the evidence, and nothing else is."""
    network = create_model(f"{variant}_resnet_small", num_classes=len(CLASSES), num_segments=SEGMENTS).eval()
    for module in network.modules():
        if isinstance(module, ConvBN):
            nn.init.zeros_(module.conv.weight)
            with torch.no_grad():
                if module.conv.kernel_size == (3, 3):
                    module.conv.weight[0, 0] = 1
                else:
                    module.conv.weight[0, 0, module.conv.kernel_size[0] // 2, module.conv.kernel_size[1] // 2] = 1
    nn.init.zeros_(network.classifier.weight)
    with torch.no_grad():
        network.classifier.weight[0, 0] = 1
    return FrameClassifier(network).eval()


def save(classifier: FrameClassifier, variant: str, path: Path, **notes: object) -> Path:
    said = {"model": f"{variant}_resnet_small", "num_segments": SEGMENTS, "size": PIXELS, "crop_ratio": 1.0}
    save_checkpoint(classifier.network, path, said | {"classes": list(CLASSES)} | notes)
    return path
