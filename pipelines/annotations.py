"""How data sets label their files: the five sets as they are downloaded, and the authors' text lists."""

from __future__ import annotations

import csv
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from pipelines.errors import DataError

SPLITS = ("train", "validation", "test")
NEEDED_SPLITS = SPLITS[:2]
UNKNOWN_LABEL = -1  # of a test video whose class the release keeps to itself
VIDEO_SUFFIXES = (
    ".avi",
    ".flv",
    ".m4v",
    ".mkv",
    ".mov",
    ".mp4",
    ".mpg",
    ".mpeg",
    ".mts",
    ".ogv",
    ".ts",
    ".webm",
    ".wmv",
    ".3gp",
)
LABEL_FOLDERS = ("", "labels/", "annotations/")
FRAME_FOLDERS = ("frames", "rawframes")
HEADER = ("label", "labels", "video", "id", "video;label", "id;label")  # first lines that some copies add
ADVICE = "put it there, or name the folder that holds the label files by --labels"
VIDEO_FOLDER = "20bn-something-something-v2"
WHERE = "https://www.qualcomm.com/developer/software/something-something-v-2-dataset"
LAYOUT = f"""\
    DATA/{VIDEO_FOLDER}/<id>.webm
    DATA/labels/labels.json       {{"class name": "index", …}}
    DATA/labels/train.json        [{{"id": "…", "template": "… [something] …"}}, …]
    DATA/labels/validation.json   the same"""


@dataclass(frozen=True)
class Sample:
    """One annotated video: `path` is absolute, a video file or a folder of JPEG frames.

    `label` is an index into the data set's classes; −1 (unknown) occurs in the split "test" only.
    """

    id: str
    path: str
    label: int
    split: str


@dataclass(frozen=True)
class Annotations:
    """A data set as its annotation files describe it; no video has been looked at. `root` is absolute."""

    name: str
    root: Path
    classes: tuple[str, ...]
    samples: tuple[Sample, ...]


class _Entry(NamedTuple):
    """What a label file says of one video, and where it says so."""

    where: str
    id: str
    label: int
    split: str
    file: str  # expected path below the videos' folder
    aliases: tuple[str, ...] = ()  # what copies name the file besides `id`, without suffix


def class_name(template: str) -> str:
    """The class that a template belongs to: "Moving [something] up" → "Moving something up"."""
    return template.replace("[", "").replace("]", "")


def read_something_something(root: Path, *, labels: Path | None = None) -> Annotations:
    """Read Something-Something V2 (or any set in its layout) below `root`: videos, or their frames in folders.

    The label files may lie in `labels/` or beside the videos, under their older names too. Raises DataError
    naming what was looked for and not found, or the entry that is wrong.
    """
    folders = _folders(root, (VIDEO_FOLDER, "videos"))
    suffix = ".webm" if folders else ""
    folders += _folders(root, (f"{VIDEO_FOLDER}-frames", f"{VIDEO_FOLDER}-rawframes", *FRAME_FOLDERS))
    parts = {part: f"{part}.json" for part in ("labels", *SPLITS)} | {"answers": "test-answers.csv"}
    places = ("labels/", "", "annotations/")
    names = {part: _in(places, name, f"something-something-v2-{name}") for part, name in parts.items()}
    missing = [] if folders else [f"{VIDEO_FOLDER}/"]
    files = _label_files(root, labels, names, missing=missing, advice=f"\n{_help(root)}")
    numbers = _read_json(files["labels"])
    try:
        classes = sorted(numbers, key=lambda name: int(numbers[name]))
        numbered = [int(numbers[name]) for name in classes] == list(range(len(classes)))
    except (TypeError, ValueError):
        numbered = False
    if not isinstance(numbers, dict) or not numbered or not classes:
        raise DataError(f"{files['labels']}: must map every class name to its index, 0, 1, 2, … once each")
    index = {name: i for i, name in enumerate(classes)}
    answers = {id: label for _, id, label in _rows(files["answers"], index)} if "answers" in files else {}
    entries = [
        _Entry(where, id, answers.get(id, UNKNOWN_LABEL) if label is None else label, split, id + suffix)
        for split in SPLITS
        if split in files
        for where, id, label in _json_rows(files[split], index, labelled=split != "test")
    ]
    return _assemble(root.resolve().name, root, classes, entries, folders, deep=False, listed=files)


def read_something_something_v1(root: Path, *, labels: Path | None = None) -> Annotations:
    """Read Something-Something V1 below `root`: folders of frames, and label files with or without a header."""
    folder = "20bn-something-something-v1"
    parts = ("labels", *SPLITS)
    names = {part: _in(LABEL_FOLDERS, f"something-something-v1-{part}.csv", f"{part}.csv") for part in parts}
    folders = _folders(root, (folder, f"{folder}-frames", *FRAME_FOLDERS, "videos"))
    files = _label_files(root, labels, names, missing=[] if folders else [f"{folder}/"])
    # The official file is in another order than the class indices that every published network uses.
    classes = sorted(line.strip() for _, line in _lines(files["labels"]) if line.strip().lower() not in HEADER)
    if not classes or len(set(classes)) < len(classes):
        raise DataError(f"{files['labels']}: must name every class once, one a line")
    index = {name: i for i, name in enumerate(classes)}
    entries = [
        _Entry(where, id, label, split, id)
        for split in SPLITS
        if split in files
        for where, id, label in _rows(files[split], index, labelled=split != "test")
    ]
    return _assemble(root.resolve().name, root, classes, entries, folders, deep=False, listed=files)


def read_kinetics400(root: Path, *, labels: Path | None = None) -> Annotations:
    """Read Kinetics-400: the CSV files of any release, and videos wherever they lie below `root`."""
    words = {"train": ("train",), "validation": ("val", "validate", "validation"), "test": ("test",)}
    prefixes = ("kinetics-400_", "kinetics_", "kinetics400_", "k400_", "")
    names = {s: _in(LABEL_FOLDERS, *(f"{p}{word}.csv" for p in prefixes for word in words[s])) for s in SPLITS}
    files = _label_files(root, labels, names)
    rows = [(split, *row) for split, path in files.items() for row in _csv_rows(path, labelled=split != "test")]
    classes = sorted({row["label"] for split, _, row in rows if split in NEEDED_SPLITS})
    index = {name: i for i, name in enumerate(classes)}
    entries: list[_Entry] = []
    for split, where, row in rows:
        video, name = row["youtube_id"], row.get("label", "")
        start, end = row["time_start"], row["time_end"]
        if not video or not start.isdecimal() or not end.isdecimal():
            raise DataError(f"{where}: expected a YouTube id and whole seconds, got {video!r}, {start!r}, {end!r}")
        if not name and split != "test":
            raise DataError(f"{where}: video {video} has no label; only test videos may lack one")
        label = _label(name, index, where, "the classes of train and validation") if name else UNKNOWN_LABEL
        stem = f"{video}_{int(start):06d}_{int(end):06d}"
        # No name is split: a YouTube id may itself hold "_" and digits.
        entries.append(
            _Entry(where, stem, label, split, f"{name or 'test'}/{stem}.mp4", (f"{video}_{start}_{end}", video))
        )
    return _assemble(root.resolve().name, root, classes, entries, [root], listed=files)


def read_ucf101(root: Path, *, split: int = 1, labels: Path | None = None) -> Annotations:
    """Read UCF101's split 1, 2 or 3; its test list is the split "validation"."""
    lists = {"labels": "classInd.txt", "train": f"trainlist{split:02d}.txt", "validation": f"testlist{split:02d}.txt"}
    places = ("ucfTrainTestlist/", *LABEL_FOLDERS)
    files = _label_files(root, labels, {part: _in(places, name) for part, name in lists.items()})
    numbers: dict[str, int] = {}
    for where, line in _lines(files["labels"]):
        number, _, name = line.strip().partition(" ")
        if number != str(len(numbers) + 1) or not name or name in numbers:
            raise DataError(f"{where}: expected '{len(numbers) + 1} ClassName', a new class, got {line[:80]!r}")
        numbers[name] = len(numbers) + 1
    index = {name: number - 1 for name, number in numbers.items()}
    entries: list[_Entry] = []
    for part in (part for part in NEEDED_SPLITS if part in files):
        for where, line in _lines(files[part]):
            file, *number_field = line.split()
            folder, slash, video = file.partition("/")
            if not slash or "/" in video or len(number_field) != (part == "train"):
                wanted = "Class/video.avi" + " number" * (part == "train")
                raise DataError(f"{where}: expected '{wanted}', got {line[:80]!r}")
            label = _label(folder, index, where, "classInd.txt")
            if number_field and number_field != [str(label + 1)]:
                raise DataError(f"{where}: class {number_field[0]}, but classInd.txt numbers {folder} {label + 1}")
            entries.append(_Entry(where, os.path.splitext(video)[0], label, part, file))
    folders = _folders(root, ("UCF-101", "UCF101", "videos", *FRAME_FOLDERS)) or [root]
    return _assemble(f"{root.resolve().name}-split{split}", root, list(index), entries, folders, listed=files)


def read_hmdb51(root: Path, *, split: int = 1, labels: Path | None = None) -> Annotations:
    """Read HMDB51's split 1, 2 or 3; its test videos are the split "validation", unused ones are left out."""
    _check_root(root)
    ending, base = f"_test_split{split}.txt", labels or root
    places = (base / place for place in ("testTrainMulti_7030_splits", "test_train_splits", *LABEL_FOLDERS))
    files = next((found for place in places if (found := list(place.glob(f"*{ending}")))), [])
    if not files:
        raise DataError(f"{base}: not found: testTrainMulti_7030_splits/<class>{ending}; {ADVICE}")
    by_class = {path.name.removesuffix(ending): path for path in files}
    classes = sorted(by_class)  # not sorted file names: there climb_stairs_test precedes climb_test
    entries: list[_Entry] = []
    for label, name in enumerate(classes):
        for where, line in _lines(by_class[name]):
            video, _, flag = line.strip().rpartition(" ")
            if not video or flag not in ("0", "1", "2"):
                raise DataError(f"{where}: expected 'name.avi flag' with the flag 0, 1 or 2, got {line[:80]!r}")
            if flag != "0":
                part, video = NEEDED_SPLITS[int(flag) - 1], video.strip()
                entries.append(_Entry(where, os.path.splitext(video)[0], label, part, f"{name}/{video}"))
    folders = _folders(root, ("hmdb51_org", "videos", *FRAME_FOLDERS)) or [root]
    return _assemble(f"{root.resolve().name}-split{split}", root, classes, entries, folders)


Reader = Callable[..., Annotations]
DATASETS: dict[str, Reader] = {
    "sthv1": read_something_something_v1,
    "sthv2": read_something_something,
    "kinetics400": read_kinetics400,
    "ucf101": read_ucf101,
    "hmdb51": read_hmdb51,
}
NUM_SPLITS = {"ucf101": 3, "hmdb51": 3}  # the others have one


def read_dataset(dataset: str, root: Path, *, split: int = 1, labels: Path | None = None) -> Annotations:
    """Read one of DATASETS. Raises DataError for another name, and for a split number that the set lacks."""
    if dataset not in DATASETS:
        raise DataError(f"no data set {dataset!r}; it must be one of {', '.join(DATASETS)}")
    last = NUM_SPLITS.get(dataset, 1)
    if not 1 <= split <= last:
        raise DataError(f"{dataset} has no split {split}; " + ("it must be 1, 2 or 3" if last > 1 else "it has only 1"))
    if dataset in NUM_SPLITS:
        return DATASETS[dataset](root, split=split, labels=labels)
    return DATASETS[dataset](root, labels=labels)


def read_lists(train: Path, validation: Path, *, root: Path | None = None, classes: Path | None = None) -> Annotations:
    """Read the authors' `path num_frames label` lists; paths are relative to `root` (default: the list's folder).

    The label is the last column, num_frames the one before it (not trusted: files are counted); a path may
    hold spaces. `classes` is a text file with one class name a line; without it classes go by number.
    """
    samples: list[Sample] = []
    for split, path in zip(NEEDED_SPLITS, (train, validation), strict=True):
        base = (root or path.parent).absolute()
        for where, line in _lines(path):
            fields = line.rsplit(maxsplit=2)
            if len(fields) != 3 or not fields[2].isdecimal():
                raise DataError(f"{where}: expected 'path num_frames label', got {line[:80]!r}")
            samples.append(Sample(fields[0], str(base / fields[0]), int(fields[2]), split))
    _check_not_empty(samples, train)
    highest = max(s.label for s in samples)
    names = [line.strip() for _, line in _lines(classes)] if classes else [str(i) for i in range(highest + 1)]
    if highest >= len(names):
        raise DataError(f"{classes}: has {len(names)} classes, but label {highest} occurs in the lists")
    return Annotations(train.stem, (root or train.parent).absolute(), tuple(names), tuple(samples))


def write_list(path: Path, rows: Iterable[tuple[str, int, int]]) -> None:
    """Write rows of (path, num_frames, label) as `read_lists` reads them; DataError for what it could not."""
    lines = []
    for video, num_frames, label in rows:
        if video.splitlines() != [video] or video != video.rstrip() or num_frames < 0 or label < 0:
            reason = "a list takes one-line paths without a space at the end, frames and labels from 0"
            raise DataError(f"{path}: cannot hold ({video!r}, {num_frames}, {label}); {reason}")
        lines.append(f"{video} {num_frames} {label}\n")
    try:
        path.write_text("".join(lines), encoding="utf-8")
    except (OSError, UnicodeEncodeError) as e:
        raise DataError(f"{path}: cannot be written ({e})") from e


def flip_labels(classes: Iterable[str]) -> tuple[int, ...]:
    """What a horizontal flip makes of each label: classes that differ in left/right or in sense of turning swap.

    Gives the pairs 86↔87, 93↔94, 166↔167 of Something-Something (V1 and V2) that the authors list; no class
    of Kinetics-400, UCF101 and HMDB51 names a direction, so there every label stays, as with the authors.
    """
    names = list(classes)
    index = {name: i for i, name in enumerate(names)}
    swap = {"left": "right", "right": "left"}
    swap |= {"clockwise": "counterclockwise", "counterclockwise": "clockwise"}
    pattern = re.compile(rf"\b({'|'.join(swap)})\b")
    mirrored = (pattern.sub(lambda m: swap[m.group()], name) for name in names)
    return tuple(index.get(name, i) for i, name in enumerate(mirrored))


def _assemble(
    name: str,
    root: Path,
    classes: Sequence[str],
    entries: list[_Entry],
    folders: list[Path],
    deep: bool = True,
    listed: Iterable[str] = NEEDED_SPLITS,
) -> Annotations:
    """Find every entry's file in `folders`; a file that is not there gets the path at which it was expected."""
    first: dict[str, _Entry] = {}
    for e in entries:
        if (other := first.setdefault(e.id, e)) is not e:
            raise DataError(
                f"{e.where}: video {e.id} ({e.split}) is already listed at {other.where} ({other.split}); "
                "list it once, in one split"
            )
    uses = Counter(alias for e in entries for alias in e.aliases)  # one that is several videos' tells none of them
    wanted = {alias: e.id for e in entries for alias in e.aliases if uses[alias] == 1} | {e.id: e.id for e in entries}
    found = _find_videos(folders, wanted, deep)
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
    _check_not_empty(samples, root, listed)
    return Annotations(name, root.absolute(), tuple(classes), tuple(samples))


def _find_videos(folders: Iterable[Path], wanted: Mapping[str, str], deep: bool) -> dict[str, str]:
    """The path of each id whose file, or else folder of frames, lies in `folders` or (`deep`) anywhere below.

    `wanted` gives the id that a file name without suffix stands for. Each folder is listed once, in sorted order;
    of two files of one id the one that bears it counts (a copy may keep the whole video beside the clip cut from it),
    else the first. Kinetics' `replacement/` thus precedes the broken files in `train/`.
    """
    videos: dict[str, str] = {}
    frames: dict[str, str] = {}
    otherwise_named: dict[str, str] = {}
    seen = set()

    def walk(folder: str) -> None:
        try:
            stat = os.stat(folder)
            if (stat.st_dev, stat.st_ino) in seen:  # a link to a folder above would never end
                return
            seen.add((stat.st_dev, stat.st_ino))
            with os.scandir(folder) as listing:
                items = sorted(listing, key=lambda item: item.name)
        except OSError as e:
            raise DataError(f"{folder}: cannot be listed ({e.strerror}); make it readable") from e
        for item in items:
            stem, suffix = os.path.splitext(item.name)
            if suffix.lower() in VIDEO_SUFFIXES and stem in wanted:
                (videos if wanted[stem] == stem else otherwise_named).setdefault(wanted[stem], item.path)
            elif item.name in wanted and item.is_dir():  # not descended into: it holds but pictures
                frames.setdefault(wanted[item.name], item.path)
            elif deep and item.is_dir():
                walk(item.path)

    for folder in folders:
        walk(str(folder.absolute()))
    return frames | otherwise_named | videos


def _check_root(root: Path, advice: str = "") -> None:
    if not root.is_dir():
        raise DataError(f"{root}: no such folder{advice or '; name the folder that holds the data set'}")


def _folders(root: Path, names: Iterable[str]) -> list[Path]:
    return [root / name for name in names if (root / name).is_dir()]


def _in(places: Iterable[str], *names: str) -> list[str]:
    return [place + name for place in places for name in names]


def _label_files(
    root: Path, labels: Path | None, names: dict[str, list[str]], missing: Sequence[str] = (), advice: str = ""
) -> dict[str, Path]:
    """The first file that exists of each part's `names`; a test set, its answers, and one of train and validation
    may be absent."""
    _check_root(root, advice)
    base = labels or root
    found = {part: path for part, candidates in names.items() if (path := _first_file(base, candidates))}
    optional = ["test", "answers", *(NEEDED_SPLITS if set(NEEDED_SPLITS) & set(found) else ())]
    absent = [names[p][0] for p in names if p not in found and p not in optional] + list(missing)
    if absent:
        where = root if labels is None else f"{root} (label files: {labels})"
        raise DataError(f"{where}: not found: {', '.join(absent)}{advice or f'; {ADVICE}'}")
    return found


def _json_rows(path: Path, index: dict[str, int], labelled: bool) -> Iterator[tuple[str, str, int | None]]:
    """(where, id, label) of each entry of Something-Something V2's files; no label where there is no template."""
    entries = _read_json(path)
    required = {"id", "template"} if labelled else {"id"}
    lacks = " or ".join(f"'{key}'" for key in sorted(required))
    if not isinstance(entries, list):
        raise DataError(f"{path}: must be a JSON array of objects with {lacks.replace(' or ', ' and ')}")
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict) or not required <= entry.keys():
            raise DataError(f"{path}: entry {number} lacks {lacks}: {str(entry)[:80]}")
        where = f"{path}: entry {number} (id {entry['id']})"
        name = class_name(str(entry.get("template", "")))
        yield where, str(entry["id"]), _label(name, index, where, "labels.json") if name or labelled else None


def _rows(path: Path, index: dict[str, int], labelled: bool = True) -> Iterator[tuple[str, str, int]]:
    """(where, id, label) of each line `id;class name`; `id` alone will do where not `labelled`."""
    for where, line in _lines(path):
        if line.strip().lower() in HEADER:
            continue
        id, *names = (field.strip() for field in line.split(";"))
        if not id or len(names) > 1 or (labelled and not names):
            raise DataError(f"{where}: expected 'id{';class name' * labelled}', got {line[:80]!r}")
        label = _label(class_name(names[0]), index, where, "the label file") if names else UNKNOWN_LABEL
        yield where, id, label


def _csv_rows(path: Path, labelled: bool) -> Iterator[tuple[str, dict[str, str]]]:
    """(where, row by column name) of each row of a Kinetics file."""
    required = ["label"] * labelled + ["youtube_id", "time_start", "time_end"]
    reader = csv.DictReader(_read_text(path).splitlines())
    try:
        if not set(required) <= set(reader.fieldnames or ()):
            raise DataError(f"{path}:1: the header must name {', '.join(required)}; got {reader.fieldnames}")
        for row in reader:
            where = f"{path}:{reader.line_num}"
            if None in row or None in row.values():
                raise DataError(f"{where}: expected {len(reader.fieldnames or ())} columns, as the header has")
            yield where, row
    except csv.Error as e:
        raise DataError(f"{path}:{reader.line_num}: not valid CSV ({e})") from e


def _label(name: str, index: dict[str, int], where: str, source: str) -> int:
    if name not in index:
        raise DataError(f"{where} names an unknown class {name!r}; it must be one of {source}")
    return index[name]


def _first_file(root: Path, names: list[str]) -> Path | None:
    return next((root / name for name in names if (root / name).is_file()), None)


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """("file:number", line) of each line that is not blank."""
    for number, line in enumerate(_read_text(path).splitlines(), 1):
        if line.strip():
            yield f"{path}:{number}", line


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")  # a byte order mark, where an editor left one, is dropped
    except (OSError, UnicodeDecodeError) as e:
        raise DataError(f"{path}: cannot be read ({e})") from e


def _read_json(path: Path):  # type: ignore[no-untyped-def]  # JSON: checked where it is used
    try:
        return json.loads(_read_text(path))
    except json.JSONDecodeError as e:
        raise DataError(f"{path}: not valid JSON ({e})") from e


def _check_not_empty(samples: list[Sample], source: Path, listed: Iterable[str] = NEEDED_SPLITS) -> None:
    for split in NEEDED_SPLITS:
        if split in listed and not any(s.split == split for s in samples):
            raise DataError(f"{source}: the {split} split lists no video")


def _help(root: Path) -> str:
    return f"DATA={root} must be laid out as Something-Something V2 is:\n{LAYOUT}\nIt is obtained at {WHERE}"
