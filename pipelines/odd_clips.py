"""The awkward clips of the real world, made on the spot, in which every frame carries its number.

A decoder that returns frame n is right when the number read in it is the n-th of `OddClip.numbers`. The number is drawn
as large blocks in the middle of the picture, and colours that move lie around it, so that the distance between two
decoders' pixels means something as well.
"""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.errors import DataError
from pipelines.field_coded import field_packets

if TYPE_CHECKING:
    from av import Packet

RATE = 12  # frames a second, where the rate is even
_DIVX = b"\0\0\1\xb2DivX503b1393"  # user data by which decoders recognise DivX 5; a "p" behind it: packed frames
_CODED_VOP, _EMPTY_VOP, _EMPTY_B_VOP = b"\0\0\1\xb6", b"\0\0\1\xb6\x50\x9f", b"\0\0\1\xb6\x90\x9f"


@dataclass(frozen=True)
class OddClip:
    """A clip as a player shows it: frame n carries `numbers[n]`.

    The coded picture becomes upright when its left and right are swapped (`mirrored`), and then by a turn of `rotation`
    degrees counter-clockwise; `width` and `height` are those of the upright picture.
    """

    name: str
    path: Path
    numbers: tuple[int, ...]
    width: int
    height: int
    rotation: int
    notes: str
    mirrored: bool = False


def numbered_frames(count: int, width: int, height: int, first: int = 0) -> np.ndarray:
    """uint8 (count, H, W, 3) pictures that carry the numbers first, first + 1, … modulo 256."""
    return np.stack([draw_number(number, width, height) for number in range(first, first + count)])


def stretched_frames(count: int, width: int, height: int, first: int = 0) -> np.ndarray:
    """`numbered_frames` whose numbers can be read where a plan squeezes the whole picture into a square."""
    side = max(width, height)
    rows, columns = np.arange(height) * side // height, np.arange(width) * side // width
    return numbered_frames(count, side, side, first)[:, rows][:, :, columns]


def draw_number(number: int, width: int, height: int) -> np.ndarray:
    """uint8 (H, W, 3): 4 × 2 blocks, white for a one, the highest bit at the top left, on colours that move.

    The blocks fill the middle half of the centre square, from its left to its right edge.
    """
    return _drawn(number % 256, width, height).copy()


@lru_cache(128)
def _drawn(number: int, width: int, height: int) -> np.ndarray:
    side = min(width, height)
    x = (np.arange(width) - (width - side) // 2) / side
    y = (np.arange(height)[:, None] - (height - side) // 2) / side
    ones = np.unpackbits(np.array([number], np.uint8)).reshape(2, 4)
    # Twelve frames a turn: neighbours differ clearly, and encoders still find the motion.
    phase = 2 * np.pi * number / 12
    waves = [
        np.sin(2 * np.pi * (a * x + b * y) - c * phase) for a, b, c in ((1, 0.5, 1), (-0.5, 1, -1), (0.7, -0.7, 1))
    ]
    picture = 128 + 80 * np.stack(waves, axis=-1)
    inside = (x >= 0) & (x < 1) & (y >= 0.25) & (y < 0.75)
    blocks = ones[np.clip((4 * y - 1).astype(int), 0, 1), np.clip((4 * x).astype(int), 0, 3)]
    return np.where(inside[..., None], 16 + 224 * blocks[..., None], picture).round().astype(np.uint8)


def read_numbers(pictures: np.ndarray) -> list[int]:
    """The numbers of uint8 (…, H, W, 3) pictures: upright, whole or cropped about the middle to 7/8 of the centre
    square or more, of any size from 32 pixels."""
    *_, height, width, _ = pictures.shape
    side = min(width, height)
    rows = (height - side) // 2 + np.arange(3, 6, 2) * side // 8
    columns = (width - side) // 2 + np.arange(1, 8, 2) * side // 8
    ones = pictures.reshape(-1, height, width, 3)[:, rows][:, :, columns].mean(3) > 127
    return np.packbits(ones.reshape(-1, 8), axis=1)[:, 0].tolist()


def _uneven(i: int) -> int:
    """The tick (1/600 s) at which frame i is shown: 30 a second, a pause of half a second, 10 a second and slower."""
    return 20 * i if i < 20 else 700 + 60 * (i - 20) + 2 * (i - 20) ** 2


def _is_b_frame(packet: bytes) -> bool:
    """True for an MPEG-4 packet that no other refers to."""
    return packet[packet.index(_CODED_VOP) + 4] >> 6 == 2


def _divx(packets: list[bytes], mark: bytes) -> list[bytes]:
    first = packets[0].index(_CODED_VOP)
    return [packets[0][:first] + mark + packets[0][first:], *packets[1:]]


def _dropped(packets: list[bytes]) -> list[bytes]:
    """DivX's mark of a dropped frame, one byte, in place of the B-frames 3, 7, 11, …"""
    marked = _divx(packets, _DIVX)
    assert all(map(_is_b_frame, marked[4::4]))
    return [b"\x7f" if i and i % 4 == 0 else packet for i, packet in enumerate(marked)]


def _packed(packets: list[bytes]) -> list[bytes]:
    """DivX's packed bitstream: a B-frame lies behind the frame it refers to in one packet, an empty one follows."""
    out: list[bytes] = []
    for packet in _divx(packets, _DIVX + b"p"):
        if _is_b_frame(packet):
            out[-1] += packet
            out.append(_EMPTY_VOP)
        else:
            out.append(packet)
    return out


def _without_vops(packets: list[bytes]) -> list[bytes]:
    """Packets that say "no picture here" in place of the B-frames 3, 7, 11, …"""
    return [_EMPTY_B_VOP if i and i % 4 == 0 else packet for i, packet in enumerate(packets)]


def _turned(data: bytes, degrees: int, mirrored: bool) -> bytes:
    """An MP4 file of one track whose header asks to swap left and right, and then for a turn counter-clockwise (by
    hand: PyAV cannot before 18)."""
    at = data.index(b"tkhd") + 44
    width, height = struct.unpack(">2i", data[at + 36 : at + 44])
    cos, sin = {0: (1, 0), 90: (0, 1), 180: (-1, 0), 270: (0, -1)}[degrees]
    a, b, c, d = (-cos, sin, sin, cos) if mirrored else (cos, -sin, sin, cos)
    right, down = (max(0, -p * width) + max(0, -q * height) for p, q in ((a, c), (b, d)))  # back into view
    matrix = (a << 16, b << 16, 0, c << 16, d << 16, 0, right, down, 1 << 30)
    return data[:at] + struct.pack(">9i", *matrix) + data[at + 36 :]


def _box(kind: bytes, *content: bytes) -> bytes:
    data = b"".join(content)
    return struct.pack(">I4s", len(data) + 8, kind) + data


def _with_cover(data: bytes, first: bool) -> bytes:
    """An MP4 file whose boxes end with its header, with a cover picture: its first stream or its last one."""
    import simplejpeg

    cover = simplejpeg.encode_jpeg(draw_number(255, 64, 64))
    handler = _box(b"hdlr", bytes(8), b"mdirappl", bytes(9))
    cover = _box(b"covr", _box(b"data", struct.pack(">II", 13, 0), cover))
    user_data = _box(b"udta", _box(b"meta", bytes(4), handler, _box(b"ilst", cover)))
    start = data.index(b"moov") - 4
    header = data[start + 8 :].replace(b"udta", b"free")  # of two of these only the last is read
    at = struct.unpack(">I", header[:4])[0] if first else len(header)
    return data[:start] + _box(b"moov", header[:at], user_data, header[at:])


@dataclass(frozen=True)
class Case:
    """How to make one clip; call it with the folder to write to."""

    name: str  # of the file
    encoder: str
    options: dict[str, str]
    notes: str
    count: int = 48  # frames that are encoded
    size: tuple[int, int] = (160, 128)  # of the upright picture
    pix_fmt: str = "yuv420p"
    rotation: int = 0
    mirrored: bool = False
    matrix: int = 5  # from YUV to RGB, as H.273 numbers it; 5, BT.601, is not named in the file
    full_range: bool = False
    later_size: tuple[int, int] | None = None  # from the middle on
    tick: Fraction = Fraction(1, RATE)
    shown_at: Callable[[int], int] = int  # the tick of frame i; before 0 an edit list cuts it off
    is_shown: Callable[[int], bool] = lambda i: True
    remake: Callable[[list[bytes]], list[bytes]] = list  # what becomes of the packets before they are written
    all_keys: bool = False  # every packet flagged as a key frame
    skipped: int = 0  # packets at the start that are left out
    sound: bool = False  # a first track
    decoy: str = ""  # encoder of a first video stream, which is not the default one
    finish: Callable[[bytes], bytes] = bytes  # what becomes of the file
    muxer: dict[str, str] = field(default_factory=dict)

    def missing(self) -> str | None:
        """Why this FFmpeg cannot make the clip."""
        import av

        try:
            formats = av.codec.Codec(self.encoder, "w").video_formats or ()
        except ValueError:
            return f"this FFmpeg has no encoder {self.encoder}"
        if self.pix_fmt not in {f.name for f in formats}:
            return f"this FFmpeg's encoder {self.encoder} does not take {self.pix_fmt}"
        return None

    def __call__(self, folder: Path) -> OddClip:
        """Write the clip. Raises DataError where `missing` says why."""
        import av

        os.environ.setdefault("SVT_LOG", "1")  # else the AV1 encoder tells its life story on stderr
        if reason := self.missing():
            raise DataError(f"{self.name}: {reason}; leave it out or install another PyAV")
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / self.name
        with av.open(str(path), "w", options=self.muxer) as container:
            if self.sound:
                sound = container.add_stream("aac", rate=16000, layout="mono")
            if self.decoy:
                decoy = container.add_stream(self.decoy, rate=RATE)
            stream: Any = container.add_stream(self.encoder, rate=RATE, options=self.options)
            self._set_up(stream.codec_context, self.size)
            if self.decoy:
                stream.disposition = av.stream.Disposition.default
                self._fill_decoy(container, decoy)
            packets = self._encode(stream.codec_context)
            if self.sound:
                for _ in range(self.count * 16000 // RATE // 1024):
                    silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
                    silence.sample_rate = 16000
                    container.mux(sound.encode(silence))
                container.mux(sound.encode(None))
            data = self.remake([bytes(p) for p in packets])
            for packet, content in list(zip(packets, data, strict=True))[self.skipped :]:
                container.mux(_with_data(packet, content, stream, packet.is_keyframe or self.all_keys))
        if self.rotation or self.mirrored:
            path.write_bytes(_turned(path.read_bytes(), self.rotation, self.mirrored))
        path.write_bytes(self.finish(path.read_bytes()))
        return self._made(path)

    def _made(self, path: Path) -> OddClip:
        shown = tuple(i % 256 for i in range(self.count) if self.shown_at(i) >= 0 and self.is_shown(i))
        return OddClip(path.stem, path, shown, *self.size, self.rotation, self.notes, self.mirrored)

    def _set_up(self, codec: Any, size: tuple[int, int]) -> None:
        codec.width, codec.height = size[:: -1 if self.rotation % 180 else 1]
        codec.pix_fmt = self.pix_fmt
        codec.thread_count = 1
        codec.time_base = self.tick
        if self.matrix != 5:
            codec.color_primaries, codec.color_trc, codec.colorspace = self.matrix, 1, self.matrix
        if self.matrix != 5 or self.full_range:
            codec.color_range = 1 + self.full_range

    def _fill_decoy(self, container: Any, stream: Any) -> None:
        """Pictures of half the size with other numbers."""
        import av

        stream.width, stream.height = (side // 2 for side in self.size)
        for i in range(self.count):
            picture = draw_number(i + 100, stream.width, stream.height)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))

    def _encode(self, codec: Any) -> list[Packet]:
        import av

        scaler = av.video.reformatter.VideoReformatter()
        packets: list[Packet] = []
        size = self.size
        for i in range(self.count):
            if self.later_size is not None and i == self.count // 2:
                packets += codec.encode(None)
                size = self.later_size
                codec = av.CodecContext.create(self.encoder, "w")
                codec.framerate, codec.options = RATE, self.options
                self._set_up(codec, size)
            frame = scaler.reformat(
                av.VideoFrame.from_ndarray(self._coded(i, size), format="rgb24"),
                format=self.pix_fmt,
                threads=1,
                dst_colorspace=self.matrix,
                dst_color_range="JPEG" if self.full_range or self.pix_fmt.startswith("yuvj") else "MPEG",
            )
            frame.pts, frame.time_base = self.shown_at(i), self.tick
            packets += codec.encode(frame)
        return packets + codec.encode(None)

    def _coded(self, number: int, size: tuple[int, int]) -> np.ndarray:
        """A picture as it is stored, uint8 (H, W, 3)."""
        picture = np.rot90(draw_number(number, *size), -self.rotation // 90)
        return np.ascontiguousarray(picture[:, ::-1] if self.mirrored else picture)


class FieldCase(Case):
    """H.264 with a packet for every field of a frame, without an encoder."""

    def missing(self) -> str | None:
        return None

    def __call__(self, folder: Path) -> OddClip:
        import av

        folder.mkdir(parents=True, exist_ok=True)
        path = folder / self.name
        frames = [av.VideoFrame.from_ndarray(self._coded(i, self.size), format="rgb24") for i in range(self.count)]
        planes = [
            [np.frombuffer(memoryview(p), np.uint8).reshape(p.height, p.line_size)[:, : p.width] for p in frame.planes]
            for frame in (frame.reformat(format="yuv420p") for frame in frames)
        ]
        packets = list(field_packets(planes))
        with av.open(io.BytesIO(b"".join(packets)), format="h264") as raw, av.open(str(path), "w") as container:
            stream = container.add_stream_from_template(raw.streams.video[0])
            for i, data in enumerate(packets):
                packet = av.Packet(data)
                packet.pts = packet.dts = i
                packet.duration, packet.time_base = 1, self.tick / 2
                container.mux(_with_data(packet, data, stream, i == 0))
        return self._made(path)


def _with_data(packet: Packet, data: bytes, stream: Any, is_key: bool) -> Packet:
    import av

    new = av.Packet(data)
    new.stream, new.pts, new.dts, new.duration = stream, packet.pts, packet.dts, packet.duration
    new.time_base, new.is_keyframe = packet.time_base, is_key
    return new


_X264 = {"preset": "ultrafast", "crf": "18", "bf": "2", "g": "12"}
_X265 = _X264 | {"x265-params": "log-level=none:pools=none:frame-threads=1:scenecut=0"}
_VP9 = {"deadline": "realtime", "cpu-used": "8", "crf": "20", "b": "0", "g": "12"}
_ALT_REF = {"deadline": "realtime", "cpu-used": "7", "auto-alt-ref": "1", "lag-in-frames": "16", "b": "200k", "g": "48"}
_AV1 = {"preset": "8", "crf": "20", "g": "12", "svtav1-params": "lp=1"}  # faster presets draw false pictures
_MJPEG = {"q": "3", "qmin": "3", "qmax": "3"}
_MPEG4 = {"q": "2", "qmin": "2", "qmax": "2", "g": "12"}
_H263 = {"q": "5", "qmin": "5", "qmax": "5", "g": "12"}  # by less it clips contrasts
_UNEVEN: Any = {"tick": Fraction(1, 600), "shown_at": _uneven}
_OPEN = _X264 | {"x264-params": "open-gop=1:scenecut=0"}
_LONG = _X264 | {"g": "250", "x264-params": "scenecut=0"}
_PLAIN = _X264 | {"bf": "0"}
_MID_GROUP: Any = {"skipped": 5, "is_shown": lambda i: i >= 12}
_FRAGMENTS = {"movflags": "frag_keyframe+empty_moov"}

_CASES = (
    Case(
        "h264_b_pyramid.mp4",
        "libx264",
        _X264 | {"bf": "3", "b-pyramid": "normal", "g": "30"},
        "B-frames refer to B-frames",
        90,
    ),
    Case("h264_open_gop.mp4", "libx264", _OPEN, "frames shown before their key frame, stored after it"),
    Case("h264_edit_list.mp4", "libx264", _X264 | {"g": "30"}, "an edit list cuts 5 frames", shown_at=lambda i: i - 5),
    Case("h264_late_start.mp4", "libx264", _X264, "the first frame comes after 0.5 s", shown_at=lambda i: i + 6),
    Case("h264_uneven_rate.mp4", "libx264", _X264, "frames come at uneven times", **_UNEVEN),
    Case("vp9_uneven_rate.webm", "libvpx-vp9", _VP9, "frames come at uneven times", **_UNEVEN),
    Case("h264_odd_size.mp4", "libx264", _X264, "odd width and height, 4:4:4", size=(161, 131), pix_fmt="yuv444p"),
    Case("vp9_odd_size.webm", "libvpx-vp9", _VP9, "odd width and height", size=(161, 131)),
    Case("h264_rotated_90.mp4", "libx264", _X264, "stored lying on its side", size=(128, 176), rotation=90),
    Case("h264_rotated_180.mp4", "libx264", _X264, "stored upside down", size=(176, 128), rotation=180),
    Case("h264_rotated_270.mp4", "libx264", _X264, "stored lying on its side", size=(128, 176), rotation=270),
    Case("h264_10_bit.mp4", "libx264", _X264, "10 bits (High 10)", pix_fmt="yuv420p10le"),
    Case("h264_full_range.mp4", "libx264", _X264, "luma from 0 to 255", pix_fmt="yuvj420p"),
    Case("h264_bt709.mp4", "libx264", _X264, "colours of BT.709, marked so", matrix=1),
    Case("h264_bt2020.mp4", "libx264", _X264, "colours of BT.2020, marked so", matrix=9, count=36),
    Case("vp9_bt709.webm", "libvpx-vp9", _VP9, "colours of BT.709, marked so", matrix=1, count=36),
    Case("vp9_bt2020.webm", "libvpx-vp9", _VP9, "colours of BT.2020, marked so", matrix=9, count=36),
    Case("vp9_full_range.webm", "libvpx-vp9", _VP9, "luma from 0 to 255", full_range=True, count=36),
    *(
        Case(f"vp9_{name}.mp4", "libvpx-vp9", _VP9, notes, count=36, size=(128, 176), rotation=rotation, mirrored=True)
        for name, rotation, notes in (
            ("mirrored", 0, "left and right are swapped"),
            ("upside_down", 180, "top and bottom are swapped"),
            ("transposed", 90, "rows are columns"),
            ("anti_transposed", 270, "rows are columns, from the last to the first"),
        )
    ),
    Case("vp9_size_change.webm", "libvpx-vp9", _VP9, "smaller from the middle on", later_size=(120, 96), count=36),
    Case("vp8_size_change.webm", "libvpx", _VP9, "smaller from the middle on", later_size=(120, 96), count=36),
    Case("h264_size_change.ts", "libx264", _PLAIN, "smaller from the middle on", later_size=(120, 96), count=36),
    Case(
        "two_streams.mkv", "libvpx-vp9", _VP9, "two video streams, the second is the default", decoy="libvpx", count=36
    ),
    Case(
        "cover_first.mp4",
        "libvpx-vp9",
        _VP9,
        "a cover picture before the video",
        finish=partial(_with_cover, first=True),
        count=36,
    ),
    Case(
        "cover_last.mp4",
        "libvpx-vp9",
        _VP9,
        "a cover picture after the video",
        finish=partial(_with_cover, first=False),
        count=36,
    ),
    FieldCase("h264_fields.ts", "", {}, "two packets, of a field each, make a frame", count=36),
    Case("h264_mid_group.ts", "libx264", _PLAIN, "starts in the middle of a group", **_MID_GROUP),
    Case("mpeg4_mid_group.mkv", "mpeg4", _MPEG4, "starts in the middle of a group", **_MID_GROUP),
    Case("mpeg4_all_sync.mp4", "mpeg4", _MPEG4, "every sample is marked as a key frame", all_keys=True, count=36),
    Case("flv1_all_sync.flv", "flv", _MPEG4, "every packet is marked as a key frame", all_keys=True, count=36),
    Case("wmv2_all_sync.wmv", "wmv2", _MPEG4, "every packet is marked as a key frame", all_keys=True, count=36),
    Case(
        "h263_all_sync.3gp",
        "h263",
        _H263,
        "every sample is marked as a key frame",
        size=(176, 144),
        all_keys=True,
        count=36,
    ),
    Case("h264_sound_first.mp4", "libx264", _X264, "an audio track before the video", sound=True),
    Case("h264_fragmented.mp4", "libx264", _X264, "fragments in place of one index", muxer=_FRAGMENTS),
    Case("h264_long_gop.mp4", "libx264", _LONG, "250 frames from key frame to key frame", 300),
    Case("hevc_b_frames.mp4", "libx265", _X265, "B-frames, open groups"),
    Case("hevc_10_bit.mp4", "libx265", _X265, "10 bits (Main 10)", pix_fmt="yuv420p10le"),
    Case("vp9_alt_ref.webm", "libvpx-vp9", _ALT_REF, "frames that are coded and never shown"),
    Case("vp9_plain.mp4", "libvpx-vp9", _VP9, "VP9 in MP4"),
    Case("vp9_10_bit.webm", "libvpx-vp9", _VP9, "10 bits (profile 2)", pix_fmt="yuv420p10le"),
    Case("av1_plain.mp4", "libsvtav1", _AV1, "AV1"),
    Case("mpeg4_b_frames.avi", "mpeg4", _MPEG4 | {"bf": "2"}, "B-frames in a container without times"),
    Case(
        "mpeg4_dropped.avi",
        "mpeg4",
        _MPEG4 | {"bf": "1"},
        "packets of one byte stand for dropped frames",
        49,
        remake=_dropped,
        is_shown=lambda i: i % 4 != 3,
    ),
    Case(
        "mpeg4_packed.avi",
        "mpeg4",
        _MPEG4 | {"bf": "1"},
        "two frames in a packet, an empty one after it",
        remake=_packed,
    ),
    Case(
        "mpeg4_no_vops.mp4",
        "mpeg4",
        _MPEG4 | {"bf": "1"},
        "packets that say that there is no frame",
        49,
        remake=_without_vops,
        is_shown=lambda i: i % 4 != 3,
    ),
    Case("mpeg4_gaps.avi", "mpeg4", _MPEG4, "empty packets fill a pause", shown_at=lambda i: i + 3 * (i > 10)),
    Case("mjpeg_plain.avi", "mjpeg", _MJPEG, "Motion JPEG", pix_fmt="yuvj420p"),
    Case("mjpeg_long.avi", "mjpeg", _MJPEG, "120 pictures, each a key frame", 120, (128, 128), pix_fmt="yuvj420p"),
)
CASES: dict[str, Callable[[Path], OddClip]] = {case.name.partition(".")[0]: case for case in _CASES}


def make_odd_clips(folder: Path) -> list[OddClip]:
    """Write every clip that this FFmpeg can make; `skipped_cases` names the others."""
    return [case(folder) for case in _CASES if not case.missing()]


def skipped_cases() -> dict[str, str]:
    """The cases that this FFmpeg cannot make, by name, with the reason."""
    reasons = {name: case.missing() for name, case in zip(CASES, _CASES, strict=True)}
    return {name: reason for name, reason in reasons.items() if reason}
