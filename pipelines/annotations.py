"""How data sets label their files: the five sets as they are downloaded, and the authors' text lists.

A data set is added here alone: a function that returns `Annotations`, registered by `register_dataset`.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pipelines.errors import DataError, printable
from pipelines.folders import read_layout
from pipelines.inside import Inside
from pipelines.label_files import (
    ADVICE,
    HEADER,
    check_classes,
    check_root,
    class_index,
    class_lines,
    csv_rows,
    existing_folders,
    find_label_files,
    find_videos,
    id_rows,
    in_places,
    json_rows,
    read_json,
    text_lines,
    whole_number,
)
from pipelines.label_files import VIDEO_SUFFIXES as VIDEO_SUFFIXES
from pipelines.list_files import read_list
from pipelines.list_files import write_list as write_list
from pipelines.video import NEEDED_SPLITS, SPLITS, UNKNOWN_LABEL, Sample

LABEL_FOLDERS = ("", "labels/", "annotations/")
FRAME_FOLDERS = ("frames", "rawframes")
V1_FOLDER, VIDEO_FOLDER = "20bn-something-something-v1", "20bn-something-something-v2"
# Where releases put their videos. The user may have made a link of such a folder, to another disk.
KNOWN_FOLDERS = (
    *(V1_FOLDER, f"{V1_FOLDER}-frames", VIDEO_FOLDER, f"{VIDEO_FOLDER}-frames", f"{VIDEO_FOLDER}-rawframes"),
    *("UCF-101", "UCF101", "hmdb51_org", "videos", *FRAME_FOLDERS),
)
WHERE = "https://www.qualcomm.com/developer/software/something-something-v-2-dataset"
LAYOUT = f"""\
    DATA/{VIDEO_FOLDER}/<id>.webm
    DATA/labels/labels.json       {{"class name": "index", …}}
    DATA/labels/train.json        [{{"id": "…", "template": "… [something] …"}}, …]
    DATA/labels/validation.json   the same"""


@dataclass(frozen=True)
class Annotations:
    """A data set as its annotation files describe it; no video has been looked at.

    `root` is absolute; a sample's label is an index into `classes`. `notes` are sentences on how files were read.
    """

    name: str
    root: Path
    classes: tuple[str, ...]
    samples: tuple[Sample, ...]
    notes: tuple[str, ...] = ()


# (root, *, labels), `split` where the data set has several, and `allow_outside` where users may say so
Reader = Callable[..., Annotations]
ReaderT = TypeVar("ReaderT", bound=Reader)
DATASETS: dict[str, Reader] = {}
NUM_SPLITS: dict[str, int] = {}  # of the data sets that have more than one


def register_dataset(name: str, *, num_splits: int = 1) -> Callable[[ReaderT], ReaderT]:
    """Register a reader under the name that commands know the data set by.

    With `num_splits` above 1 the reader also takes `split`, from 1 on.
    """

    def register(reader: ReaderT) -> ReaderT:
        DATASETS[name] = reader
        if num_splits > 1:
            NUM_SPLITS[name] = num_splits
        return reader

    return register


class _Entry(NamedTuple):
    """What a label file says of one video, and where it says so."""

    where: str
    id: str
    label: int
    split: str
    file: str  # expected path below the videos' folder
    aliases: tuple[str, ...] = ()  # what copies name the file besides `id`, without suffix


@register_dataset("sthv1")
def read_something_something_v1(root: Path, *, labels: Path | None = None, allow_outside: bool = False) -> Annotations:
    """Read Something-Something V1 below `root`: folders of frames, and label files with or without a header."""
    parts = ("labels", *SPLITS)
    names = {part: in_places(LABEL_FOLDERS, f"something-something-v1-{part}.csv", f"{part}.csv") for part in parts}
    folders = existing_folders(root, (V1_FOLDER, f"{V1_FOLDER}-frames", *FRAME_FOLDERS, "videos"))
    files = find_label_files(root, labels, names, missing=[] if folders else [f"{V1_FOLDER}/"])
    # The official file is in another order than the class indices that every published network uses.
    classes = sorted(line.strip() for _, line in text_lines(files["labels"]) if line.strip().lower() not in HEADER)
    if not classes or len(set(classes)) < len(classes):
        raise DataError(f"{files['labels']}: must name every class once, one a line")
    index = {name: i for i, name in enumerate(classes)}
    entries = [
        _Entry(where, id, label, split, id)
        for split in SPLITS
        if split in files
        for where, id, label in id_rows(files[split], index, labelled=split != "test")
    ]
    return _assemble(root.resolve().name, root, classes, entries, folders, allow_outside, deep=False, listed=files)


@register_dataset("sthv2")
def read_something_something(root: Path, *, labels: Path | None = None, allow_outside: bool = False) -> Annotations:
    """Read Something-Something V2 (or any set in its layout) below `root`: videos, or their frames in folders.

    The label files may lie in `labels/` or beside the videos, under their older names too. Raises DataError
    naming what was looked for and not found, or the entry that is wrong.
    """
    folders = existing_folders(root, (VIDEO_FOLDER, "videos"))
    suffix = ".webm" if folders else ""
    folders += existing_folders(root, (f"{VIDEO_FOLDER}-frames", f"{VIDEO_FOLDER}-rawframes", *FRAME_FOLDERS))
    parts = {part: f"{part}.json" for part in ("labels", *SPLITS)} | {"answers": "test-answers.csv"}
    places = ("labels/", "", "annotations/")
    names = {part: in_places(places, name, f"something-something-v2-{name}") for part, name in parts.items()}
    missing = [] if folders else [f"{VIDEO_FOLDER}/"]
    files = find_label_files(root, labels, names, missing=missing, advice=f"\n{_help(root)}")
    numbers = read_json(files["labels"])
    numbers = numbers if isinstance(numbers, dict) else {}
    named = {whole_number(number, len(numbers) - 1): name for name, number in numbers.items()}
    classes = [named[i] for i in range(len(numbers)) if i in named]
    if not classes or len(classes) < len(numbers):
        raise DataError(f"{files['labels']}: must map every class name to its index, 0, 1, 2, … once each")
    index = {name: i for i, name in enumerate(classes)}
    answers = {id: label for _, id, label in id_rows(files["answers"], index)} if "answers" in files else {}
    entries = [
        _Entry(where, id, answers.get(id, UNKNOWN_LABEL) if label is None else label, split, id + suffix)
        for split in SPLITS
        if split in files
        for where, id, label in json_rows(files[split], index, labelled=split != "test")
    ]
    return _assemble(root.resolve().name, root, classes, entries, folders, allow_outside, deep=False, listed=files)


@register_dataset("kinetics400")
def read_kinetics400(root: Path, *, labels: Path | None = None, allow_outside: bool = False) -> Annotations:
    """Read Kinetics-400: the CSV files of any release, and videos wherever they lie below `root`."""
    words = {"train": ("train",), "validation": ("val", "validate", "validation"), "test": ("test",)}
    prefixes = ("kinetics-400_", "kinetics_", "kinetics400_", "k400_", "")
    names = {s: in_places(LABEL_FOLDERS, *(f"{p}{word}.csv" for p in prefixes for word in words[s])) for s in SPLITS}
    files = find_label_files(root, labels, names)
    rows = [(split, *row) for split, path in files.items() for row in csv_rows(path, labelled=split != "test")]
    classes = sorted({row["label"] for split, _, row in rows if split in NEEDED_SPLITS})
    index = {name: i for i, name in enumerate(classes)}
    entries: list[_Entry] = []
    for split, where, row in rows:
        video, name = row["youtube_id"], row.get("label", "")
        start, end = row["time_start"], row["time_end"]
        first_s, last_s = whole_number(start, 999_999), whole_number(end, 999_999)
        if not video or first_s is None or last_s is None:
            got = ", ".join(repr(field[:20]) for field in (video, start, end))
            raise DataError(f"{where}: expected a YouTube id and whole seconds, got {got}")
        if not name and split != "test":
            raise DataError(f"{where}: video {printable(video[:80])} has no label; only test videos may lack one")
        label = class_index(name, index, where, "the classes of train and validation") if name else UNKNOWN_LABEL
        stem = f"{video}_{first_s:06d}_{last_s:06d}"
        # No name is split: a YouTube id may itself hold "_" and digits.
        entries.append(
            _Entry(where, stem, label, split, f"{name or 'test'}/{stem}.mp4", (f"{video}_{start}_{end}", video))
        )
    return _assemble(root.resolve().name, root, classes, entries, [root], allow_outside, listed=files)


@register_dataset("ucf101", num_splits=3)
def read_ucf101(root: Path, *, split: int = 1, labels: Path | None = None, allow_outside: bool = False) -> Annotations:
    """Read UCF101's split 1, 2 or 3; its test list is the split "validation"."""
    lists = {"labels": "classInd.txt", "train": f"trainlist{split:02d}.txt", "validation": f"testlist{split:02d}.txt"}
    places = ("ucfTrainTestlist/", *LABEL_FOLDERS)
    files = find_label_files(root, labels, {part: in_places(places, name) for part, name in lists.items()})
    numbers: dict[str, int] = {}
    for where, line in text_lines(files["labels"]):
        number, _, name = line.strip().partition(" ")
        if number != str(len(numbers) + 1) or not name or name in numbers:
            raise DataError(f"{where}: expected '{len(numbers) + 1} ClassName', a new class, got {line[:80]!r}")
        numbers[name] = len(numbers) + 1
    index = {name: number - 1 for name, number in numbers.items()}
    entries: list[_Entry] = []
    for part in (part for part in NEEDED_SPLITS if part in files):
        for where, line in text_lines(files[part]):
            file, *number_field = line.split()
            folder, slash, video = file.partition("/")
            if not slash or "/" in video or len(number_field) != (part == "train"):
                wanted = "Class/video.avi" + " number" * (part == "train")
                raise DataError(f"{where}: expected '{wanted}', got {line[:80]!r}")
            label = class_index(folder, index, where, "classInd.txt")
            if number_field and number_field != [str(label + 1)]:
                raise DataError(f"{where}: class {number_field[0][:20]}, but classInd.txt numbers {folder} {label + 1}")
            entries.append(_Entry(where, os.path.splitext(video)[0], label, part, file))
    folders = existing_folders(root, ("UCF-101", "UCF101", "videos", *FRAME_FOLDERS)) or [root]
    name = f"{root.resolve().name}-split{split}"
    return _assemble(name, root, list(index), entries, folders, allow_outside, listed=files)


@register_dataset("hmdb51", num_splits=3)
def read_hmdb51(root: Path, *, split: int = 1, labels: Path | None = None, allow_outside: bool = False) -> Annotations:
    """Read HMDB51's split 1, 2 or 3; its test videos are the split "validation", unused ones are left out."""
    check_root(root)
    ending, base = f"_test_split{split}.txt", labels or root
    places = (base / place for place in ("testTrainMulti_7030_splits", "test_train_splits", *LABEL_FOLDERS))
    files = next((found for place in places if (found := list(place.glob(f"*{ending}")))), [])
    if not files:
        raise DataError(f"{base}: not found: testTrainMulti_7030_splits/<class>{ending}; {ADVICE}")
    by_class = {path.name.removesuffix(ending): path for path in files}
    classes = sorted(by_class)  # not sorted file names: there climb_stairs_test precedes climb_test
    entries: list[_Entry] = []
    for label, name in enumerate(classes):
        for where, line in text_lines(by_class[name]):
            video, _, flag = line.strip().rpartition(" ")
            if not video or flag not in ("0", "1", "2"):
                raise DataError(f"{where}: expected 'name.avi flag' with the flag 0, 1 or 2, got {line[:80]!r}")
            if flag != "0":
                part, video = NEEDED_SPLITS[int(flag) - 1], video.strip()
                entries.append(_Entry(where, os.path.splitext(video)[0], label, part, f"{name}/{video}"))
    folders = existing_folders(root, ("hmdb51_org", "videos", *FRAME_FOLDERS)) or [root]
    return _assemble(f"{root.resolve().name}-split{split}", root, classes, entries, folders, allow_outside)


@register_dataset("folders", num_splits=3)
def read_own_folders(
    root: Path, *, split: int = 1, labels: Path | None = None, allow_outside: bool = False
) -> Annotations:
    """Read folders that are classes, `<split>/<class>/*` or `<class>/*` below `root`; `split` is then which one is
    drawn. A video's id is its path below `root`."""
    if labels is not None:
        raise DataError(f"folders need no label files: leave out --labels {labels}")
    layout = read_layout(root, split, allow_outside)
    check_classes(root, layout.classes)
    _check_places(((sample.id, sample) for sample in layout.samples), root, [root], allow_outside)
    _check_not_empty(list(layout.samples), root, layout.splits)
    return Annotations(root.resolve().name, root.absolute(), layout.classes, layout.samples, layout.notes)


DATASET_NAMES: tuple[str, ...] = tuple(DATASETS)


def read_dataset(
    name: str, root: Path, *, split: int = 1, labels: Path | None = None, allow_outside: bool = False
) -> Annotations:
    """Read the annotations of one of the registered data sets.

    Args:
        name: One of DATASET_NAMES.
        root: Folder that holds the videos and, unless `labels` is given, the label files.
        split: Which of the official splits, from 1 on; the data sets that are not in NUM_SPLITS have only one.
        labels: Folder that holds the label files.
        allow_outside: Take videos that lie outside of `root`. By default they are refused; the folders that releases
            keep their videos in may be links.

    Raises:
        DataError: There is no such data set or split, a file is missing, or an entry of one is wrong.
    """
    if name not in DATASETS:
        raise DataError(f"no data set {name!r}; it must be one of {', '.join(DATASETS)}")
    last = NUM_SPLITS.get(name, 1)
    if not 1 <= split <= last:
        choice = f"it must be {', '.join(map(str, range(1, last)))} or {last}" if last > 1 else "it has only 1"
        raise DataError(f"{name} has no split {split}; {choice}")
    options: dict[str, Any] = {"split": split} if name in NUM_SPLITS else {}
    if allow_outside:  # a reader that knows no such thing need not take it
        options["allow_outside"] = True
    return DATASETS[name](root, labels=labels, **options)


def read_lists(
    train: Path,
    validation: Path,
    *,
    root: Path | None = None,
    classes: Path | None = None,
    allow_outside: bool = False,
) -> Annotations:
    """Read the authors' lists, `path num_frames label` or `path label` a line (`pipelines.list_files`).

    Paths are relative to `root` (default: the list's folder) and must lie in it, or `allow_outside` be said. num_frames
    is not trusted: files are counted. `classes` is a text file with one class name a line; without it classes go by
    number. A video that is listed twice stays twice. Raises DataError naming the file and line that is wrong.
    """
    samples: list[Sample] = []
    notes = []
    for split, path in zip(NEEDED_SPLITS, (train, validation), strict=True):
        base = (root or path.parent).absolute()
        rows, note = read_list(path, base)
        entries = [(row.where, Sample(row.path, str(base / row.path), row.label, split)) for row in rows]
        _check_places(entries, base, [base], allow_outside)
        samples += [sample for _, sample in entries]
        notes.append(note)
    _check_not_empty(samples, train)
    lowest, highest = min(s.label for s in samples), max(s.label for s in samples)
    names = class_lines(classes) if classes else [str(i) for i in range(highest + 1)]
    check_classes(classes or train, names)
    if highest >= len(names):
        hint = "; labels seem to count from 1, but must count from 0" if lowest == 1 and highest == len(names) else ""
        raise DataError(f"{classes}: has {len(names)} classes, but label {highest} occurs in the lists{hint}")
    return Annotations(train.stem, (root or train.parent).absolute(), tuple(names), tuple(samples), tuple(notes))


def flip_labels(classes: Iterable[str]) -> tuple[int, ...]:
    """What a horizontal flip makes of each label: classes that differ in left/right or in sense of turning swap.

    Gives the pairs 86↔87, 93↔94, 166↔167 of Something-Something (V1 and V2) that the authors list; no class
    of Kinetics-400, UCF101 and HMDB51 names a direction, so there every label stays, as with the authors.
    """
    names = list(classes)
    index = {name: i for i, name in enumerate(names)}
    swap = {"left": "right", "right": "left"}
    swap |= {"clockwise": "counterclockwise", "counterclockwise": "clockwise"}
    # whole words, where "_" parts words as a space does: folders are named so
    pattern = re.compile(rf"(?<![^\W_])({'|'.join(swap)})(?![^\W_])", re.IGNORECASE)

    def other(match: re.Match[str]) -> str:
        word = swap[match[0].lower()]
        return word.upper() if match[0].isupper() else word.capitalize() if match[0][0].isupper() else word

    mirrored = (pattern.sub(other, name) for name in names)
    return tuple(index.get(name, i) for i, name in enumerate(mirrored))


def _assemble(
    name: str,
    root: Path,
    classes: Sequence[str],
    entries: list[_Entry],
    folders: list[Path],
    allow_outside: bool,
    deep: bool = True,
    listed: Iterable[str] = NEEDED_SPLITS,
) -> Annotations:
    """Find every entry's file in `folders`; a file that is not there gets the path at which it was expected."""
    check_classes(root, classes)
    first: dict[str, _Entry] = {}
    for e in entries:
        if (other := first.setdefault(e.id, e)) is not e:
            video = printable(e.id[:80])
            raise DataError(
                f"{e.where}: video {video} ({e.split}) is already listed at {other.where} ({other.split}); "
                "list it once, in one split"
            )
    uses = Counter(alias for e in entries for alias in e.aliases)  # one that is several videos' tells none of them
    wanted = {alias: e.id for e in entries for alias in e.aliases if uses[alias] == 1} | {e.id: e.id for e in entries}
    inside = None if allow_outside else Inside([root, *folders])
    found, left_out = find_videos(folders, wanted, deep, inside)
    if left_out and len(found) < len(entries):
        raise DataError(
            f"{printable(left_out[0])}: a link that leads out of {root} and was not followed, and some videos are "
            "missing; --allow-outside follows it"
        )
    # A missing file is expected beside its class's others, however this copy names and nests its folders.
    homes = {(e.split, e.label): os.path.dirname(found[e.id]) for e in entries if e.id in found}
    base = folders[0].absolute()
    samples = []
    for e in entries:
        path = found.get(e.id)
        if path is None:
            home = homes.get((e.split, e.label))
            path = os.path.join(home, os.path.basename(e.file)) if home else str(base / e.file)
        samples.append(Sample(e.id, path, e.label, e.split))
    _check_places(zip((e.where for e in entries), samples, strict=True), root, folders, allow_outside)
    _check_not_empty(samples, root, listed)
    return Annotations(name, root.absolute(), tuple(classes), tuple(samples))


def _check_places(
    entries: Iterable[tuple[str, Sample]], root: Path, folders: Iterable[Path], allow_outside: bool
) -> None:
    """Raise DataError for the first name that no file can bear, or that leads out of `root`, `folders` and the known
    folders below `root`."""
    inside = Inside([root, *folders, *existing_folders(root, KNOWN_FOLDERS)])
    for where, sample in entries:
        name = sample.id + sample.path
        if "\0" in name or (not name.isascii() and re.search("[\ud800-\udfff]", name)):
            raise DataError(f"{where}: {printable(sample.id[:80])} cannot be a file's name; write UTF-8 without NUL")
        if not allow_outside and (path := inside.way_out(sample.path)) is not None:
            named, target = printable(path[:200]), printable(os.path.realpath(path)[:200])
            raise DataError(
                f"{where}: {named} leads out of {root} (to {target}); put the videos there, name the "
                "folder that holds them, or take them with --allow-outside"
            )


def _check_not_empty(samples: list[Sample], source: Path, listed: Iterable[str] = NEEDED_SPLITS) -> None:
    for split in NEEDED_SPLITS:
        if split in listed and not any(s.split == split for s in samples):
            raise DataError(f"{source}: the {split} split lists no video")


def _help(root: Path) -> str:
    return f"DATA={root} must be laid out as Something-Something V2 is:\n{LAYOUT}\nIt is obtained at {WHERE}"
