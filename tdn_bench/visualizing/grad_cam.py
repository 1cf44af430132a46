"""Grad-CAM: where in a clip's pictures the evidence for a class lies (Selvaraju et al., arXiv 1610.02391).

Shapes: T segments, L frames in a segment, M maps of a clip, h, w cells of a map, H, W pixels.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tdn_bench.models import FrameClassifier, SegmentNetwork

Stage = Literal["res2", "res3", "res4", "res5"]
STAGES: tuple[Stage, ...] = get_args(Stage)
STRIDES: dict[Stage, int] = {"res2": 4, "res3": 8, "res4": 16, "res5": 32}  # pixels from cell to cell; I3D's res5: 16
FEWEST_CELLS = 7  # on a side: Res5 of 224 pixels


def default_stage(size: int) -> Stage:
    """The last stage whose maps of `size` × `size` pixels have at least 7 × 7 cells: Res5 of 224 pixels, Res3 of 64."""
    return [stage for stage, stride in STRIDES.items() if -(-size // stride) >= FEWEST_CELLS][-1]


def grad_cam(classifier: FrameClassifier, frames: Tensor, target: int, stage: Stage) -> Tensor:
    """The evidence for class `target` in one clip, float32 (M, h, w), nothing below 0, at the resolution of `stage`.

    relu(Σ αₖ Aᵏ), αₖ the mean over a map's cells of the gradient of the class's logit by Aᵏ (Eqs. 1 and 2), for each
    of the M maps by itself. Aᵏ is what the stage hands on: where the S-TDM's motion joins after it, the sum. `frames`:
    uint8 (1, T, L, H, W, C); the classifier is in eval mode, in float32.
    """
    from captum.attr import LayerGradCam  # takes seconds

    network = classifier.network
    assert isinstance(network, SegmentNetwork)
    assert not network.training
    assert classifier.mean.dtype == torch.float32
    layer: nn.Module = getattr(network, stage)
    fused = network.short_term is not None and stage != STAGES[-1]
    if fused:
        layer = getattr(network, STAGES[STAGES.index(stage) + 1])
    method = LayerGradCam(classifier, layer)
    heat = method.attribute(frames, target, attribute_to_layer_input=fused, relu_attributions=True)
    return heat.detach()[:, 0].float()


def middle_frames(network: SegmentNetwork, maps: int, frames_per_segment: int) -> np.ndarray:
    """int64 (maps,): which of the clip's T·L frames, counted through, each map of a clip belongs to.

    A segment's middle frame; with all frames through the backbone, every one; after I3D's pooling over time, with
    stride 2, every other one.
    """
    frames = network.num_segments * frames_per_segment
    if network.all_frames:
        assert maps == frames
        return np.arange(frames)
    pooled = 1 if maps == network.num_segments else 2
    assert maps == -(-network.num_segments // pooled)
    return np.arange(maps) * pooled * frames_per_segment + frames_per_segment // 2


def cell_pixels(size: int, cells: int) -> int:
    """Pixels from one cell to the next: the stride, a power of two, that makes `cells` of `size` pixels."""
    return next(stride for stride in (1 << k for k in range(16)) if -(-size // stride) == cells)


def to_pixels(maps: Tensor, size: int) -> Tensor:
    """Maps (M, h, w) over the picture, (M, size, size): linear between the cells, and beyond the outermost ones as
    there.

    Cell i is centred on pixel stride·i: that is what a ResNet's strided layers read, and half a cell from where a plain
    resizing would put it.
    """
    axes = []
    for cells in maps.shape[1:]:
        place = (torch.arange(size, device=maps.device) / cell_pixels(size, cells)).clamp(max=cells - 1)
        axes.append(2 * place / max(cells - 1, 1) - 1)  # of the whole width from the first cell to the last
    grid = torch.stack(torch.meshgrid(axes[1], axes[0], indexing="xy"), -1).to(maps.dtype)
    return F.grid_sample(maps[None], grid[None], mode="bilinear", padding_mode="border", align_corners=True)[0]
