"""Annotations lead nowhere outside of the data set, label files are files, and nothing from data reaches a terminal
raw."""

import json
import os
from pathlib import Path

import pytest

from pipelines.annotations import read_dataset, read_lists, read_something_something
from pipelines.errors import DataError, printable
from pipelines.inside import Inside

VIDEOS = "20bn-something-something-v2"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with a video, beside a private one."""
    for name in ("set/in", "private"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "a.mp4").write_bytes(b"")
    return tmp_path / "set"


def listed(root: Path, path: str, **how: bool) -> str:
    """Where a list's only video lies."""
    (root / "l.txt").write_text(f"{path} 1\n")
    return read_lists(root / "l.txt", root / "l.txt", **how).samples[0].path


@pytest.mark.parametrize(
    "path",
    [
        "../private/a.mp4",
        "in/../../private/a.mp4",
        "/dev/zero",
        "file.mp4",
        "folder/a.mp4",
        "folder/../a.mp4",
        "frames",
        "folder",
        "../set2/a.mp4",
        "..",
        "no/such/../../../x.mp4",
    ],
)
def test_what_leads_outside_is_refused_unless_allowed(root: Path, path: str) -> None:
    (root / "file.mp4").symlink_to("../private/a.mp4")
    (root / "folder").symlink_to(root.parent / "private")
    (root / "frames").mkdir()
    (root / "frames/1.jpg").symlink_to("/etc/passwd")
    with pytest.raises(DataError, match=r"l\.txt:1: .* leads out of .*--allow-outside$") as caught:
        listed(root, path)
    assert "\n" not in str(caught.value)
    assert listed(root, path, allow_outside=True)


@pytest.mark.parametrize(
    "path", ["in/a.mp4", "{root}/in/a.mp4", "in/../in/a.mp4", "link/a.mp4", "gone/a.mp4", "videos/a.mp4"]
)
def test_what_stays_within_is_taken(root: Path, path: str) -> None:
    (root / "link").symlink_to("in")
    (root / "videos").symlink_to(root.parent / "private")  # the folder of videos may be on another disk
    (root.parent / "named").symlink_to(root)  # and so may the whole
    for home in (root, root.parent / "named"):
        assert os.path.basename(listed(home, path.format(root=root))) == "a.mp4"


def test_folders_that_are_themselves_links(root: Path) -> None:
    (root.parent / "link").symlink_to(root)
    inside = Inside([root.parent / "link"])
    assert inside.holds(str(root))
    assert inside.holds(str(root / "in/a.mp4"))
    assert not inside.holds(str(root.parent / "set2/a.mp4"))  # of which the name begins alike
    assert Inside([Path("/")]).holds("/etc/passwd")


def something(root: Path, id: str) -> Path:
    (root / "labels").mkdir()
    (root / "labels/labels.json").write_text('{"Throwing something": 0}')
    for part, name in (("train", id), ("validation", "5")):
        (root / f"labels/{part}.json").write_text(json.dumps([{"id": name, "template": "Throwing [something]"}]))
    return root


def test_ids_lead_nowhere_and_a_linked_folder_of_videos_is_the_users(root: Path) -> None:
    (root / VIDEOS).symlink_to(root.parent / "private")
    read_something_something(something(root, "b"))
    (root.parent / "private/b.webm").symlink_to("/etc/passwd")
    with pytest.raises(DataError, match=r"train\.json: entry 0 \(id b\): .*b\.webm leads out of .*to /etc/passwd"):
        read_something_something(root)
    assert read_something_something(root, allow_outside=True).samples[0].id == "b"


@pytest.mark.parametrize("id", ["../../x", "/etc/passwd", "a\0b", "\ud800"])
def test_ids_that_are_no_names_of_files(root: Path, id: str) -> None:
    (root / VIDEOS).mkdir()
    with pytest.raises(DataError, match=r"train\.json: entry 0 .*(leads out of|cannot be a file's name)") as caught:
        read_something_something(something(root, id))
    str(caught.value).encode()


def test_linked_folders_below_a_deep_set_are_not_walked(root: Path) -> None:
    head = "label,youtube_id,time_start,time_end,split\n"
    for part, id in (("train", "AAAAAAAAAAA"), ("val", "BBBBBBBBBBB")):
        (root / f"{part}.csv").write_text(f"{head}x,{id},0,10,{part}\n")
        (root.parent / "private" / f"{id}_000000_000010.mp4").write_bytes(b"")
    (root / "loop").symlink_to("loop")
    read_dataset("kinetics400", root)  # both are missing, and no link hides them
    (root / "elsewhere").symlink_to(root.parent / "private")
    with pytest.raises(DataError, match=r"elsewhere: a link that leads out of .* was not followed.*--allow-outside"):
        read_dataset("kinetics400", root)
    found = read_dataset("kinetics400", root, allow_outside=True).samples
    assert all(Path(s.path).parent == root / "elsewhere" for s in found)


def test_label_files_are_regular_files_of_a_bounded_size(root: Path) -> None:
    (root / VIDEOS).mkdir()
    something(root, "3")
    train = root / "labels/train.json"

    def pipe() -> None:
        os.mkfifo(train)

    def huge() -> None:
        with train.open("wb") as file:
            file.truncate(1 << 40)

    makers = (pipe, huge, train.mkdir, lambda: train.symlink_to("/dev/zero"), lambda: train.symlink_to("/nowhere"))
    for make in makers:
        train.rmdir() if train.is_dir() else train.unlink()
        make()
        with pytest.raises(DataError, match=r"train\.json: (not a regular file|cannot be read|\d+ bytes, more than)"):
            read_something_something(root)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        f"[{'9' * 5000}]",
        '[{"id": 1e999, "template": ""}]',
        '[{"id": true, "template": "x"}]',
        '[{"id": "1", "id": "2", "template": "Throwing [something]"}]',
        '[{"id": [], "template": "x"}]',
        '[{"id": "1", "template": {"a": 1}}]',
        '[{"id": "1", "template": "\\ud800"}]',
        "NaN",
        "[null]",
        "\ufeff",
    ],
)
def test_hostile_json_is_one_short_line(root: Path, text: str) -> None:
    (root / VIDEOS).mkdir()
    something(root, "3")
    (root / "labels/train.json").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=r"train\.json") as caught:
        read_something_something(root)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value).encode()) < 500


def test_a_quote_that_is_not_closed_swallows_no_rows(root: Path) -> None:
    head = "label,youtube_id,time_start,time_end,split\n"
    rows = "".join(f"x,{c * 11},0,10,train\n" for c in "ABCD")
    (root / "val.csv").write_text(head + rows.replace("train", "val"))
    for open_quote in ('x"', '"x'):
        (root / "train.csv").write_text(head + f'{open_quote},{"E" * 11},0,10,train\n{rows}"y",{"F" * 11},0,1,train\n')
        with pytest.raises(DataError, match=r"(train|val)\.csv:\d+"):
            read_dataset("kinetics400", root)


def test_what_a_terminal_would_obey_is_shown_as_an_escape() -> None:
    assert printable("a\x1b[31mb\r\n\x7f\x9b") == "a\\x1b[31mb\\x0d\\x0a\\x7f\\x9b"
    assert printable("x\u202ey\u2028\ufeff\ud800") == "x\\u202ey\\u2028\\ufeff\\ud800"
    assert printable(os.fsdecode(b"\xff.mp4")) == "\\xff.mp4"
    plain = "Üben 左 é e\u0301 👩\u200d🚒 \\x1b"
    assert printable(plain) == plain
