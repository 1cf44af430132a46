"""Damaged video files and damaged folders of JPEG frames, the same for a seed on any machine.

A damage is a plain function: the bytes of a sound file and a random generator in, the bytes of a damaged one out; of
a folder, the copy to damage and a generator in, what was done out.
"""

import io
import re
import shutil
import struct
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import simplejpeg
from numpy.random import Generator

CONTAINERS = (".avi", ".mp4", ".webm")


@dataclass(frozen=True)
class Damaged:
    path: Path
    source: Path
    kind: str
    detail: str


def _place(data: bytes, rng: Generator, low: int, high: int) -> slice:
    """A stretch of low … high bytes, or of what there is, anywhere."""
    size = min(int(rng.integers(low, high, endpoint=True)), len(data))
    start = int(rng.integers(len(data) - size, endpoint=True))
    return slice(start, start + size)


def _replace(data: bytes, at: slice, new: bytes) -> bytes:
    return data[: at.start] + new + data[at.stop :]


def truncated(data: bytes, rng: Generator) -> bytes:
    """Anything is left, or in a third of the cases all but the last few bytes."""
    if rng.random() < 1 / 3:
        return data[: -int(rng.integers(1, 17))]
    return data[: int(rng.integers(len(data)))]


def burst(data: bytes, rng: Generator) -> bytes:
    at = _place(data, rng, 16, 4096)
    return _replace(data, at, rng.bytes(at.stop - at.start))


def bit_errors(data: bytes, rng: Generator) -> bytes:
    """Single bits turned over, one in 10³ … 10⁶ but at least one."""
    wrong = max(1, int(rng.binomial(8 * len(data), 10 ** rng.uniform(-6, -3))))
    out = np.frombuffer(data, np.uint8).copy()
    np.bitwise_xor.at(
        out, rng.integers(len(data), size=wrong), np.uint8(1) << rng.integers(8, size=wrong, dtype=np.uint8)
    )
    return out.tobytes()


def zero_run(data: bytes, rng: Generator) -> bytes:
    at = _place(data, rng, 16, 4096)
    return _replace(data, at, bytes(at.stop - at.start))


def zero_tail(data: bytes, rng: Generator) -> bytes:
    """As a download that allocated the whole file and stopped leaves it."""
    return data[: (start := int(rng.integers(len(data))))] + bytes(len(data) - start)


def removed(data: bytes, rng: Generator) -> bytes:
    return _replace(data, _place(data, rng, 1, max(1, len(data) // 4)), b"")


def repeated(data: bytes, rng: Generator) -> bytes:
    at = _place(data, rng, 1, max(1, len(data) // 4))
    return _replace(data, at, 2 * data[at])


def not_a_video(data: bytes, rng: Generator) -> bytes:
    """A text, a picture or an archive."""
    text = b"404 Not Found\n" * int(rng.integers(1, 2000))
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as z:
        z.writestr(zipfile.ZipInfo("video.txt"), text)
    return (text, _jpeg(64, 48), archive.getvalue())[rng.integers(3)]


def _jpeg(width: int, height: int) -> bytes:
    grey = np.linspace(0, 255, height * width).astype(np.uint8).reshape(height, width, 1)
    return simplejpeg.encode_jpeg(np.repeat(grey, 3, axis=2))


# Where a container counts: the mark before the field and the field's distance from it, in bytes. 32 bits each.
_COUNTS = {
    ".avi": ((b"avih", 24), (b"strh", 40)),  # dwTotalFrames, dwLength
    ".mp4": (
        *((b"stsz", 12), (b"stts", 8), (b"stts", 12), (b"stts", 16), (b"stsc", 8), (b"stss", 8)),  # sample tables
        *((b"mvhd", 20), (b"mdhd", 20), (b"tkhd", 24)),  # durations
    ),
}


def header(data: bytes, rng: Generator) -> bytes:
    """One to four random bytes where the container describes its streams."""
    start = max(data.find(b"moov"), 0)
    at = start + int(rng.integers(min(1024, len(data) - start)))
    return _replace(data, slice(at, min(at + int(rng.integers(1, 5)), len(data))), rng.bytes(4))[: len(data)]


def lying_count(data: bytes, rng: Generator) -> bytes:
    """Another number of frames or another duration than is there."""
    if data[:4] == b"\x1aE\xdf\xa3":  # WebM: Duration, a float of 4 or 8 bytes
        if not (found := re.search(rb"\x44\x89([\x84\x88])", data)):
            return header(data, rng)
        form = ">f" if found[1] == b"\x84" else ">d"
        (true,) = struct.unpack_from(form, data, found.end())
        lie = struct.pack(form, true * rng.choice([0.0, 0.01, 0.5, 1.5, 100.0, -1.0, np.nan]))
        return _replace(data, slice(found.end(), found.end() + len(lie)), lie)
    suffix, form = (".avi", "<I") if data[:4] == b"RIFF" else (".mp4", ">I")
    fields = [m.start() + far for mark, far in _COUNTS[suffix] for m in re.finditer(mark, data)]
    at = int(rng.choice([f for f in fields if f + 4 <= len(data)]))
    (true,) = struct.unpack_from(form, data, at)
    lies = (0, 1, true // 2, true - 1, true + 1, 2 * true, 100 * true, 2**31 - 1, 2**32 - 1)
    return _replace(data, slice(at, at + 4), struct.pack(form, int(rng.choice(lies)) % 2**32))


def missing_packets(data: bytes, rng: Generator) -> bytes:
    """A sound file, written anew, without one to ten packets in the middle; in half of the cases a key frame is among
    them."""
    out = io.BytesIO()
    with av.open(io.BytesIO(data), metadata_errors="replace") as source:
        packets = [p for p in source.demux(source.streams.video[0]) if p.dts is not None]
        form = next(n for n in ("avi", "mp4", "webm") if n in source.format.name)
        keys = [i for i, p in enumerate(packets) if p.is_keyframe]
        at_key = rng.random() < 0.5
        start = int(rng.choice(keys[1:] or keys) if at_key else rng.integers(len(packets) // 4, len(packets) * 3 // 4))
        del packets[start : start + int(rng.integers(1, 11))]
        # bitexact: no random numbers of FFmpeg's own
        with av.open(out, "w", format=form, options={"fflags": "bitexact"}) as target:
            stream = target.add_stream_from_template(source.streams.video[0])
            for packet in packets:
                packet.stream = stream
                target.mux(packet)
    return out.getvalue()


def _any_frame(folder: Path, rng: Generator) -> Path:
    frames = sorted(folder.iterdir())
    return frames[rng.integers(len(frames))]


def frame_missing(folder: Path, rng: Generator) -> str:
    frames = sorted(folder.iterdir())
    frame = frames[rng.integers(1, max(2, len(frames) - 1))]
    frame.unlink()
    return f"{frame.name} removed"


def folder_empty(folder: Path, rng: Generator) -> str:
    for frame in folder.iterdir():
        frame.unlink()
    return "all frames removed"


def _in_a_frame(damage: Callable[[bytes, Generator], bytes]) -> Callable[[Path, Generator], str]:
    def apply(folder: Path, rng: Generator) -> str:
        frame = _any_frame(folder, rng)
        detail, data = _changed(damage, frame.read_bytes(), rng)
        frame.write_bytes(data)
        return f"{frame.name}: {detail}"

    return apply


def _other_size(data: bytes, rng: Generator) -> bytes:
    height, width, *_ = simplejpeg.decode_jpeg_header(data)
    return _jpeg(width + int(rng.integers(1, 65)), height + int(rng.integers(-8, 65)))


def _no_jpeg(data: bytes, rng: Generator) -> bytes:
    return b"<!DOCTYPE html><title>404 Not Found</title>" * int(rng.integers(1, 100))


_BYTES = (truncated, burst, bit_errors, zero_run, zero_tail, removed, repeated, not_a_video)
FILE_KINDS: dict[str, Callable[[bytes, Generator], bytes]] = {
    **{f.__name__: f for f in (*_BYTES, header, lying_count, missing_packets)},
    "empty": lambda data, rng: b"",
    "prepended": lambda data, rng: rng.bytes(int(rng.integers(1, 4097))) + data,
    "swapped_halves": lambda data, rng: data[len(data) // 2 :] + data[: len(data) // 2],
    "wrong_suffix": lambda data, rng: data,  # `damage` gives it the suffix of another container
}
FOLDER_KINDS: dict[str, Callable[[Path, Generator], str]] = {
    "frame_missing": frame_missing,
    "frame_truncated": _in_a_frame(truncated),
    "frame_empty": _in_a_frame(lambda data, rng: b""),
    "frame_bit_errors": _in_a_frame(bit_errors),
    "frame_other_size": _in_a_frame(_other_size),
    "frame_no_jpeg": _in_a_frame(_no_jpeg),
    "folder_empty": folder_empty,
}


def _changed(damage: Callable[[bytes, Generator], bytes], data: bytes, rng: Generator) -> tuple[str, bytes]:
    """What happened, and the damaged bytes; chance may leave a file as it was, so a few throws are allowed."""
    for _ in range(100):
        if (out := damage(data, rng)) != data:
            both = min(len(data), len(out))
            same = np.frombuffer(data, np.uint8, both) == np.frombuffer(out, np.uint8, both)
            return f"{len(data)} bytes, now {len(out)}, other from byte {[*np.flatnonzero(~same)[:1], both][0]}", out
    raise AssertionError(f"{damage} changes nothing in {len(data)} bytes")


def damage(source: Path, folder: Path, seed: int | tuple[int, ...], kind: str | None = None) -> Damaged:
    """Write a damaged copy of a file or of a folder of frames into `folder`; any kind that applies, without `kind`."""
    rng = np.random.default_rng(seed)
    kinds = sorted(FOLDER_KINDS if source.is_dir() else FILE_KINDS)
    kind = kind or kinds[rng.integers(len(kinds))]
    label = f"{kind}-{'-'.join(map(str, seed if isinstance(seed, tuple) else (seed,)))}-{source.stem}"
    folder.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        copy = shutil.copytree(source, folder / label)
        return Damaged(copy, source, kind, FOLDER_KINDS[kind](copy, rng))
    others = [s for s in CONTAINERS if s != source.suffix]
    suffix = others[rng.integers(len(others))] if kind == "wrong_suffix" else source.suffix
    detail, data = f"a {source.suffix} file under {suffix}", source.read_bytes()
    if kind != "wrong_suffix":
        detail, data = _changed(FILE_KINDS[kind], data, rng)
    path = folder / (label + suffix)
    path.write_bytes(data)
    return Damaged(path, source, kind, detail)


def make_damaged(sources: Sequence[Path], folder: Path, count: int, seed: int) -> list[Damaged]:
    """`count` damaged copies; each kind of each container among the sources comes equally often, give or take one."""
    groups: dict[str, list[Path]] = {}
    for source in sorted(sources, key=lambda p: (p.name, p.as_posix())):
        groups.setdefault("" if source.is_dir() else source.suffix, []).append(source)
    turns = [(group, kind) for group in sorted(groups) for kind in (FILE_KINDS if group else FOLDER_KINDS)]
    out = []
    for i in range(count):
        group, kind = turns[i % len(turns)]
        source = groups[group][np.random.default_rng((seed, i, 1)).integers(len(groups[group]))]
        out.append(damage(source, folder, (seed, i), kind))
    return out
