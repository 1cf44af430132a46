"""A data set whose folders are its labels: `<split>/<class>/*`, or `<class>/*` with a split that is drawn."""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelines.errors import DataError, printable
from pipelines.finding import Found, is_picture, natural, passed_over
from pipelines.inside import Inside
from pipelines.label_files import check_root
from pipelines.video import NEEDED_SPLITS, SPLITS, VIDEO_SUFFIXES, Sample

SPLIT_FOLDERS = {"val": "validation", "valid": "validation", "validation": "validation"}
SPLIT_FOLDERS |= {"train": "train", "training": "train", "test": "test", "testing": "test"}
VALIDATION_SHARE = 0.2
ASIDE = "rename it, or move it out of the data set's folder"
Videos = dict[str, list[str]]  # of each class, its videos' paths


@dataclass(frozen=True)
class Layout:
    """What the folders say: class names in alphabetical order, samples by split and class, the splits that there should
    be, and notes for the user."""

    classes: tuple[str, ...]
    splits: tuple[str, ...]
    samples: tuple[Sample, ...]
    notes: tuple[str, ...]


def read_layout(root: Path, draw: int, allow_outside: bool = False) -> Layout:
    """Look at all folders below `root`; no video is opened. `draw` (1, 2, …) says which split is drawn where the
    folders say none. Raises DataError for what could be read in two ways, and for what cannot be trained on."""
    check_root(root)
    top = str(root.absolute())
    found, inside = Found(), None if allow_outside else Inside([root])
    names = _folders(top)
    splits = {name: SPLIT_FOLDERS[name.casefold()] for name in names if name.casefold() in SPLIT_FOLDERS}
    notes = [_loose(top, top)]
    if splits:
        if draw != 1:
            raise DataError(f"{root}: its folders say the split, so there is no --split {draw}; leave it out")
        _check_splits(top, names, splits, inside)
        by_split: dict[str, Videos] = {}
        for name, split in splits.items():
            notes.append(_loose(os.path.join(top, name), top))
            by_split[split] = _classes(os.path.join(top, name), found, inside)
        notes += [f"there is no folder of {split} videos" for split in NEEDED_SPLITS if split not in by_split]
    else:
        by_split = {}
        videos = _classes(top, found, inside)
        by_split["train"], by_split["validation"] = draw_split(videos, top, draw)
        counts = [sum(map(len, by_split[split].values())) for split in NEEDED_SPLITS]
        notes.append(
            f"split {draw}, drawn by the videos' names: {counts[0]} of train, {counts[1]} of validation; "
            "--split 1, 2 or 3 says which"
        )
    _check_links(found, root)
    classes = _class_names(root, by_split, notes)
    label = {name: i for i, name in enumerate(classes)}
    samples = tuple(
        Sample(os.path.relpath(path, top), path, label[name], split)
        for split in SPLITS
        if split in by_split
        for name in classes
        for path in by_split[split].get(name, ())
    )
    notes.append(passed_over(found.ignored))
    return Layout(classes, tuple(by_split), samples, tuple(note for note in notes if note))


def draw_split(videos: Videos, top: str, draw: int) -> tuple[Videos, Videos]:
    """Divide each class into train and validation by a hash of every path and of `draw`.

    A video's side depends on its own path, so it stays where others come and go. A class of two videos or more has
    at least one on each side: its lowest hash, its highest. One with a single video has it in train.
    """
    train: Videos = {name: [] for name in videos}
    validation: Videos = {name: [] for name in videos}
    for name, paths in videos.items():
        if not paths:
            continue
        hashes = {path: _share(os.path.relpath(path, top), draw) for path in paths}
        lowest, highest = min(paths, key=lambda p: hashes[p]), max(paths, key=lambda p: hashes[p])
        held = {p for p in paths if hashes[p] < VALIDATION_SHARE} | {lowest}
        held -= {highest}
        train[name] = [p for p in paths if p not in held]
        validation[name] = [p for p in paths if p in held]
    return train, validation


def _share(path: str, draw: int) -> float:
    """From 0 to 1, evenly spread over paths."""
    digest = hashlib.sha256(f"{draw}:".encode() + os.fsencode(path)).digest()
    return int.from_bytes(digest[:8]) / 2**64


def _folders(path: str) -> list[str]:
    """The folders in a folder, in natural order. Raises DataError where it cannot be listed."""
    try:
        with os.scandir(path) as entries:
            names = [e.name for e in entries if not e.name.startswith(".") and os.path.isdir(e.path)]
    except OSError as e:
        raise DataError(f"{path}: cannot be listed ({e.strerror}); make it readable") from e
    return sorted(names, key=natural)


def _loose(path: str, top: str) -> str:
    """A sentence on videos that lie beside the class folders in `path`; "" without any. Raises DataError where they
    are all that there is."""
    if not _folders(path):
        found = Found()
        found.add(path)
        if found.videos:
            raise DataError(f"{path}: holds no folders of classes; put each class's videos into a folder of its own")
    names = [name for name in os.listdir(path) if name.lower().endswith(VIDEO_SUFFIXES) and not name.startswith(".")]
    count = sum(not os.path.isdir(os.path.join(path, name)) for name in names)
    where = os.path.relpath(path, top) if path != top else "the data set's folder"
    return printable(f"videos in no class's folder are left out: {count} in {where}") if count else ""


def _check_splits(top: str, names: Sequence[str], splits: dict[str, str], inside: Inside | None) -> None:
    """Raise DataError where folders beside those of splits hold videos, or two stand for one split."""
    for name in names:
        found = Found()
        if name not in splits:
            found.add(os.path.join(top, name), inside)
            if found.videos:
                split = next(iter(splits))
                raise DataError(
                    f"{top}: {split!r} is a split's name, but {name!r} beside it holds videos, too: is {split!r} a "
                    f"class? {ASIDE}"
                )
    for split in SPLITS:
        if len(same := [name for name, which in splits.items() if which == split]) > 1:
            raise DataError(f"{top}: {' and '.join(map(repr, same))} both stand for {split}; keep one")


def _classes(path: str, found: Found, inside: Inside | None) -> Videos:
    """The videos of each folder in `path`. Raises DataError for a class whose folder is itself a video's."""
    videos: Videos = {}
    for name in _folders(path):
        folder, before = os.path.join(path, name), len(found.videos)
        found.add(folder, inside)
        videos[name] = found.videos[before:]
        if videos[name] == [folder] and any(map(is_picture, os.listdir(folder))):
            raise DataError(
                f"{folder}: holds pictures itself; put the frames of each video into a folder of its own within it"
            )
    return videos


def _check_links(found: Found, root: Path) -> None:
    if found.outside:
        raise DataError(
            f"{printable(found.outside[0])}: a link that leads out of {root}; put the videos there, or follow it with "
            "--allow-outside"
        )
    if found.again:
        raise DataError(f"{printable(found.again[0])}: a link to a folder whose videos are read already; remove it")


def _class_names(root: Path, by_split: dict[str, Videos], notes: list[str]) -> tuple[str, ...]:
    """The classes that have videos; `notes` gets a sentence on the others. Raises DataError for names that differ in
    their case alone, classes that only validation or test have, and fewer than two."""
    folders = sorted({name for videos in by_split.values() for name in videos})
    used = sorted({name for videos in by_split.values() for name, paths in videos.items() if paths})
    alike: dict[str, str] = {}
    for name in used:
        other = alike.setdefault(unicodedata.normalize("NFC", name).casefold(), name)
        if other != name:
            raise DataError(f"{root}: classes {other!r} and {name!r} differ in case or spelling alone; {ASIDE}")
    if "train" in by_split and any(by_split["train"].values()):
        for split, videos in by_split.items():
            strange = [name for name, paths in sorted(videos.items()) if paths and not by_split["train"].get(name)]
            if strange:
                raise DataError(
                    f"{root}: {split} has {_named(strange)}, of which train has no video; add some, or take it out"
                )
    if empty := [name for name in folders if name not in used]:
        notes.append(f"left out, without any video: {_named(empty)}")
    if len(used) < 2:
        found = f"only {_named(used)}" if used else "no class with videos"
        raise DataError(
            f"{root}: has {found}; --data names the folder whose folders are the classes (or train, val, test)"
        )
    alone = [name for name in used if not by_split.get("validation", {name: True}).get(name)]
    if alone:
        notes.append(f"without a video in validation: {_named(alone)}")
    return tuple(used)


def _named(names: Iterable[str]) -> str:
    some = list(names)
    shown = ", ".join(repr(name[:60]) for name in some[:3])
    kind = "class" if len(some) == 1 else f"{len(some)} classes:"
    return f"{kind} {shown}{', …' if len(some) > 3 else ''}"
