"""The awkward clips of the real world, made on the spot, in which every frame carries its number.

A decoder that returns frame n is right when the number read in it is the n-th of `OddClip.numbers`. The number is drawn
as large blocks in the middle of the picture, and colours that move lie around it, so that the distance between two
decoders' pixels means something as well.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.errors import DataError

if TYPE_CHECKING:
    from av import Packet

RATE = 12  # frames a second, where the rate is even
_DIVX = b"\0\0\1\xb2DivX503b1393"  # user data by which decoders recognise DivX 5; a "p" behind it: packed frames
_CODED_VOP, _EMPTY_VOP = b"\0\0\1\xb6", b"\0\0\1\xb6\x50\x9f"


@dataclass(frozen=True)
class OddClip:
    """A clip as a player shows it: frame n carries `numbers[n]`.

    `rotation`: degrees counter-clockwise that set the coded picture upright, as PyAV's VideoFrame.rotation reports;
    `width` and `height` are those of the upright picture.
    """

    name: str
    path: Path
    numbers: tuple[int, ...]
    width: int
    height: int
    rotation: int
    notes: str


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
    side = min(width, height)
    x = (np.arange(width) - (width - side) // 2) / side
    y = (np.arange(height)[:, None] - (height - side) // 2) / side
    ones = np.unpackbits(np.array([number % 256], np.uint8)).reshape(2, 4)
    # Twelve frames a turn: neighbours differ clearly, and encoders still find the motion.
    phase = 2 * np.pi * (number % 256) / 12
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


def _turned(data: bytes, degrees: int) -> bytes:
    """An MP4 file of one track whose header asks for a turn counter-clockwise (by hand: PyAV cannot before 18)."""
    at = data.index(b"tkhd") + 44
    width, height = struct.unpack(">2i", data[at + 36 : at + 44])
    cos, sin = {90: (0, 1), 180: (-1, 0), 270: (0, -1)}[degrees]
    right = max(0, -cos * width) + max(0, -sin * height)  # back into view
    down = max(0, sin * width) + max(0, -cos * height)
    matrix = (cos << 16, -sin << 16, 0, sin << 16, cos << 16, 0, right, down, 1 << 30)
    return data[:at] + struct.pack(">9i", *matrix) + data[at + 36 :]


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
    bt709: bool = False
    tick: Fraction = Fraction(1, RATE)
    shown_at: Callable[[int], int] = int  # the tick of frame i; before 0 an edit list cuts it off
    is_shown: Callable[[int], bool] = lambda i: True
    remake: Callable[[list[bytes]], list[bytes]] = list  # what becomes of the packets before they are written
    sound: bool = False  # a first track
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
            stream: Any = container.add_stream(self.encoder, rate=RATE, options=self.options)
            stream.width, stream.height = self.size[:: -1 if self.rotation % 180 else 1]
            stream.pix_fmt = self.pix_fmt
            stream.thread_count = 1
            stream.codec_context.time_base = self.tick
            if self.bt709:
                stream.color_primaries = stream.color_trc = stream.colorspace = stream.color_range = 1
            packets = [*self._encode(stream), *stream.encode(None)]
            if self.sound:
                for _ in range(self.count * 16000 // RATE // 1024):
                    silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
                    silence.sample_rate = 16000
                    container.mux(sound.encode(silence))
                container.mux(sound.encode(None))
            for packet, data in zip(packets, self.remake([bytes(p) for p in packets]), strict=True):
                container.mux(_with_data(packet, data))
        if self.rotation:
            path.write_bytes(_turned(path.read_bytes(), self.rotation))
        shown = (i % 256 for i in range(self.count) if self.shown_at(i) >= 0 and self.is_shown(i))
        return OddClip(path.stem, path, tuple(shown), *self.size, self.rotation, self.notes)

    def _encode(self, stream: Any) -> Iterator[Packet]:
        import av

        full_range = self.pix_fmt.startswith("yuvj")
        for i in range(self.count):
            picture = np.ascontiguousarray(np.rot90(draw_number(i, *self.size), -self.rotation // 90))
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(
                format=self.pix_fmt,
                dst_colorspace="ITU709" if self.bt709 else "ITU601",
                dst_color_range="JPEG" if full_range else "MPEG",
            )
            frame.pts, frame.time_base = self.shown_at(i), self.tick
            yield from stream.encode(frame)


def _with_data(packet: Packet, data: bytes) -> Packet:
    import av

    new = av.Packet(data)
    new.stream, new.pts, new.dts, new.duration = packet.stream, packet.pts, packet.dts, packet.duration
    new.time_base, new.is_keyframe = packet.time_base, packet.is_keyframe
    return new


_X264 = {"preset": "ultrafast", "crf": "18", "bf": "2", "g": "12"}
_X265 = _X264 | {"x265-params": "log-level=none:pools=none:frame-threads=1:scenecut=0"}
_VP9 = {"deadline": "realtime", "cpu-used": "8", "crf": "20", "b": "0", "g": "12"}
_ALT_REF = {"deadline": "realtime", "cpu-used": "7", "auto-alt-ref": "1", "lag-in-frames": "16", "b": "200k", "g": "48"}
_AV1 = {"preset": "8", "crf": "20", "g": "12", "svtav1-params": "lp=1"}  # faster presets draw false pictures
_MPEG4 = {"q": "2", "qmin": "2", "qmax": "2", "g": "12"}
_UNEVEN: Any = {"tick": Fraction(1, 600), "shown_at": _uneven}
_OPEN = _X264 | {"x264-params": "open-gop=1:scenecut=0"}
_LONG = _X264 | {"g": "250", "x264-params": "scenecut=0"}
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
    Case("h264_bt709.mp4", "libx264", _X264, "colours of BT.709, marked so", bt709=True),
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
    Case("mpeg4_gaps.avi", "mpeg4", _MPEG4, "empty packets fill a pause", shown_at=lambda i: i + 3 * (i > 10)),
    Case("mjpeg_plain.avi", "mjpeg", {"q": "3", "qmin": "3", "qmax": "3"}, "Motion JPEG", pix_fmt="yuvj420p"),
)
CASES: dict[str, Callable[[Path], OddClip]] = {case.name.partition(".")[0]: case for case in _CASES}


def make_odd_clips(folder: Path) -> list[OddClip]:
    """Write every clip that this FFmpeg can make; `skipped_cases` names the others."""
    return [case(folder) for case in _CASES if not case.missing()]


def skipped_cases() -> dict[str, str]:
    """The cases that this FFmpeg cannot make, by name, with the reason."""
    reasons = {name: case.missing() for name, case in zip(CASES, _CASES, strict=True)}
    return {name: reason for name, reason in reasons.items() if reason}
