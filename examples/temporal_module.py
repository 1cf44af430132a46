"""A temporal module of your own in TSN and in TDN, trained for two steps: python examples/temporal_module.py

The module looks at how far each segment is from the mean of its video, and adds a learnt share of that. Nothing is
registered anywhere: a network is put together from parts, and the project's own loader and training step take it.
"""

import argparse
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

from pipelines import ClipLoader, ClipSpec, build_manifest, default_cache, flip_labels, make_dataset, read_dataset
from tdn_bench.models import FrameClassifier, SegmentNetwork
from tdn_bench.models.resnet import RESNET_SMALL, Bottleneck, Place
from tdn_bench.models.temporal_difference import ShortTermDifference
from tdn_bench.models.variants import RELEASED_SHORT
from tdn_bench.recipes import Optimization
from tdn_bench.training.step import TrainStep

SEGMENTS = 4


class DistanceFromMean(nn.Module):
    """Maps (N, c, H, W) to the same shape, N = B·T. Starts as the identity, so that trained weights fit around it."""

    def __init__(self, channels: int, num_segments: int) -> None:
        super().__init__()
        self.num_segments = num_segments
        self.share = nn.Parameter(torch.zeros(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        video = x.unflatten(0, (-1, self.num_segments))  # (B, T, c, H, W)
        distance = video - video.mean(1, keepdim=True)
        return x + self.share * distance.flatten(0, 1)


def block(at: Place) -> Bottleneck:
    """A bottleneck of Res4 and Res5 calls the module between its 1×1 and its 3×3 convolution."""
    return Bottleneck(at, temporal=DistanceFromMean(at.channels, SEGMENTS) if at.stage >= 4 else None)


def networks(num_classes: int) -> dict[str, SegmentNetwork]:
    """TSN with the module, and TDN's short-term differences with the module in the L-TDM's place."""
    short = ShortTermDifference(RESNET_SMALL, SEGMENTS, RELEASED_SHORT)
    return {
        "TSN + module": SegmentNetwork(RESNET_SMALL, num_classes, SEGMENTS, block),
        "S-TDM + module": SegmentNetwork(RESNET_SMALL, num_classes, SEGMENTS, block, short_term=short),
    }


def train(root: Path, steps: int) -> None:
    """Train each network for some steps on synthetic clips below `root`, and print the losses."""
    data = make_dataset(root, train=16, validation=8, progress=False)
    manifest = build_manifest(read_dataset("sthv2", data), cache=default_cache(data), progress=False)
    spec = ClipSpec(num_segments=SEGMENTS, size=64, crop_ratio=1.0, crop_scales=(1.0, 0.875))
    for name, network in networks(len(manifest.classes)).items():
        step = TrainStep(FrameClassifier(network), Optimization(batch_size=4), "fp32", torch.device("cpu"))
        losses = []
        with ClipLoader(manifest.split("train"), spec, 4, flipped_labels=flip_labels(manifest.classes)) as loader:
            for _, batch in zip(range(steps), loader.epoch(0), strict=False):
                losses.append(step(batch.frames, batch.labels, epoch=1).loss.item())
        print(f"{name}: losses {', '.join(f'{loss:.3f}' for loss in losses)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=2, help="training steps of each network")
    steps = parser.parse_args().steps
    with tempfile.TemporaryDirectory() as folder:
        train(Path(folder, "clips"), steps)


if __name__ == "__main__":
    main()
