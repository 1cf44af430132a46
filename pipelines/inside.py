"""Whether what a data set names lies within it: annotations come from others, and lead a reader nowhere else."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from functools import cache
from pathlib import Path


class Inside:
    """The folders in which a data set's files must lie.

    The folders themselves are the user's choice: they may be links, to another disk say, and are followed first.
    """

    def __init__(self, folders: Iterable[Path]) -> None:
        self._tops = tuple({os.path.join(os.path.realpath(folder), "") for folder in folders})
        self._real_folder = cache(os.path.realpath)  # a folder holds many videos

    def holds(self, path: str) -> bool:
        """Whether an absolute path lies within, `..` and links followed; so does one at which nothing lies."""
        folder, name = os.path.split(path)
        real = os.path.join(self._real_folder(folder), name)
        if name in ("", ".", "..") or os.path.islink(real):
            real = os.path.realpath(real)
        return real.startswith(self._tops) or os.path.join(real, "") in self._tops

    def way_out(self, path: str) -> str | None:
        """What leads outside: the path of a video or of a folder of frames itself, or a link among the frames."""
        if not self.holds(path):
            return path
        try:
            if stat.S_ISDIR(os.stat(path).st_mode):
                with os.scandir(path) as frames:
                    return next((f.path for f in frames if f.is_symlink() and not self.holds(f.path)), None)
        except OSError:  # not there, or not readable: the scan says so
            pass
        return None
