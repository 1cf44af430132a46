"""One look at one file, or folder of frames: what is in it, and whether it is sound.

Frames are counted by the packets that carry one; headers and duration × fps are wrong on cut or variable-rate files.
"""

from __future__ import annotations

import hashlib
import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.jpeg import frame_files, frame_number, header_size
from pipelines.sampling import FRAMES_PER_SEGMENT
from pipelines.video import JPEG_FRAMES, OK, Sample, Video, VideoFile

TRUNCATED_SHARE = 0.9  # less of the announced duration than this is a cut file, not a rounding of its header


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
    """A row for a file, or folder of frames, as it is now; `id` is by default its name without suffix."""
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
