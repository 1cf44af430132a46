"""Annotation files: every layout that users have, and one clear message for everything that can be wrong."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipelines.annotations import Annotations, class_name, flip_labels, read_lists, read_something_something
from pipelines.errors import DataError

CLASSES = ["Holding something next to something", "Moving something up", "Throwing something"]
TRAIN = [
    {"id": "78687", "label": "holding potato next to box", "template": "Holding [something] next to [something]"},
    {"id": "2", "template": "Throwing [something]"},
]
VALIDATION = [{"id": 31, "template": "Moving [something] up"}]


def something(root: Path, naming: str = "labels/{}.json", videos: str = "20bn-something-something-v2", **parts: Any):
    """Write a data set in Something-Something's layout; `parts` replace what a label file holds."""
    parts = {"labels": {c: str(i) for i, c in enumerate(CLASSES)}, "train": TRAIN, "validation": VALIDATION} | parts
    (root / videos).mkdir(parents=True)
    for name, content in parts.items():
        path = root / naming.format(name)
        path.parent.mkdir(exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return root


def lists(root: Path, train: str, validation: str = "v.webm 9 0\n") -> tuple[Path, Path]:
    for name, text in (("train.txt", train), ("val.txt", validation)):
        (root / name).write_text(text, encoding="utf-8")
    return root / "train.txt", root / "val.txt"


def rows(annotations: Annotations) -> list[tuple[str, int, str]]:
    return [(s.id, s.label, s.split) for s in annotations.samples]


@pytest.mark.parametrize("videos", ["20bn-something-something-v2", "videos"])
@pytest.mark.parametrize(
    "naming",
    ["labels/{}.json", "{}.json", "something-something-v2-{}.json", "labels/something-something-v2-{}.json"],
)
def test_every_naming_of_the_layout(tmp_path: Path, naming: str, videos: str) -> None:
    annotations = read_something_something(something(tmp_path / "set", naming, videos))
    assert annotations.name == "set"
    assert annotations.classes == tuple(CLASSES)
    assert rows(annotations) == [("78687", 0, "train"), ("2", 2, "train"), ("31", 1, "validation")]
    assert annotations.samples[0].path == str(tmp_path / "set" / videos / "78687.webm")


def test_paths_are_absolute_and_the_name_is_the_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    something(tmp_path / "set")
    train, val = lists(tmp_path / "set", "a.webm 9 0\n")
    monkeypatch.chdir(tmp_path / "set")
    assert read_something_something(Path()).name == "set"
    for annotations in (read_something_something(Path()), read_lists(Path(train.name), Path(val.name))):
        assert all(Path(s.path).is_relative_to(tmp_path / "set") for s in annotations.samples)


def test_classes_follow_their_index_not_the_file(tmp_path: Path) -> None:
    labels = {"Throwing something": "0", "Moving something up": "2", "Holding something next to something": "1"}
    annotations = read_something_something(something(tmp_path / "set", labels=labels))
    assert annotations.classes == (CLASSES[2], CLASSES[0], CLASSES[1])
    assert [s.label for s in annotations.samples] == [1, 0, 2]


@pytest.mark.parametrize(
    ("template", "name"),
    [
        ("Putting [something] onto [something]", "Putting something onto something"),
        ("[Something] falling like a feather or paper", "Something falling like a feather or paper"),
        ("Pulling [part] of [something]", "Pulling part of something"),
        ("Putting [number of] [something] onto [something]", "Putting number of something onto something"),
        (
            "Taking [one of many similar things on the table]",
            "Taking one of many similar things on the table",
        ),
        (
            "Putting [something similar to other things that are already on the table]",
            "Putting something similar to other things that are already on the table",
        ),
        ("No placeholder", "No placeholder"),
    ],
)
def test_placeholders_of_every_kind(template: str, name: str) -> None:
    assert class_name(template) == name


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"train": [{"id": "5", "template": "Eating [something]"}]}, r"train\.json: .*id 5.*'Eating something'"),
        ({"train": [*TRAIN, {"id": "5"}]}, r"train\.json: entry 2 lacks 'id' or 'template'"),
        ({"validation": [{"template": "Throwing [something]"}]}, r"validation\.json: entry 0 lacks"),
        ({"train": ["78687"]}, r"train\.json: entry 0 lacks"),
        ({"train": {"id": "5"}}, r"train\.json: must be a JSON array"),
        ({"train": '[{"id": "5",'}, r"train\.json: not valid JSON"),
        ({"labels": ""}, r"labels\.json: not valid JSON"),
        ({"train": []}, "the train split lists no video"),
        ({"validation": []}, "the validation split lists no video"),
    ],
)
def test_what_is_wrong_is_named_in_one_line(tmp_path: Path, parts: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read_something_something(something(tmp_path, **parts))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "labels",
    [
        {"Moving something up": "1", "Throwing something": "2"},
        {"Moving something up": "0", "Throwing something": "2"},
        {"Moving something up": "0", "Throwing something": "0"},
        {"Moving something up": "zero"},
        {"Moving something up": None},
        ["Moving something up"],
        {},
        7,
    ],
)
def test_labels_must_be_numbered_from_zero(tmp_path: Path, labels: Any) -> None:
    with pytest.raises(DataError, match=r"labels\.json: must map every class name to its index, 0, 1, 2, … once each"):
        read_something_something(something(tmp_path, labels=labels))


def test_label_file_that_is_not_text(tmp_path: Path) -> None:
    something(tmp_path)
    (tmp_path / "labels/train.json").write_bytes(b"\xff\xfe\x00[")
    with pytest.raises(DataError, match=r"train\.json: cannot be read"):
        read_something_something(tmp_path)


@pytest.mark.parametrize("exists", [True, False])
def test_empty_or_missing_folder_gets_all_the_help_there_is(tmp_path: Path, exists: bool) -> None:
    root = tmp_path / "set"
    if exists:
        root.mkdir()
    with pytest.raises(DataError) as caught:
        read_something_something(root)
    looked_for = ["20bn-something-something-v2/", "labels/labels.json", "labels/train.json", "labels/validation.json"]
    for part in (str(root), "https://", *looked_for):
        assert part in str(caught.value)
    first_line = str(caught.value).splitlines()[0]
    assert ("no such folder" in first_line) != exists
    assert all(part in first_line for part in looked_for) == exists


@pytest.mark.parametrize("missing", ["labels", "train", "validation"])
def test_only_the_missing_file_is_named(tmp_path: Path, missing: str) -> None:
    something(tmp_path)
    (tmp_path / f"labels/{missing}.json").unlink()
    with pytest.raises(DataError) as caught:
        read_something_something(tmp_path)
    assert str(caught.value).splitlines()[0] == f"{tmp_path}: not found: labels/{missing}.json"


def test_lists(tmp_path: Path) -> None:
    paths = lists(tmp_path, "a b/c  d.webm 30 2\r\n\n/abs/x.mp4 0 0\n", "v.webm 9 1\n")
    annotations = read_lists(*paths)
    assert rows(annotations) == [("a b/c  d.webm", 2, "train"), ("/abs/x.mp4", 0, "train"), ("v.webm", 1, "validation")]
    expected = [str(tmp_path / "a b/c  d.webm"), "/abs/x.mp4", str(tmp_path / "v.webm")]
    assert [s.path for s in annotations.samples] == expected
    assert annotations.classes == ("0", "1", "2")
    elsewhere = read_lists(*paths, root=Path("/videos"))
    assert elsewhere.samples[0].path == "/videos/a b/c  d.webm"


def test_lists_with_class_names(tmp_path: Path) -> None:
    names = tmp_path / "classes.txt"
    names.write_text("Jumping\nRunning fast\n\nÜben\n", encoding="utf-8")
    assert read_lists(*lists(tmp_path, "a.mp4 9 2\n"), classes=names).classes == ("Jumping", "Running fast", "Üben")
    with pytest.raises(DataError, match=r"classes\.txt: has 3 classes, but label 3 occurs"):
        read_lists(*lists(tmp_path, "a.mp4 9 3\n"), classes=names)


@pytest.mark.parametrize("line", ["a.mp4", "a.mp4 3", "a.mp4 30 -1", "a.mp4 30 x", "a.mp4 30 1.0", "a.mp4 30 ²"])
def test_bad_lines_of_lists_are_named(tmp_path: Path, line: str) -> None:
    with pytest.raises(DataError, match=r"train\.txt:2: expected 'path num_frames label', got") as caught:
        read_lists(*lists(tmp_path, f"ok.mp4 30 1\n{line}\n"))
    assert line in str(caught.value)


def test_missing_and_empty_lists(tmp_path: Path) -> None:
    train, val = lists(tmp_path, "\n")
    with pytest.raises(DataError, match="the train split lists no video"):
        read_lists(train, val)
    with pytest.raises(DataError, match=r"none\.txt: cannot be read"):
        read_lists(tmp_path / "none.txt", val)


def swapped(classes: list[str]) -> dict[int, int]:
    return {i: j for i, j in enumerate(flip_labels(classes)) if i != j}


def test_flip_swaps_the_directions() -> None:
    pairs = [
        "Pulling something from left to right",
        "Pulling something from right to left",
        "Pushing something from left to right",
        "Pushing something from right to left",
        "Turning the camera left while filming something",
        "Turning the camera right while filming something",
    ]
    assert swapped(pairs) == {0: 1, 1: 0, 2: 3, 3: 2, 4: 5, 5: 4}
    assert swapped(["Turning something clockwise", "Turning something counterclockwise"]) == {0: 1, 1: 0}
    # Without a partner, or with a direction as a mere part of a word, a class stays what it is.
    assert swapped(["Moving something left", "Putting something upright", "Putting something upleft"]) == {}


def test_flip_labels_of_something_something(shared_data: Path) -> None:
    index = json.loads((shared_data / "labels/sthv2/something-something-v2-labels.json").read_text())
    classes = sorted(index, key=lambda name: int(index[name]))
    assert len(classes) == 174
    assert swapped(classes) == {86: 87, 87: 86, 93: 94, 94: 93, 166: 167, 167: 166}
