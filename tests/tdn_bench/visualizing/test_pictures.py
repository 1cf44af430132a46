"""Panels, strips, animations and their files."""

import io
import warnings
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import colormaps
from PIL import Image

from tdn_bench.visualizing.drawing import animation, columns_of, segment_at, strip
from tdn_bench.visualizing.looking import Looked
from tdn_bench.visualizing.motion import Gates, Motion
from tdn_bench.visualizing.panels import coloured, frame_panel, gate_panels, heat_panel, motion_panels
from tdn_bench.visualizing.writing import stems, write

T, L, SIZE = 3, 5, 16
NUMBERS = np.arange(T * L).reshape(T, L) * 2
PICTURES = np.random.default_rng(0).integers(0, 256, (T, L, SIZE, SIZE, 3), dtype=np.uint8)
NASTY = "<script>alert(1)</script> $x_1$ \x1b[31m 好 \n"


def panels(lines=("a network", "a class 93%")):
    heat = np.random.default_rng(1).random((T, SIZE, SIZE), dtype=np.float32)
    gates = Gates("res3.0", torch.rand(T, 6, 4, 4) - 0.5, torch.rand(T, 6, 4, 4) - 0.5)
    motion = Motion(torch.randn(T, 4, 3, 8, 8), torch.rand(T, 6, 2, 2))
    middles = np.arange(T) * L + L // 2
    return [
        frame_panel(PICTURES, NUMBERS, ["frames"]),
        heat_panel(PICTURES, NUMBERS, heat, middles, lines),
        *motion_panels(motion),
        *gate_panels(gates),
    ]


def test_the_colours_are_those_of_the_bar():
    ends = [list(colormaps["cividis"](x, bytes=True)[:3]) for x in (0, 255)]
    assert coloured(np.array([0.0, 1.0])).tolist() == ends


def test_heat_lies_over_the_frames_of_its_segment_by_its_share_of_the_largest():
    white = np.full_like(PICTURES, 255)
    heat = np.zeros((T, SIZE, SIZE), np.float32)
    heat[1, 3, 5], heat[2, 8, 8] = 4, 2
    panel = heat_panel(white, NUMBERS, heat, np.array([2, 7, 12]), ["it"])
    same = panel.pictures == panel.pictures[0, 0, 0, 0]
    assert not same[1, :, 3, 5].all(-1).any()  # in all frames of the segment
    assert not same[2, :, 8, 8].all(-1).any()
    assert same.all(-1).sum() == T * L * SIZE**2 - 2 * L
    yellow, less = panel.pictures[1, 0, 3, 5].astype(int), panel.pictures[2, 0, 8, 8].astype(int)
    assert yellow[0] - yellow[2] > 90 > abs(less[0] - less[2])  # the middle of cividis is grey
    assert panel.lines == ["it"]
    assert heat_panel(white, NUMBERS, 0 * heat, np.array([2, 7, 12]), ["it"]).lines[-1] == "no evidence for it"


def test_no_difference_is_grey_and_the_largest_is_whole():
    differences = torch.zeros(T, 4, 3, 2, 2)
    differences[0, 0, 0, 0, 1], differences[2, 3, 2, 1, 1] = 2, -4
    pictures = motion_panels(Motion(differences, torch.zeros(T, 6, 2, 2)))[0].pictures
    assert pictures.shape == (T, 4, 2, 2, 3)
    assert pictures[0, 0, 0, 1].tolist() == [191, 128, 128]
    assert pictures[2, 3, 1, 1].tolist() == [128, 128, 0]
    assert (pictures == 128).sum() == pictures.size - 2


def test_histograms_hold_every_gate():
    *_, histogram = gate_panels(Gates("res3.0", torch.full((T, 6, 4, 4), 0.3), None))
    assert histogram.shares.shape[:2] == (T, 1)
    assert histogram.shares.sum(-1) == pytest.approx(1)
    assert histogram.shares[0, 0, -1] == 1  # the largest is in the last bin
    assert histogram.limit == pytest.approx(0.3)


@given(st.integers(2, 64), st.integers(2, 64))
def test_segments_of_two_networks_are_at_the_same_place(segments, own):
    columns = columns_of(segments, 8)
    assert columns[0] == 0
    assert columns[-1] == segments - 1
    assert len(set(columns)) == len(columns) == min(segments, 8)
    for t in range(segments):
        found = segment_at(t, segments, own)
        assert abs((found + 0.5) / own - (t + 0.5) / segments) <= 0.5 / own + 1e-9


@pytest.mark.parametrize("lines", [(NASTY, NASTY * 9), ()])
def test_a_strip_is_a_picture_with_the_frames_in_it(lines):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # that no font here has
        png = Image.open(io.BytesIO(strip(NASTY, [NASTY, "second"], panels(lines))))
    picture = np.asarray(png.convert("RGB")).astype(int)
    assert picture.shape[1] > 800
    corner = PICTURES[0, 2, 0, 0].astype(int)  # in some pixels of a block, as large as the others
    assert (abs(picture - corner).max(-1) == 0).sum() >= 50


def test_an_animation_has_every_frame_in_order_with_even_sides():
    pictures = list(animation("title", ["a", "b"], panels()))
    assert len(pictures) == T * L
    assert {p.shape for p in pictures} == {pictures[0].shape}
    assert pictures[0].shape[0] % 2 == pictures[0].shape[1] % 2 == 0
    for picture, (t, k) in zip(pictures, np.ndindex(T, L), strict=True):
        assert (picture == PICTURES[t, k, 7, 7]).all(-1).sum() >= 50


def test_files_can_be_read_back(tmp_path):
    looked = Looked("clip", ["said"], panels(), "")
    png, mp4, webp = write(looked, tmp_path / "new", "x", ["png", "mp4", "webp"])
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["x.mp4", "x.png", "x.webp"]
    assert Image.open(png).format == "PNG"
    animated = Image.open(webp)
    assert animated.n_frames == T * L
    expected = list(animation("clip", ["said"], looked.panels))
    with av.open(str(mp4)) as container:
        stream = container.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        assert (stream.codec_context.name, stream.average_rate) == ("h264", 10)
    assert len(frames) == T * L
    assert abs(frames[7].astype(int) - expected[7]).mean() < 6


def test_names_are_safe_and_each_video_has_its_own():
    long = "x" * 300
    videos = [
        "a/clip.mp4",
        "b/clip.mp4",
        "clip-2.avi",
        "CLIP.webm",
        "../x y'\"<b>\n.mp4",
        ".mp4",
        "好.mp4",
        f"{long}.mp4",
        "好" * 90,
    ]
    found = stems(list(map(Path, videos)))
    assert found[:4] == [f"{name}-visualized" for name in ("clip", "clip-2", "clip-2-2", "CLIP-3")]
    assert len({name.casefold() for name in found}) == len(videos)
    for name in found:
        assert not set(name) & set("/\\\0\n\"'<>: ")
        assert len(name.encode()) < 200
    assert found[6] == "好-visualized"
    assert stems([Path("a.mp4"), Path("a-visualized.mp4")]) == ["a-2-visualized", "a-visualized-visualized"]
