"""What all backends share between decoded pictures and clips: checks before, turning and gathering after."""

from __future__ import annotations

import os

import numpy as np
import torch
from torch import Tensor

from pipelines.clip import ClipSpec
from pipelines.errors import BadClip
from pipelines.plan import ClipPlan
from pipelines.scaling import Box
from pipelines.scan import checksum
from pipelines.video import JPEG_FRAMES


def check_file(plan: ClipPlan, verify: bool) -> None:
    """Raise BadClip where the file is not the one that was scanned: by its size, or by its content (`verify`)."""
    video = plan.video
    try:
        scanned = video.file.sha256 and video.file.codec != JPEG_FRAMES
        if scanned and (size := os.stat(video.path).st_size) != video.file.bytes:
            raise BadClip(video.id, video.path, f"changed since the scan: {size} bytes, not {video.file.bytes}")
        if verify and checksum(video.path) != video.file.sha256:
            raise BadClip(video.id, video.path, "changed since the scan: another sha256")
    except OSError as e:
        raise BadClip(video.id, video.path, f"cannot be read: {e.strerror}") from e


def coded_crop(plan: ClipPlan) -> Box:
    """The plan's crop in the picture as it is coded, before it is mirrored and turned upright."""
    x, y, w, h = plan.crop
    file = plan.video.file
    x, y, w, h = {
        0: (x, y, w, h),
        90: (file.height - y - h, x, h, w),
        180: (file.width - x - w, file.height - y - h, w, h),
        270: (y, file.width - x - w, h, w),
    }[file.rotation]
    if file.mirrored:
        x = (file.height if file.rotation % 180 else file.width) - x - w
    return x, y, w, h


def coded_size(plan: ClipPlan, size: int) -> tuple[int, int]:
    """(width, height) that `coded_crop` is resized to, before it is set upright."""
    width, height = plan.resized or (size, size)
    return (height, width) if plan.video.file.rotation % 180 else (width, height)


def upright(pictures: Tensor, plan: ClipPlan) -> Tensor:
    """Set pictures as they are coded, uint8 (F, H, W, C), upright, and flip them where the plan says so."""
    if plan.video.file.mirrored:
        pictures = pictures.flip(2)
    if plan.video.file.rotation:
        pictures = pictures.rot90(plan.video.file.rotation // 90, (1, 2))
    return pictures.flip(2) if plan.flip else pictures


def in_order(pictures: Tensor, plan: ClipPlan) -> Tensor:
    """Pictures of the plan's distinct frames, ascending, as the plan has its frames: in its order, some repeated."""
    order = np.searchsorted(plan.wanted, plan.frames.ravel())
    if len(order) == len(pictures) and (order == np.arange(len(order))).all():
        return pictures
    return pictures[torch.from_numpy(order).to(pictures.device)]


def views(pictures: Tensor, plan: ClipPlan, spec: ClipSpec) -> Tensor:
    """The views of the plan's frames, upright uint8 (clips·T·L, H, W, C) in its order: uint8 (views·T, L, size, size,
    C), clip by clip, crop by crop."""
    crops = [pictures[:, y : y + spec.size, x : x + spec.size] for x, y in plan.windows]
    by_clip = [crop.unflatten(0, (-1, *spec.shape[:2])) for crop in crops]  # each (clips, T, L, size, size, C)
    together = torch.stack(by_clip, 1) if len(by_clip) > 1 else by_clip[0]
    return together.reshape(-1, *spec.shape[1:])
