"""Crop, resize and RGB by FFmpeg's scaler."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from av import VideoFrame

Box = tuple[int, int, int, int]  # x, y, width, height
PLANAR = frozenset({"yuv420p", "yuvj420p"})
PLANAR_SHRINKS = 1.2  # at most; larger pictures take so long to decode that exactness costs little
_CHROMA_AT, _PIXEL = 128, 256  # a chroma sample lies between two pixels, in 1/256 of one


class Scaler:
    """Crops a box of the coded picture, resizes it (bilinear, antialiased) to `size` (width, height), converts to RGB;
    `mirror` swaps left and right then.

    8-bit 4:2:0 that is not shrunk by much is resized plane by plane and then converted, by the scaler's vector code:
    three to four times as fast as its exact way, which all else goes, and with filmed video on average about a level
    from it. A picture of another size than `coded` (width, height) is taken as a player shows it, scaled to that size.
    Raises av.error.FFmpegError for colours that FFmpeg cannot convert.
    """

    def __init__(self, box: Box, size: tuple[int, int], coded: tuple[int, int], *, mirror: bool = False) -> None:
        from av.video.reformatter import VideoReformatter

        self._box, self._size, self._coded, self._mirror = box, size, coded, mirror
        self._to_rgb = VideoReformatter()
        self._graphs: dict[tuple[Any, ...], Any] = {}  # one a kind of frame: mostly one

    def __call__(self, frame: VideoFrame) -> np.ndarray:
        """uint8 (H, W, C), good until the next call."""
        kind = (frame.width, frame.height, frame.format.name, frame.colorspace, frame.color_range)
        if kind not in self._graphs:
            self._graphs[kind] = self._graph(frame)
        graph = self._graphs[kind]
        graph.push(frame)
        small = graph.pull()
        if small.format.name != "rgb24":
            luma = np.frombuffer(memoryview(small.planes[0]), np.uint8)
            luma += luma < 255  # the quick conversion rounds down, by one level and more
            small = self._to_rgb.reformat(small, format="rgb24", threads=1)
        plane = small.planes[0]
        lines = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)
        return lines[: small.height, : 3 * small.width].reshape(small.height, small.width, 3)

    def _scaled_box(self, frame: VideoFrame) -> Box:
        """The box in a frame that may be of another size."""
        if (frame.width, frame.height) == self._coded:
            return self._box
        across, down = frame.width / self._coded[0], frame.height / self._coded[1]
        x, y, w, h = self._box
        left, top = round(x * across), round(y * down)
        right, bottom = round((x + w) * across), round((y + h) * down)
        left, top = min(left, frame.width - 1), min(top, frame.height - 1)
        return left, top, max(right - left, 1), max(bottom - top, 1)

    def _keeps_chroma(self, width: int, height: int) -> bool:
        """Whether a part of that size loses little where its chroma is resized to half the final size; and whether the
        quick conversion takes that."""
        return all(
            most % 2 == 0 and size <= PLANAR_SHRINKS * most
            for size, most in zip((width, height), self._size, strict=True)
        )

    def _graph(self, frame: VideoFrame) -> Any:
        import av

        x, y, w, h = self._scaled_box(frame)
        width, height = self._size
        crop = ("crop", f"{w}:{h}:{x}:{y}:exact=1")
        resize = f"{width}:{height}:flags=bilinear"
        # Where nothing is resized, planes would be the decoder's own, to which later frames refer.
        if frame.format.name in PLANAR and self._keeps_chroma(w, h) and (w, h) != self._size:
            # At odd places the crop's first chroma sample lies half a sample outside of it.
            left, top = (_CHROMA_AT - _PIXEL * (at % 2) for at in (x, y))
            nodes = [crop, ("scale", f"{resize}:in_h_chr_pos={left}:in_v_chr_pos={top}"), ("format", frame.format.name)]
        else:
            nodes = [*_whole_chroma(frame, (x, y, w, h)), ("scale", f"{resize}+full_chroma_int"), ("format", "rgb24")]
        graph = av.filter.Graph()
        graph.threads = 1  # clips run in parallel
        source = graph.add(  # with its colours: else the scaler turns them into those that it takes for granted
            "buffer",
            f"video_size={frame.width}x{frame.height}:pix_fmt={frame.format.name}:time_base=1/1000"
            f":colorspace={frame.colorspace:d}:range={frame.color_range:d}",
        )
        ends = [("hflip", "")] * self._mirror + [("buffersink", "")]
        made = [graph.add(name, options) for name, options in (*nodes, *ends)]
        graph.link_nodes(source, *made).configure()
        return graph


def _whole_chroma(frame: VideoFrame, box: Box) -> list[tuple[str, str]]:
    """Filters that cut a box exactly. Chroma of half the width or height can be cut at even places only; elsewhere it
    would be moved by a pixel."""
    x, y, w, h = box
    if not any(at % 2 for at in box) or frame.format.chroma_width(2) == 2:
        return [("crop", f"{w}:{h}:{x}:{y}:exact=1")]
    left, top = x - x % 2, y - y % 2
    even_w, even_h = (
        min(size + size % 2, most)
        for size, most in ((x + w - left, frame.width - left), (y + h - top, frame.height - top))
    )
    return [
        ("crop", f"{even_w}:{even_h}:{left}:{top}:exact=1"),
        ("scale", "flags=bilinear"),
        ("format", "yuv444p"),
        ("crop", f"{w}:{h}:{x - left}:{y - top}:exact=1"),
    ]
