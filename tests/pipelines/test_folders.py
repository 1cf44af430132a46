"""Folders as labels: both layouts, the drawn split, and what is refused."""

import os
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.annotations import flip_labels, read_dataset
from pipelines.errors import DataError
from pipelines.folders import draw_split


def make(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        (path if name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            path.write_bytes(b"")
    return root


def read(root: Path, **options: object):
    return read_dataset("folders", root, **options)


def rows(annotations) -> list[tuple[str, str, str]]:
    return [(s.split, annotations.classes[s.label], s.id) for s in annotations.samples]


def test_split_folders_in_any_case(tmp_path: Path) -> None:
    make(tmp_path, "Train/push/2.mp4", "Train/push/10.avi", "Train/pull it/a/1.mp4", "VALID/push/3.mkv")
    make(tmp_path, "test/pull it/f/1.jpg", "test/pull it/f/2.jpg", "Train/push/README.txt", "info.json", "docs/a.txt")
    found = read(tmp_path)
    assert found.classes == ("pull it", "push")
    assert found.root == tmp_path
    assert rows(found) == [
        ("train", "pull it", "Train/pull it/a/1.mp4"),
        ("train", "push", "Train/push/2.mp4"),
        ("train", "push", "Train/push/10.avi"),
        ("validation", "push", "VALID/push/3.mkv"),
        ("test", "pull it", "test/pull it/f"),
    ]
    assert all(sample.path == str(tmp_path / sample.id) for sample in found.samples)
    assert found.notes == (
        "without a video in validation: class 'pull it'",
        "passed over as no videos: 1 .txt",
    )


def test_other_words_for_the_splits(tmp_path: Path) -> None:
    make(tmp_path, *(f"{split}/{name}/1.mp4" for split in ("training", "val", "Testing") for name in "ab"))
    assert {(s.id.split("/")[0], s.split) for s in read(tmp_path).samples} == {
        ("training", "train"),
        ("val", "validation"),
        ("Testing", "test"),
    }


def test_class_folders_and_a_drawn_split(tmp_path: Path) -> None:
    names = [f"{name}/{i}.mp4" for name in ("a", "b", "c") for i in range(40)]
    make(tmp_path, *names, "lost.mp4", "none/", "none/x.txt", ".git/a.mp4", "single/only.mp4")
    draws = [read(tmp_path, split=split) for split in (1, 2, 3)]
    assert draws[0].classes == ("a", "b", "c", "single")
    for found in draws:
        assert sorted(s.id for s in found.samples) == sorted([*names, "single/only.mp4"])
        counts = Counter((split, name) for split, name, _ in rows(found))
        assert all(2 <= counts["validation", name] <= 16 for name in "abc")  # a fifth of 40, give or take 3 σ
        assert counts["train", "single"] == 1
        assert counts["validation", "single"] == 0
    held = [{s.id for s in found.samples if s.split == "validation"} for found in draws]
    assert held[0] != held[1] != held[2] != held[0]
    assert read(tmp_path) == draws[0]
    said = " / ".join(draws[0].notes)
    for note in ("left out: 1 in the data set's folder", "without any video: class 'none'", "as no videos: 1 .txt"):
        assert note in said


@settings(max_examples=50)
@given(st.sets(st.text("abcdef", min_size=1, max_size=4), min_size=1, max_size=30), st.integers(1, 3), st.data())
def test_a_video_keeps_its_side_when_others_come(names: set[str], draw: int, data: st.DataObject) -> None:
    whole = {"k": sorted(f"/d/k/{name}.mp4" for name in names)}
    some = {"k": sorted(data.draw(st.sets(st.sampled_from(whole["k"]), min_size=1)))}
    (train, held), (train_some, held_some) = draw_split(whole, "/d", draw), draw_split(some, "/d", draw)
    for videos, left, right in ((whole, train, held), (some, train_some, held_some)):
        assert sorted(left["k"] + right["k"]) == videos["k"]
        assert left["k"]
        assert right["k"] or len(videos["k"]) == 1
    # at most the one with the lowest hash and the one with the highest were moved, so that no side is empty
    moved = [p for p in some["k"] if (p in held["k"]) != (p in held_some["k"])]
    assert len(moved) <= 2


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["train/a/1.mp4", "bus/1.mp4"], "'train' is a split's name, but 'bus' beside it holds videos"),
        (["val/a/1.mp4", "Validation/a/1.mp4", "train/a/1.mp4"], "'val' and 'Validation' both stand for validation"),
        (["train/a/1.mp4", "train/b/1.mp4", "val/c/1.mp4"], "validation has class 'c', of which train has no video"),
        (["train/a/1.mp4", "train/b/", "val/b/1.mp4"], "validation has class 'b', of which train has no video"),
        (["train/Push/1.mp4", "train/b/1.mp4", "val/push/1.mp4"], "'Push' and 'push' differ in case or spelling"),
        (["\u00e9/1.mp4", "e\u0301/1.mp4"], "differ in case or spelling"),
        (["a/1.mp4"], "has only class 'a'"),
        (["a/b/1.mp4", "a/c/2.mp4"], "has only class 'a'; --data names the folder whose folders are the classes"),
        (["1.mp4", "2.mp4"], "holds no folders of classes"),
        (["train/1.mp4", "val/a/2.mp4"], "train: holds no folders of classes"),
        (["1.jpg", "2.jpg"], "holds no folders of classes"),
        (["a/1.jpg", "a/2.jpg", "b/1.mp4"], "a: holds pictures itself"),
        (["a/x.txt", "b/"], "has no class with videos"),
        ([], "has no class with videos"),
        (["train/a/", "val/a/1.mp4", "val/b/1.mp4"], "the train split lists no video"),
        (["a\nb/1.mp4", "c/1.mp4"], "is empty, too long, or no plain text"),
    ],
)
def test_what_could_be_read_in_two_ways_or_not_trained_on_is_refused(
    tmp_path: Path, names: list[str], said: str
) -> None:
    make(tmp_path, *names)
    with pytest.raises(DataError) as caught:
        read(tmp_path)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_flags_that_do_not_fit(tmp_path: Path) -> None:
    make(tmp_path, "train/a/1.mp4", "train/b/1.mp4", "val/a/1.mp4")
    with pytest.raises(DataError, match="its folders say the split, so there is no --split 2"):
        read(tmp_path, split=2)
    with pytest.raises(DataError, match="leave out --labels"):
        read(tmp_path, labels=tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        read(tmp_path / "none")


def test_only_some_splits(tmp_path: Path) -> None:
    make(tmp_path, "val/a/1.mp4", "val/b/1.mp4")
    assert [s.split for s in read(tmp_path).samples] == ["validation"] * 2


def test_links(tmp_path: Path) -> None:
    make(tmp_path, "set/a/1.mp4", "set/a/2.mp4", "set/b/1.mp4", "away/2.mp4")
    link = tmp_path / "set" / "c"
    link.symlink_to(tmp_path / "away")
    with pytest.raises(DataError, match=r"c: a link that leads out of .*--allow-outside"):
        read(tmp_path / "set")
    assert read(tmp_path / "set", allow_outside=True).classes == ("a", "b", "c")
    link.unlink()
    link.symlink_to("a")
    with pytest.raises(DataError, match="c: a link to a folder whose videos are read already"):
        read(tmp_path / "set")
    link.unlink()
    (tmp_path / "set" / "a" / "3.mp4").symlink_to(tmp_path / "away" / "2.mp4")
    with pytest.raises(DataError, match=r"3\.mp4 leads out of"):
        read(tmp_path / "set")
    assert len(read(tmp_path / "set", allow_outside=True).samples) == 4


def test_a_name_that_is_not_utf8(tmp_path: Path) -> None:
    make(tmp_path, "a/1.mp4", "b/1.mp4")
    Path(os.fsdecode(os.fsencode(tmp_path / "a") + b"/\xff.mp4")).write_bytes(b"")
    with pytest.raises(DataError, match="cannot be a file's name"):
        read(tmp_path)


def test_flips_of_classes_that_are_named_as_folders_are() -> None:
    names = (
        "swipe_left",
        "swipe_right",
        "Swiping Left",
        "Swiping Right",
        "TURN-LEFT",
        "TURN-RIGHT",
        "leftover",
        "left",
    )
    assert flip_labels(names) == (1, 0, 3, 2, 5, 4, 6, 7)
