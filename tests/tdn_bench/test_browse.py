"""Contact sheets: every pixel as the loader hands it to the network, every label as it is written."""

import base64
import html
import io
import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.videos import flat_frames, write_video

from pipelines.annotations import flip_labels
from pipelines.clip import ClipSpec
from pipelines.loader import ClipLoader
from tdn_bench.browse import main
from tdn_bench.cli import DataFlags, run_command
from tdn_bench.dataset_tools.contact_sheet import drawable

CLIPS = ["--model", "tdn_resnet_small", "--num-segments", "3", "--size", "64"]


def browse(*flags: object) -> int:
    return run_command(main, [str(flag) for flag in flags])


def pictures(page: str) -> list[np.ndarray]:
    data = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(some)))) for some in data]


def tiles(sheet: np.ndarray, size: int = 64, columns: int = 3, gap: int = 2, left: int = 12) -> list[np.ndarray]:
    """The rows of frames of a PNG sheet, found by what is not paper: (columns, size, size, 3) each."""
    right = left + columns * (size + gap) - gap
    found, top = [], 0
    while top + size <= len(sheet):
        row = sheet[top : top + size, left:right]
        gaps = row[:, [size, size + 1]] if columns > 1 else row
        if (gaps == 255).all() and all((row[:, c * (size + gap)] != 255).any(1).all() for c in range(columns)):
            found.append(np.stack([row[:, c * (size + gap) :][:, :size] for c in range(columns)]))
            top += size
        else:
            top += 1
    return found


@pytest.mark.parametrize("epoch", [0, 2])
def test_a_sheet_of_training_shows_the_loaders_frames_and_labels(motion_data: Path, tmp_path: Path, epoch: int) -> None:
    flags = ["sthv2", "--data", motion_data, *CLIPS, "--limit", "16", "--seed", "5", "--epoch", epoch]
    assert browse(*flags, "--format", "html", "--out", tmp_path / "sheet.html") == 0
    assert browse(*flags, "--out", tmp_path / "sheet.png") == 0
    manifest = DataFlags(data=motion_data, workers=1).open(progress=False)
    videos, flipped = manifest.split("train"), flip_labels(manifest.classes)
    with ClipLoader(videos, ClipSpec(3, size=64), 4, flipped_labels=flipped, seed=5, workers=1) as loader:
        batches = list(loader.epoch(epoch))
    clips = {id: (c, b.labels[i]) for b in batches for i, (id, c) in enumerate(zip(b.ids, b.frames, strict=True))}
    page = (tmp_path / "sheet.html").read_text(encoding="utf-8")
    shown, captions = pictures(page), re.findall("<figcaption>(.*?)</figcaption>", page, re.DOTALL)
    assert len(shown) == len(captions) == len(videos) == 16
    in_png = tiles(np.asarray(Image.open(tmp_path / "sheet.png")))
    turned = 0
    for video, picture, caption, row in zip(videos, shown, captions, in_png, strict=True):
        clip, label = clips[video.id]
        centre = clip[:, 2].numpy()
        assert np.array_equal(picture, np.concatenate(centre, axis=1))
        assert np.array_equal(row, centre)
        id, said, _ = html.unescape(caption).split("\n")
        assert id == video.id
        assert said.removesuffix(", flipped").split(" → ")[-1] == manifest.classes[label]
        assert said.startswith(manifest.classes[video.sample.label])
        turned += "flipped" in said
    assert 0 < turned < 16


def test_a_sheet_of_thirty_views(motion_data: Path, tmp_path: Path) -> None:
    flags = ["--data", motion_data, *CLIPS, "--limit", "1", "--subset", "validation", "--views", "30"]
    out = tmp_path / "sheet.html"
    assert browse(*flags, "--frames", "all", "--format", "html", "--out", out) == 0
    videos = DataFlags(data=motion_data, workers=1).open(progress=False).split("validation")
    with ClipLoader(videos[:1], ClipSpec(3, size=64, num_clips=10, num_crops=3), 1, workers=1) as loader:
        [batch] = loader.epoch()
    shown = pictures(out.read_text(encoding="utf-8"))
    assert len(shown) == 30
    for view, picture in zip(batch.frames.numpy(), shown, strict=True):
        rows = [np.concatenate(segment, axis=1) for segment in view]
        assert np.array_equal(picture, np.concatenate(rows))
    assert "clip 10 of 10, crop 3 of 3" in out.read_text(encoding="utf-8")


def test_names_of_every_script_and_of_bad_videos(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ("привет", "日本語 <script>&", "a [b] & c")
    for i, name in enumerate(names):
        for k in range(2):
            write_video(tmp_path / "d/train" / name / f"{k}.mkv", flat_frames(8, 40 * (i + 1)), "libx264")
    (tmp_path / "d/train" / names[0] / "cut.mp4").write_bytes(b"no video")
    flags = ["folders", "--data", tmp_path / "d", *CLIPS, "--limit", "99", "--mode", "evaluation"]
    assert browse(*flags, "--format", "html", "--out", tmp_path / "s.html") == 0
    assert "(1 of 7 videos could not be used)" in capsys.readouterr().out
    page = (tmp_path / "s.html").read_text(encoding="utf-8")
    assert "<script>" not in page
    text = html.unescape(page)
    assert all(name in text for name in names)
    assert "cannot be used: not a readable video" in text
    assert "http" not in page
    assert browse(*flags, "--out", tmp_path / "s.png") == 0
    assert Image.open(tmp_path / "s.png").size[0] >= 640


@pytest.mark.parametrize(
    ("text", "drawn"),
    [
        ("Pushing something", "Pushing something"),
        ("привет, ελληνικά, שלום, عربي, ünï → ×", "привет, ελληνικά, שלום, عربي, ünï → ×"),
        ("日本", "\\u65e5\\u672c"),
        ("a\U00020000b", "a\\U00020000b"),
        ("a\x1b[31m\nb", "a\\x1b[31m\\x0ab"),
    ],
)
def test_what_the_font_lacks_is_written_as_its_number(text: str, drawn: str) -> None:
    assert drawable(text) == drawn


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--views", "30"], "training takes one clip of a video; add --mode evaluation"),
        (["--limit", "0"], "--limit 0: must be from 1"),
        (["--epoch", "-1"], "--epoch -1"),
        (["--subset", "test"], "has no such videos"),
        (["--out", "clip.mp4"], "a png is written; name it *.png"),
        (["--frames", "all", "--size", "4096", "--limit", "16"], "million pixels, over 100"),
    ],
)
def test_what_cannot_be_is_one_line(
    motion_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys, flags: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert browse("--data", motion_data, *flags) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1
    assert os.listdir(tmp_path) == []


def test_no_data_at_all(capsys) -> None:
    assert browse() == 2
    assert "no data set named" in capsys.readouterr().err
