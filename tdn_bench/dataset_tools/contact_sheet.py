"""A contact sheet of clips, a PNG or a page that needs no other file: frames pixel for pixel, with captions."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from pipelines.clip import ClipSpec
from pipelines.errors import BadClip, printable
from pipelines.files import write_whole
from pipelines.plan import ClipPlan
from pipelines.video import UNKNOWN_LABEL
from tdn_bench.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFont import FreeTypeFont

MAX_PIXELS = 100_000_000  # of a sheet
GAP, MARGIN, FONT_PX, LINE_PX = 2, 12, 14, 19
LEAST_WIDTH = 640
PAPER, INK = (255, 255, 255), (20, 20, 20)
STYLE = """body { font: 15px/1.4 system-ui, sans-serif; margin: 1.5em; color: #141414; background: #fff }
figure { margin: 0 0 1.5em; overflow-x: auto } figcaption { white-space: pre-wrap; overflow-wrap: anywhere }
@media (prefers-color-scheme: dark) { body { color: #eee; background: #181818 } }"""


@dataclass(frozen=True)
class Strip:
    """What a sheet shows of one view: `caption`, and its frames, uint8 (rows, columns, H, W, C); without frames, of a
    video that cannot be used."""

    caption: tuple[str, ...]
    frames: np.ndarray | None = None


def strips(
    plan: ClipPlan, clip: Tensor | BadClip, spec: ClipSpec, classes: Sequence[str], *, all_frames: bool
) -> list[Strip]:
    """One strip for each view of a clip, uint8 (views·T, L, H, W, C): the centre frame of every segment in a row, or
    (`all_frames`) a row of L frames for every segment."""
    video = plan.video
    if isinstance(clip, BadClip):
        return [Strip((video.id, f"cannot be used: {clip.reason}"))]
    label = _class(video.sample.label, classes)
    if plan.flip:
        swaps = video.sample.label not in (UNKNOWN_LABEL, plan.label)
        label += f" → {_class(plan.label, classes)}, flipped" if swaps else ", flipped"
    x, y, width, height = plan.crop
    found = []
    views = clip.cpu().unflatten(0, (-1, spec.num_segments)).numpy()
    for i, frames in enumerate(views):
        turn, crop = divmod(i, spec.num_crops)
        where = f"crop {width}×{height} at {x}, {y} of {video.file.width}×{video.file.height}"
        if len(views) > 1:
            where = f"clip {turn + 1} of {spec.num_clips}, crop {crop + 1} of {spec.num_crops}"
        numbers = plan.frames.reshape(-1, *plan.frames[: spec.num_segments].shape)[turn]
        centre = frames.shape[1] // 2
        some = ", ".join(map(str, numbers[:, centre].tolist()))
        shown = frames if all_frames else frames[None, :, centre].copy()  # the others need not stay in memory
        found.append(Strip((video.id, label, f"{where}; frames around {some} of {video.file.num_frames}"), shown))
    return found


def _class(label: int, classes: Sequence[str]) -> str:
    return classes[label] if label >= 0 else "no label"


def check_size(videos: int, spec: ClipSpec, *, all_frames: bool) -> None:
    """Raise UserError for more pixels than a sheet holds, before any is decoded."""
    frames = videos * spec.num_views * spec.num_segments * (spec.frames_per_segment if all_frames else 1)
    if (pixels := frames * spec.size**2) > MAX_PIXELS:
        raise UserError(
            f"--limit {videos}: a sheet of {pixels / 1e6:.0f} million pixels, over {MAX_PIXELS / 1e6:.0f}; "
            "use a smaller one, fewer --views, or --frames centre"
        )


def write_sheet(path: Path, title: str, found: Sequence[Strip], *, page: bool) -> None:
    """Write strips as a page, or as a picture, whole or not at all. Raises OSError."""
    write_whole(path, _page(title, found).encode() if page else _png(draw(title, found)))


def mosaic(frames: np.ndarray) -> np.ndarray:
    """Frames (rows, columns, H, W, C) side by side and one below the other, without a gap: (rows·H, columns·W, C)."""
    rows, columns, height, width, colours = frames.shape
    return frames.transpose(0, 2, 1, 3, 4).reshape(rows * height, columns * width, colours)


def _page(title: str, found: Sequence[Strip]) -> str:
    from PIL import Image

    parts = [f"<h1>{html.escape(printable(title))}</h1>"]
    for strip in found:
        caption = html.escape("\n".join(map(printable, strip.caption)))
        picture = ""
        if strip.frames is not None:
            data = base64.b64encode(_png(Image.fromarray(mosaic(strip.frames)))).decode()
            picture = f'<img alt="" src="data:image/png;base64,{data}">'
        parts.append(f"<figure>{picture}<figcaption>{caption}</figcaption></figure>")
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    head += f"<title>{html.escape(printable(title))}</title>"
    return f"<!doctype html>\n<html lang=en>{head}<style>{STYLE}</style>\n" + "\n".join(parts) + "\n</html>\n"


def draw(title: str, found: Sequence[Strip]) -> Image:
    """All strips below each other, each under its caption, frames `GAP` pixels apart."""
    from PIL import Image, ImageDraw

    widths = [s.frames.shape[1] * (s.frames.shape[3] + GAP) for s in found if s.frames is not None]
    width = max([LEAST_WIDTH, *widths])
    lines = [_wrapped(text, width) for text in [(title,), *(strip.caption for strip in found)]]
    grids = [None, *(strip.frames for strip in found)]
    heights = [0 if grid is None else grid.shape[0] * (grid.shape[2] + GAP) for grid in grids]
    height = sum(heights) + sum(len(some) * LINE_PX + MARGIN for some in lines)
    sheet = Image.new("RGB", (width + 2 * MARGIN, height + MARGIN), PAPER)
    pen, top = ImageDraw.Draw(sheet), MARGIN
    for some, grid, grid_height in zip(lines, grids, heights, strict=True):
        for line in some:
            pen.text((MARGIN, top), line, INK, font=_font())
            top += LINE_PX
        for r, row in enumerate(() if grid is None else grid):
            for c, frame in enumerate(row):
                at = MARGIN + c * (frame.shape[1] + GAP), top + r * (frame.shape[0] + GAP)
                sheet.paste(Image.fromarray(frame), at)
        top += grid_height + MARGIN
    return sheet


@cache
def _font() -> FreeTypeFont:
    """DejaVu Sans, which matplotlib brings along: Latin, Greek, Cyrillic, Arabic, Hebrew, Georgian and more."""
    import matplotlib
    from PIL import ImageFont

    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf"), FONT_PX)


@cache
def _glyphs() -> frozenset[int]:
    from matplotlib.ft2font import FT2Font

    return frozenset(FT2Font(_font().path).get_charmap())


def drawable(text: str) -> str:
    r"""Text as the font can draw it: a character that it lacks is written as its number (`\u4e2d`), not as a box."""
    return "".join(c if ord(c) in _glyphs() else ascii(c)[1:-1] for c in printable(text))


def _wrapped(caption: Sequence[str], width: int) -> list[str]:
    """Lines that fit into `width` pixels, broken between characters: a path has no spaces."""
    lines = []
    for text in caption:
        line = ""
        for character in drawable(text):
            if _font().getlength(line + character) > width:
                lines.append(line)
                line = ""
            line += character
        lines.append(line)
    return lines


def _png(picture: Image) -> bytes:
    content = io.BytesIO()
    picture.save(content, "PNG")
    return content.getvalue()
