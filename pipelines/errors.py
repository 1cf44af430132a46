"""What can be wrong with a user's videos and annotations."""

from __future__ import annotations

import unicodedata


class DataError(Exception):
    """One line: what is wrong with which file or option, and what to do. Ends the run."""


class BadClip(DataError):
    """One video that cannot be used. What follows from it is said in `pipelines.bad_clips.BadClipPolicy`."""

    def __init__(self, video_id: str, path: str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.video_id, self.path, self.reason = video_id, path, reason


def printable(text: str) -> str:
    """`text` as one line for any terminal or page: control characters, lone surrogates (bytes of a file name that are
    no UTF-8) and what turns the direction of writing are shown as escapes, such as `\\x1b`."""
    return "".join(c if _shown(c) else f"\\x{ord(c):02x}" if ord(c) < 256 else f"\\u{ord(c):04x}" for c in text)


def _shown(c: str) -> bool:
    # beside what Python calls printable: other spaces, private characters, and the joiners of many scripts and emoji
    return c.isprintable() or c in "\u200c\u200d" or unicodedata.category(c) in ("Zs", "Co")
