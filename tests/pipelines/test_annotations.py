"""Annotation files: every layout that users have, and one clear message for everything that can be wrong."""

import csv
import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines import annotations as module
from pipelines.annotations import (
    DATASET_NAMES,
    DATASETS,
    NUM_SPLITS,
    Annotations,
    flip_labels,
    read_dataset,
    read_hmdb51,
    read_kinetics400,
    read_lists,
    read_something_something,
    read_something_something_v1,
    read_ucf101,
    register_dataset,
    write_list,
)
from pipelines.errors import DataError
from pipelines.label_files import class_name

VIDEOS = "20bn-something-something-v2"
CLASSES = ["Holding something next to something", "Moving something up", "Throwing something"]
TRAIN = [
    {"id": "78687", "label": "holding potato next to box", "template": "Holding [something] next to [something]"},
    {"id": "2", "template": "Throwing [something]"},
]
VALIDATION = [{"id": 31, "template": "Moving [something] up"}]


def something(root: Path, naming: str = "labels/{}.json", videos: str = VIDEOS, **parts: Any):
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


@pytest.mark.parametrize("videos", [VIDEOS, "videos"])
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


def test_only_the_missing_file_is_named(tmp_path: Path) -> None:
    something(tmp_path)
    (tmp_path / "labels/labels.json").unlink()
    with pytest.raises(DataError) as caught:
        read_something_something(tmp_path)
    assert str(caught.value).splitlines()[0] == f"{tmp_path}: not found: labels/labels.json"


@pytest.mark.parametrize("missing", ["train", "validation"])
def test_whoever_only_tests_or_only_trains_needs_one_list(tmp_path: Path, missing: str) -> None:
    both = read_something_something(something(tmp_path))
    (tmp_path / f"labels/{missing}.json").unlink()
    one = read_something_something(tmp_path)
    assert one.classes == both.classes
    assert one.samples == tuple(s for s in both.samples if s.split != missing)
    for file in (tmp_path / "labels").glob("*n.json"):
        file.unlink()
    with pytest.raises(DataError, match=r"not found: labels/train\.json, labels/validation\.json"):
        read_something_something(tmp_path)


def test_lists(tmp_path: Path) -> None:
    paths = lists(tmp_path, "a b/c  d.webm 30 2\r\n\n/abs/x.mp4 0 0\n", "v.webm 9 1\n")
    annotations = read_lists(*paths, allow_outside=True)
    assert rows(annotations) == [("a b/c  d.webm", 2, "train"), ("/abs/x.mp4", 0, "train"), ("v.webm", 1, "validation")]
    expected = [str(tmp_path / "a b/c  d.webm"), "/abs/x.mp4", str(tmp_path / "v.webm")]
    assert [s.path for s in annotations.samples] == expected
    assert annotations.classes == ("0", "1", "2")
    elsewhere = read_lists(*paths, root=Path("/videos"), allow_outside=True)
    assert elsewhere.samples[0].path == "/videos/a b/c  d.webm"


def test_lists_with_class_names(tmp_path: Path) -> None:
    names = tmp_path / "classes.txt"
    names.write_text("\ufeffJumping \r\nRunning\u2028fast\r\nÜben\r\n\r\n \n", encoding="utf-8", newline="")
    with pytest.raises(DataError, match=r"class name 'Running\\u2028fast' is empty, too long, or no plain"):
        read_lists(*lists(tmp_path, "a.mp4 9 2\n"), classes=names)
    names.write_text("\ufeffJumping \r\nRunning fast\r\nÜben\r\n\r\n \n", encoding="utf-8", newline="")
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


def write(root: Path, files: dict[str, str]) -> Path:
    """Write small text files (and empty videos) below `root`; a name that ends in "/" makes a folder."""
    for name, text in files.items():
        path = root / name
        (path if name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            path.write_bytes(text.encode())
    return root


def paths(annotations: Annotations) -> list[str]:
    """Where each sample lies, below the annotations' root."""
    return [str(Path(s.path).relative_to(annotations.root)) for s in annotations.samples]


# Something-Something V2: the test split, and frames in folders


def test_sthv2_test_split_is_unknown_without_answers(tmp_path: Path) -> None:
    something(tmp_path / "set", test=[{"id": "7"}, {"id": 8}])
    assert rows(read_something_something(tmp_path / "set"))[3:] == [("7", -1, "test"), ("8", -1, "test")]


@pytest.mark.parametrize("name", ["labels/test-answers.csv", "something-something-v2-test-answers.csv"])
def test_sthv2_test_answers(tmp_path: Path, name: str) -> None:
    something(tmp_path, test=[{"id": "7"}, {"id": "8"}])
    write(tmp_path, {name: "8;Throwing something\r\n9;Moving something up\r\n"})
    assert rows(read_something_something(tmp_path))[3:] == [("7", -1, "test"), ("8", 2, "test")]
    write(tmp_path, {name: "8;Throwing something\n7;Eating\n"})
    with pytest.raises(DataError, match=r"test-answers\.csv:2 names an unknown class 'Eating'"):
        read_something_something(tmp_path)


def test_sthv2_frames_stand_in_for_videos_and_videos_come_first(tmp_path: Path) -> None:
    something(tmp_path)
    frames = "20bn-something-something-v2-frames"
    write(tmp_path, {f"{VIDEOS}/2.webm": "", f"{frames}/2/000001.jpg": "", f"{frames}/31/000001.jpg": ""})
    annotations = read_something_something(tmp_path)
    assert paths(annotations) == [f"{VIDEOS}/78687.webm", f"{VIDEOS}/2.webm", f"{frames}/31"]
    (tmp_path / VIDEOS / "2.webm").unlink()
    write(tmp_path, {f"{VIDEOS}/78687/000001.jpg": ""})
    assert paths(read_something_something(tmp_path)) == [f"{VIDEOS}/78687", f"{frames}/2", f"{frames}/31"]


@pytest.mark.parametrize("folder", ["20bn-something-something-v2-frames", "frames", "rawframes"])
def test_sthv2_of_frames_only(tmp_path: Path, folder: str) -> None:
    something(tmp_path, videos=f"{folder}/2")
    assert paths(read_something_something(tmp_path)) == [f"{folder}/{id}" for id in ("78687", "2", "31")]


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"train": [*TRAIN, TRAIN[0]]}, r"train\.json: entry 2 .*78687 \(train\) is already listed at .*entry 0"),
        ({"validation": [*VALIDATION, TRAIN[1]]}, r"validation\.json: entry 1 .*2 \(validation\) .*train\.json: entry"),
        ({"test": [{"id": 31}]}, r"test\.json: entry 0 .*31 \(test\) .*validation\.json: entry 0"),
        ({"test": [{"name": 31}]}, r"test\.json: entry 0 lacks 'id'"),
    ],
)
def test_no_video_is_listed_twice(tmp_path: Path, parts: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read_something_something(something(tmp_path, **parts))
    assert "\n" not in str(caught.value)


# Something-Something V1

V1 = "20bn-something-something-v1"
V1_FILES = {
    "labels.csv": "Turning something\nHolding something, then something\nClosing something\n",
    "train.csv": "100218;Holding something, then something\n5;Turning something\n",
    "validation.csv": "9;Closing something\n",
    "test.csv": "11\n12\n",
}
V1_HEADERS = {"labels": "label\n", "train": "video;label\n", "validation": "video;label\n", "test": "video\n"}


@pytest.mark.parametrize("header", [True, False])
@pytest.mark.parametrize("naming", ["{}", "something-something-v1-{}", "labels/{}", "labels/something-something-v1-{}"])
def test_sthv1(tmp_path: Path, naming: str, header: bool) -> None:
    files = {naming.format(n): V1_HEADERS[n.removesuffix(".csv")] * header + text for n, text in V1_FILES.items()}
    annotations = read_something_something_v1(write(tmp_path / "set", files | {f"{V1}/5/00001.jpg": ""}))
    assert (annotations.name, annotations.root) == ("set", tmp_path / "set")
    assert annotations.classes == ("Closing something", "Holding something, then something", "Turning something")
    expected = [
        ("100218", 1, "train"),
        ("5", 2, "train"),
        ("9", 0, "validation"),
        ("11", -1, "test"),
        ("12", -1, "test"),
    ]
    assert rows(annotations) == expected
    assert paths(annotations) == [f"{V1}/{id}" for id, _, _ in expected]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"train.csv": "5,Turning something\n"}, r"train\.csv:1: expected 'id;class name', got '5,Turning"),
        ({"train.csv": "5;Turning something\n6;Turning;x\n"}, r"train\.csv:2: expected 'id;class name'"),
        ({"train.csv": ";Turning something\n"}, r"train\.csv:1: expected 'id;class name'"),
        ({"train.csv": "5;Turning\n"}, r"train\.csv:1 names an unknown class 'Turning'"),
        ({"train.csv": "5\n"}, r"train\.csv:1: expected 'id;class name'"),
        ({"test.csv": "11\n9\n"}, r"test\.csv:2: video 9 \(test\) is already listed at .*validation\.csv:1"),
        ({"labels.csv": "label\n"}, r"labels\.csv: must name every class once"),
        ({"labels.csv": "Closing something\nClosing something\n"}, r"labels\.csv: must name every class once"),
        ({"validation.csv": "video;label\n"}, "the validation split lists no video"),
    ],
)
def test_sthv1_errors(tmp_path: Path, files: dict[str, str], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read_something_something_v1(write(tmp_path, V1_FILES | {f"{V1}/": ""} | files))
    assert "\n" not in str(caught.value)


# Kinetics-400

HEAD = "label,youtube_id,time_start,time_end,split"
KINETICS = {
    "kinetics-400_train.csv": f'{HEAD},is_cc\n"using segway",R6llTwEh07w,0,10,train,0\n'
    "abseiling,-_a_1_2-bcd,7,17,train,1\n",
    "kinetics-400_val.csv": f'{HEAD},is_cc\n"massaging person\'s head",___________,191,201,val,0\n',
    "kinetics-400_test.csv": "youtube_id,time_start,time_end,split\n--6bJUbfpnQ,17,27,test\n",
}
STEMS = [
    "R6llTwEh07w_000000_000010",
    "-_a_1_2-bcd_000007_000017",
    "____________000191_000201",
    "--6bJUbfpnQ_000017_000027",
]


def renamed(naming: str, val: str = "val") -> dict[str, str]:
    words = {"train": "train", "val": val, "test": "test"}
    return {naming.format(words[n.split("_")[1].split(".")[0]]): text for n, text in KINETICS.items()}


@pytest.mark.parametrize(
    ("naming", "val"),
    [
        ("kinetics-400_{}.csv", "val"),
        ("kinetics_{}.csv", "val"),
        ("{}.csv", "val"),
        ("annotations/{}.csv", "val"),
        ("labels/{}.csv", "validate"),
        ("kinetics_{}.csv", "validation"),
    ],
)
def test_kinetics_file_names(tmp_path: Path, naming: str, val: str) -> None:
    annotations = read_kinetics400(write(tmp_path / "k", renamed(naming, val)))
    assert (annotations.name, annotations.root) == ("k", tmp_path / "k")
    assert annotations.classes == ("abseiling", "massaging person's head", "using segway")
    labels = [(2, "train"), (0, "train"), (1, "validation"), (-1, "test")]
    assert rows(annotations) == [(stem, *label) for stem, label in zip(STEMS, labels, strict=True)]
    homes = ["using segway", "abseiling", "massaging person's head", "test"]  # nothing is there: the crawler's layout
    assert paths(annotations) == [f"{home}/{stem}.mp4" for home, stem in zip(homes, STEMS, strict=True)]


@pytest.mark.parametrize(
    "files",
    [
        [f"{home}/{stem}.mp4" for home, stem in zip(("using segway", "abseiling", "m", "test"), STEMS, strict=True)],
        [f"train/using_segway/{STEMS[0]}.mkv", f"a/b/{STEMS[1]}.webm", f"val/m/{STEMS[2]}.AVI", f"t/{STEMS[3]}.mp4"],
        [f"{stem}.mp4" for stem in STEMS],
        ["train/R6llTwEh07w.mp4", "train/-_a_1_2-bcd.mp4", "val/___________.mp4", "test/--6bJUbfpnQ_17_27.mp4"],
        [f"using_segway/{STEMS[0]}/", f"abseiling/{STEMS[1]}/", f"val/{STEMS[2]}/", f"test/{STEMS[3]}/"],
    ],
)
def test_kinetics_videos_are_found_wherever_they_lie(tmp_path: Path, files: list[str]) -> None:
    write(tmp_path, KINETICS | dict.fromkeys(files, ""))
    (tmp_path / "loop").symlink_to(tmp_path)
    assert paths(read_kinetics400(tmp_path)) == [name.rstrip("/") for name in files]


def test_kinetics_doubles_and_missing_files(tmp_path: Path) -> None:
    files = [f"train/using_segway/{STEMS[0]}.mp4", f"replacement/{STEMS[0]}.mp4", f"frames/abseiling/{STEMS[1]}/"]
    write(tmp_path, KINETICS | dict.fromkeys([*files, f"train/abseiling/{STEMS[1]}.mp4"], ""))
    more = "using segway,AAAAAAAAAAA,1,11,train,0\nabseiling,BBBBBBBBBBB,5,15,train,0\n"
    write(tmp_path, {"kinetics-400_train.csv": KINETICS["kinetics-400_train.csv"] + more})
    assert paths(read_kinetics400(tmp_path))[:4] == [
        files[1],
        f"train/abseiling/{STEMS[1]}.mp4",
        "replacement/AAAAAAAAAAA_000001_000011.mp4",
        "train/abseiling/BBBBBBBBBBB_000005_000015.mp4",
    ]


def test_kinetics_clip_is_taken_not_the_whole_video_beside_it(tmp_path: Path) -> None:
    video, clip = "R6llTwEh07w.mp4", f"{STEMS[0]}.mp4"
    write(tmp_path, KINETICS | {f"train/{video}": "", f"train/{clip}": ""})
    assert paths(read_kinetics400(tmp_path))[0] == f"train/{clip}"
    (tmp_path / "train" / clip).unlink()
    assert paths(read_kinetics400(tmp_path))[0] == f"train/{video}"
    # of two clips of one video nobody knows which one such a file is
    more = KINETICS["kinetics-400_train.csv"] + "abseiling,R6llTwEh07w,30,40,train,0\n"
    write(tmp_path, {"kinetics-400_train.csv": more})
    expected = ("R6llTwEh07w_000000_000010.mp4", "R6llTwEh07w_000030_000040.mp4")
    assert {Path(p).name for p in paths(read_kinetics400(tmp_path))} >= set(expected)


def test_kinetics_test_labels_where_a_release_has_them(tmp_path: Path) -> None:
    test = f"{HEAD}\nabseiling,--6bJUbfpnQ,17,27,test\n,AAAAAAAAAAA,17,27,test\n"
    annotations = read_kinetics400(write(tmp_path, KINETICS | {"kinetics-400_test.csv": test}))
    assert [s.label for s in annotations.samples if s.split == "test"] == [0, -1]
    (tmp_path / "kinetics-400_test.csv").unlink()
    assert {s.split for s in read_kinetics400(tmp_path).samples} == {"train", "validation"}


@pytest.mark.parametrize(
    ("part", "text", "message"),
    [
        ("train", "label,id\n", r"_train\.csv:1: the header must name label, youtube_id, time_start, time_end; got"),
        ("train", "", r"_train\.csv:1: the header must name"),
        ("val", f"{HEAD}\nabseiling,x,1,2,val\nabseiling,y,1\n", r"_val\.csv:3: expected 5 columns"),
        ("val", f"{HEAD}\nabseiling,x,1,2,val,0\n", r"_val\.csv:2: expected 5 columns"),
        ("val", f"{HEAD}\nabseiling,x,one,2,val\n", r"_val\.csv:2: expected a YouTube id and whole seconds"),
        ("val", f"{HEAD}\n,x,1,2,val\n", r"_val\.csv:2: video x has no label"),
        ("test", f"{HEAD}\neating,x,1,2,test\n", r"_test\.csv:2 names an unknown class 'eating'"),
        ("val", f"{HEAD}\nabseiling,R6llTwEh07w,0,10,val\n", r"_val\.csv:2: video R6ll.* at .*_train\.csv:2 \(train\)"),
        ("val", f"{HEAD}\n", "the validation split lists no video"),
    ],
)
def test_kinetics_errors(tmp_path: Path, part: str, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read_kinetics400(write(tmp_path, KINETICS | {f"kinetics-400_{part}.csv": text}))
    assert "\n" not in str(caught.value)


# UCF101

UCF = {
    "classInd.txt": "1 Hammering\r\n2 HammerThrow\r\n3 HandstandPushups\r\n",
    "trainlist01.txt": "Hammering/v_Hammering_g08_c01.avi 1\r\nHandstandPushups/v_HandStandPushups_g08_c01.avi 3\r\n",
    "testlist01.txt": "HammerThrow/v_HammerThrow_g01_c01.avi\r\n\r\n",
    "trainlist02.txt": "HammerThrow/v_HammerThrow_g01_c01.avi 2\r\n",
    "testlist02.txt": "Hammering/v_Hammering_g08_c01.avi\r\n",
}
UCF_FILES = [
    line.split()[0] for name in ("trainlist01.txt", "testlist01.txt") for line in UCF[name].split("\r\n") if line
]


@pytest.mark.parametrize("videos", ["UCF-101/", "", "videos/"])
@pytest.mark.parametrize("lists_folder", ["ucfTrainTestlist/", "", "labels/"])
def test_ucf101(tmp_path: Path, videos: str, lists_folder: str) -> None:
    write(tmp_path / "ucf", {lists_folder + name: text for name, text in UCF.items()})
    write(tmp_path / "ucf", {f"{videos}{file}": "" for file in UCF_FILES})
    annotations = read_ucf101(tmp_path / "ucf")
    assert (annotations.name, annotations.root) == ("ucf-split1", tmp_path / "ucf")
    assert annotations.classes == ("Hammering", "HammerThrow", "HandstandPushups")  # not sorted: "T" precedes "i"
    assert rows(annotations) == [
        ("v_Hammering_g08_c01", 0, "train"),
        ("v_HandStandPushups_g08_c01", 2, "train"),
        ("v_HammerThrow_g01_c01", 1, "validation"),
    ]
    assert paths(annotations) == [f"{videos}{file}" for file in UCF_FILES]
    second = read_ucf101(tmp_path / "ucf", split=2)
    assert second.name == "ucf-split2"
    assert [(s.label, s.split) for s in second.samples] == [(1, "train"), (0, "validation")]


def test_ucf101_frames_missing_files_and_labels_elsewhere(tmp_path: Path) -> None:
    write(tmp_path / "lists", UCF)
    write(tmp_path / "ucf", {"UCF-101/Hammering/v_Hammering_g08_c01/": ""})
    annotations = read_ucf101(tmp_path / "ucf", labels=tmp_path / "lists")
    assert paths(annotations) == ["UCF-101/Hammering/v_Hammering_g08_c01", *(f"UCF-101/{f}" for f in UCF_FILES[1:])]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("classInd.txt", "0 A\n1 B\n", r"classInd\.txt:1: expected '1 ClassName', a new class, got '0 A'"),
        ("classInd.txt", "1 A\n3 B\n", r"classInd\.txt:2: expected '2 ClassName'"),
        ("classInd.txt", "1 A\n2 A\n", r"classInd\.txt:2: expected '2 ClassName'"),
        ("classInd.txt", "A\n", r"classInd\.txt:1: expected '1 ClassName'"),
        ("trainlist01.txt", "Hammering/v.avi\n", r"trainlist01\.txt:1: expected 'Class/video\.avi number'"),
        (
            "trainlist01.txt",
            "Hammering/v.avi 2\n",
            r"trainlist01\.txt:1: class 2, but classInd\.txt numbers Hammering 1",
        ),
        ("trainlist01.txt", "Hammering/v.avi 4\n", r"trainlist01\.txt:1: class 4, but"),
        ("testlist01.txt", "\nJumping/v.avi\n", r"testlist01\.txt:2 names an unknown class 'Jumping'"),
        ("testlist01.txt", "v.avi\n", r"testlist01\.txt:1: expected 'Class/video\.avi', got"),
        ("testlist01.txt", UCF["testlist02.txt"], r"testlist01\.txt:1: video v_Hammering_g08_c01 .*trainlist01\.txt:1"),
    ],
)
def test_ucf101_errors(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read_ucf101(write(tmp_path, UCF | {name: text}))
    assert "\n" not in str(caught.value)


# HMDB51

ODD = "#2_Gum!_(a)_&_[b];+@~_chew_h_nm_np1_fr_med_0.avi"
HMDB = {
    "climb_test_split1.txt": "a.b.avi 1 \nunused.avi 0 \n",
    "climb_stairs_test_split1.txt": "s.avi 2 \n",
    "chew_test_split1.txt": f"{ODD} 1 \n",
    "climb_test_split3.txt": "a.b.avi 2 \nunused.avi 1 \n",
}


@pytest.mark.parametrize("videos", ["", "hmdb51_org/", "videos/", "rawframes/"])
@pytest.mark.parametrize("splits", ["testTrainMulti_7030_splits/", "", "labels/"])
def test_hmdb51(tmp_path: Path, videos: str, splits: str) -> None:
    suffix = "" if videos == "rawframes/" else ".avi"
    files = [
        f"{videos}{path}" for path in (f"chew/{ODD[:-4]}{suffix}", f"climb/a.b{suffix}", f"climb_stairs/s{suffix}")
    ]
    write(tmp_path / "set", {splits + name: text for name, text in HMDB.items()})
    write(tmp_path / "set", {file + ("" if suffix else "/"): "" for file in files})
    annotations = read_hmdb51(tmp_path / "set")
    assert (annotations.name, annotations.root) == ("set-split1", tmp_path / "set")
    assert annotations.classes == ("chew", "climb", "climb_stairs")
    assert rows(annotations) == [(ODD[:-4], 0, "train"), ("a.b", 1, "train"), ("s", 2, "validation")]
    assert paths(annotations) == files
    assert [(s.id, s.split) for s in read_hmdb51(tmp_path / "set", split=3).samples] == [
        ("a.b", "validation"),
        ("unused", "train"),
    ]


@pytest.mark.parametrize("line", ["a.avi", "a.avi 3", "a.avi x", "1"])
def test_hmdb51_bad_lines(tmp_path: Path, line: str) -> None:
    with pytest.raises(DataError, match=r"climb_test_split1\.txt:2: expected 'name\.avi flag'"):
        read_hmdb51(write(tmp_path, HMDB | {"climb_test_split1.txt": f"a.avi 1 \n{line}\n"}))


def test_hmdb51_doubles(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"climb_test_split1\.txt:2: video a \(validation\) .*:1 \(train\)"):
        read_hmdb51(write(tmp_path, HMDB | {"climb_test_split1.txt": "a.avi 1 \na.avi 2 \n"}))


# All sets


@pytest.mark.parametrize(
    ("dataset", "names"),
    [
        ("sthv1", ["something-something-v1-labels.csv", "something-something-v1-train.csv", f"{V1}/"]),
        ("kinetics400", ["kinetics-400_train.csv", "kinetics-400_val.csv"]),
        ("ucf101", ["ucfTrainTestlist/classInd.txt", "trainlist01.txt", "testlist01.txt"]),
        ("hmdb51", ["testTrainMulti_7030_splits/<class>_test_split1.txt"]),
    ],
)
def test_what_is_not_found_is_named_in_one_line(tmp_path: Path, dataset: str, names: list[str]) -> None:
    for labels in (None, tmp_path / "lists"):
        with pytest.raises(DataError, match="not found") as caught:
            read_dataset(dataset, tmp_path, labels=labels)
        assert all(name in str(caught.value) for name in [*names, str(labels or tmp_path)])
        assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match=r"nowhere: no such folder; name the folder that holds the data set$"):
        read_dataset(dataset, tmp_path / "nowhere")


def test_read_dataset_reads_by_name(tmp_path: Path) -> None:
    something(tmp_path / "sthv2")
    write(tmp_path / "sthv1", V1_FILES | {f"{V1}/": ""})
    own = {"a/1.mp4": "", "a/2.mp4": "", "b/1.mp4": "", "b/2.mp4": ""}
    for name, files in (("kinetics400", KINETICS), ("ucf101", UCF), ("hmdb51", HMDB), ("folders", own)):
        write(tmp_path / name, files)
    for dataset, reader in DATASETS.items():
        assert read_dataset(dataset, tmp_path / dataset) == reader(tmp_path / dataset)
    assert read_dataset("ucf101", tmp_path / "ucf101", split=2).name == "ucf101-split2"
    elsewhere = read_dataset("ucf101", tmp_path, labels=tmp_path / "ucf101")
    assert elsewhere.classes == read_dataset("ucf101", tmp_path / "ucf101").classes


def test_a_data_set_is_added_by_one_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DATASETS", dict(DATASETS))
    monkeypatch.setattr(module, "NUM_SPLITS", dict(NUM_SPLITS))

    @register_dataset("two", num_splits=2)
    def read_two(root: Path, *, split: int, labels: Path | None = None) -> Annotations:
        return Annotations(f"two-{split}", labels or root, ("a",), ())

    @register_dataset("one")
    def read_one(root: Path, *, labels: Path | None = None) -> Annotations:
        return Annotations("one", labels or root, ("a",), ())

    assert read_dataset("two", tmp_path, split=2) == read_two(tmp_path, split=2)
    assert read_dataset("one", tmp_path, labels=tmp_path / "x") == read_one(tmp_path / "x")
    with pytest.raises(DataError, match=r"^two has no split 3; it must be 1 or 2$"):
        read_dataset("two", tmp_path, split=3)
    with pytest.raises(DataError, match=r"^no data set 'none'; it must be one of .*, hmdb51, folders, two, one$"):
        read_dataset("none", tmp_path)


def test_names_of_data_sets() -> None:
    assert tuple(DATASETS) == DATASET_NAMES == ("sthv1", "sthv2", "kinetics400", "ucf101", "hmdb51", "folders")


@pytest.mark.parametrize(
    ("dataset", "split"),
    [("sthv1", 2), ("sthv2", 2), ("kinetics400", 3), ("sthv2", 0), ("ucf101", 0), ("ucf101", 4), ("hmdb51", -1)],
)
def test_splits_that_a_set_does_not_have(tmp_path: Path, dataset: str, split: int) -> None:
    with pytest.raises(DataError, match=f"^{dataset} has no split {split}; it "):
        read_dataset(dataset, tmp_path, split=split)


def test_data_set_that_nobody_knows(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match="no data set 'ucf'; it must be one of sthv1, sthv2, kinetics400, ucf101, hmdb51"
    ):
        read_dataset("ucf", tmp_path)


# Lists

NAMES = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), min_size=1).filter(
    lambda p: p == p.rstrip()
)


@given(st.lists(st.tuples(NAMES, st.integers(0, 10**6), st.integers(0, 400)), min_size=1))
def test_lists_that_were_written_read_back(rows: list[tuple[str, int, int]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "train.txt"
        write_list(path, rows)
        annotations = read_lists(path, path, root=Path("/videos"), allow_outside=True)
        frames = [int(line.split(" ")[-2]) for line in path.read_text(encoding="utf-8").splitlines()]
    assert annotations.root == Path("/videos")
    samples = [s for s in annotations.samples if s.split == "train"]
    assert [(s.id, n, s.label) for s, n in zip(samples, frames, strict=True)] == rows


def test_list_keeps_the_authors_form(tmp_path: Path) -> None:
    write_list(tmp_path / "l.txt", [("frames/1", 42, 7), ("a b.mp4", 0, 0)])
    assert (tmp_path / "l.txt").read_bytes() == b"frames/1 42 7\na b.mp4 0 0\n"


@pytest.mark.parametrize(
    "row", [("a\nb", 1, 0), ("a ", 1, 0), ("", 1, 0), ("a", -1, 0), ("a", 1, -1), ("a\u2028b", 1, 0)]
)
def test_rows_that_could_not_be_read_back(tmp_path: Path, row: tuple[str, int, int]) -> None:
    with pytest.raises(DataError, match=r"l\.txt: cannot hold") as caught:
        write_list(tmp_path / "l.txt", [("ok", 1, 0), row])
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "l.txt").exists()


def test_list_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be written"):
        write_list(tmp_path / "none" / "l.txt", [("a", 1, 0)])
    with pytest.raises(DataError, match="cannot be written"):
        write_list(tmp_path / "l.txt", [("not UTF-8: \udcff", 1, 0)])


# The real label files


def real_classes(folder: Path, dataset: str) -> list[str]:
    """The order that another project's label map (or the authors' own list) gives."""
    name = {"sthv2": "category.TSM-TDN-order.txt", "k400": "k400_label_map.mmaction2.txt"}
    return (folder / dataset / name.get(dataset, "label_map.mmaction2.txt")).read_text().splitlines()


def real_sthv1(root: Path, labels: Path) -> Annotations:
    """All label files of V1 that are there: of train, a part."""
    write(root, {f"{V1}/": ""})
    for part in ("labels", "validation", "train"):
        source = labels / f"something-something-v1-{part}{'.HEAD50' * (part == 'train')}.csv"
        (root / f"something-something-v1-{part}.csv").symlink_to(source)
    return read_something_something_v1(root)


def test_real_sthv1(tmp_path: Path, shared_data: Path) -> None:
    labels = shared_data / "labels/sthv1"
    annotations = real_sthv1(tmp_path, labels)
    assert Counter(s.split for s in annotations.samples)["validation"] == 11522
    v2 = json.loads((shared_data / "labels/sthv2/something-something-v2-labels.json").read_text())
    assert list(annotations.classes) == list(v2) == real_classes(shared_data / "labels", "sthv2")
    assert [int(i) for i in v2.values()] == list(range(174))
    assert annotations.samples[0].id == "100218"
    assert annotations.classes[annotations.samples[0].label] == "Something falling like a feather or paper"


def test_real_kinetics400(tmp_path: Path, shared_data: Path) -> None:
    labels = shared_data / "labels/k400"
    write(tmp_path, {"train.csv": f"{HEAD}\nabseiling,AAAAAAAAAAA,0,10,train\n"})
    (tmp_path / "val.csv").symlink_to(labels / "kinetics-400_val.csv")
    (tmp_path / "test.csv").symlink_to(labels / "kinetics-400_test.HEAD50.csv")
    annotations = read_kinetics400(tmp_path)
    counts = Counter(s.split for s in annotations.samples)
    with (labels / "kinetics-400_test.HEAD50.csv").open() as f:
        assert counts == {"train": 1, "validation": 19906, "test": len(list(csv.reader(f))) - 1}
    assert list(annotations.classes) == real_classes(shared_data / "labels", "k400")
    assert len(annotations.classes) == 400


@pytest.mark.parametrize(("split", "train", "validation"), [(1, 9537, 3783), (2, 9586, 3734), (3, 9624, 3696)])
def test_real_ucf101(shared_data: Path, split: int, train: int, validation: int) -> None:
    root = shared_data / "ucf101_clips"
    annotations = read_dataset("ucf101", root, split=split, labels=shared_data / "labels/ucf101")
    assert Counter(s.split for s in annotations.samples) == {"train": train, "validation": validation}
    numbered = (shared_data / "labels/ucf101/classInd.txt").read_bytes().decode().split("\r\n")
    assert [f"{i} {name}" for i, name in enumerate(annotations.classes, 1)] == [line for line in numbered if line]
    order = [annotations.classes.index(c) for c in ("Hammering", "HammerThrow", "JumpingJack", "JumpRope")]
    assert order == [34, 35, 46, 47]  # sorted names would swap both pairs
    there = {s.path for s in annotations.samples if Path(s.path).exists()}
    assert there == {str(p) for p in root.rglob("*.avi")}
    assert any("HandstandPushups/v_HandStandPushups" in path for path in there)
    assert all(annotations.classes[s.label] == Path(s.path).parent.name for s in annotations.samples)


@pytest.mark.parametrize("split", [1, 2, 3])
def test_real_hmdb51(tmp_path: Path, shared_data: Path, split: int) -> None:
    annotations = read_dataset("hmdb51", tmp_path, split=split, labels=shared_data / "labels/hmdb51")
    assert Counter(s.split for s in annotations.samples) == {"train": 3570, "validation": 1530}
    assert set(Counter((s.split, s.label) for s in annotations.samples).values()) == {70, 30}
    assert list(annotations.classes) == real_classes(shared_data / "labels", "hmdb51")


@pytest.mark.parametrize(
    ("reader", "folder"), [(read_something_something_v1, "ssv1_frames"), (read_something_something, "ucf10")]
)
def test_real_clips_are_all_found(shared_data: Path, reader: Any, folder: str) -> None:
    annotations = reader(shared_data / folder)
    assert annotations.root == shared_data / folder
    assert all(
        Path(s.path).is_dir() == (folder == "ssv1_frames") and Path(s.path).exists() for s in annotations.samples
    )


def test_flip_labels_of_the_real_class_lists(tmp_path: Path, shared_data: Path) -> None:
    pairs = {86: 87, 87: 86, 93: 94, 94: 93, 166: 167, 167: 166}
    assert swapped(list(real_sthv1(tmp_path, shared_data / "labels/sthv1").classes)) == pairs
    assert swapped(real_classes(shared_data / "labels", "sthv2")) == pairs
    for dataset in ("k400", "ucf101", "hmdb51"):  # the authors swap nothing there
        assert swapped(real_classes(shared_data / "labels", dataset)) == {}
