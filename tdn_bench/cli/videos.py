"""Videos that a flag names: files, folders and patterns, as `tdn-bench predict` takes them."""

from __future__ import annotations

import os
from collections.abc import Iterable

from pipelines.errors import printable
from pipelines.finding import find_named
from tdn_bench.errors import UserError


def named_videos(flag: str, names: Iterable[str]) -> list[str]:
    """The videos that a flag names, each once, in order (`find_named`). Raises UserError for a name at which nothing
    lies, and for a folder without a video; a file that is no video is found out by who reads it."""
    found = find_named(names)
    for name in found.empty:
        why = "holds no video" if os.path.isdir(name) else "no such file or folder"
        raise UserError(f"{flag} {printable(name)}: {why}")
    return found.videos
