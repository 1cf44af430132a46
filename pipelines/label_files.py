"""What the readers of `annotations` share: label files found and read line by line, videos found wherever they lie."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.errors import DataError, printable
from pipelines.files import read_regular
from pipelines.inside import Inside
from pipelines.video import NEEDED_SPLITS, UNKNOWN_LABEL
from pipelines.video import VIDEO_SUFFIXES as VIDEO_SUFFIXES

HEADER = ("label", "labels", "video", "id", "video;label", "id;label")  # first lines that some copies add
MAX_CLASSES = 100_000  # more is a mistake, and a network with so many outputs would fill the memory
MAX_TEXT_BYTES, MAX_JSON_BYTES = 1 << 28, 1 << 26  # larger files are no label files; checked before they are read
_NO_TEXT = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ufeff\ud800-\udfff]")
ADVICE = "put it there, or name the folder that holds the label files with --labels"


def class_name(template: str) -> str:
    """The class that a template belongs to: "Moving [something] up" → "Moving something up"."""
    return template.replace("[", "").replace("]", "")


def find_videos(
    folders: Iterable[Path], wanted: Mapping[str, str], deep: bool, inside: Inside | None = None
) -> tuple[dict[str, str], list[str]]:
    """The path of each id whose file, or else folder of frames, lies in `folders` or (`deep`) anywhere below; and the
    linked folders that lead out of `inside`, into which nobody went.

    `wanted` gives the id that a file name without suffix stands for. Each folder is listed once, in sorted order;
    of two files of one id the one that bears it counts (a copy may keep the whole video beside the clip cut from it),
    else the first. Kinetics' `replacement/` thus precedes the broken files in `train/`.
    """
    videos: dict[str, str] = {}
    frames: dict[str, str] = {}
    otherwise_named: dict[str, str] = {}
    left_out: list[str] = []
    seen = set()

    def listing(folder: str) -> list[os.DirEntry[str]]:
        try:
            status = os.stat(folder)
            if (status.st_dev, status.st_ino) in seen:  # a link to a folder above would never end
                return []
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(folder) as entries:
                return sorted(entries, key=lambda item: item.name, reverse=True)
        except OSError as e:
            raise DataError(f"{folder}: cannot be listed ({e.strerror}); make it readable") from e

    def is_folder(item: os.DirEntry[str]) -> bool:
        return os.path.isdir(item.path) if item.is_symlink() else item.is_dir()  # is_dir raises where links go round

    for top in folders:
        todo = listing(str(top.absolute()))  # the next one last
        while todo:
            item = todo.pop()
            stem, suffix = os.path.splitext(item.name)
            if suffix.lower() in VIDEO_SUFFIXES and stem in wanted:
                (videos if wanted[stem] == stem else otherwise_named).setdefault(wanted[stem], item.path)
            elif item.name in wanted and is_folder(item):  # not descended into: it holds but pictures
                frames.setdefault(wanted[item.name], item.path)
            elif deep and is_folder(item):
                if item.is_symlink() and inside is not None and not inside.holds(item.path):
                    left_out.append(item.path)
                else:
                    todo += listing(item.path)
    return frames | otherwise_named | videos, left_out


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
            raise DataError(f"{path}: entry {number} lacks {lacks}: {ascii(entry)[:80]}")
        id, template = entry["id"], entry.get("template", "")
        if type(id) not in (str, int) or not isinstance(template, str):  # not isinstance: True is no id
            raise DataError(f"{path}: entry {number}: the id must be a text or a whole number, the template a text")
        where = f"{path}: entry {number} (id {printable(str(id)[:80])})"
        name = class_name(template)
        yield where, str(id), class_index(name, index, where, "labels.json") if name or labelled else None


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
    reader = csv.DictReader(io.StringIO(_read_text(path), newline=""), strict=True)
    try:
        names = reader.fieldnames or ()
        if not set(required) <= set(names) or len(set(names)) < len(names):
            raise DataError(f"{path}:1: the header must name {', '.join(required)}; got {ascii(names)[:80]}")
        for row in reader:
            where = f"{path}:{reader.line_num}"
            if None in row or None in row.values():
                raise DataError(f"{where}: expected {len(names)} columns, as the header has")
            if any("\n" in value or "\r" in value for value in row.values()):  # a quote that was not closed
                raise DataError(f"{where}: a quoted column reaches over several lines; close the quote")
            yield where, {name: value.strip() for name, value in row.items()}
    except csv.Error as e:
        raise DataError(f"{path}:{reader.line_num}: not valid CSV ({e})") from e


def class_index(name: str, index: dict[str, int], where: str, source: str) -> int:
    """The label of a class. Raises DataError for a name that `source` does not list."""
    if name not in index:
        raise DataError(f"{where} names an unknown class {name[:80]!r}; it must be one of {source}")
    return index[name]


def _first_file(root: Path, names: list[str]) -> Path | None:
    # what is there but no file is not passed over: its split would be missing without a word
    return next((root / name for name in names if os.path.lexists(root / name)), None)


def text_lines(path: Path) -> Iterator[tuple[str, str]]:
    """("file:number", line) of each line that is not blank."""
    for number, line in enumerate(_lines(path), 1):
        if line.strip():
            yield f"{path}:{number}", line


def class_lines(path: Path) -> list[str]:
    """Class names, one a line: a name's place is its label, so only behind the last one may lines be blank."""
    names = [line.strip() for line in _lines(path)]
    while names and not names[-1]:
        names.pop()
    if "" in names:
        where = f"{path}:{names.index('') + 1}"
        raise DataError(f"{where}: a blank line shifts the classes behind it; name a class there, or cut the line")
    return names


def check_classes(source: Path, names: Sequence[str]) -> None:
    """Raise DataError for class names that cannot be told apart or shown, and for too many of them."""
    if len(names) > MAX_CLASSES:
        raise DataError(f"{source}: {len(names)} classes; at most {MAX_CLASSES} are taken")
    seen = set()
    for name in names:
        if not name.strip() or len(name) > 500 or _NO_TEXT.search(name):
            raise DataError(f"{source}: class name {ascii(name)[:80]} is empty, too long, or no plain text; change it")
        if name in seen:
            raise DataError(f"{source}: class {name[:80]!r} is named twice; name every class once")
        seen.add(name)


def whole_number(value: object, most: int) -> int | None:
    """A number as a label file writes it, as digits or in JSON as a number: 0 … `most`, else None."""
    text = str(value) if type(value) is int and abs(value) <= most else value
    if not isinstance(text, str) or not re.fullmatch("[0-9]{1,9}", text) or int(text) > most:
        return None
    return int(text)


def _lines(path: Path) -> Iterator[str]:
    """The lines of a text file, without their ends. Not `splitlines`: a name may hold U+2028 or a form feed."""
    return (line.removesuffix("\n") for line in io.StringIO(_read_text(path), newline=None))


def _read_text(path: Path, most_bytes: int = MAX_TEXT_BYTES) -> str:
    """A whole label file. Raises DataError for what is no file of text, before it is read."""
    try:
        # a byte order mark, where an editor left one, is dropped
        text = read_regular(path, most_bytes).decode("utf-8-sig")
    except (OSError, ValueError) as e:
        raise DataError(f"{path}: cannot be read ({getattr(e, 'strerror', None) or e})") from e
    if "\0" in text:
        raise DataError(f"{path}: cannot be read (it holds NUL characters, so it is no text)")
    return text


def read_json(path: Path) -> Any:
    """A whole JSON file. Raises DataError where it cannot be read, or names a key twice in one object."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        whole = dict(pairs)
        if len(whole) < len(pairs):
            raise ValueError("a key stands twice in one object")
        return whole

    try:
        return json.loads(_read_text(path, MAX_JSON_BYTES), object_pairs_hook=once)
    except (ValueError, RecursionError) as e:
        raise DataError(f"{path}: not valid JSON ({str(e)[:200]})") from e
