"""The backend for machines without a GPU: PyAV decodes, torch resizes, one clip per thread."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipelines.clip import ClipSpec, Stages
from pipelines.errors import BadClip
from pipelines.plan import ClipPlan


def decode_frames(plan: ClipPlan, stages: Stages) -> Tensor:
    """Decode the plan's frames once each: uint8 (F, H, W, C) at the source's size, in ascending order.

    Raises BadClip where the file does not hold what the manifest promised.
    """
    import av
    from av.video.reformatter import VideoReformatter

    wanted = np.unique(plan.frames)
    video = plan.video
    rgb = torch.empty(len(wanted), video.file.height, video.file.width, 3, dtype=torch.uint8)
    to_rgb = VideoReformatter()  # kept for the clip: frame.to_ndarray() makes one a frame, at twice the cost
    taken = index = 0
    clock = time.perf_counter()
    try:
        with av.open(video.path, metadata_errors="replace") as container:
            if not container.streams.video or container.streams.video[0].codec_context is None:
                raise BadClip(video.id, video.path, "holds no video that can be decoded")
            stream = container.streams.video[0]
            stream.codec_context.thread_type = "NONE"  # clips run in parallel, frames of one do not
            for packet in container.demux(stream):
                now = time.perf_counter()
                stages.read_s += now - clock
                for frame in packet.decode():
                    if taken < len(wanted) and index == wanted[taken]:
                        if frame.is_corrupt or packet.is_corrupt:  # MJPEG passes on half a picture unmarked
                            raise BadClip(video.id, video.path, f"frame {index} is damaged")
                        picture = to_rgb.reformat(frame, format="rgb24").to_ndarray()
                        if picture.shape != rgb.shape[1:]:
                            sizes = f"{_size(picture)}, not {_size(rgb[0])}"
                            raise BadClip(video.id, video.path, f"frame {index} is {sizes}")
                        rgb[taken] = torch.from_numpy(picture)
                        taken += 1
                    index += 1
                clock = time.perf_counter()
                stages.decode_s += clock - now
                if taken == len(wanted):
                    break
    except (av.error.FFmpegError, OSError) as e:
        reason = str(getattr(e, "strerror", None) or e).splitlines()[0]
        raise BadClip(video.id, video.path, f"cannot be decoded: {reason}") from e
    if taken < len(wanted):
        raise BadClip(video.id, video.path, f"ends after {index} of {video.file.num_frames} frames")
    return rgb


def _size(picture: np.ndarray | Tensor) -> str:
    return f"{picture.shape[1]}×{picture.shape[0]}"


def crop_resize(rgb: Tensor, plan: ClipPlan, size: int) -> Tensor:
    """Crop, resize bilinearly (antialiased) and flip: uint8 (F, H, W, C) → (F, size, size, C)."""
    x, y, w, h = plan.crop
    region = rgb[:, y : y + h, x : x + w].permute(0, 3, 1, 2)  # channels-last as it lies in memory
    out = F.interpolate(region, (size, size), mode="bilinear", antialias=True)
    if plan.flip:
        out = out.flip(3)
    return out.permute(0, 2, 3, 1)


class PyAVDecoder:
    """Decodes a batch of plans with `workers` threads (PyAV and torch both release the GIL)."""

    name = "pyav"

    def __init__(self, spec: ClipSpec, workers: int) -> None:
        self.spec = spec
        self.device = torch.device("cpu")
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")

    def __call__(self, plans: Sequence[ClipPlan]) -> tuple[list[Tensor | BadClip], Stages]:
        """Return, in the plans' order, uint8 (T, L, H, W, C) or why there is none; and the work done."""
        total = Stages()
        clips: list[Tensor | BadClip] = []
        for clip, stages in self._pool.map(self._decode_one, plans):
            clips.append(clip)
            total.add(stages)
        return clips, total

    def _decode_one(self, plan: ClipPlan) -> tuple[Tensor | BadClip, Stages]:
        stages = Stages()
        try:
            rgb = decode_frames(plan, stages)
        except BadClip as bad:
            return bad, stages
        clock = time.perf_counter()
        small = crop_resize(rgb, plan, self.spec.size)
        position = np.searchsorted(np.unique(plan.frames), plan.frames.ravel())
        clip = small[torch.from_numpy(position)].view(self.spec.shape)
        stages.augment_s += time.perf_counter() - clock
        return clip, stages

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)
