"""Small networks that engines are built from, and the frames that these take."""

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from engines import EngineSpec
from tdn_bench.models import FrameClassifier, create_model

SHAPE = (4, 5, 32, 32, 3)
TDN_SHAPE = (4, 5, 64, 64, 3)
SPEC = EngineSpec(SHAPE, max_batch=4)


class Motion(nn.Module):
    """A very small network: convolutions, batch norm, and a temporal difference that knows which way time runs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.motion = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 5)

    def forward(self, frames: Tensor) -> Tensor:
        x = frames.to(self.head.weight.dtype).flatten(0, 2).permute(0, 3, 1, 2) / 255
        x = self.norm(self.stem(x)).relu().unflatten(0, (frames.shape[0], -1))
        difference = (x[:, 1:] - x[:, :-1]).flatten(0, 1)
        x = self.motion(difference).relu().mean((2, 3)).unflatten(0, (frames.shape[0], -1))
        return self.head(x.mean(1)).float()

    def for_inference(self, engine: str) -> "Motion":
        self.stem, self.norm = fuse_conv_bn_eval(self.stem, self.norm), nn.Identity()
        return self


def small_tdn() -> nn.Module:
    """The real network, with batch norms that do something."""
    torch.manual_seed(0)
    network = FrameClassifier(create_model("tdn_resnet_small", num_classes=8, num_segments=4))
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return network


def random_frames(batch: int, shape: tuple[int, ...]) -> Tensor:
    """uint8 (batch, *shape), the same ones every time."""
    return torch.randint(0, 256, (batch, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))


def tdn_frames(batch: int) -> Tensor:
    return random_frames(batch, TDN_SHAPE)


class DependsOnValues(Motion):
    def forward(self, frames: Tensor) -> Tensor:
        return super().forward(frames) * (2 if frames.sum() > 3 else 1)
