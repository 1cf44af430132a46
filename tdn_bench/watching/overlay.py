"""A video of what was watched, with the label that was known as each frame came."""

from __future__ import annotations

import queue
import threading
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.container import reason
from pipelines.errors import printable
from pipelines.files import whole_file
from tdn_bench.errors import UserError

if TYPE_CHECKING:
    from av import VideoFrame

# By suffix: FFmpeg's container, the encoders to try, and their options.
FORMATS = {
    ".mp4": ("mp4", ("libx264", "mpeg4")),
    ".mkv": ("matroska", ("libx264", "mpeg4")),
    ".webm": ("webm", ("libvpx-vp9", "libvpx")),
}
OPTIONS = {
    "libx264": {"preset": "ultrafast", "crf": "23"},
    "mpeg4": {"q": "4"},
    "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8", "crf": "32", "b": "0"},
    "libvpx": {"deadline": "realtime", "cpu-used": "8", "b": "2M"},
}
MOST_PIXELS = 1280  # of the longer side: encoding is to cost less than watching
WAITING = 8  # frames to be written; more are dropped
MILLISECOND = Fraction(1, 1000)


def check_overlay(path: Path | None) -> None:
    """Raise UserError for a suffix that no container of ours has."""
    if path is not None and path.suffix.lower() not in FORMATS:
        raise UserError(f"--overlay {printable(str(path))}: give a name that ends in {', '.join(FORMATS)}")


@dataclass(frozen=True)
class _Item:
    frame: VideoFrame
    rotation: int  # degrees counter-clockwise, once left and right are swapped where it is mirrored
    mirrored: bool
    time_s: float
    text: str


class Overlay:
    """Writes in a thread of its own; a frame that comes while too many wait is dropped, or, with `lossless`, waited
    for. The file takes its name as it is closed, whole, and only if there was a frame."""

    def __init__(self, path: Path, fps: float, *, lossless: bool) -> None:
        self.text = ""  # what the next frames bear
        self.written = self.dropped = 0  # frames
        self._path, self._fps, self._lossless = path, fps, lossless
        self._queue: queue.Queue[_Item | None] = queue.Queue(WAITING)
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._work, name="overlay", daemon=True)
        self._thread.start()

    def put(self, frame: VideoFrame, rotation: int, mirrored: bool, time_s: float) -> None:
        """A frame at `time_s` from the first on; `rotation` and `mirrored` as in `pipelines.video.VideoFile`."""
        if self._error is not None:
            return
        try:
            self._queue.put(_Item(frame, rotation, mirrored, time_s, self.text), block=self._lossless)
        except queue.Full:
            self.dropped += 1

    def close(self) -> None:
        """Write what waits, and the end of the file. Raises OSError or UserError where that went wrong."""
        import av

        self._queue.put(None)
        self._thread.join()
        if isinstance(self._error, av.error.FFmpegError):
            raise UserError(f"--overlay {printable(str(self._path))}: {printable(reason(self._error))}")
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        try:
            if (first := self._queue.get()) is not None:
                with whole_file(self._path) as temporary:
                    self._write(temporary, first)
        except Exception as e:  # noqa: BLE001  # `close` raises it
            self._error = e
            while self._queue.get() is not None:  # so that nobody waits for room
                pass

    def _write(self, path: Path, item: _Item | None) -> None:
        import av

        name, encoders = FORMATS[self._path.suffix.lower()]
        encoder = next((e for e in encoders if e in av.codecs_available), encoders[-1])
        last = -1
        with av.open(str(path), "w", format=name) as container:
            stream: Any = container.add_stream(encoder, rate=round(self._fps) or 1, options=OPTIONS[encoder])
            stream.pix_fmt = "yuv420p"
            stream.codec_context.time_base = MILLISECOND
            while item is not None:
                picture = item.frame.to_ndarray(format="rgb24")
                picture = np.rot90(picture[:, ::-1] if item.mirrored else picture, item.rotation // 90)
                if last < 0:
                    stream.width, stream.height = _even_size(picture.shape[1], picture.shape[0])
                last = max(last + 1, round(1000 * item.time_s))
                captioned = _captioned(picture, (stream.width, stream.height), item.text)
                frame = av.VideoFrame.from_ndarray(captioned, format="rgb24")
                frame.pts, frame.time_base = last, MILLISECOND
                container.mux(stream.encode(frame))
                self.written += 1
                item = self._queue.get()
            container.mux(stream.encode(None))


def _even_size(width: int, height: int) -> tuple[int, int]:
    """The size of the overlay's pictures: at most `MOST_PIXELS`, and even, as 4:2:0 has to be."""
    share = min(1.0, MOST_PIXELS / max(width, height))
    across, down = (max(2, 2 * round(share * side / 2)) for side in (width, height))
    return across, down


def _captioned(picture: np.ndarray, size: tuple[int, int], text: str) -> np.ndarray:
    """uint8 (H, W, 3), black at two sides where the shape is another, the text at the lower edge."""
    from PIL import Image, ImageDraw, ImageFont, ImageOps

    image = Image.fromarray(np.ascontiguousarray(picture))
    if image.size != size:
        image = ImageOps.pad(image, size)
    if text:
        draw = ImageDraw.Draw(image, "RGBA")
        font = ImageFont.load_default(max(10, size[1] // 20))
        _, top, _, bottom = draw.multiline_textbbox((0, 0), text, font=font)
        at = size[1] - bottom - 6
        draw.rectangle((0, at + top - 4, *size), fill=(0, 0, 0, 160))
        draw.multiline_text((6, at), text, fill="white", font=font)
    return np.asarray(image)
