"""One reading of a video file: what its container says, and as much decoding as it takes to know whether that is true.

Containers err: they flag frames as key frames that are none, hold two packets for one frame or a packet for none, and
begin in the middle of a group of pictures. Decoders mostly make some picture of what follows, and say nothing.
"""

from __future__ import annotations

import zlib
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np

from pipelines.container import CUT_FROM_BYTES, UnreadableVideo, open_video, reason, video_packets
from pipelines.decoding import SKIPS_EXACTLY, Disordered, FrameReader, Missed
from pipelines.frame_index import FrameIndex, Restart
from pipelines.picture_headers import BY_CODEC, Stated

if TYPE_CHECKING:
    from av import Packet, VideoFrame, VideoStream
    from av.container import InputContainer

Level = Literal["sample", "all"]
SAMPLE, SAMPLE_OF_LARGE = 2, 1  # frames that are decoded at the start, and from the last key frame on
LARGE_PIXELS = 500_000
NEAR_START = 4  # packets: where the second key frame is so near, what it gives is compared with decoding from the start
FIELD_CODED = frozenset({"h264", "hevc", "mpeg2video", "vc1"})  # may hold two packets for the fields of one frame
REORDERED = 34  # packets: 16 frames at most are shown behind one that is stored after them, of two fields each
PREDICTED, BOTH_WAYS = 2, 3  # FFmpeg's numbers of P- and B-frames
_VOP, _EMPTY_VOP_BYTES = b"\0\0\1\xb6", 8  # of MPEG-4 part 2; no coded one is as short in a picture of 64 × 64


@dataclass
class Packets:
    """What the container says of its packets, in the file's order."""

    pts: list[int | None] = field(default_factory=list)
    dts: list[int | None] = field(default_factory=list)
    hidden: list[bool] = field(default_factory=list)  # decoded, but not shown: an edit list says so
    keys: list[int] = field(default_factory=list)
    damaged: int | None = None
    end: int = 0  # when the last frame's time is over, in ticks
    missing: int = 0  # MPEG-4: packets that stand for no frame, nor for the second one of a packet before
    in_file_order: bool = True  # MPEG-4: no frame is stored before one that is shown earlier
    stated: set[Stated] = field(default_factory=set)  # by packets of codecs that change sizes without a word elsewhere
    _packed: bool = False  # a packet held two frames: the decoder is one behind, until an empty one

    @classmethod
    def of(cls, container: InputContainer, stream: VideoStream) -> Packets:
        """Demultiplex the whole file, a packet at a time."""
        packets = cls()
        mpeg4 = stream.codec_context.name == "mpeg4"
        header = BY_CODEC.get(stream.codec_context.name)
        for i, packet in enumerate(video_packets(container, stream)):
            packets._add(i, packet)
            if header is not None:
                packets.stated.update(header(bytes(packet)))
            if mpeg4:
                packets._count_vops(packet)
        return packets

    def _add(self, i: int, packet: Packet) -> None:
        pts = packet.pts
        self.pts.append(pts)
        self.dts.append(packet.dts)
        self.hidden.append(packet.is_discard)
        if packet.is_keyframe:
            self.keys.append(i)
        if packet.is_corrupt and self.damaged is None:
            self.damaged = i
        if pts is not None and not packet.is_discard:
            self.end = max(self.end, pts + (packet.duration or 0))

    def _count_vops(self, packet: Packet) -> None:
        data = bytes(packet)
        first = data.find(_VOP)
        if first < 0 or len(data) <= _EMPTY_VOP_BYTES:
            self.missing += not self._packed
            self._packed = False
            return
        self._packed |= data.find(_VOP, first + 4) >= 0
        self.in_file_order &= not self._packed and data[first + 4] >> 6 != 2  # 2: a B-frame

    def __len__(self) -> int:
        return len(self.pts)

    @property
    def shown(self) -> list[int | None]:
        """Times of the packets whose frames are shown."""
        return [pts for pts, hidden in zip(self.pts, self.hidden, strict=True) if not hidden]


@dataclass
class Decoded:
    """What a decoder returned, frame by frame."""

    sums: dict[int, int] = field(default_factory=dict)  # of a part of the picture, by frame number
    sizes: set[tuple[int, int]] = field(default_factory=set)
    has_b_frames: bool = False
    colours: set[tuple[str, int, int]] = field(default_factory=set)  # pixel format, matrix, range
    first: VideoFrame | None = None

    def take(self, reader: FrameReader, wanted: np.ndarray, *, whole: bool = True) -> None:
        """Note the `wanted` frames. Raises Missed where one is not there, unless not the `whole` is looked for."""
        for number, frame in reader.frames(wanted, skip=False):
            self._add(number, frame)
        if whole and len(self.sums) != len(wanted):
            raise Missed

    def agrees(self, reader: FrameReader, wanted: np.ndarray) -> bool:
        """Whether a reader returns all `wanted` frames, and those that are known as they are known."""
        other = Decoded()
        other.take(reader, wanted)
        self.sizes |= other.sizes
        self.colours |= other.colours
        return all(self.sums.get(number, value) == value for number, value in other.sums.items())

    def _add(self, number: int, frame: VideoFrame) -> None:
        """Note a frame. Raises UnreadableVideo where the decoder says that it is damaged."""
        if frame.is_corrupt:
            raise UnreadableVideo(f"frame {number} is damaged")
        if self.first is None:
            self.first = frame
        self.sizes.add((frame.width, frame.height))
        self.has_b_frames |= int(frame.pict_type) == BOTH_WAYS
        self.colours.add((frame.format.name, frame.colorspace, frame.color_range))
        plane = frame.planes[0]  # lines of it: what lies between them is anything
        lines = np.frombuffer(memoryview(plane), np.uint8)[: plane.height * plane.line_size].reshape(plane.height, -1)
        self.sums[number] = zlib.crc32(lines[::8, : frame.width].tobytes())


@dataclass(frozen=True)
class Frames:
    """A file's frames as a decoder returns them, and what is worth knowing of them."""

    index: FrameIndex
    count: int
    first: VideoFrame
    oddity: str
    decoded: Level


def claimed_index(
    packets: Packets, container: InputContainer, stream: VideoStream, *, in_order: bool = False
) -> FrameIndex:
    """Where the frames are if all is as the container says: one in each packet from the first key frame on. `in_order`:
    it is known that no frame is shown before one that is stored before it."""
    codec = stream.codec_context
    start = packets.keys[0] if packets.keys else 0
    known = [pts for pts in packets.pts if pts is not None]
    # In AVI times are guessed, and wrong with B-frames: there the order of decoding counts. A file copied from an AVI
    # shows it by times that ascend in the file's order, though its decoder reorders frames. So do files whose encoder
    # had no use for B-frames; in MP4 their times of decoding differ. Times may be out of order where the decoder
    # reorders none, too.
    avi = container.format.name == "avi"
    guessed = avi or len(set(known)) < len(packets) or _start_again(np.array(known), packets.keys)
    ascend = known == sorted(known)
    told = in_order or (container.format.name.startswith("mov") and known != packets.dts)
    if guessed or (ascend and codec.has_b_frames and not told) or not (ascend or codec.has_b_frames):
        ordered = avi and packets.in_file_order and (codec.name == "mpeg4" or not codec.codec.reorder)
        keys = packets.keys if ordered and packets.keys else [start]
        number = np.cumsum([0, *(not hidden for hidden in packets.hidden)])
        stamps = [packets.dts[i] or 0 for i in keys]
        rows = [Restart(int(number[i] - number[start]), 0, i, t, t) for i, t in zip(keys, stamps, strict=True)]
        return FrameIndex(None, np.array(rows, np.int64), one_each=True)
    pts, shown = np.array(known), ~np.array(packets.hidden)
    shown[:start] = False
    if start:  # what leads the first key frame refers to frames that are not there
        shown &= pts >= pts[start]
    times = np.sort(pts[shown])
    before = np.maximum.accumulate(pts)
    after = np.minimum.accumulate(pts[::-1])[::-1]
    by_dts = container.format.name in CUT_FROM_BYTES  # there FFmpeg seeks by the time of decoding
    rows = []
    for i in packets.keys or [0]:
        if i > start and before[i - 1] > pts[i]:
            continue  # shown before a frame that is stored before it: no fresh start
        leading = int((shown[i:] & (pts[i:] < pts[i])).sum()) if after[i] < pts[i] else 0
        dts = packets.dts[i]
        seek = dts if by_dts and dts is not None else int(pts[i])
        rows.append(Restart(int(np.searchsorted(times, pts[i])), leading, i, int(pts[i]), seek))
    # Where packets are missing, a decoder may lose or reorder others, and patches by what it was not told to skip
    loses = bool(codec.has_b_frames) or codec.name in SKIPS_EXACTLY
    return FrameIndex(times, np.array(rows, np.int64), one_each=not (loses and _has_gap(times)))


def _start_again(pts: np.ndarray, keys: list[int]) -> bool:
    """Whether times go back by more than any decoder reorders frames: a clock that ran over, or files joined."""
    back = pts[REORDERED:] < np.maximum.accumulate(pts)[:-REORDERED] if len(pts) > REORDERED else np.array([])
    return bool(back.any() or (pts[keys] < pts[keys[:1]]).any())


def _has_gap(times: np.ndarray) -> bool:
    """Whether there may have been more frames between some of these."""
    steps = np.diff(times)
    return len(steps) > 0 and bool(steps.max() > 1.5 * np.median(steps))


def find_frames(path: str, container: InputContainer, stream: VideoStream, packets: Packets, level: Level) -> Frames:
    """Decode some of a file, or all, to learn which frames it holds and where decoding may start.

    "sample" decodes the first frames, and some behind the last key frame; where these are not what the container says,
    or the file is of a kind that is known to differ, it decodes all. "all" decodes every frame from the start, and
    every group once more from its key frame. `container` has been read to its end. Raises UnreadableVideo, OSError and
    av.error.FFmpegError for what cannot be decoded.
    """
    claimed = claimed_index(packets, container, stream)
    num_streams = len(container.streams.video)
    oddities = [f"{num_streams} video streams"] if num_streams > 1 else []
    shown = packets.hidden.count(False)
    index, count, found = claimed, shown if claimed.times is None else len(claimed.times), None
    if level == "sample" and not _is_suspect(packets, index, container, stream):
        found = _sample(container, stream, index, count)
    decoded: Level = "sample"
    if found is None:
        decoded, (index, found) = "all", _decode_all(path, packets, claimed, count)
        timed = claimed_index(packets, container, stream, in_order=not found.has_b_frames)
        if claimed.times is None and timed.times is not None:
            claimed, (index, found) = timed, _decode_all(path, packets, timed, count)
        count = len(found.sums)
    if index.times is None and container.format.name != "avi":
        oddities.append("times that do not tell the order of frames")
    elif index.one_each < claimed.one_each or count != shown:
        oddities.append("packets that are no frames")
    if index.times is claimed.times and len(index.restarts) < len(claimed.restarts):
        oddities.append("key frames that are none")
    if len(found.sizes | {(stated.width, stated.height) for stated in packets.stated}) > 1:
        oddities.append("pictures of several sizes")
    if len(found.colours) > 1 or len({stated.colours for stated in packets.stated} - {None}) > 1:
        oddities.append("pictures of several colours")
    assert found.first is not None
    if found.first.pict_type in (PREDICTED, BOTH_WAYS) and not (
        found.first.key_frame or any(packets.hidden) or stream.codec_context.name in SKIPS_EXACTLY
    ):  # those wait for a key frame themselves
        raise UnreadableVideo("starts in the middle of a group of pictures, and marks others as key frames")
    return Frames(index, count, found.first, "; ".join(oddities), decoded)


def _is_suspect(packets: Packets, index: FrameIndex, container: InputContainer, stream: VideoStream) -> bool:
    """Whether a file is of a kind whose packets are often no frames."""
    codec = stream.codec_context
    return (
        container.format.name in CUT_FROM_BYTES
        or packets.missing != 0
        or not index.one_each
        or (codec.name in FIELD_CODED and codec.field_order > 1)
        or bool(index.restarts[0, 1:3].any())  # starts in the middle of a group, or with frames that lead it
        or (index.times is None and container.format.name != "avi")
    )


def _sample(container: InputContainer, stream: VideoStream, index: FrameIndex, count: int) -> Decoded | None:
    """The first frames, and some behind the last key frame; None where they are not what the index says."""
    import av

    codec, rows = stream.codec_context, len(index.restarts)
    size = SAMPLE if codec.width * codec.height <= LARGE_PIXELS else SAMPLE_OF_LARGE
    near = rows > 1 and index.restarts[1, 2] <= NEAR_START
    head = np.arange(min(count, (int(index.restarts[1, 0]) if near else 0) + size))
    found = Decoded()
    try:
        found.take(FrameReader(container, stream, index.from_start(), rewound=False), head)
        for row in {1, rows - 1} if near else {rows - 1} - {0}:
            first = int(index.restarts[row, 0])
            behind = np.arange(first, min(count, first + size))
            if not found.agrees(FrameReader(container, stream, index, rewound=False), behind):
                return None
    except (Missed, UnreadableVideo, av.error.FFmpegError):
        return None
    return found


def _decode_all(path: str, packets: Packets, claimed: FrameIndex, count: int) -> tuple[FrameIndex, Decoded]:
    """The index of the frames that decoding from the start returns, with the key frames from which decoding gives the
    same frames."""
    import av

    whole = FrameIndex(claimed.times, claimed.restarts[:1], one_each=False)
    try:
        found = _decode_whole(path, whole, count if whole.times is not None else 2 * count + 1)
    except Disordered:
        start = claimed.restart(0)
        start = start._replace(frame=0, leading=0, stamp=packets.dts[start.packet] or 0)
        whole = FrameIndex(None, np.array([start], np.int64), one_each=False)
        return whole, _decode_whole(path, whole, 2 * len(packets) + 1)
    if len(found.sums) < count or (claimed.times is None and len(found.sums) != count):
        times = claimed.times
        if times is not None:
            times = times[np.array(sorted(found.sums))]
            found.sums = dict(enumerate(found.sums[number] for number in sorted(found.sums)))
        return FrameIndex(times, claimed.restarts[:1] * np.array([0, 1, 1, 1, 1]), one_each=False), found
    holding = [0]
    ends = [*claimed.restarts[1:, 0].tolist(), count]
    with open_video(path) as (container, stream):
        for row in range(1, len(claimed.restarts)):
            group = np.arange(claimed.restarts[row, 0], ends[row])
            alone = FrameIndex(claimed.times, claimed.restarts[[0, row]], claimed.one_each)
            with suppress(Missed, UnreadableVideo, av.error.FFmpegError):
                if found.agrees(FrameReader(container, stream, alone, rewound=False), group):
                    holding.append(row)
    return FrameIndex(claimed.times, claimed.restarts[holding], claimed.one_each), found


def _decode_whole(path: str, index: FrameIndex, most: int) -> Decoded:
    """All frames from the start, `most` at most: without times frames are counted, and a packet may hold two."""
    import av

    found = Decoded()
    with open_video(path) as (container, stream):
        try:
            found.take(FrameReader(container, stream, index), np.arange(most), whole=False)
        except Missed as e:
            raise UnreadableVideo("its first key frame is none") from e
        except av.error.FFmpegError as e:
            raise UnreadableVideo(f"frame {len(found.sums)} cannot be decoded: {reason(e)}") from e
    if not found.sums:
        raise UnreadableVideo("no frame can be decoded")
    return found


def announced_duration_s(container: InputContainer, stream: VideoStream) -> float:
    """Seconds that the file's header promises for the video stream; 0 where it does not say."""
    if container.format.name == "avi":  # FFmpeg shrinks the duration of a cut AVI, not its number of frames
        return float(stream.frames * (stream.time_base or 0))
    if stream.duration is not None:
        return float((stream.start_time or 0) + stream.duration) * float(stream.time_base or 0)
    if container.duration is not None and len(container.streams) == 1:  # else it may be the sound's
        return container.duration / 1e6
    return 0.0
