"""The scaler: colours by the formulas of H.273, crops to the pixel, and the decoder's pictures left as they are."""

from __future__ import annotations

import av
import numpy as np
import pytest
import torch

from pipelines.odd_clips import draw_number
from pipelines.scaling import Scaler

WEIGHTS = {5: (0.299, 0.114), 1: (0.2126, 0.0722), 9: (0.2627, 0.0593), 2: (0.299, 0.114)}  # H.273: Kr, Kb


def flat(levels: tuple[int, int, int], matrix: int, full: bool, pix_fmt: str = "yuv420p") -> av.VideoFrame:
    frame = av.VideoFrame(64, 48, pix_fmt)
    for plane, level in zip(frame.planes, levels, strict=True):
        plane.update(bytes([level]) * (plane.line_size * plane.height))
    frame.colorspace, frame.color_range = matrix, 2 if full else 1  # type: ignore[assignment]
    return frame


def rgb(levels: tuple[int, int, int], matrix: int, full: bool) -> np.ndarray:
    kr, kb = WEIGHTS[matrix]
    y, u, v = levels
    y_, u_, v_ = (
        (y / 255, (u - 128) / 255, (v - 128) / 255) if full else ((y - 16) / 219, (u - 128) / 224, (v - 128) / 224)
    )
    red, blue = y_ + 2 * (1 - kr) * v_, y_ + 2 * (1 - kb) * u_
    return np.clip(255 * np.array([red, (y_ - kr * red - kb * blue) / (1 - kr - kb), blue]), 0, 255)


@pytest.mark.parametrize("matrix", WEIGHTS)
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize(
    ("size", "most"),
    [((96, 96), 1.7), ((32, 32), 0.6), ((33, 25), 0.6), ((50, 40), 2.9)],
    ids=["quick", "exact", "odd", "not resized"],
)
def test_flat_colours_are_those_of_the_formula(matrix: int, full: bool, size: tuple[int, int], most: float) -> None:
    for levels in ((81, 120, 150), (145, 110, 116), (180, 128, 128), (60, 140, 110), (200, 118, 134)):
        for mirror in (False, True):
            picture = Scaler((2, 4, 50, 40), size, (64, 48), mirror=mirror)(flat(levels, matrix, full))
            assert picture.shape == (size[1], size[0], 3)
            assert np.abs(picture - rgb(levels, matrix, full)).max() <= most


def numbered(pix_fmt: str = "yuv420p") -> av.VideoFrame:
    return av.VideoFrame.from_ndarray(draw_number(77, 320, 240), format="rgb24").reformat(format=pix_fmt)


@pytest.mark.parametrize("box", [(40, 20, 200, 200), (41, 21, 200, 200), (40, 21, 190, 211), (13, 7, 181, 179)])
@pytest.mark.parametrize("mirror", [False, True])
def test_a_crop_is_cut_to_the_pixel_at_even_and_odd_places(box: tuple[int, int, int, int], mirror: bool) -> None:
    x, y, w, h = box
    frame = numbered()
    picture = torch.from_numpy(Scaler(box, (224, 224), (320, 240), mirror=mirror)(frame).copy()).float()

    def cut(dx: int, dy: int) -> torch.Tensor:  # from the whole picture in RGB, moved by some pixels
        part = torch.from_numpy(frame.to_ndarray(format="rgb24")[y + dy : y + dy + h, x + dx : x + dx + w])
        small = torch.nn.functional.interpolate(
            part.permute(2, 0, 1)[None].float(), (224, 224), mode="bilinear", antialias=True
        )[0].permute(1, 2, 0)
        return small.flip(1) if mirror else small

    distance = {
        moved: (picture - cut(*moved)).abs().mean().item() for moved in ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1))
    }
    assert min(distance, key=distance.__getitem__) == (0, 0)
    assert distance[0, 0] < 2


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuvj420p", "yuv444p", "yuv420p10le"])
@pytest.mark.parametrize("box", [(0, 0, 224, 224), (8, 8, 224, 210), (8, 8, 200, 200), (0, 0, 320, 240)])
def test_the_decoders_picture_is_left_as_it_is(pix_fmt: str, box: tuple[int, int, int, int]) -> None:
    """Later frames refer to it."""
    frame = numbered(pix_fmt)
    before = [bytes(plane) for plane in frame.planes]
    Scaler(box, (224, 224), (320, 240))(frame)
    assert [bytes(plane) for plane in frame.planes] == before
