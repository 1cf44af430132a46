"""H.264 whose frames are stored as two fields of raw samples each, as camcorders and television store them: encoders at
hand write none."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import numpy as np

_MACROBLOCK = b"\x0d\x00"  # mb_type 25 (raw samples), then zeros up to a whole byte
_FRAMES_APART = 16  # frame_num's range


def field_packets(frames: Sequence[Sequence[np.ndarray]]) -> Iterator[bytes]:
    """Two packets a frame, the upper field's and the lower's, in Annex B's form; only the first field is a key frame.

    frames: for each the planes Y (H, W), U and V (H/2, W/2), uint8 of 1 and more; H a multiple of 32, W of 16.
    """
    height, width = frames[0][0].shape
    assert height % 32 == 0 == width % 16
    head = _nal(0x67, f"{77:08b}{0:08b}{30:08b}", 0, 0, 2, 1, "0", width // 16 - 1, height // 32 - 1, "00100")
    head += _nal(0x68, 0, 0, "00", 0, 0, 0, "000", 0, 0, 0, "100")
    for number, planes in enumerate(frames):
        for lower in (0, 1):
            data = b"".join(_macroblocks([plane[lower::2] for plane in planes]))
            first = not number and not lower
            marking = (0, "00") if first else ("0",)
            start = (0, 7, 0, f"{number % _FRAMES_APART:04b}1{lower}", *marking, 0, 1)
            yield (head if first else b"") + _nal(0x65 if first else 0x61, *start, 25, then=data)


def _macroblocks(planes: Sequence[np.ndarray]) -> Iterator[bytes]:
    """The samples of each macroblock of a field; behind the first each begins with its type."""
    luma, *chroma = planes
    for y in range(0, luma.shape[0], 16):
        for x in range(0, luma.shape[1], 16):
            parts = [luma[y : y + 16, x : x + 16], *(c[y // 2 : y // 2 + 8, x // 2 : x // 2 + 8] for c in chroma)]
            yield (_MACROBLOCK if x or y else b"") + b"".join(part.tobytes() for part in parts)


def _nal(kind: int, *fields: int | str, then: bytes = b"") -> bytes:
    """A unit of `fields`: bits as they are, or numbers as Exp-Golomb codes; and whole bytes."""
    bits = "".join(f if isinstance(f, str) else f"{f + 1:0{2 * (f + 1).bit_length() - 1}b}" for f in fields)
    bits += "0" * (-len(bits) % 8) if then else "1".ljust(8 - len(bits) % 8, "0")
    data = int(bits, 2).to_bytes(len(bits) // 8) + then + (b"\x80" if then else b"")
    return b"\0\0\0\1" + bytes([kind]) + re.sub(rb"\0\0(?=[\0-\3])", b"\0\0\3", data)
