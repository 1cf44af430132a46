"""What can be wrong with a user's videos and annotations."""

from __future__ import annotations

import re

# Control characters, line and paragraph separators, marks that turn the direction of writing, lone surrogates.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]")


def printable(text: str) -> str:
    r"""One line of text from data as a terminal may show it: what would move its cursor, change its colours or hide a
    part is written as an escape (`\x1b`, `\u202e`), a byte that is not UTF-8 as `\xff`."""

    def escape(match: re.Match[str]) -> str:
        code = ord(match[0])
        code -= 0xDC00 * (0xDC80 <= code <= 0xDCFF)  # how Python keeps a file name's byte that is not UTF-8
        return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"

    return _UNSAFE.sub(escape, text)


class DataError(Exception):
    """One line: what is wrong with which file or option, and what to do. Ends the run."""


class BadClip(DataError):
    """One video that cannot be used. What follows from it is said in `pipelines.bad_clips.BadClipPolicy`."""

    def __init__(self, video_id: str, path: str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.video_id, self.path, self.reason = video_id, path, reason
