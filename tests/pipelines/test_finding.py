"""Which files and folders are videos, and in which order they come."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.clip import ClipSpec
from pipelines.finding import Found, find_named, natural
from pipelines.inside import Inside
from pipelines.plan import plan_evaluation
from pipelines.video import Sample, Video, VideoFile, clip_name


def make(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("/"):
            path.mkdir(parents=True, exist_ok=True)
        else:
            path.write_text("x")


def below(found: Found, root: Path) -> list[str]:
    return [os.path.relpath(path, root) for path in found.videos]


def test_a_folder_in_natural_order_with_frames_as_videos_and_the_rest_counted(tmp_path: Path) -> None:
    make(tmp_path, "clip10.MP4", "clip2.mp4", "Clip3.avi", "notes.txt", ".hidden.mp4", "._clip2.mp4", ".trash/a.mp4")
    make(tmp_path, "b2/frames/1.jpg", "b2/frames/2.JPEG", "b2/frames/README", "b10/x.webm", "cover.jpg", "empty/")
    make(tmp_path, "mixed/a.mkv", "mixed/poster.jpg")
    found = Found()
    found.add(str(tmp_path))
    assert below(found, tmp_path) == [
        *("b2/frames", "b10/x.webm", "clip2.mp4", "Clip3.avi", "clip10.MP4", "mixed/a.mkv"),
    ]
    assert found.ignored == {".txt": 1, "": 1, ".jpg": 2}
    found = Found()
    found.add(str(tmp_path / "b2/frames"))
    assert below(found, tmp_path) == ["b2/frames"]


@given(st.lists(st.integers(0, 10**30), max_size=8))
def test_natural_order_is_that_of_numbers(numbers: list[int]) -> None:
    assert sorted((f"clip {n}" for n in numbers), key=natural) == [f"clip {n}" for n in sorted(numbers)]


def test_links(tmp_path: Path) -> None:
    make(tmp_path, "set/a/1.mp4", "other/2.mp4")
    (tmp_path / "set/round").symlink_to(tmp_path / "set")
    (tmp_path / "set/to other").symlink_to(tmp_path / "other")
    (tmp_path / "set/gone.mp4").symlink_to(tmp_path / "nothing.mp4")
    (tmp_path / "set/self").symlink_to("self")
    found = Found()
    found.add(str(tmp_path / "set"))
    assert below(found, tmp_path / "set") == ["a/1.mp4", "gone.mp4", "to other/2.mp4"]
    assert [os.path.basename(path) for path in found.again] == ["round"]
    found = Found()
    found.add(str(tmp_path / "set"), Inside([tmp_path / "set"]))
    assert below(found, tmp_path / "set") == ["a/1.mp4", "gone.mp4"]
    assert [os.path.basename(path) for path in found.outside] == ["to other"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every folder")
def test_a_folder_that_cannot_be_listed_is_left_to_the_scan(tmp_path: Path) -> None:
    make(tmp_path, "a/1.mp4", "locked/2.mp4")
    (tmp_path / "locked").chmod(0)
    found = Found()
    found.add(str(tmp_path))
    (tmp_path / "locked").chmod(0o700)
    assert below(found, tmp_path) == ["a/1.mp4", "locked"]


def test_what_a_user_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make(tmp_path, "d/10.mp4", "d/9.mp4", "d/x.txt", "d/deep/1.avi", "f/1.jpg", "f/2.jpg", "odd [1].mp4", "any.dat")
    assert find_named(["d/9.mp4", "d", "./d/9.mp4"]).videos == ["d/9.mp4", "d/10.mp4", "d/deep/1.avi"]
    assert find_named(["d/*.mp4", "gone.mp4", "any.dat"]).videos == ["d/9.mp4", "d/10.mp4", "gone.mp4", "any.dat"]
    assert find_named(["odd [1].mp4", "f/"]).videos == ["odd [1].mp4", "f/"]  # no pattern: the file is there
    assert find_named(["**/*.avi", "f/**", "none*"]).videos == ["d/deep/1.avi", "f/", "none*"]
    assert find_named(["d"]).ignored == {".txt": 1}
    make(tmp_path, "hollow/in/notes.txt")
    assert find_named(["d", "hollow", "f", "gone.mp4", "none*", "any.dat"]).empty == ["hollow", "gone.mp4", "none*"]


@pytest.mark.parametrize(
    ("path", "name"),
    [("a/b.mp4", "b"), ("b.MP4", "b"), ("a.b/c.d.webm", "c.d"), ("frames.v2", "frames.v2"), ("1234", "1234")],
)
def test_clip_name(path: str, name: str) -> None:
    assert clip_name(path) == name


def test_random_clips_depend_on_the_name_of_a_video_alone() -> None:
    """So a file by itself is seen as in its data set, whatever that calls it."""
    file = VideoFile(num_frames=90, width=64, height=64)
    spec = ClipSpec(4, num_clips=3)
    plans = [
        plan_evaluation(Video(Sample(id, f"/{id}", 0, "test"), file), spec).frames.tolist()
        for id in ("clip 1", "train/push/clip 1.mp4", "clip 1.webm", "clip 2")
    ]
    assert plans[0] == plans[1] == plans[2] != plans[3]
