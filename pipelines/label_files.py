"""What the readers of `annotations` share: label files found and read line by line, videos found wherever they lie."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from pipelines.errors import DataError
from pipelines.video import NEEDED_SPLITS, UNKNOWN_LABEL

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
HEADER = ("label", "labels", "video", "id", "video;label", "id;label")  # first lines that some copies add
ADVICE = "put it there, or name the folder that holds the label files with --labels"


def class_name(template: str) -> str:
    """The class that a template belongs to: "Moving [something] up" → "Moving something up"."""
    return template.replace("[", "").replace("]", "")


def find_videos(folders: Iterable[Path], wanted: Mapping[str, str], deep: bool) -> dict[str, str]:
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


def check_root(root: Path, advice: str = "") -> None:
    """Raise DataError where the data set's folder is not there; `advice` ends the message."""
    if not root.is_dir():
        raise DataError(f"{root}: no such folder{advice or '; name the folder that holds the data set'}")


def existing_folders(root: Path, names: Iterable[str]) -> list[Path]:
    """Those of the named folders below `root` that are there."""
    return [root / name for name in names if (root / name).is_dir()]


def in_places(places: Iterable[str], *names: str) -> list[str]:
    """Every name in every place ("" or "folder/"), the first place first."""
    return [place + name for place in places for name in names]


def find_label_files(
    root: Path, labels: Path | None, names: dict[str, list[str]], missing: Sequence[str] = (), advice: str = ""
) -> dict[str, Path]:
    """The first file that exists of each part's `names`; a test set, its answers, and one of train and validation
    may be absent."""
    check_root(root, advice)
    base = labels or root
    found = {part: path for part, candidates in names.items() if (path := _first_file(base, candidates))}
    optional = ["test", "answers", *(NEEDED_SPLITS if set(NEEDED_SPLITS) & set(found) else ())]
    absent = [names[p][0] for p in names if p not in found and p not in optional] + list(missing)
    if absent:
        where = root if labels is None else f"{root} (label files: {labels})"
        raise DataError(f"{where}: not found: {', '.join(absent)}{advice or f'; {ADVICE}'}")
    return found


def json_rows(path: Path, index: dict[str, int], labelled: bool) -> Iterator[tuple[str, str, int | None]]:
    """(where, id, label) of each entry of Something-Something V2's files; no label where there is no template."""
    entries = read_json(path)
    required = {"id", "template"} if labelled else {"id"}
    lacks = " or ".join(f"'{key}'" for key in sorted(required))
    if not isinstance(entries, list):
        raise DataError(f"{path}: must be a JSON array of objects with {lacks.replace(' or ', ' and ')}")
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict) or not required <= entry.keys():
            raise DataError(f"{path}: entry {number} lacks {lacks}: {str(entry)[:80]}")
        where = f"{path}: entry {number} (id {entry['id']})"
        name = class_name(str(entry.get("template", "")))
        yield where, str(entry["id"]), class_index(name, index, where, "labels.json") if name or labelled else None


def id_rows(path: Path, index: dict[str, int], labelled: bool = True) -> Iterator[tuple[str, str, int]]:
    """(where, id, label) of each line `id;class name`; `id` alone will do where not `labelled`."""
    for where, line in text_lines(path):
        if line.strip().lower() in HEADER:
            continue
        id, *names = (field.strip() for field in line.split(";"))
        if not id or len(names) > 1 or (labelled and not names):
            raise DataError(f"{where}: expected 'id{';class name' * labelled}', got {line[:80]!r}")
        label = class_index(class_name(names[0]), index, where, "the label file") if names else UNKNOWN_LABEL
        yield where, id, label


def csv_rows(path: Path, labelled: bool) -> Iterator[tuple[str, dict[str, str]]]:
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


def class_index(name: str, index: dict[str, int], where: str, source: str) -> int:
    """The label of a class. Raises DataError for a name that `source` does not list."""
    if name not in index:
        raise DataError(f"{where} names an unknown class {name!r}; it must be one of {source}")
    return index[name]


def _first_file(root: Path, names: list[str]) -> Path | None:
    return next((root / name for name in names if (root / name).is_file()), None)


def text_lines(path: Path) -> Iterator[tuple[str, str]]:
    """("file:number", line) of each line that is not blank."""
    for number, line in enumerate(_read_text(path).splitlines(), 1):
        if line.strip():
            yield f"{path}:{number}", line


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")  # a byte order mark, where an editor left one, is dropped
    except (OSError, UnicodeDecodeError) as e:
        raise DataError(f"{path}: cannot be read ({e})") from e


def read_json(path: Path):  # type: ignore[no-untyped-def]  # JSON: checked where it is used
    """A whole JSON file. Raises DataError where it cannot be read."""
    try:
        return json.loads(_read_text(path))
    except json.JSONDecodeError as e:
        raise DataError(f"{path}: not valid JSON ({e})") from e
