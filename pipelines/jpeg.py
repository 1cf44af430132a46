"""Videos that lie on disk as folders of JPEG frames (Something-Something V1, or any set that was extracted)."""

from __future__ import annotations

import os
import re


def frame_files(folder: str) -> list[str]:
    """The folder's *.jpg and *.jpeg, in the order of the number in their names. Raises OSError."""
    with os.scandir(folder) as entries:
        named = [e for e in entries if e.name.lower().endswith((".jpg", ".jpeg")) and not e.name.startswith(".")]
        names = [e.name for e in named if e.is_file()]  # a pipe would be waited for
    return [os.path.join(folder, name) for name in sorted(names, key=lambda n: (frame_number(n), n))]


def frame_number(name: str) -> int:
    """The last number in a file's name ("img_00012.jpg": 12); −1 without one."""
    digits = re.findall(r"\d+", name)
    return int(digits[-1]) if digits else -1


def read_jpeg(file: str) -> bytes:
    """A whole JPEG file. Raises ValueError for a cut one: decoders fill what is missing with grey, silently."""
    with open(file, "rb") as f:
        data = f.read()
    if not data.startswith(b"\xff\xd8"):
        raise ValueError(f"{os.path.basename(file)} is not a JPEG file")
    if b"\xff\xd9" not in data[-64:]:  # some writers pad the end
        raise ValueError(f"{os.path.basename(file)} is cut short")
    return data


def header_size(file: str) -> tuple[int, int]:
    """(width, height) that a whole JPEG's header states. Raises ValueError, OSError."""
    import simplejpeg

    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(read_jpeg(file))
    except ValueError as e:
        name = os.path.basename(file)
        raise ValueError(str(e) if str(e).startswith(name) else f"{name}: {e}") from e
    return width, height
