"""The backend for machines without a GPU: PyAV decodes, FFmpeg's scaler resizes, one clip per thread.

A clip is cheap because of what is left out: see `pipelines.decoding`; and the colours of pixels that the crop drops.
"""

from __future__ import annotations

import os
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipelines.clip import COLOURS, ClipSpec
from pipelines.container import UnreadableVideo, open_video, reason
from pipelines.decoding import decode_frames
from pipelines.errors import BadClip, DataError
from pipelines.frame_index import FrameIndex
from pipelines.jpeg import frame_files, read_jpeg
from pipelines.ledger import IDLE, OFF, Lane, Ledger
from pipelines.picture import check_file, coded_crop, coded_size, in_order, upright, views
from pipelines.plan import ClipPlan, plan_evaluation
from pipelines.sampling import FRAMES_PER_SEGMENT
from pipelines.scaling import Scaler
from pipelines.video import JPEG_FRAMES, UNKNOWN_LABEL, Sample, Video, VideoFile

if TYPE_CHECKING:
    from av import VideoFrame


READ_AHEAD_BYTES = 2**24  # of a larger file only what is wanted is read, and its reading is booked as demultiplexing

_reading = threading.local()  # each thread's buffer


def read_ahead(path: str) -> None:
    """Bring a file into the page cache, so that demultiplexing waits for no disk. Raises OSError."""
    if not hasattr(_reading, "buffer"):
        _reading.buffer = bytearray(2**18)
    with open(path, "rb", buffering=0) as f:
        if os.fstat(f.fileno()).st_size > READ_AHEAD_BYTES:
            return
        while f.readinto(_reading.buffer):
            pass


def decode_video(plan: ClipPlan, take: Callable[[int, VideoFrame], None], lane: Lane) -> None:
    """Call `take(number, frame)` once for each distinct frame of the plan, as it is decoded; book the stages in `lane`.

    Raises BadClip where the file does not hold what the manifest promised, or cannot be decoded.
    """
    import av

    video = plan.video
    try:
        index = FrameIndex.unpack(video.file.index)
        read_ahead(video.path)
        lane.lap("read")
        for number, frame in decode_frames(video.path, index, plan.wanted, lane.lap):
            lane.lap("decode")
            if frame.is_corrupt:
                raise BadClip(video.id, video.path, f"frame {number} is damaged")
            take(number, frame)
            lane.lap("augment")
    except BadClip:
        raise
    except (UnreadableVideo, DataError) as e:
        raise BadClip(video.id, video.path, str(e)) from e
    except (av.error.FFmpegError, OSError) as e:
        raise BadClip(video.id, video.path, f"cannot be decoded: {reason(e)}") from e


def decode_clip(plan: ClipPlan, spec: ClipSpec, lane: Lane) -> Tensor:
    """uint8 (views·T, L, size, size, C), see `pipelines.picture.views`. Raises BadClip."""
    pictures = (_jpeg_pictures if plan.video.file.codec == JPEG_FRAMES else _video_pictures)(plan, spec, lane)
    clip = views(pictures, plan, spec)
    lane.lap("augment")
    return clip


def _video_pictures(plan: ClipPlan, spec: ClipSpec, lane: Lane) -> Tensor:
    """uint8 (clips·T·L, H, W, C), the plan's frames in its order, upright."""
    file, places = plan.video.file, defaultdict[int, list[int]](list)
    for place, number in enumerate(plan.frames.ravel().tolist()):
        places[number].append(place)
    width, height = size = coded_size(plan, spec.size)
    out = np.empty((plan.frames.size, height, width, 3), np.uint8)
    coded = (file.height, file.width) if file.rotation % 180 else (file.width, file.height)
    # Of a picture that need not be turned the scaler swaps left and right, faster than torch.
    turned = file.rotation != 0
    scaler = Scaler(coded_crop(plan), size, coded, mirror=not turned and file.mirrored != plan.flip)

    def take(number: int, frame: VideoFrame) -> None:
        if (frame.width, frame.height) != coded:
            _check_header(plan, number, frame, coded)
        first, *others = places[number]
        out[first] = scaler(frame)
        for place in others:
            out[place] = out[first]

    decode_video(plan, take, lane)
    pictures = torch.from_numpy(out)
    return upright(pictures, plan) if turned else pictures


def _check_header(plan: ClipPlan, number: int, frame: VideoFrame, coded: tuple[int, int]) -> None:
    """Raise BadClip for a frame of another size where the whole file is of that size, and so not the scanned one: else
    a picture that changes its size is scaled, as players do."""
    video = plan.video
    with open_video(video.path) as (_, stream):
        header = stream.codec_context.width, stream.codec_context.height
    if header == (frame.width, frame.height):
        sizes = f"{frame.width}×{frame.height}, not {coded[0]}×{coded[1]}"
        raise BadClip(video.id, video.path, f"changed since the scan: frame {number} is {sizes}")


def _jpeg_pictures(plan: ClipPlan, spec: ClipSpec, lane: Lane) -> Tensor:
    """uint8 (clips·T·L, H, W, C), the plan's frames in its order, flipped where it says so."""
    import simplejpeg

    video = plan.video
    wanted = plan.wanted
    rgb = torch.empty(len(wanted), video.file.height, video.file.width, 3, dtype=torch.uint8)
    for i, data in enumerate(read_frames(plan, lane)):
        try:
            picture = simplejpeg.decode_jpeg(data, fastdct=True, fastupsample=False, strict=True)
        except ValueError as e:
            raise BadClip(video.id, video.path, f"frame {wanted[i]} cannot be decoded: {e}") from e
        if picture.shape != rgb.shape[1:]:
            h, w, _ = picture.shape
            reason = f"frame {wanted[i]} is {w}×{h}, not {video.file.width}×{video.file.height}"
            raise BadClip(video.id, video.path, reason)
        rgb[i] = torch.from_numpy(picture)
        lane.lap("decode")
    out = _resized(rgb, plan, spec)
    lane.lap("augment")
    return out


def _resized(rgb: Tensor, plan: ClipPlan, spec: ClipSpec) -> Tensor:
    """uint8 (clips·T·L, H, W, C), the plan's frames in its order, from its distinct ones, whole, uint8 (F, H, W, C)."""
    x, y, w, h = coded_crop(plan)
    width, height = coded_size(plan, spec.size)
    region = rgb[:, y : y + h, x : x + w].permute(0, 3, 1, 2)  # channels-last as it lies in memory
    out = F.interpolate(region, (height, width), mode="bilinear", antialias=True).permute(0, 2, 3, 1)
    return in_order(upright(out, plan), plan)


def clip_of_frames(frames: Tensor, spec: ClipSpec, name: str = "frames") -> Tensor:
    """The clip of a video that is decoded already, all its frames upright RGB, uint8 (N, H, W, C): uint8 (views·T, L,
    size, size, C), as of a folder of JPEG frames of that name. Raises BadClip for other frames, and for too few."""
    if frames.dtype != torch.uint8 or frames.ndim != 4 or frames.shape[3] != COLOURS or 0 in frames.shape:
        raise BadClip(name, name, f"frames are {frames.dtype} {tuple(frames.shape)}: give uint8 (N, H, W, 3)")
    count, height, width, _ = frames.shape
    if count < FRAMES_PER_SEGMENT:
        raise BadClip(name, name, f"{count} frames, fewer than a segment's {FRAMES_PER_SEGMENT}")
    file = VideoFile(num_frames=count, width=width, height=height)
    plan = plan_evaluation(Video(Sample(name, name, UNKNOWN_LABEL, "test"), file), spec)
    return views(_resized(frames.cpu()[torch.from_numpy(plan.wanted)], plan, spec), plan, spec)


def read_frames(plan: ClipPlan, lane: Lane) -> Iterator[bytes]:
    """The JPEG files of the plan's distinct frames, ascending. Raises BadClip."""
    video = plan.video
    try:
        files = frame_files(video.path)
        if len(files) != video.file.num_frames:
            reason = f"holds {len(files)} frames, {video.file.num_frames} at the scan"
            raise BadClip(video.id, video.path, reason)
        lane.lap("open")
        for number in plan.wanted:
            data = read_jpeg(files[number])
            lane.lap("read")
            yield data
    except ValueError as e:
        raise BadClip(video.id, video.path, str(e)) from e
    except OSError as e:
        raise BadClip(video.id, video.path, f"cannot be read: {e.strerror}") from e


class PyAVDecoder:
    """Decodes a batch of plans on the CPU with `workers` threads (FFmpeg, libjpeg-turbo and torch release the GIL).

    `verify` compares each file's sha256 with the scan's first.
    """

    name = "pyav"
    concurrent = True

    def __init__(self, spec: ClipSpec, workers: int, verify: bool = False, ledger: Ledger = OFF) -> None:
        self.spec, self.verify, self.ledger = spec, verify, ledger
        self.device = torch.device("cpu")
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")

    def __call__(self, plans: Sequence[ClipPlan]) -> list[Tensor | BadClip]:
        """Return, in the plans' order, uint8 (views·T, L, H, W, C) or why there is none."""
        clips = list(self._pool.map(self._decode_one, plans))
        self.ledger.lane().lap(IDLE)
        return clips

    def _decode_one(self, plan: ClipPlan) -> Tensor | BadClip:
        lane = self.ledger.lane()
        lane.begin(plan.video.id)
        try:
            check_file(plan, self.verify)
            # Not reading, unless it verifies: where cores are short, a thread that has just passed on a clip waits here
            lane.lap("read" if self.verify else "open")
            return decode_clip(plan, self.spec, lane)
        except BadClip as bad:
            return bad
        finally:
            lane.end()

    def close(self) -> None:
        """End the threads; what has not begun is not decoded."""
        self._pool.shutdown(cancel_futures=True)
