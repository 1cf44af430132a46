"""One look at one file, or folder of frames: what is in it, and whether it is sound.

What a video holds is found out by `pipelines.reading`: headers and duration × fps are wrong on cut or variable-rate
files, and containers err about key frames and packets, too.
"""

from __future__ import annotations

import hashlib
import os
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.container import UnreadableVideo, check_regular, open_video, reason
from pipelines.jpeg import frame_files, frame_number, header_size
from pipelines.reading import Level, Packets, announced_duration_s, find_frames
from pipelines.sampling import FRAMES_PER_SEGMENT
from pipelines.scaling import Scaler
from pipelines.video import JPEG_FRAMES, OK, Sample, Video, VideoFile, clip_name

if TYPE_CHECKING:
    from av import VideoFrame

TRUNCATED_SHARE = 0.9  # less of the announced duration than this is a cut file, not a rounding of its header
SLANT = 0.0175  # the tangent of 1°: FFmpeg's own tolerance
_USUAL_FORMATS, _USUAL = {"yuv420p", "yuvj420p"}, {1, 2, 5, 6}  # matrices and transfers of H.273 that need no trial
# Of H.273, by its numbers; 2 is "not said".
_MATRICES = {1: "BT.709", 2: "", 4: "FCC", 5: "BT.601", 6: "BT.601", 7: "SMPTE 240M", 9: "BT.2020", 10: "BT.2020"}


def scan_file(path: str, level: Level = "sample") -> VideoFile:
    """Look at one file or folder of frames: size, checksum, codec, picture, rate, true number of frames, soundness.
    `level` says how much is decoded, see `pipelines.reading.find_frames`."""
    try:
        if not os.path.isdir(path):
            check_regular(path)
        size, mtime_ns = file_stat(path)
        sha256 = checksum(path)
    except UnreadableVideo as e:
        return VideoFile(status=str(e))
    except OSError as e:
        return VideoFile(status=f"cannot be read: {e.strerror}" if os.path.exists(path) else "no such file")
    facts: dict[str, Any] = {"bytes": size, "mtime_ns": mtime_ns, "sha256": sha256}
    if os.path.isdir(path):
        return _scan_frames(path, facts)
    if size == 0:
        return VideoFile(**facts, status="empty file")
    return _scan_video(path, facts, level)


def as_video(path: Path, id: str | None = None, label: int = 0, split: str = "validation") -> Video:
    """A row for a file, or folder of frames, as it is now; `id` is by default its name (`clip_name`)."""
    whole = str(path.absolute())
    return Video(Sample(id or clip_name(whole), whole, label, split), scan_file(whole))


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
        return VideoFile(**facts, status="holds no video and no frame (*.jpg)")
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


def _scan_video(path: str, facts: dict[str, Any], level: Level) -> VideoFile:
    import av

    try:
        with open_video(path) as (container, stream):
            codec = stream.codec_context
            facts |= {"codec": codec.name, "width": codec.width, "height": codec.height}
            facts["fps"] = float(stream.average_rate or stream.guessed_rate or 0)
            packets = Packets.of(container, stream)
            tick_s = float(stream.time_base or 0)
            status = _judge(packets, packets.end * tick_s, announced_duration_s(container, stream), facts)
            status = status or _cut_short(path, facts["bytes"], container.format.name) or _damaged(packets)
            facts["num_frames"] = packets.hidden.count(False)
            if status is not None:
                return VideoFile(**facts, status=status)
            frames = find_frames(path, container, stream, packets, level)
            known = frames.index.times
            timed = container.format.name != "avi"  # there FFmpeg makes times up
            times = np.sort([pts for pts in packets.shown if pts is not None]) if known is None and timed else known
            facts |= {"num_frames": frames.count, "index": frames.index.pack(), "oddity": frames.oddity}
            facts["decoded"] = frames.decoded
            of_frames = known is not None or frames.index.one_each
            facts["variable_rate"] = times is not None and of_frames and _uneven(times, tick_s)
            facts["keyframe_spacing"] = int(np.diff([*frames.index.restarts[:, 2], len(packets)]).max())
            if not frames.index.one_each and times is not None and len(times) > 1:  # else it is the packets'
                facts["fps"] = round((frames.count - 1) / (float(times[-1] - times[0]) * tick_s), 6)
            return VideoFile(**facts | look(frames.first), status=_too_short(frames.count) or OK)
    except UnreadableVideo as e:
        return VideoFile(**facts, status=str(e))
    except (av.error.FFmpegError, OSError, ValueError) as e:
        return VideoFile(**facts, status=f"not a readable video: {reason(e)}")


def look(frame: VideoFrame) -> dict[str, Any]:
    """The facts of a file that its first frame tells: size, position and colours. Raises UnreadableVideo for colours
    that cannot be made RGB."""
    import av

    coded = frame.width, frame.height
    try:
        if frame.format.name not in _USUAL_FORMATS or not {frame.colorspace, frame.color_trc} <= _USUAL:
            Scaler((0, 0, *coded), (8, 8), coded)(frame)
    except (av.error.FFmpegError, ValueError) as e:
        numbers = f"matrix {frame.colorspace}, transfer {frame.color_trc} of H.273"
        raise UnreadableVideo(f"its colours cannot be made RGB ({numbers})") from e
    mirrored, rotation = _orientation(frame.side_data.get("DISPLAYMATRIX"))
    width, height = coded[::-1] if rotation % 180 else coded
    matrix = "RGB" if frame.format.is_rgb else _MATRICES.get(frame.colorspace, f"matrix {frame.colorspace}")
    return {"width": width, "height": height, "rotation": rotation, "mirrored": mirrored, "matrix": matrix}


def _orientation(matrix: Any) -> tuple[bool, int]:
    """(mirrored, degrees counter-clockwise) that set a picture with the display matrix `matrix` upright: first swap
    left and right, then turn. A slanted picture, or one whose matrix is all zeros, is left as it is."""
    if matrix is None:
        return False, 0
    a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5].tolist()  # (x, y) is shown at (ax + cy, bx + dy)
    if max(abs(b), abs(c)) < SLANT * min(abs(a), abs(d)):
        return (a < 0) != (d < 0), 0 if d > 0 else 180
    if max(abs(a), abs(d)) < SLANT * min(abs(b), abs(c)):
        mirrored = (b < 0) == (c < 0)
        return mirrored, 90 if (b > 0) == mirrored else 270
    return False, 0


def _uneven(times: np.ndarray, tick_s: float) -> bool:
    """True where frames do not come at one rate: distances that rounding to the time base does not explain."""
    if len(times) < 3:
        return False
    gaps = np.diff(times) * tick_s
    return bool(np.abs(gaps - np.median(gaps)).max() > 2 * tick_s + 0.1 * np.median(gaps))


def _damaged(packets: Packets) -> str | None:
    """What the loader would refuse the file for, whatever frames a clip wants: the demuxer marks packets that are not
    whole. The last one is where a file was cut whose header stands at its front."""
    at = packets.damaged
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


def _judge(packets: Packets, end_s: float, announced_s: float, facts: dict[str, Any]) -> str | None:
    num_frames = packets.hidden.count(False)
    if not facts["width"] or not facts["height"]:
        return "not a readable video: picture size unknown"
    if (end_s > 0 or not num_frames) and end_s < TRUNCATED_SHARE * announced_s:
        return f"truncated: {end_s:.2f} s of {announced_s:.2f} s are there"
    return _too_short(num_frames)


def _too_short(num_frames: int) -> str | None:
    short = num_frames < FRAMES_PER_SEGMENT
    return f"{num_frames} frames, fewer than a segment's {FRAMES_PER_SEGMENT}" if short else None
