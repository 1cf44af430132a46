"""From maps to pictures: what one row of a strip, or one tile of an animation, shows.

Shapes: T segments, K pictures of each, H, W pixels; colours are RGB, uint8.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from tdn_bench.visualizing.motion import Gates, Motion

COLOUR_MAP = "cividis"  # the same to all eyes, and in grey
COVER = (0.35, 0.85)  # how much no heat, and the most, hide of the picture
BINS = 41  # of a histogram; odd, so that "no change" is in the middle of one


@dataclass(frozen=True)
class Panel:
    """Pictures (T, K, H, W, 3) that belong together. `lines` are said beside them, the first as a heading; a strip has
    a row for each of `rows`, pictures of a segment, with `names` beside them; `bar` says what the lowest, the middle
    and the highest colour of the colour map mean; `numbers` (T, K) are the pictures' frames in the video."""

    lines: Sequence[str]
    pictures: np.ndarray
    rows: Sequence[int] = (0,)
    names: Sequence[str] = ("",)
    bar: tuple[str, str, str] | None = None
    numbers: np.ndarray | None = None


@dataclass(frozen=True)
class Histogram:
    """How the values of each segment are spread, from −`limit` to `limit`: shares (T, series, BINS) that sum to 1. A
    share above `most` leaves the picture."""

    lines: Sequence[str]
    series: Sequence[str]
    shares: np.ndarray
    limit: float
    most: float


def coloured(values: np.ndarray) -> np.ndarray:
    """uint8 (…, 3) of values (…) from 0 to 1."""
    from matplotlib import colormaps

    colours: np.ndarray = colormaps[COLOUR_MAP](values, bytes=True)[..., :3]
    return colours


def overlaid(pictures: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Pictures (…, 3) in grey under the colours of heat (…) from 0 to 1, which cover the more the hotter it is."""
    opacity = (COVER[0] + (COVER[1] - COVER[0]) * heat)[..., None]
    grey = (pictures @ np.array([0.299, 0.587, 0.114]))[..., None]
    return np.rint((1 - opacity) * grey + opacity * coloured(heat)).astype(np.uint8)


def frame_panel(pictures: np.ndarray, numbers: np.ndarray, lines: Sequence[str]) -> Panel:
    """The frames (T, L, H, W, 3) as the network reads them; of a strip, each segment's middle one."""
    return Panel(lines, pictures, (pictures.shape[1] // 2,), numbers=numbers)


def heat_panel(
    pictures: np.ndarray, numbers: np.ndarray, heat: np.ndarray, middles: np.ndarray, lines: Sequence[str]
) -> Panel:
    """Heat (M, H, W) over the frames (T, L, H, W, 3): over each, the map whose middle frame is nearest. Colours are
    relative to the clip's largest heat."""
    t, per_segment = numbers.shape
    nearest = abs(np.arange(t * per_segment)[:, None] - middles).argmin(1)
    most = float(heat.max())
    shown = (heat / most if most > 0 else heat)[nearest].reshape(t, per_segment, *heat.shape[1:])
    said = [*lines, *([] if most > 0 else ["no evidence for it"])]
    bar = "none", "", "most"
    return Panel(said, overlaid(pictures, shown), (per_segment // 2,), bar=bar, numbers=numbers)


def motion_panels(motion: Motion) -> list[Panel]:
    """The S-TDM: each difference of frames (grey: no change), and the features that it makes, averaged over
    channels."""
    differences = _array(motion.differences).transpose(0, 1, 3, 4, 2)  # (T, L−1, H/2, W/2, C)
    most = max(float(abs(differences).max()), 1e-9)
    pairs = differences.shape[1]
    features = _array(motion.features).mean(1)[:, None]
    highest = float(features.max())
    return [
        Panel(
            ["S-TDM: differences", "of consecutive frames", "grey: no change"],
            np.rint(127.5 + 127.5 * differences / most).astype(np.uint8),
            range(pairs),
            [f"{k + 2} − {k + 1}" for k in range(pairs)],
        ),
        Panel(
            ["S-TDM: motion features", "mean over channels"],
            coloured(features / max(highest, 1e-9)),
            bar=("0", "", f"{highest:.2g}"),
        ),
    ]


def gate_panels(gates: Gates) -> list[Panel | Histogram]:
    """The L-TDM: the mean over channels of the gates to either neighbour, and how the gates of all channels are
    spread."""
    directions = {"next": gates.forward, "previous": gates.backward}
    values = {name: _array(gate) for name, gate in directions.items() if gate is not None}
    means = {name: gate.mean(1)[:, None] for name, gate in values.items()}  # (T, 1, h, w)
    most = max(*(float(abs(m).max()) for m in means.values()), 1e-9)
    panels: list[Panel | Histogram] = [
        Panel(
            [f"L-TDM: gate, {name} segment", f"mean over channels, {gates.block}"],
            coloured(0.5 + mean / (2 * most)),
            bar=(f"−{most:.2g}", "0", f"+{most:.2g}"),
        )
        for name, mean in means.items()
    ]
    limit = max(*(float(abs(v).max()) for v in values.values()), 1e-9)
    edges = np.linspace(-limit, limit, BINS + 1)
    shares = np.array([[np.histogram(segment, edges)[0] / segment.size for segment in v] for v in values.values()])
    most = max(shares[0, :-1].max(), shares[-1, 1:].max())  # without a neighbour all gates are alike
    lines = ["L-TDM: all gates", f"all channels, {gates.block}"]
    return [*panels, Histogram(lines, list(values), shares.swapaxes(0, 1), limit, float(most))]


def _array(x: Tensor) -> np.ndarray:
    array: np.ndarray = x.cpu().numpy()
    return array
