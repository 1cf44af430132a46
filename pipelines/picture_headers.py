"""The sizes and colours that single packets state. A stream may change them at any key frame, or in VP9 at any frame,
and its container says nothing: decoders that DALI calls on a CPU then hand out tiled pictures or wrong colours."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple


class Stated(NamedTuple):
    """What a packet states of its picture: pixels, and the codec's own words for its colours (None: not stated)."""

    width: int
    height: int
    colours: object = None


def vp8(packet: bytes) -> Iterator[Stated]:
    """RFC 6386, 9.1: a key frame's header."""
    if packet[3:6] == b"\x9d\x01\x2a" and not packet[0] & 1:
        yield Stated(*(int.from_bytes(packet[at : at + 2], "little") & 0x3FFF for at in (6, 8)))


def vp9(packet: bytes) -> Iterator[Stated]:
    """The uncompressed header of each frame of a packet; a frame whose size is that of another states none."""
    for frame in _vp9_frames(packet):
        if (stated := _vp9_frame(frame)) is not None:
            yield stated


def mjpeg(packet: bytes) -> Iterator[Stated]:
    """The frame header of a JPEG picture: SOF0, SOF1 or SOF2."""
    at = 2
    while packet[at : at + 1] == b"\xff":
        kind, size = packet[at + 1 : at + 2], int.from_bytes(packet[at + 2 : at + 4])
        if kind in (b"\xc0", b"\xc1", b"\xc2"):
            height, width = (int.from_bytes(packet[i : i + 2]) for i in (at + 5, at + 7))
            yield Stated(width, height, packet[at + 9 : at + 2 + size])  # components and their sampling
            return
        at += 1 if kind == b"\xff" else 2 + size


BY_CODEC: dict[str, Callable[[bytes], Iterator[Stated]]] = {"vp8": vp8, "vp9": vp9, "mjpeg": mjpeg}


def _vp9_frames(packet: bytes) -> Iterator[bytes]:
    """The frames of a packet: one, or those of a superframe, by the index at its end."""
    mark = packet[-1] if packet else 0
    count, width = (mark & 7) + 1, (mark >> 3 & 3) + 1
    index = len(packet) - 2 - count * width
    if mark >> 5 != 0b110 or index < 0 or packet[index] != mark:
        yield packet
        return
    start = 0
    for at in range(index + 1, len(packet) - 1, width):
        end = start + int.from_bytes(packet[at : at + width], "little")
        yield packet[start:end]
        start = end


def _vp9_frame(frame: bytes) -> Stated | None:
    head = int.from_bytes(frame[:24].ljust(24, b"\0"))
    left = 8 * 24

    def take(bits: int) -> int:
        nonlocal left
        left -= bits
        return head >> left & (1 << bits) - 1

    if take(2) != 2:
        return None
    profile = take(1) + 2 * take(1)
    if profile == 3:
        take(1)
    if take(1):  # shows a frame that is there
        return None
    key, shown, resilient = not take(1), take(1), take(1)
    intra_only = not key and not shown and take(1)
    if not key and not resilient:
        take(2)
    colours = None
    if key or intra_only:
        take(24)
        if key or profile:
            depth, space = take(1) if profile > 1 else 0, take(3)
            full = take(1) if space != 7 else 1
            sampling = (take(3) if space != 7 else take(1)) if profile & 1 else 0
            colours = profile, depth, space, full, sampling
    if not key:
        take(8)
    if not key and not intra_only:
        for _ in range(3):
            take(4)
        if any(take(1) for _ in range(3)):  # the size of a frame that it refers to
            return None
    return Stated(take(16) + 1, take(16) + 1, colours)
