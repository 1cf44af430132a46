"""The table of a data set's videos: each file looked at once, and what was found.

The scan counts the packets that carry a frame; headers and duration × fps are wrong on cut or variable-rate
files. It is parallel over processes and resumable: a file of unchanged size and time is not read again. The
table is an Arrow file, read through a memory map: a million rows open at once, and pandas or polars open it too.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Self, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.annotations import Annotations, Sample
from pipelines.errors import DataError
from pipelines.jpeg import frame_files, frame_number, header_size
from pipelines.processes import cores, map_in_processes
from pipelines.sampling import FRAMES_PER_SEGMENT

MANIFEST_VERSION = 3
OK = "ok"
JPEG_FRAMES = "jpeg"  # the codec of a folder of frames
TRUNCATED_SHARE = 0.9  # less of the announced duration than this is a cut file, not a rounding of its header


@dataclass(frozen=True)
class VideoFile:
    """What the scan found in one file, or folder of frames.

    `width` and `height` are those of the upright picture, `rotation` the degrees counter-clockwise that make it so.
    `keyframe_spacing` is the longest run of frames from one key frame to the next. `status` is "ok" or, in a few
    words, why the file cannot be used.
    """

    bytes: int = 0
    mtime_ns: int = 0
    sha256: str = ""
    codec: str = ""
    width: int = 0
    height: int = 0
    rotation: int = 0
    fps: float = 0.0
    num_frames: int = 0
    keyframe_spacing: int = 0
    variable_rate: bool = False
    status: str = OK


@dataclass(frozen=True)
class Video:
    """One row of a manifest: an annotated video and its file."""

    sample: Sample
    file: VideoFile

    @property
    def id(self) -> str:
        return self.sample.id

    @property
    def path(self) -> str:
        return self.sample.path


_CATEGORY = pa.dictionary(pa.int32(), pa.utf8())
_SCHEMA = pa.schema(
    {
        "id": pa.utf8(), "path": pa.utf8(), "label": pa.int32(), "split": _CATEGORY,
        "bytes": pa.int64(), "mtime_ns": pa.int64(), "sha256": pa.utf8(), "codec": _CATEGORY,
        "width": pa.int32(), "height": pa.int32(), "rotation": pa.int16(), "fps": pa.float64(),
        "num_frames": pa.int32(), "keyframe_spacing": pa.int32(), "variable_rate": pa.bool_(), "status": _CATEGORY,
    }
)  # fmt: skip
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
    """A data set: its classes, and a row a video."""

    name: str
    classes: tuple[str, ...]
    root: Path
    table: pa.Table

    @classmethod
    def of(cls, name: str, classes: tuple[str, ...], videos: Iterable[Video], root: Path = Path("/")) -> Self:
        return cls(name, classes, root, Videos.of(videos, root)._table)

    @property
    def videos(self) -> Videos:
        return Videos(self.table, self.root)

    def split(self, name: str) -> Videos:
        return Videos(self.table, self.root, np.flatnonzero(self.videos.where("split", name)))

    @cached_property
    def _digest(self) -> str:
        h = hashlib.sha256()
        for batch in self.table.select(["id", "label", "split", "sha256", "status"]).to_batches(max_chunksize=65536):
            for row in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                h.update("\t".join(map(str, row)).encode() + b"\n")
        return h.hexdigest()

    def digest(self) -> str:
        """sha256 over ids, labels, splits and file contents: equal digests mean equal data."""
        noted = (self.table.schema.metadata or {}).get(b"digest")
        return noted.decode() if noted else self._digest

    def write(self, path: Path) -> None:
        """Write an Arrow file, whole or not at all. Raises DataError where that cannot be done."""
        notes = {"manifest_version": MANIFEST_VERSION, "name": self.name, "classes": self.classes}
        notes |= {"root": str(self.root), "digest": self.digest()}
        metadata = {k: v if isinstance(v, str) else json.dumps(v, ensure_ascii=False) for k, v in notes.items()}
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            table = self.table.replace_schema_metadata(metadata)
            with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
                writer.write_table(table)
            os.replace(temporary, path)
        except (OSError, UnicodeEncodeError) as e:
            raise DataError(f"{path}: the manifest cannot be written ({getattr(e, 'strerror', None) or e})") from e

    @classmethod
    def open(cls, path: Path, root: Path | None = None) -> Self:
        """Map a written manifest into memory; `root` is where its videos lie now, if they have moved."""
        try:
            table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        except (OSError, UnicodeEncodeError, pa.ArrowInvalid) as e:
            raise DataError(f"{path}: not a readable manifest ({str(e).splitlines()[0]}); make one by prepare") from e
        notes = {k.decode(): v.decode() for k, v in (table.schema.metadata or {}).items()}
        if notes.get("manifest_version") != str(MANIFEST_VERSION) or not table.schema.equals(_SCHEMA):
            raise DataError(f"{path}: not a manifest of version {MANIFEST_VERSION}; make it anew by prepare")
        folder = Path(root.absolute() if root is not None else notes["root"])
        return cls(notes["name"], tuple(json.loads(notes["classes"])), folder, table)


def scan_file(path: str) -> VideoFile:
    """Look at one file or folder of frames: size, checksum, codec, picture, rate, true number of frames, soundness."""
    try:
        size, mtime_ns = file_stat(path)
        sha256 = checksum(path)
    except OSError as e:
        return VideoFile(status=f"cannot be read: {e.strerror}" if os.path.exists(path) else "no such file")
    facts: dict[str, Any] = {"bytes": size, "mtime_ns": mtime_ns, "sha256": sha256}
    if os.path.isdir(path):
        return _scan_frames(path, facts)
    if size == 0:
        return VideoFile(**facts, status="empty file")
    return _scan_video(path, facts)


def as_video(path: Path, id: str | None = None, label: int = 0, split: str = "validation") -> Video:
    """A row for a file, or folder of frames, as it is now."""
    return Video(Sample(id or path.stem, str(path.absolute()), label, split), scan_file(str(path)))


def checksum(path: str) -> str:
    """sha256 of a file, or of all frames of a folder with their names. Raises OSError."""
    if not os.path.isdir(path):
        with open(path, "rb") as f:
            return hashlib.file_digest(f, "sha256").hexdigest()
    whole = hashlib.sha256()
    for frame in frame_files(path):
        with open(frame, "rb") as f:
            whole.update(f"{os.path.basename(frame)} {hashlib.file_digest(f, 'sha256').hexdigest()}\n".encode())
    return whole.hexdigest()


def file_stat(path: str) -> tuple[int, int]:
    """Bytes and time of the last change; of a folder, the sum and the latest of its entries' and its own."""
    stat = os.stat(path)
    if not os.path.isdir(path):
        return stat.st_size, stat.st_mtime_ns
    with os.scandir(path) as entries:
        stats = [entry.stat() for entry in entries]
    return sum(s.st_size for s in stats), max([stat.st_mtime_ns, *(s.st_mtime_ns for s in stats)])


def _scan_frames(path: str, facts: dict[str, Any]) -> VideoFile:
    """A folder of JPEG frames, numbered without a gap, all of one size and none of them cut."""
    files = frame_files(path)
    facts |= {"codec": JPEG_FRAMES, "num_frames": len(files), "keyframe_spacing": 1}
    if not files:
        return VideoFile(**facts, status="holds no frame (*.jpg)")
    try:
        sizes = [header_size(file) for file in files]
    except (ValueError, OSError) as e:
        return VideoFile(**facts, status=str(e))
    facts["width"], facts["height"] = sizes[0]
    numbers = [frame_number(os.path.basename(file)) for file in files]
    if twice := [a for a, b in pairwise(numbers) if a == b]:
        return VideoFile(**facts, status=f"frame {twice[0]} is there twice")
    gaps = [a + 1 for a, b in pairwise(numbers) if b != a + 1]
    if numbers[0] not in (0, 1) or gaps:
        return VideoFile(**facts, status=f"frame {gaps[0] if gaps else 1} is missing")
    if len(set(sizes)) > 1:
        odd = next(i for i, size in enumerate(sizes) if size != sizes[0])
        w, h = sizes[odd]
        return VideoFile(**facts, status=f"{os.path.basename(files[odd])} is {w}×{h}, not {sizes[0][0]}×{sizes[0][1]}")
    return VideoFile(**facts, status=_too_short(len(files)) or OK)


def _scan_video(path: str, facts: dict[str, Any]) -> VideoFile:
    import av

    try:
        # metadata_errors: some HMDB51 files hold tags that are not UTF-8
        with av.open(path, metadata_errors="replace") as container:
            if not container.streams.video:
                kinds = {s.type for s in container.streams}
                return VideoFile(**facts, status="audio only" if "audio" in kinds else "holds no video stream")
            stream = container.streams.video[0]
            codec = stream.codec_context
            if codec is None:
                return VideoFile(**facts, status="not a readable video: unknown codec")
            codec.thread_type = "NONE"
            facts |= {"codec": codec.name, "width": codec.width, "height": codec.height}
            facts["fps"] = float(stream.average_rate or stream.guessed_rate or 0)
            announced_s = _announced_duration_s(container, stream)
            packets = video_packets(container, stream)
            shown = [p for p in packets if not p.is_discard]
            facts["num_frames"] = len(shown)
            keys = [i for i, p in enumerate(packets) if p.is_keyframe]
            facts["keyframe_spacing"] = max(np.diff([*keys, len(packets)]).tolist(), default=0)
            times = sorted(p.pts for p in shown if p.pts is not None)
            facts["variable_rate"] = container.format.name != "avi" and _uneven(times, float(stream.time_base or 0))
            ends = (float((p.pts + (p.duration or 0)) * p.time_base) for p in shown if p.pts is not None)
            last_s = max(ends, default=0.0)
            status = _judge(len(shown), last_s, announced_s, facts)
            if status == OK:
                status = _cut_short(path, facts["bytes"], container.format.name) or _damaged(packets) or OK
            if status == OK and container.format.name.startswith(("mov", "matroska")):
                facts["rotation"] = _rotation(packets)
                if facts["rotation"] % 180:
                    facts["width"], facts["height"] = facts["height"], facts["width"]
    except (av.error.FFmpegError, OSError, ValueError) as e:
        return VideoFile(**facts, status=f"not a readable video: {_reason(e)}")
    return VideoFile(**facts, status=status)


def video_packets(container, stream) -> list:  # type: ignore[no-untyped-def]  # av is imported lazily
    """The packets of `stream` that hold a frame, in the file's order: not the single bytes by which DivX marks a
    dropped one (HMDB51). Those marked is_discard are decoded, but an edit list keeps their frames from being shown."""
    import av

    av.logging.set_libav_level(av.logging.FATAL)  # what is wrong is raised; a thousand lines on stderr help nobody
    filler = 1 if stream.codec_context.name == "mpeg4" else 0
    return [p for p in container.demux(stream) if p.size > filler]


def _uneven(times: list[int], tick_s: float) -> bool:
    """True where frames do not come at one rate: distances that rounding to the time base does not explain."""
    if len(times) < 3:
        return False
    gaps = np.diff(times) * tick_s
    return bool(np.abs(gaps - np.median(gaps)).max() > 2 * tick_s + 0.1 * np.median(gaps))


def _rotation(packets) -> int:  # type: ignore[no-untyped-def]
    """Degrees counter-clockwise that set the picture upright, as the first frame says."""
    for packet in packets:
        for frame in packet.decode():
            turn = 90 * round(frame.rotation / 90)
            # FFmpeg's own tolerance; a slanted picture, or one whose matrix is all zeros, is left as it is
            return turn % 360 if abs(frame.rotation - turn) <= 1 else 0
    return 0


def _announced_duration_s(container, stream) -> float:  # type: ignore[no-untyped-def]
    """Seconds that the file's header promises for the video stream; 0 where it does not say."""
    if container.format.name == "avi":  # FFmpeg shrinks the duration of a cut AVI, not its number of frames
        return float(stream.frames * stream.time_base)
    if stream.duration is not None:
        return float((stream.start_time or 0) + stream.duration) * float(stream.time_base)
    if container.duration is not None and len(container.streams) == 1:  # else it may be the sound's
        return container.duration / 1e6
    return 0.0


def _damaged(packets) -> str | None:  # type: ignore[no-untyped-def]
    """What the loader would refuse the file for, whatever frames a clip wants: the demuxer marks packets that are not
    whole. The last one is where a file was cut whose header stands at its front."""
    at = next((i for i, packet in enumerate(packets) if packet.is_corrupt), None)
    if at is None:
        return None
    return f"packet {at} is damaged" if at + 1 < len(packets) else f"truncated: packet {at}, the last, is not whole"


def _cut_short(path: str, size: int, format_name: str) -> str | None:
    """Where a Matroska file ends before the segment in it: FFmpeg drops the frame at the cut and says nothing."""
    if not format_name.startswith("matroska"):
        return None
    with open(path, "rb") as f:
        head = f.read(256)
    header_size, at = _ebml_size(head, 4)  # behind the header's mark, of four bytes as the segment's
    if head[at + header_size :][:4] != b"\x18\x53\x80\x67":
        return None
    segment_size, at = _ebml_size(head, at + header_size + 4)
    whole = at + segment_size
    return f"truncated: {size} of {whole} bytes are there" if size < whole else None


def _ebml_size(data: bytes, at: int) -> tuple[int, int]:
    """A size of an EBML element, 0 for one that the writer left open, and where its content starts."""
    width = 9 - int.from_bytes(data[at : at + 1]).bit_length()
    most = (1 << 7 * width) - 1  # all bits set: unknown
    value = int.from_bytes(data[at : at + width]) & most
    return (value if value < most else 0), at + width


def _judge(num_frames: int, last_s: float, announced_s: float, facts: dict[str, Any]) -> str:
    if not facts["width"] or not facts["height"]:
        return "not a readable video: picture size unknown"
    if (last_s > 0 or not num_frames) and last_s < TRUNCATED_SHARE * announced_s:
        return f"truncated: {last_s:.2f} s of {announced_s:.2f} s are there"
    return _too_short(num_frames) or OK


def _too_short(num_frames: int) -> str | None:
    short = num_frames < FRAMES_PER_SEGMENT
    return f"{num_frames} frames, fewer than a segment's {FRAMES_PER_SEGMENT}" if short else None


def _reason(error: BaseException) -> str:
    """FFmpeg's own words, without the file name that PyAV adds."""
    return str(getattr(error, "strerror", None) or error).splitlines()[0]


def build_manifest(
    annotations: Annotations, *, cache: Path | None = None, workers: int | None = None, progress: bool = False
) -> Manifest:
    """Scan every video of `annotations`; `cache` (see `default_cache`) remembers files across runs, and what an
    interrupted run had scanned."""
    _check_names(s.path for s in annotations.samples)
    found = _read_cache(cache) if cache is not None else {}
    todo = [s.path for s in annotations.samples if not _unchanged(s.path, found.get(s.path))]
    journal = None
    if cache is not None and todo:
        with _cache_errors(cache):
            _write_cache(cache, found)
            journal = cache.open("a", encoding="utf-8")
    try:
        for path, file in _scan(list(dict.fromkeys(todo)), workers or cores(), progress):
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
            f"{cache}: what was scanned cannot be remembered there ({e.strerror}); make room, or name another folder "
            "by the environment variable XDG_CACHE_HOME"
        ) from e


def _scan(paths: list[str], workers: int, progress: bool) -> Iterable[tuple[str, VideoFile]]:
    from rich.progress import track

    label, progress = "Scanning videos", progress and sys.stderr.isatty()
    if len(paths) < 64:  # starting processes would take longer
        results: Iterable[VideoFile] = map(scan_file, paths)
        yield from track(zip(paths, results, strict=True), label, len(paths), disable=not progress)
        return
    results = map_in_processes(scan_file, paths, workers, chunksize=16)
    done = 0
    try:
        for row in track(zip(paths, results, strict=True), label, len(paths), disable=not progress):
            yield row
            done += 1
    except BrokenProcessPool as e:
        raise DataError(
            f"{paths[done]}: a scanning process died at this file or one of the {16 * workers} after it (FFmpeg "
            "crashed, or memory ran out); what was scanned is remembered: run again, with fewer --workers"
        ) from e


def _unchanged(path: str, known: VideoFile | None) -> bool:
    if known is None or not known.sha256:
        return False
    try:
        return file_stat(path) == (known.bytes, known.mtime_ns)
    except OSError:
        return False


def default_cache(root: Path) -> Path:
    """Where the scan of `root` is remembered: the user's cache folder, never the data set's own."""
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError as e:
        raise DataError("this user has no home folder: name one for caches by the variable XDG_CACHE_HOME") from e
    key = hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:16]
    return base / "tdn_bench" / f"{root.resolve().name}-{key}.jsonl"


def _read_cache(path: Path) -> dict[str, VideoFile]:
    """Files by path; the last line of a path counts. A cache of another version is as good as none, and of one cut
    short by a crash the whole lines are used."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        if not lines or json.loads(lines[0]) != {"manifest_version": MANIFEST_VERSION}:
            return {}
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
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    with temporary.open("w", encoding="utf-8") as f:
        f.write(json.dumps({"manifest_version": MANIFEST_VERSION}) + "\n")
        f.writelines(_cache_line(p, v) for p, v in files.items())
    os.replace(temporary, path)


def _cache_line(path: str, file: VideoFile) -> str:
    return json.dumps({"path": path, **asdict(file)}) + "\n"
