"""The table of a data set's videos: each file looked at once, and what was found.

The scan counts the packets that carry a frame; headers and duration × fps are wrong on cut or variable-rate
files. It is parallel over processes and resumable: a file of unchanged size and time is not read again.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import sys
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipelines.annotations import Annotations, Sample
from pipelines.sampling import FRAMES_PER_SEGMENT

MANIFEST_VERSION = 1
OK = "ok"
TRUNCATED_SHARE = 0.9  # less of the announced duration than this is a cut file, not a rounding of its header


@dataclass(frozen=True)
class VideoFile:
    """What the scan found in one file. `status` is "ok" or, in a few words, why the file cannot be used."""

    bytes: int = 0
    mtime_ns: int = 0
    sha256: str = ""
    codec: str = ""
    width: int = 0
    height: int = 0
    fps: float = 0.0
    num_frames: int = 0
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


@dataclass(frozen=True)
class Manifest:
    name: str
    classes: tuple[str, ...]
    videos: tuple[Video, ...]

    def split(self, name: str) -> tuple[Video, ...]:
        return tuple(v for v in self.videos if v.sample.split == name)

    def digest(self) -> str:
        """sha256 over ids, labels, splits and file contents: equal digests mean equal data."""
        h = hashlib.sha256()
        for v in self.videos:
            h.update(f"{v.id}\t{v.sample.label}\t{v.sample.split}\t{v.file.sha256}\t{v.file.status}\n".encode())
        return h.hexdigest()


def scan_file(path: str) -> VideoFile:
    """Look at one file: size, checksum, codec, picture size, frame rate, true number of frames, soundness."""
    import av

    try:
        stat = os.stat(path)
        with open(path, "rb") as f:
            sha256 = hashlib.file_digest(f, "sha256").hexdigest()
    except OSError as e:
        return VideoFile(status=f"cannot be read: {e.strerror}" if os.path.exists(path) else "no such file")
    facts: dict[str, Any] = {"bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns, "sha256": sha256}
    if stat.st_size == 0:
        return VideoFile(**facts, status="empty file")
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
            facts |= {"codec": codec.name, "width": codec.width, "height": codec.height}
            facts["fps"] = float(stream.average_rate or stream.guessed_rate or 0)
            announced_s = _announced_duration_s(container, stream)
            filler = 1 if codec.name == "mpeg4" else 0  # DivX (HMDB51) marks a dropped frame by one byte
            num_frames, last_s = 0, 0.0
            for packet in container.demux(stream):
                if packet.size > filler and not packet.is_discard:
                    num_frames += 1
                    if packet.pts is not None:
                        last_s = max(last_s, float((packet.pts + (packet.duration or 0)) * packet.time_base))
            facts["num_frames"] = num_frames
    except (av.error.FFmpegError, OSError, ValueError) as e:
        return VideoFile(**facts, status=f"not a readable video: {_reason(e)}")
    return VideoFile(**facts, status=_judge(num_frames, last_s, announced_s, facts))


def _announced_duration_s(container, stream) -> float:  # type: ignore[no-untyped-def]
    """Seconds that the file's header promises for the video stream; 0 where it does not say."""
    if container.format.name == "avi":  # FFmpeg shrinks the duration of a cut AVI, not its number of frames
        return float(stream.frames * stream.time_base)
    if stream.duration is not None:
        return float((stream.start_time or 0) + stream.duration) * float(stream.time_base)
    if container.duration is not None and len(container.streams) == 1:  # else it may be the sound's
        return ((container.start_time or 0) + container.duration) / 1e6
    return 0.0


def _judge(num_frames: int, last_s: float, announced_s: float, facts: dict[str, Any]) -> str:
    if not facts["width"] or not facts["height"]:
        return "not a readable video: picture size unknown"
    if 0 < last_s < TRUNCATED_SHARE * announced_s:
        return f"truncated: {last_s:.2f} s of {announced_s:.2f} s are there"
    if num_frames < FRAMES_PER_SEGMENT:
        return f"{num_frames} frames, fewer than a segment's {FRAMES_PER_SEGMENT}"
    return OK


def _reason(error: BaseException) -> str:
    """FFmpeg's own words, without the file name that PyAV adds."""
    return str(getattr(error, "strerror", None) or error).splitlines()[0]


def build_manifest(
    annotations: Annotations, *, cache: Path | None = None, workers: int | None = None, progress: bool = False
) -> Manifest:
    """Scan every video of `annotations`; `cache` (see `default_cache`) remembers files across runs."""
    known = _read_cache(cache) if cache is not None else {}
    todo = [s.path for s in annotations.samples if not _unchanged(s.path, known.get(s.path))]
    todo = list(dict.fromkeys(todo))
    found = dict(known)
    scanned = {}
    for path, file in _scan(todo, workers or os.cpu_count() or 1, progress):
        scanned[path] = found[path] = file
        if cache is not None and len(scanned) % 2000 == 0:
            _write_cache(cache, found)
    if cache is not None and scanned:
        _write_cache(cache, found)
    videos = tuple(Video(s, found[s.path]) for s in annotations.samples)
    return Manifest(annotations.name, annotations.classes, videos)


def _scan(paths: list[str], workers: int, progress: bool) -> Iterable[tuple[str, VideoFile]]:
    from rich.progress import track

    label, progress = "Scanning videos", progress and sys.stderr.isatty()
    if len(paths) < 64:  # starting processes would take longer
        results: Iterable[VideoFile] = map(scan_file, paths)
        yield from track(zip(paths, results, strict=True), label, len(paths), disable=not progress)
        return
    # spawn: a fork of a process with threads (DALI, OpenMP) can deadlock
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        results = pool.map(scan_file, paths, chunksize=16)
        yield from track(zip(paths, results, strict=True), label, len(paths), disable=not progress)


def _unchanged(path: str, known: VideoFile | None) -> bool:
    if known is None or not known.sha256:
        return False
    try:
        stat = os.stat(path)
    except OSError:
        return False
    return (stat.st_size, stat.st_mtime_ns) == (known.bytes, known.mtime_ns)


def default_cache(root: Path) -> Path:
    """Where the scan of `root` is remembered: the user's cache folder, never the data set's own."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    key = hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:16]
    return base / "tdn_bench" / f"{root.resolve().name}-{key}.jsonl"


def _read_cache(path: Path) -> dict[str, VideoFile]:
    """A cache of another version, or cut short by a crash, is as good as none."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        if not lines or json.loads(lines[0]) != {"manifest_version": MANIFEST_VERSION}:
            return {}
        rows = [json.loads(line) for line in lines[1:]]
        return {row.pop("path"): VideoFile(**row) for row in rows}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _write_cache(path: Path, files: dict[str, VideoFile]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    with temporary.open("w", encoding="utf-8") as f:
        f.write(json.dumps({"manifest_version": MANIFEST_VERSION}) + "\n")
        f.writelines(json.dumps({"path": p, **asdict(v)}) + "\n" for p, v in files.items())
    os.replace(temporary, path)
