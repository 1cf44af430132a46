"""What is wrong with a data set: its manifest against itself, the files of today, and another copy's manifest."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

import numpy as np

from pipelines.annotations import SPLITS, VIDEO_SUFFIXES
from pipelines.manifest import OK, Manifest, checksum, file_stat
from pipelines.processes import cores
from pipelines.progress import progress
from pipelines.video import UNKNOWN_LABEL
from tdn_bench.dataset_tools.class_findings import class_findings
from tdn_bench.dataset_tools.summary import kind_of, walk

COLUMNS = ("id", "split", "path", "label", "status", "sha256", "bytes", "mtime_ns")
LISTED = ("id", "split", "path", "label", "sha256", "bytes")
NOTES = frozenset({"duplicate", "variable rate", "not in reference"})  # worth knowing; all other kinds must be acted on
REPEAT = "listed twice"


Reason = tuple[str, str]  # kind, in words


@dataclass(frozen=True)
class Finding:
    """One thing found in one video: `kind` is what it is counted by."""

    kind: str
    id: str
    split: str
    path: str
    reason: str

    @property
    def is_note(self) -> bool:
        """Whether it is only worth knowing: some kinds, and repeats of training, which may be meant."""
        return self.kind in NOTES or (self.kind == REPEAT and self.split == "train")


@dataclass(frozen=True)
class Audit:
    """All that was found in a data set: in its videos and classes, beside them, and in another copy alone."""

    findings: list[Finding]
    classes: list[str]  # sentences on classes that lack videos
    checksums: bool  # whether every file was read again
    unlisted: list[str]  # paths of videos that are in no split
    only_in_reference: list[str]  # ids

    def need_attention(self, damaged: Iterable[str] = ()) -> int:
        """How many videos must be acted on, together with those at the paths `damaged`."""
        wrong = {(f.path, f.split) for f in self.findings if not f.is_note}
        return len(wrong) + len(set(damaged) - {path for path, _ in wrong})

    def page(self, manifest: Manifest) -> dict[str, Any]:
        """The data set and what was found in it, for JSON."""
        return {
            "name": manifest.name,
            "root": str(manifest.root),
            "digest": manifest.digest(),
            "videos": dict(Counter(manifest.videos.column("split").tolist())),
            "checksums": self.checksums,
            "counts": {split: dict(Counter(f.kind for f in self.findings if f.split == split)) for split in SPLITS},
            "findings": [asdict(f) for f in self.findings],
            "class_findings": self.classes,
            "unlisted": self.unlisted,
            "only_in_reference": self.only_in_reference,
        }


def examine(
    manifest: Manifest, *, checksums: bool = False, reference: Manifest | None = None, workers: int | None = None
) -> Audit:
    """Examine a manifest's videos and what lies beside them.

    Arguments:
        checksums: Read every file again; else only those whose size or time is not that of the scan.
        reference: The manifest of another copy, compared by the videos' ids.
        workers: Reading threads; default: one per core.
    """
    findings = _findings(manifest, checksums, reference, workers)
    absent = only_in_reference(manifest, reference) if reference is not None else []
    return Audit(findings, class_findings(manifest), checksums, unlisted(manifest), absent)


def listing_findings(manifest: Manifest) -> list[Finding]:
    """What the annotations alone have wrong: videos listed twice, in two splits, under two labels. No file is read."""
    videos = manifest.videos
    column = {name: videos.column(name) for name in LISTED}
    column["path"] = np.array([videos.locate(path) for path in column["path"]], object)
    return _by_row(column, sorted(_duplicates(column)))


def _by_row(column: dict[str, np.ndarray], found: Iterable[tuple[int, Reason]]) -> list[Finding]:
    ids, splits, paths = (column[name] for name in ("id", "split", "path"))
    return [Finding(kind, ids[row], splits[row], paths[row], reason) for row, (kind, reason) in found]


def _findings(manifest: Manifest, checksums: bool, reference: Manifest | None, workers: int | None) -> list[Finding]:
    """Everything found in the videos of a manifest, in its order for each kind of look."""
    videos = manifest.videos
    column = {name: videos.column(name) for name in COLUMNS}
    column["path"] = np.array([videos.locate(path) for path in column["path"]], object)
    now = _look_again(column, checksums, workers or cores())
    bad = {row: (kind_of(status), status) for row, status in enumerate(column["status"].tolist()) if status != OK}
    found = sorted((bad | now).items())  # what a file is now counts more than what it was
    found += sorted(_duplicates(column))
    uneven = np.flatnonzero(videos.column("variable_rate") & (column["status"] == OK))
    found += [(row, ("variable rate", "the frame rate varies")) for row in uneven.tolist()]
    if reference is not None:
        found += _compare(column, reference)
    return _by_row(column, found)


def _look_again(column: dict[str, np.ndarray], checksums: bool, workers: int) -> dict[int, Reason]:
    """The rows whose file is not the one that was scanned."""
    scanned = [column[name] for name in ("path", "bytes", "mtime_ns", "sha256")]
    total = len(column["path"])
    parts = [slice(start, start + 64) for start in range(0, total, 64)]

    def look(part: slice) -> list[Reason | None]:
        return [_changed(row, checksums) for row in zip(*(values[part].tolist() for values in scanned), strict=True)]

    reasons: list[Reason | None] = []
    shown = progress("Reading" if checksums else "Looking at", total, "files")
    with ThreadPoolExecutor(workers) as pool, shown as advance:  # hashing, and waiting for the disk, release the GIL
        for some in pool.map(look, parts):
            reasons += some
            advance(len(some))
    return {row: reason for row, reason in enumerate(reasons) if reason is not None}


def _changed(scanned: tuple[Any, ...], checksums: bool) -> Reason | None:
    """How a file differs from its scan. One of another time is read; one of the same only with `checksums`."""
    path, size, mtime_ns, sha256 = scanned
    if not sha256:  # it could not be read then
        return ("changed", "unreadable at the scan, readable now; scan it again") if os.access(path, os.R_OK) else None
    try:
        now = file_stat(path)
        if now[0] != size:
            return "changed", f"{now[0]} bytes, {size} at the scan"
        if (checksums or now[1] != mtime_ns) and checksum(path) != sha256:
            return "changed", "as large as at the scan, but its content differs"
    except FileNotFoundError:
        return "missing", "deleted since the scan"
    except OSError as e:
        return "unreadable", f"cannot be read: {e.strerror}"
    return None


def _duplicates(column: dict[str, np.ndarray]) -> Iterator[tuple[int, Reason]]:
    """Rows of one video, that is of one path or equal content: all of them where they lie in several splits, else all
    but the first."""
    paths = [os.path.normpath(path) for path in column["path"]]
    known = (column["sha256"] != "") & (column["bytes"] > 0)
    same_video = np.where(known, column["sha256"], np.array(paths, object))
    _, group, counts = np.unique(same_video, return_inverse=True, return_counts=True)
    several = np.flatnonzero(counts[group] > 1)
    order = several[np.argsort(group[several], kind="stable")].tolist()
    for _, rows in groupby(order, key=lambda i: group[i]):
        same = list(rows)
        first: dict[str, int] = {}  # row of each split: one file may stand in ten thousand rows
        for row in same:
            first.setdefault(column["split"][row], row)
        leak = len(first) > 1
        for row in same if leak else same[1:]:
            own = column["split"][row] if leak else None
            other = next(o for split, o in first.items() if split != own)
            where, split = paths[other], column["split"][other]
            same_file = where == paths[row]
            reason = f"listed in {split} too" if same_file else f"the same bytes as {where} ({split})"
            labels = {column["label"][row], column["label"][other]} - {UNKNOWN_LABEL}
            kind = "leak" if leak else "two labels" if len(labels) > 1 else REPEAT if same_file else "duplicate"
            yield row, (kind, reason + ", under another label" * (len(labels) > 1))


def _compare(column: dict[str, np.ndarray], reference: Manifest) -> Iterator[tuple[int, Reason]]:
    """Rows that another copy's manifest lacks, or whose content is not the same there."""
    other = reference.videos
    theirs = dict(zip(other.column("id").tolist(), other.column("sha256").tolist(), strict=True))
    for row, (id, sha256) in enumerate(zip(column["id"].tolist(), column["sha256"].tolist(), strict=True)):
        if id not in theirs:
            yield row, ("not in reference", "the reference does not list it")
        elif sha256 and theirs[id] and sha256 != theirs[id]:
            yield row, ("differs", "its content differs from the reference")


def only_in_reference(manifest: Manifest, reference: Manifest) -> list[str]:
    """Ids that only another copy's manifest lists."""
    return sorted(set(reference.videos.column("id").tolist()) - set(manifest.videos.column("id").tolist()))


def unlisted(manifest: Manifest) -> list[str]:
    """Videos, and folders of frames, that lie among the manifest's and are in no split (HMDB51's lists name such).

    Looked for below the folder that holds all annotated files, which lies within the data set's.
    """
    videos = manifest.videos
    known = {os.path.normpath(videos.locate(path)) for path in videos.column("path").tolist()}
    home = os.path.commonpath({os.path.dirname(path) for path in known}) if known else "/"
    root = os.path.normpath(manifest.root)
    if home == "/" or os.path.commonpath([home, root]) != root:
        return []
    found = []
    for folder, folders, names in walk(home):
        folders[:] = [f for f in folders if os.path.join(folder, f) not in known]  # annotated frames
        if folder != home and any(name.lower().endswith((".jpg", ".jpeg")) for name in names):
            found.append(folder)
        for name in names:
            path = os.path.join(folder, name)
            if name.lower().endswith(VIDEO_SUFFIXES) and path not in known:
                found.append(path)
    return sorted(found)
