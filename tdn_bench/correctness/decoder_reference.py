"""The pictures that a clip's plan asks for, made the slow and obvious way: what decoders are judged by.

It shares no code with the backends: plain PyAV decodes every frame from the first key frame on, NumPy sets it upright
pixel by pixel, Pillow crops and resizes it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from math import radians, tan
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.manifest import JPEG_FRAMES, Video
from pipelines.plan import ClipPlan

if TYPE_CHECKING:
    from av import VideoFrame, VideoStream
    from av.container import InputContainer
    from PIL.Image import Image

NEIGHBOURS = 2  # frames before and after that are looked at


@dataclass
class Truth:
    """The pictures that plans ask for, and their neighbours in time: for every plan a uint8 (size, size, C) by frame
    number, without the frames that no player shows. And what the frames' times say."""

    pictures: list[dict[int, np.ndarray]]
    variable_rate: bool = False


def reference_pictures(video: Video, plans: Sequence[ClipPlan], size: int) -> Truth:
    """Decode every frame of `video` in order; crop and resize to `size` pixels those that `plans` name, and those up to
    NEIGHBOURS frames beside them. A file that breaks off gives the frames before the break."""
    near = [{n + d for n in plan.frames.ravel().tolist() for d in range(-NEIGHBOURS, NEIGHBOURS + 1)} for plan in plans]
    truth = Truth([{} for _ in plans])
    times = []
    for number, (time_s, picture) in enumerate(_all_pictures(video)):
        times.append(time_s)
        for plan, numbers, pictures in zip(plans, near, truth.pictures, strict=True):
            if number in numbers:
                pictures[number] = _resized(picture(), plan, size)
    gaps = np.diff(times)
    # AVI keeps no times; what FFmpeg makes of them is no fact of the file
    truth.variable_rate = not video.path.endswith(".avi") and len(gaps) > 0 and gaps.max() > 1.5 * gaps.min()
    return truth


def _all_pictures(video: Video) -> Iterator[tuple[float, Callable[[], Image]]]:
    """Seconds, and what makes the upright picture, of every frame as a player shows them, up to one it cannot."""
    import av

    if video.file.codec == JPEG_FRAMES:
        files = sorted(Path(video.path).glob("*.jp*g"), key=lambda file: (len(file.name), file.name))
        yield from ((float(number), partial(_read_picture, file)) for number, file in enumerate(files))
        return
    with av.open(video.path, metadata_errors="replace") as container:
        stream = _shown_stream(container)
        stream.codec_context.thread_type = "NONE"
        packets = container.demux(stream)
        # What comes before the first key frame refers to frames that the file does not hold
        key = next((packet for packet in packets if packet.is_keyframe), None)
        size = None
        try:
            for packet in chain([key], packets) if key is not None else ():
                for frame in packet.decode():
                    size = size or (frame.width, frame.height)
                    yield frame.time or 0.0, partial(_upright, frame, size)
        except av.error.FFmpegError:
            return


def _shown_stream(container: InputContainer) -> VideoStream:
    """The video that a player shows: no cover picture; the default one, else that of the most bits a second."""
    from av.stream import Disposition

    videos = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    return max(videos, key=lambda s: (bool(s.disposition & Disposition.default), s.bit_rate or 0, -s.index))


def _read_picture(path: Path) -> Image:
    from PIL import Image

    return Image.open(path).convert("RGB")


def _upright(frame: VideoFrame, size: tuple[int, int]) -> Image:
    """A frame, stretched to the first frame's `size` (width, height), each pixel where the display matrix puts it."""
    from PIL import Image

    picture = Image.fromarray(frame.to_ndarray(format="rgb24")).resize(size, Image.Resampling.BILINEAR)
    pixels = np.asarray(picture)
    matrix: Any = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return picture
    turn = np.array(struct.unpack("9i", bytes(matrix)))[[0, 1, 3, 4]]
    (a, b, c, d) = np.where(np.abs(turn) < tan(radians(1)) * np.abs(turn).max(), 0, np.sign(turn)).tolist()
    if bool(a or d) == bool(b or c) or not a * d - b * c:
        return picture  # slanted, or no matrix at all: as it is
    rows, columns = np.indices(pixels.shape[:2])
    across, down = a * columns + c * rows, b * columns + d * rows
    out = np.empty((np.ptp(down) + 1, np.ptp(across) + 1, 3), np.uint8)
    out[down - down.min(), across - across.min()] = pixels
    return Image.fromarray(out)


def _resized(picture: Image, plan: ClipPlan, size: int) -> np.ndarray:
    from PIL import Image

    x, y, w, h = plan.crop
    small = picture.crop((x, y, x + w, y + h)).resize(plan.resized or (size, size), Image.Resampling.BILINEAR)
    out = np.asarray(small)
    if plan.flip:
        out = out[:, ::-1]
    (left, top), *_ = plan.windows
    return out[top : top + size, left : left + size]
