"""Lists as users write them: two columns or three, spaces, tabs or commas, never one read as another in silence."""

import csv
import io
import tempfile
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pipelines.annotations import Annotations, read_lists
from pipelines.errors import DataError

LINE_BREAKS = "\n\r"
PATHS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters=f"\0{LINE_BREAKS}\t/"), min_size=1)
PATHS = PATHS.map(lambda p: p.strip(" ")).filter(lambda p: p.strip() and p not in (".", ".."))
LABELS = st.integers(0, 99)


def read(folder: Path, train: str, *there: str, classes: str | None = None) -> Annotations:
    """The list as train and as validation; `there` are empty videos (or folders, with "/") that exist."""
    for name in there:
        path = folder / name
        (path if name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            path.write_bytes(b"")
    (folder / "t.txt").write_text(train, encoding="utf-8", newline="")
    names = folder / "classes.txt" if classes is not None else None
    if names is not None:
        names.write_text(str(classes), encoding="utf-8", newline="")
    return read_lists(folder / "t.txt", folder / "t.txt", classes=names)


def train_rows(annotations: Annotations) -> list[tuple[str, int]]:
    return [(s.id, s.label) for s in annotations.samples if s.split == "train"]


@pytest.mark.parametrize(
    ("text", "columns", "separator", "expected"),
    [
        ("a.mp4 0\nva l/x 3.mp4 1\n", 2, "spaces", [("a.mp4", 0), ("va l/x 3.mp4", 1)]),
        ("a.mp4 30 0\nva l/x 3.mp4 31 1\n", 3, "spaces", [("a.mp4", 0), ("va l/x 3.mp4", 1)]),
        ("frames/a 30 0\nframes/b 9 1\n", 3, "spaces", [("frames/a", 0), ("frames/b", 1)]),
        ("a  b.mp4\t0\nc 7\t1 \n", 2, "tabs", [("a  b.mp4", 0), ("c 7", 1)]),
        ("a b.mp4\t30\t0\n", 3, "tabs", [("a b.mp4", 0)]),
        ("a b.mp4,0\n", 2, "commas", [("a b.mp4", 0)]),
        ('"a, b.mp4",30, 1\n', 3, "commas", [("a, b.mp4", 1)]),
        ('"a ""b"".mp4","2"\n', 2, "commas", [('a "b".mp4', 2)]),
        ("\ufeffa,b.mp4   30   0  \r\n\r\nc.mp4 1 1\r\n", 3, "spaces", [("a,b.mp4", 0), ("c.mp4", 1)]),
        ("a\u2028b\x0c\x85.mp4 2\n", 2, "spaces", [("a\u2028b\x0c\x85.mp4", 2)]),
    ],
)
def test_every_form_is_read_and_said(
    tmp_path: Path, text: str, columns: int, separator: str, expected: list[tuple[str, int]]
) -> None:
    annotations = read(tmp_path, text)
    assert train_rows(annotations) == expected
    form = {2: "path label", 3: "path num_frames label"}[columns]
    assert annotations.notes == (f"{tmp_path / 't.txt'}: read as '{form}', separated by {separator}",) * 2


@pytest.mark.parametrize(
    ("text", "there", "expected"),
    [
        # paths that end with a number look like a column more; the files tell
        ("clip 1 0\nclip 2 1\n", ["clip 1/", "clip 2/"], [("clip 1", 0), ("clip 2", 1)]),
        ("clip 1 0\nclip 2 1\n", ["clip 2/"], [("clip 1", 0), ("clip 2", 1)]),
        ("clip 1 0\nclip 2 1\n", ["clip/"], [("clip", 0), ("clip", 1)]),
        ("clip 1 0\nclip 2 1\n", [], [("clip", 0), ("clip", 1)]),
        ("clip 1 0\nother.mp4 1\n", ["clip 1/"], [("clip 1", 0), ("other.mp4", 1)]),
    ],
)
def test_files_decide_where_the_text_does_not(
    tmp_path: Path, text: str, there: list[str], expected: list[tuple[str, int]]
) -> None:
    assert train_rows(read(tmp_path, text, *there)) == expected


@pytest.mark.parametrize(
    ("text", "there", "message"),
    [
        ("a.mp4 30 1\nb.mp4 2\n", [], r"t\.txt:2: expected 'path num_frames label', got 'b\.mp4 2'; .*t\.txt:1 has 3"),
        ("b.mp4 2\n\na.mp4 30 1\n", [], r"t\.txt:3: expected 'path label', got 'a\.mp4 30 1'; .*t\.txt:1 has 2"),
        ("a.mp4,1\nb.mp4,30,2\n", [], r"t\.txt:2: expected 'path label', got 'b\.mp4,30,2'"),
        ("a.mp4 1\nb.mp4,2\n", [], r"t\.txt:2: columns separated by commas, but by spaces in .*t\.txt:1"),
        ("a.mp4\t1\nb.mp4 2\n", [], r"t\.txt:2: columns separated by spaces, but by tabs in .*t\.txt:1"),
        ("clip 1 0\nclip 2 1\n", ["clip/", "clip 2/"], r"t\.txt:2: can be read as 'path label' \(of 'clip 2'\) and as"),
        ("clip 1 0\no.mp4 1\n", ["clip 1/", "clip/"], r"t\.txt:1: can be read as 'path label' \(of 'clip 1'\) and as"),
        ('"a.mp4,1\n', [], r"t\.txt:1: expected 'path num_frames label', got '\"a\.mp4,1'"),
        ("a,b.mp4,1\n", [], r"t\.txt:1: expected 'path num_frames label'"),  # a comma in a path needs quotes
        ("path,label\na.mp4,1\n", [], r"t\.txt:1: expected 'path num_frames label', got 'path,label'"),
        ("a.mp4 99999999999999999999\n", [], r"t\.txt:1: label 99999999999999999999 is too large; .* below 100000"),
        (f"a.mp4 3 {'9' * 5000}\n", [], r"t\.txt:1: label 9{20} is too large"),
        ("a.mp4 3 \u0663\n", [], r"t\.txt:1: expected"),
        (",1\n", [], r"t\.txt:1: expected"),
        ("a\0.mp4 1\n", [], r"t\.txt: cannot be read \(it holds NUL"),
    ],
)
def test_what_cannot_be_read_in_one_way_is_refused(tmp_path: Path, text: str, there: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read(tmp_path, text, *there)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


@given(st.lists(st.tuples(PATHS, LABELS), min_size=1), st.booleans(), st.sampled_from(",\t"))
def test_tables_of_other_programs_read_back(rows: list[tuple[str, int]], counted: bool, separator: str) -> None:
    assume(separator == "," or all(path.strip(",") for path, _ in rows))  # ",\t0" may be anything, and is refused
    text = io.StringIO(newline="")
    if separator == ",":
        csv.writer(text).writerows((path, 30, label) if counted else (path, label) for path, label in rows)
    else:
        text.writelines(f"{path}\t30\t{label}\n" if counted else f"{path}\t{label}\n" for path, label in rows)
    with tempfile.TemporaryDirectory() as folder:
        assert train_rows(read(Path(folder), text.getvalue())) == rows


@given(st.lists(st.tuples(PATHS, LABELS), min_size=1))
def test_spaces_in_paths_never_change_a_label_or_cut_a_path(rows: list[tuple[str, int]]) -> None:
    """`path label` lines, as the authors' Kinetics lists have them, with videos of any name."""
    with tempfile.TemporaryDirectory() as folder:
        named = [(f"{path}.mp4", label) for path, label in rows]
        assert train_rows(read(Path(folder), "".join(f"{path} {label}\n" for path, label in named))) == named


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ("up\n\ndown\n", r"classes\.txt:2: a blank line shifts the classes"),
        ("\nup\ndown\n", r"classes\.txt:1: a blank line"),
        ("up\ndown\nup\n", r"classes\.txt: class 'up' is named twice"),
        ("up \r\nup\r\n", r"classes\.txt: class 'up' is named twice"),
        ("up\nd\x1b[2Jown\n", r"classes\.txt: class name 'd\\x1b\[2Jown' is empty, too long, or no plain text"),
        ("up\n", r"classes\.txt: has 1 classes, but label 2 occurs in the lists"),
        ("up\ndown\n", r"classes\.txt: has 2 classes, but label 2 occurs in the lists; labels seem to count from 1"),
    ],
)
def test_class_names_keep_their_places(tmp_path: Path, classes: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(tmp_path, "a.mp4 1\nb.mp4 2\n", classes=classes)
