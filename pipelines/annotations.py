"""How data sets label their files: Something-Something V2's layout, and the authors' text lists."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pipelines.errors import DataError

SPLITS = ("train", "validation")
VIDEO_FOLDER = "20bn-something-something-v2"
WHERE = "https://www.qualcomm.com/developer/software/something-something-v-2-dataset"
LAYOUT = f"""\
    DATA/{VIDEO_FOLDER}/<id>.webm
    DATA/labels/labels.json       {{"class name": "index", …}}
    DATA/labels/train.json        [{{"id": "…", "template": "… [something] …"}}, …]
    DATA/labels/validation.json   the same"""


@dataclass(frozen=True)
class Sample:
    """One annotated video: `path` is absolute, `label` an index into the data set's classes."""

    id: str
    path: str
    label: int
    split: str


@dataclass(frozen=True)
class Annotations:
    """A data set as its annotation files describe it; no video has been looked at."""

    name: str
    classes: tuple[str, ...]
    samples: tuple[Sample, ...]


def class_name(template: str) -> str:
    """The class that a template belongs to: "Moving [something] up" → "Moving something up"."""
    return template.replace("[", "").replace("]", "")


def read_something_something(root: Path) -> Annotations:
    """Read Something-Something V2 (or any set in its layout) below `root`.

    The label files may lie in `labels/` or beside the videos, under their older names too. Raises DataError
    naming what was looked for and not found, or the entry that is wrong.
    """
    if not root.is_dir():
        raise DataError(f"{root}: no such folder\n{_help(root)}")
    found = {
        part: _first_file(
            root,
            [f"labels/{part}.json", f"{part}.json"]
            + [f"{folder}something-something-v2-{part}.json" for folder in ("", "labels/")],
        )
        for part in ("labels", *SPLITS)
    }
    missing = [f"labels/{part}.json" for part, path in found.items() if path is None]
    videos = next((d for d in (root / VIDEO_FOLDER, root / "videos") if d.is_dir()), None)
    if videos is None:
        missing.append(f"{VIDEO_FOLDER}/")
    if missing:
        raise DataError(f"{root}: not found: {', '.join(missing)}\n{_help(root)}")
    assert videos is not None
    index = _read_json(found["labels"])
    try:
        classes = sorted(index, key=lambda name: int(index[name]))
        numbered = [int(index[name]) for name in classes] == list(range(len(classes)))
    except (TypeError, ValueError):
        numbered = False
    if not isinstance(index, dict) or not numbered or not classes:
        raise DataError(f"{found['labels']}: must map every class name to its index, 0, 1, 2, … once each")
    samples: list[Sample] = []
    for split in SPLITS:
        samples += _something_samples(found[split], split, videos, {c: i for i, c in enumerate(classes)})
    _check_not_empty(samples, root)
    return Annotations(root.resolve().name, tuple(classes), tuple(samples))


def _something_samples(path: Path | None, split: str, videos: Path, index: dict[str, int]) -> Iterable[Sample]:
    entries = _read_json(path)
    if not isinstance(entries, list):
        raise DataError(f"{path}: must be a JSON array of objects with 'id' and 'template'")
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict) or not {"id", "template"} <= entry.keys():
            raise DataError(f"{path}: entry {number} lacks 'id' or 'template': {str(entry)[:80]}")
        name = class_name(str(entry["template"]))
        if name not in index:
            raise DataError(
                f"{path}: entry {number} (id {entry['id']}) names an unknown class {name!r}; "
                "it must be one of labels.json"
            )
        yield Sample(str(entry["id"]), str(videos.absolute() / f"{entry['id']}.webm"), index[name], split)


def read_lists(train: Path, validation: Path, *, root: Path | None = None, classes: Path | None = None) -> Annotations:
    """Read the authors' `path num_frames label` lists; paths are relative to `root` (default: the list's folder).

    The label is the last column, num_frames the one before it (not trusted: files are counted); a path may
    hold spaces. `classes` is a text file with one class name a line; without it classes go by number.
    """
    samples: list[Sample] = []
    for split, path in zip(SPLITS, (train, validation), strict=True):
        for number, line in enumerate(_read_text(path).splitlines(), 1):
            if not line.strip():
                continue
            fields = line.rsplit(maxsplit=2)
            if len(fields) != 3 or not fields[2].isdecimal():
                raise DataError(f"{path}:{number}: expected 'path num_frames label', got {line[:80]!r}")
            video = (root or path.parent).absolute() / fields[0]
            samples.append(Sample(fields[0], str(video), int(fields[2]), split))
    _check_not_empty(samples, train)
    highest = max(s.label for s in samples)
    if classes is None:
        names = [str(i) for i in range(highest + 1)]
    else:
        names = [line.strip() for line in _read_text(classes).splitlines() if line.strip()]
    if highest >= len(names):
        raise DataError(f"{classes}: has {len(names)} classes, but label {highest} occurs in the lists")
    return Annotations(train.stem, tuple(names), tuple(samples))


def flip_labels(classes: Iterable[str]) -> tuple[int, ...]:
    """What a horizontal flip makes of each label: classes that differ in left/right or in sense of turning swap.

    Gives the pairs 86↔87, 93↔94, 166↔167 of Something-Something that the authors list.
    """
    names = list(classes)
    index = {name: i for i, name in enumerate(names)}
    swap = {"left": "right", "right": "left"}
    swap |= {"clockwise": "counterclockwise", "counterclockwise": "clockwise"}
    pattern = re.compile(rf"\b({'|'.join(swap)})\b")
    mirrored = (pattern.sub(lambda m: swap[m.group()], name) for name in names)
    return tuple(index.get(name, i) for i, name in enumerate(mirrored))


def _first_file(root: Path, names: list[str]) -> Path | None:
    return next((root / name for name in names if (root / name).is_file()), None)


def _read_text(path: Path | None) -> str:
    assert path is not None
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise DataError(f"{path}: cannot be read ({e})") from e


def _read_json(path: Path | None):  # type: ignore[no-untyped-def]  # JSON: checked where it is used
    try:
        return json.loads(_read_text(path))
    except json.JSONDecodeError as e:
        raise DataError(f"{path}: not valid JSON ({e})") from e


def _check_not_empty(samples: list[Sample], source: Path) -> None:
    for split in SPLITS:
        if not any(s.split == split for s in samples):
            raise DataError(f"{source}: the {split} split lists no video")


def _help(root: Path) -> str:
    return f"DATA={root} must be laid out as Something-Something V2 is:\n{LAYOUT}\nIt is obtained at {WHERE}"
