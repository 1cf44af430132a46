"""The table of a data set's videos: each file looked at once (`pipelines.scan`), and what was found.

The scan is parallel over processes and resumable: a file of unchanged size and time is not read again. The table is
an Arrow file with a checksum, checked as a whole and read through a memory map; pandas or polars open it too.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Self, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.annotations import Annotations
from pipelines.errors import DataError
from pipelines.files import clear_debris, whole_file
from pipelines.processes import cores, map_in_processes
from pipelines.progress import tracked
from pipelines.reading import Level
from pipelines.scan import as_video as as_video
from pipelines.scan import checksum as checksum
from pipelines.scan import file_stat, scan_file
from pipelines.sealed import UNSEALED, read_sealed, write_sealed
from pipelines.video import JPEG_FRAMES as JPEG_FRAMES
from pipelines.video import OK as OK
from pipelines.video import SPLITS, UNKNOWN_LABEL, Sample, Video, VideoFile
from storage.private import NotPrivate, open_private, private_folder

MANIFEST_VERSION = 4

_CATEGORY = pa.dictionary(pa.int32(), pa.utf8())
_SCHEMA = pa.schema(
    {
        "id": pa.utf8(),
        "path": pa.utf8(),  # below the manifest's root, or absolute
        "label": pa.int32(),
        "split": _CATEGORY,
        "bytes": pa.int64(),
        "mtime_ns": pa.int64(),
        "sha256": pa.utf8(),
        "codec": _CATEGORY,
        "width": pa.int32(),
        "height": pa.int32(),
        "rotation": pa.int16(),
        "mirrored": pa.bool_(),
        "matrix": _CATEGORY,
        "fps": pa.float64(),
        "num_frames": pa.int32(),
        "keyframe_spacing": pa.int32(),
        "variable_rate": pa.bool_(),
        "index": pa.utf8(),  # where the frames are: pipelines.frame_index
        "oddity": _CATEGORY,
        "decoded": _CATEGORY,
        "status": _CATEGORY,
    }
)
_FILE_COLUMNS = tuple(f.name for f in fields(VideoFile))


class Videos(Sequence[Video]):
    """Some rows of a manifest, as a sequence of `Video`; columns as arrays where all rows are wanted at once."""

    def __init__(self, table: pa.Table, root: Path, rows: np.ndarray | None = None) -> None:
        self._table, self._root = table, root
        self._rows = np.arange(len(table)) if rows is None else rows

    @classmethod
    def of(cls, videos: Iterable[Video], root: Path = Path("/")) -> Self:
        """A table of its own from rows; paths below `root` are kept relative to it."""
        columns: dict[str, list[Any]] = {name: [] for name in _SCHEMA.names}
        prefix = f"{root}/" if str(root) != "/" else "/"
        for video in videos:
            row = {**vars(video.sample), **vars(video.file), "path": video.path.removeprefix(prefix)}
            for name, column in columns.items():
                column.append(row[name])
        return cls(pa.table(columns, schema=_SCHEMA), root)

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Video: ...
    @overload
    def __getitem__(self, index: slice) -> Videos: ...
    def __getitem__(self, index: int | slice) -> Video | Videos:
        if isinstance(index, slice):
            return Videos(self._table, self._root, self._rows[index])
        row = int(self._rows[index])
        values = {name: column[row].as_py() for name, column in zip(_SCHEMA.names, self._table.columns, strict=True)}
        file = VideoFile(**{name: values[name] for name in _FILE_COLUMNS})
        return Video(Sample(values["id"], self.locate(values["path"]), values["label"], values["split"]), file)

    def locate(self, path: str) -> str:
        """The absolute path of a row's path."""
        return os.path.join(self._root, path)

    def __iter__(self) -> Iterator[Video]:
        return (self[i] for i in range(len(self)))

    def column(self, name: str) -> np.ndarray:
        """One column of these rows; categories (codec, split, status) as strings."""
        column = self._table[name].combine_chunks()
        if pa.types.is_dictionary(column.type):
            return column.dictionary.to_numpy(zero_copy_only=False)[column.indices.to_numpy()[self._rows]]
        return column.to_numpy(zero_copy_only=False)[self._rows]

    def values(self, name: str, rows: np.ndarray) -> list[Any]:
        """One column's values at some of these rows; nothing else of the table is read."""
        return self._table[name].take(pa.array(self._rows[rows])).to_pylist()

    def where(self, name: str, value: object) -> np.ndarray:
        """bool (N,): the rows whose column `name` holds `value`."""
        return pc.equal(self._table[name], value).to_numpy(zero_copy_only=False)[self._rows]


@dataclass(frozen=True)
class Manifest:
    """A data set: its classes, and an Arrow table with a row a video; `root` is absolute, paths below it relative.
    `whole` says how many videos each split has, where only a part was taken (`pipelines.limiting`)."""

    name: str
    classes: tuple[str, ...]
    root: Path
    table: pa.Table
    whole: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, name: str, classes: tuple[str, ...], videos: Iterable[Video], root: Path = Path("/")) -> Self:
        """A manifest of rows that are at hand; paths below `root` are kept relative to it."""
        return cls(name, classes, root, Videos.of(videos, root)._table)

    @property
    def videos(self) -> Videos:
        """All rows."""
        return Videos(self.table, self.root)

    def split(self, name: str) -> Videos:
        """The rows of "train", "validation" or "test"; none where the data set has no such split."""
        return Videos(self.table, self.root, np.flatnonzero(self.videos.where("split", name)))

    @cached_property
    def _digest(self) -> str:
        h = hashlib.sha256()
        for batch in self.table.select(["id", "label", "split", "sha256", "status"]).to_batches(max_chunksize=65536):
            columns = [column.cast(pa.large_utf8()) for column in batch.columns]
            tab, end, empty = (pa.scalar(text, pa.large_utf8()) for text in ("\t", "\n", ""))
            rows = pc.binary_join_element_wise(*columns, tab, null_handling="replace", null_replacement="None")
            lines = pc.binary_join_element_wise(rows, empty, end)
            if len(lines):  # whose texts lie one after the other in memory
                h.update(memoryview(lines.buffers()[2])[: pc.sum(pc.binary_length(lines)).as_py()])
        return h.hexdigest()

    def digest(self) -> str:
        """sha256 over ids, labels, splits and file contents: equal digests mean equal data."""
        return self._digest

    def write(self, path: Path) -> None:
        """Write an Arrow file with a checksum, whole or not at all. Raises DataError where that cannot be done."""
        notes = {"manifest_version": MANIFEST_VERSION, "name": self.name, "classes": self.classes}
        notes |= {"root": str(self.root), "digest": self.digest(), "checksum": UNSEALED}
        metadata = {k: v if isinstance(v, str) else json.dumps(v, ensure_ascii=False) for k, v in notes.items()}
        clear_debris(path.parent)
        try:
            with whole_file(path) as temporary:
                write_sealed(self.table.replace_schema_metadata(metadata), temporary)
        except (OSError, UnicodeEncodeError) as e:
            raise DataError(f"{path}: the manifest cannot be written ({getattr(e, 'strerror', None) or e})") from e

    @classmethod
    def open(cls, path: Path, root: Path | None = None) -> Self:
        """Map a written manifest into memory; `root` is where its videos lie now, if they have moved.

        Raises DataError for a file that cannot be read, is damaged, is no manifest of this version, or holds what no
        data set can.
        """
        table = read_sealed(path, "manifest", "tdn-bench prepare")
        notes = table.schema.metadata or {}
        if notes.get(b"manifest_version") != str(MANIFEST_VERSION).encode() or not table.schema.equals(_SCHEMA):
            raise DataError(
                f"{path}: not a manifest of version {MANIFEST_VERSION}; make it again with `tdn-bench prepare`"
            )
        try:
            name, folder, classes = notes[b"name"].decode(), notes[b"root"].decode(), json.loads(notes[b"classes"])
        except (KeyError, ValueError, RecursionError) as e:
            raise DataError(f"{path}: its notes cannot be read ({e}); make it again with `tdn-bench prepare`") from e
        if (fault := _fault(table, folder, classes)) is not None:
            raise DataError(f"{path}: {fault}; make it again with `tdn-bench prepare`")
        return cls(name, tuple(classes), Path(folder) if root is None else root.absolute(), table)


def _fault(table: pa.Table, root: str, classes: object) -> str | None:
    """What no manifest of a data set says; None for a sound one."""
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        return "its classes are not a list of names"
    if not os.path.isabs(root) or "\0" in root:
        return f"its root is no absolute path ({root[:80]!r})"
    for name, column in zip(table.column_names, table.columns, strict=True):
        if column.null_count:
            return f"{column.null_count} rows have no {name}"
        if not len(column) or not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
            continue
        low, high = pc.min_max(column).as_py().values()
        least, most = (UNKNOWN_LABEL, len(classes) - 1) if name == "label" else (0, math.inf)
        finite = not pa.types.is_floating(column.type) or pc.all(pc.is_finite(column)).as_py()
        if name != "mtime_ns" and not (finite and least <= low and high <= most):
            return f"{name} goes from {low} to {high}, which cannot be"
    unknown = pc.and_(pc.less(table["label"], 0), pc.not_equal(table["split"].cast(pa.utf8()), "test"))
    if pc.any(unknown).as_py():
        return "videos of train or validation have no label"
    if other := set(pc.unique(table["split"]).to_pylist()) - set(SPLITS):
        return f"its splits include {min(other)!r}, which is none of {', '.join(SPLITS)}"
    if other := set(pc.unique(table["rotation"]).to_pylist()) - {0, 90, 180, 270}:
        return f"pictures are turned by {min(other)} degrees, which cannot be"
    if pc.any(pc.match_substring(table["path"], "\0")).as_py():
        return "a path holds NUL"
    return None


def build_manifest(
    annotations: Annotations,
    *,
    cache: Path | None = None,
    workers: int | None = None,
    progress: bool = False,
    level: Level = "sample",
) -> Manifest:
    """Scan every video of `annotations`. A video that cannot be used gets a row, too: its status says why.

    Args:
        annotations: What `read_dataset` or `read_lists` returns.
        cache: File that remembers what was scanned, across runs and where one is interrupted; see `default_cache`.
        workers: Processes; by default one for each processor that this process may use.
        progress: Show on stderr how far the scan has come.
        level: How much of each video is decoded, see `pipelines.reading.find_frames`.

    Raises:
        DataError: A path is not UTF-8, the cache cannot be written, or a scanning process died.
    """
    _check_names(s.path for s in annotations.samples)
    found = {}
    if cache is not None:
        with _cache_errors(cache):
            private_folder(cache.parent)  # what lies there decides which frames are read
            found = _read_cache(cache)
    todo = [s.path for s in annotations.samples if not _known(s.path, found.get(s.path), level)]
    journal = None
    if cache is not None and todo:
        with _cache_errors(cache):
            _write_cache(cache, found)
            journal = cache.open("a", encoding="utf-8")
    try:
        for path, file in _scan(list(dict.fromkeys(todo)), workers or cores(), progress, level):
            found[path] = file
            if journal is not None:
                with _cache_errors(cache):
                    journal.write(_cache_line(path, file))
    finally:
        if journal is not None:
            with _cache_errors(cache):
                journal.close()
    videos = (Video(s, found[s.path]) for s in annotations.samples)
    return Manifest.of(annotations.name, annotations.classes, videos, annotations.root)


def _check_names(paths: Iterable[str]) -> None:
    """Raise DataError for a path that no manifest can hold; before the scan, not after."""
    for path in paths:
        try:
            path.encode()
        except UnicodeEncodeError as e:
            raise DataError(f"{os.fsencode(path)!r}: not UTF-8; rename the file, or the folder above it") from e


@contextmanager
def _cache_errors(cache: Path | None) -> Iterator[None]:
    """Raise DataError where the cache cannot be written."""
    try:
        yield
    except OSError as e:
        raise DataError(
            f"{cache}: the scan cannot be saved there ({e.strerror or e}); free some space, or set the environment "
            "variable XDG_CACHE_HOME to another folder"
        ) from e


def _scan(paths: list[str], workers: int, progress: bool, level: Level) -> Iterable[tuple[str, VideoFile]]:
    scan = partial(scan_file, level=level)
    if len(paths) < 64:  # starting processes would take longer
        results: Iterable[VideoFile] = map(scan, paths)
        yield from tracked(zip(paths, results, strict=True), "Scanning", len(paths), shown=progress)
        return
    results = map_in_processes(scan, paths, workers, chunksize=16)
    done = 0
    try:
        for row in tracked(zip(paths, results, strict=True), "Scanning", len(paths), shown=progress):
            yield row
            done += 1
    except BrokenProcessPool as e:
        raise DataError(
            f"{paths[done]}: a scanning process died at this file or one of the {16 * workers} after it (FFmpeg "
            "crashed, or memory ran out); finished files are not scanned again: rerun with fewer --workers"
        ) from e


def _known(path: str, known: VideoFile | None, level: Level) -> bool:
    """Whether a file has been scanned as it is now, and decoded as far as `level` asks."""
    if known is None or not known.sha256 or (level == "all" and known.decoded == "sample"):
        return False
    try:
        return file_stat(path) == (known.bytes, known.mtime_ns)
    except OSError:
        return False


def default_cache(root: Path) -> Path:
    """Where the scan of `root` is remembered: the user's cache folder, never the data set's own.

    Raises DataError for a user without a home folder, where XDG_CACHE_HOME does not name another.
    """
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError as e:
        raise DataError("this user has no home folder; set XDG_CACHE_HOME to a folder for caches") from e
    key = hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:16]
    return base / "tdn_bench" / f"{root.resolve().name}-{key}.jsonl"


def is_scan_cache(path: Path) -> bool:
    """Whether a file is a `default_cache`, by its name and its first line; a link, or a file of another user's, is
    none."""
    if not re.fullmatch(r".*-[0-9a-f]{16}\.jsonl", path.name):
        return False
    try:
        with open_private(path) as file:
            first = json.loads(file.readline(200))
    except (OSError, ValueError):
        return False
    return isinstance(first, dict) and first.keys() == {"manifest_version"}


def _read_cache(path: Path) -> dict[str, VideoFile]:
    """Files by path; the last line of a path counts. A cache of another version is as good as none, and of one cut
    short by a crash the whole lines are used. Raises NotPrivate for one that others can write."""
    try:
        with open_private(path) as file:
            lines = file.read().decode().splitlines()
        if not lines or json.loads(lines[0]) != {"manifest_version": MANIFEST_VERSION}:
            return {}
    except NotPrivate:
        raise
    except (OSError, ValueError):
        return {}
    found = {}
    for line in lines[1:]:
        try:
            row = json.loads(line)
            path_of_row = row.pop("path")
            found[path_of_row] = VideoFile(**row)
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
    return found


def _write_cache(path: Path, files: dict[str, VideoFile]) -> None:
    with whole_file(path) as temporary, temporary.open("w", encoding="utf-8") as f:
        f.write(json.dumps({"manifest_version": MANIFEST_VERSION}) + "\n")
        f.writelines(_cache_line(p, v) for p, v in files.items())


def _cache_line(path: str, file: VideoFile) -> str:
    return json.dumps({"path": path, **asdict(file)}) + "\n"
