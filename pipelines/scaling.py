"""Crop, resize and RGB in one pass of FFmpeg's scaler."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from av import VideoFrame

Box = tuple[int, int, int, int]  # x, y, width, height


class Scaler:
    """Crops a box of the coded picture, resizes it (bilinear, antialiased) to `size` (width, height), converts to RGB.

    Colours are converted after resizing: fewer pixels, and chroma is interpolated once, not twice. A picture of another
    size than `coded` (width, height) is taken as a player shows it, scaled to that size. Raises av.error.FFmpegError
    for colours that FFmpeg cannot convert.
    """

    def __init__(self, box: Box, size: tuple[int, int], coded: tuple[int, int]) -> None:
        self._box, self._size, self._coded = box, size, coded
        self._graphs: dict[tuple[Any, ...], Any] = {}  # one a kind of frame: mostly one

    def __call__(self, frame: VideoFrame) -> np.ndarray:
        """uint8 (H, W, C)"""
        kind = (frame.width, frame.height, frame.format.name, frame.colorspace, frame.color_range)
        if kind not in self._graphs:
            self._graphs[kind] = self._graph(frame)
        graph = self._graphs[kind]
        graph.push(frame)
        return graph.pull().to_ndarray()

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

    def _graph(self, frame: VideoFrame) -> Any:
        import av

        x, y, w, h = self._scaled_box(frame)
        width, height = self._size
        whole = []
        if any(at % 2 for at in (x, y, w, h)) and frame.format.chroma_width(2) < 2:
            # Chroma of half the width or height can be cut at even places only; elsewhere it would be moved by a pixel.
            left, top = x - x % 2, y - y % 2
            even_w, even_h = (
                min(size + size % 2, most)
                for size, most in ((x + w - left, frame.width - left), (y + h - top, frame.height - top))
            )
            whole = [
                ("crop", f"{even_w}:{even_h}:{left}:{top}:exact=1"),
                ("scale", "flags=bilinear"),
                ("format", "yuv444p"),
            ]
            x, y = x - left, y - top
        graph = av.filter.Graph()
        graph.threads = 1  # clips run in parallel
        nodes = [
            *whole,
            ("crop", f"{w}:{h}:{x}:{y}:exact=1"),
            ("scale", f"{width}:{height}:flags=bilinear+full_chroma_int"),  # without it 1 to 3 levels too dark
            ("format", "rgb24"),
            ("buffersink", None),
        ]
        source = graph.add_buffer(
            width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1, 1000)
        )
        graph.link_nodes(source, *(graph.add(name, options) for name, options in nodes)).configure()
        return graph
