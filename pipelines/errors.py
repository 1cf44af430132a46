"""What can be wrong with a user's videos and annotations."""

from __future__ import annotations


class DataError(Exception):
    """One line: what is wrong with which file or option, and what to do. Ends the run."""


class BadClip(DataError):
    """One video that cannot be used. What follows from it is said in `pipelines.bad_clips.BadClipPolicy`."""

    def __init__(self, video_id: str, path: str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.video_id, self.path, self.reason = video_id, path, reason


def printable(text: str) -> str:
    """`text` on one line, fit for a terminal: control characters, marks of direction and lone surrogates as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
