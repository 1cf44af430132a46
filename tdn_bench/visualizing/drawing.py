"""Panels as a strip, segments across, and as an animation, panels side by side and the clip's frames in turn."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from pipelines.errors import printable
from tdn_bench.visualizing.panels import COLOUR_MAP, Histogram, Panel

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_COLUMNS, MOST_TEXT = 8, 80
MOST_PLAYED = 32  # segments of an animation, which is held in memory
CELL, GAP, LABELS, BARS, HEAD, MARGIN, LEAST_WIDTH = 1.3, 0.05, 2.25, 0.75, 0.9, 0.12, 8.0  # inches
TILE, TILE_HEAD, TILE_FOOT, TILES_ACROSS = 2.4, 0.85, 0.45, 4
DPI = 110
SERIES = ("#0072B2", "#E69F00")  # Okabe and Ito's blue and orange


def columns_of(segments: int, most: int) -> list[int]:
    """The segments that are shown: all, or as many as may be, at equal distances from the first to the last."""
    return np.linspace(0, segments - 1, min(segments, most)).round().astype(int).tolist()


def segment_at(segment: int, segments: int, own: int) -> int:
    """Of a network with `own` segments, the one at the place of another's `segment` of `segments`."""
    return (2 * segment + 1) * own // (2 * segments)


def strip(title: str, subtitles: Sequence[str], panels: Sequence[Panel | Histogram]) -> bytes:
    """A PNG file: the first panel's segments are the columns."""
    from matplotlib.figure import Figure

    first = panels[0]
    assert isinstance(first, Panel)
    assert first.numbers is not None
    segments, columns = len(first.pictures), columns_of(len(first.pictures), MOST_COLUMNS)
    rows = [(p, k) for p in panels for k in (p.rows if isinstance(p, Panel) else (0,))]
    width = max(2 * MARGIN + LABELS + len(columns) * (CELL + GAP) + BARS, LEAST_WIDTH)
    height = 2 * MARGIN + HEAD + len(rows) * (CELL + GAP)
    figure = Figure((width, height), dpi=DPI, facecolor="white")

    def place(row: int, left: float, wide: float, below: float = 0.0, high: float = CELL) -> Axes:
        bottom = height - MARGIN - HEAD - (row + 1) * CELL - row * GAP + below
        return figure.add_axes((left / width, bottom / height, wide / width, high / height))

    write = _writer(figure)
    _title(write, title, subtitles, width)
    begun: set[int] = set()
    for row, (panel, k) in enumerate(rows):
        top = MARGIN + HEAD + row * (CELL + GAP)
        if id(panel) not in begun:
            begun.add(id(panel))
            _say(write, panel.lines, MARGIN, top)
        for place_in_row, t in enumerate(columns):
            left = MARGIN + LABELS + place_in_row * (CELL + GAP)
            own = segment_at(t, segments, len(panel.pictures if isinstance(panel, Panel) else panel.shares))
            if isinstance(panel, Histogram):
                _bars(place(row, left, CELL, 0.22, CELL - 0.22), panel, own, legend=not place_in_row)
                continue
            axes = place(row, left, CELL)
            axes.imshow(panel.pictures[own, k], interpolation="nearest", aspect="auto")
            axes.axis("off")
            number = None if panel.numbers is None else panel.numbers[own, k]
            if row == 0:
                axes.set_title(f"frame {number}", fontsize=8.5, pad=3, color="#444444")
            elif number is not None and number != first.numbers[t, first.rows[0]]:
                box = {"facecolor": "black", "alpha": 0.55, "pad": 1.2, "edgecolor": "none"}
                axes.text(0.03, 0.04, f"frame {number}", transform=axes.transAxes, fontsize=7, color="white", bbox=box)
        left = MARGIN + LABELS + len(columns) * (CELL + GAP) + 0.08
        if isinstance(panel, Panel) and panel.bar is not None:
            _colour_bar(place(row, left, 0.12, 0.06, CELL - 0.12), panel.bar, vertical=True)
        elif isinstance(panel, Panel):
            write(left, top + CELL / 2 - 0.06, panel.names[panel.rows.index(k)], fontsize=8)
    return _png(figure)


def animation(title: str, subtitles: Sequence[str], panels: Sequence[Panel | Histogram]) -> Iterator[np.ndarray]:
    """uint8 (H, W, 3), both even, for each frame of the first panel in turn; without histograms."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    tiles = [p for p in panels if isinstance(p, Panel)]
    first = tiles[0]
    assert first.numbers is not None
    across = min(len(tiles), TILES_ACROSS)
    down, deep = -(-len(tiles) // across), TILE + TILE_HEAD + TILE_FOOT
    width, height = 2 * MARGIN + across * (TILE + 2 * GAP) - 2 * GAP, 2 * MARGIN + HEAD - 0.1 + down * deep
    width, height = (2 * round(side * DPI / 2) / DPI for side in (width, height))  # H.264 takes even sizes
    figure = Figure((width, height), dpi=DPI, facecolor="white")
    canvas = FigureCanvasAgg(figure)

    write = _writer(figure)
    _title(write, title, subtitles, width, free=2.2)
    said = figure.text(1 - MARGIN / width, 1 - MARGIN / height, "", va="top", ha="right", fontsize=9, color="#444444")
    said.set_animated(True)
    images = []
    for i, panel in enumerate(tiles):
        left = MARGIN + (i % across) * (TILE + 2 * GAP)
        top = MARGIN + HEAD - 0.1 + (i // across) * deep
        _say(write, panel.lines, left, top, width=34, most=5)
        box = (left / width, 1 - (top + TILE_HEAD + TILE) / height, TILE / width, TILE / height)
        axes = figure.add_axes(box)
        axes.axis("off")
        images.append(axes.imshow(panel.pictures[0, 0], interpolation="nearest", aspect="auto", animated=True))
        if panel.bar is not None:
            wide = TILE - 0.6
            box = ((left + 0.3) / width, 1 - (top + TILE_HEAD + TILE + 0.18) / height, wide / width, 0.1 / height)
            _colour_bar(figure.add_axes(box), panel.bar, vertical=False)
    canvas.draw()
    background = canvas.copy_from_bbox(figure.bbox)  # all but what changes
    segments, each = first.numbers.shape
    for t in columns_of(segments, MOST_PLAYED):
        for k in range(each):
            said.set_text(f"segment {t + 1} of {segments}, frame {first.numbers[t, k]}")
            for image, panel in zip(images, tiles, strict=True):
                own = panel.pictures[segment_at(t, segments, len(panel.pictures))]
                image.set_data(own[segment_at(k, each, len(own))])
            canvas.restore_region(background)
            for artist in (said, *images):
                figure.draw_artist(artist)
            yield np.asarray(canvas.buffer_rgba())[..., :3].copy()


Write = Callable[..., None]


def _writer(figure: Figure) -> Write:
    """Writes text to the right of and below a point, in inches from the figure's top left corner."""
    width, height = figure.get_size_inches()

    def write(left: float, top: float, text: str, **style: object) -> None:
        figure.text(left / width, 1 - top / height, text, va="top", parse_math=False, **style)  # type: ignore[arg-type]

    return write


def _cut(text: str, most: int) -> str:
    """Text from data on one line of at most so many characters."""
    text = printable(text)
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _title(write: Write, title: str, subtitles: Sequence[str], width: float, free: float = 0.0) -> None:
    """A title and the lines below it, as far as they fit in; `free` inches stay free to the title's right."""
    write(MARGIN, MARGIN, _cut(title, int(8.5 * (width - free))), fontsize=13, weight="bold")
    for i, line in enumerate(subtitles):
        write(MARGIN, MARGIN + 0.27 + 0.165 * i, _cut(line, int(13 * width)), fontsize=9, color="#444444")


def _say(write: Write, lines: Sequence[str], left: float, top: float, width: int = 27, most: int = 7) -> None:
    """Lines of text down from `top`, the first in bold; long ones go on in the next, `most` at all."""
    wrapped = [(part, not i) for i, line in enumerate(lines) for part in textwrap.wrap(_cut(line, MOST_TEXT), width)]
    for i, (text, bold) in enumerate(wrapped[:most]):
        style = {"weight": "bold", "color": "black"} if bold else {"color": "#333333"}
        write(left, top + 0.03 + 0.165 * i, text, fontsize=9, **style)


def _colour_bar(axes: Axes, ends: tuple[str, str, str], *, vertical: bool) -> None:
    ramp = np.linspace(0, 1, 128)
    axes.imshow(ramp[::-1, None] if vertical else ramp[None], cmap=COLOUR_MAP, aspect="auto")
    places = (127, 63.5, 0) if vertical else (0, 63.5, 127)
    set_ticks, set_others = (axes.set_yticks, axes.set_xticks) if vertical else (axes.set_xticks, axes.set_yticks)
    set_others([])
    set_ticks([p for p, text in zip(places, ends, strict=True) if text], [text for text in ends if text])
    axes.yaxis.tick_right()
    axes.tick_params(labelsize=8, length=0, pad=3)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _bars(axes: Axes, histogram: Histogram, segment: int, *, legend: bool) -> None:
    edges = np.linspace(-histogram.limit, histogram.limit, histogram.shares.shape[-1] + 1)
    for name, shares, colour in zip(histogram.series, histogram.shares[segment], SERIES, strict=False):
        axes.stairs(shares, edges, color=colour, fill=True, alpha=0.35)
        axes.stairs(shares, edges, color=colour, linewidth=1, label=name)
    axes.set_ylim(0, histogram.most * 1.08)
    axes.set_yticks([])
    axes.set_xticks([-histogram.limit, 0, histogram.limit], [f"−{histogram.limit:.2g}", "0", f"{histogram.limit:.2g}"])
    low, _, high = axes.get_xticklabels()
    low.set_horizontalalignment("left")
    high.set_horizontalalignment("right")
    axes.tick_params(labelsize=7, length=2, pad=1)
    axes.spines[["top", "right", "left"]].set_visible(False)
    if legend:
        axes.legend(fontsize=6.5, frameon=False, loc="upper left", borderpad=0, handlelength=1, borderaxespad=0.1)


def _png(figure: Figure) -> bytes:
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()
