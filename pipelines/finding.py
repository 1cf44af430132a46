"""Videos in folders that nobody wrote a list of: which files and folders are videos, in which order."""

from __future__ import annotations

import glob
import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from pipelines.errors import printable
from pipelines.inside import Inside
from pipelines.video import VIDEO_SUFFIXES


@dataclass
class Found:
    """The videos of some folders, in natural order (clip2 before clip10), folder by folder; how many other files were
    passed over, by suffix; the links to folders that were not followed: read before, or outside; and of the names that
    a user gave (`find_named`) those at which nothing lies, or a folder without a video."""

    videos: list[str] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)
    again: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)
    _seen: set[tuple[int, int]] = field(default_factory=set)

    def add(self, folder: str, inside: Inside | None = None) -> None:
        """Look through a folder, and all below it. Links to folders are followed, within `inside` where it is given.

        A file is a video by its suffix. A folder with JPEG files, no video and no other folder in it is one video. One
        that cannot be listed counts as a video: the scan says why it is none. Hidden files are not looked at.
        """
        todo = [(folder, True)]  # the next one last
        while todo:
            path, is_folder = todo.pop()
            if not is_folder:
                self.videos.append(path)
                continue
            try:
                status = os.stat(path)
                if (status.st_dev, status.st_ino) in self._seen:  # a link to a folder above would never end
                    self.again.append(path)
                    continue
                if inside is not None and os.path.islink(path) and not inside.holds(path):
                    self.outside.append(path)
                    continue
                with os.scandir(path) as entries:
                    shown = {e.name: _is_folder(e) for e in entries if not e.name.startswith(".")}
            except OSError:
                self.videos.append(path)
                continue
            self._seen.add((status.st_dev, status.st_ino))
            files = [name for name, is_folder in shown.items() if not is_folder]
            kept = [name for name in files if name.lower().endswith(VIDEO_SUFFIXES)]
            if len(files) == len(shown) and not kept and any(map(is_picture, files)):
                self.videos.append(path)
                files = [name for name in files if not is_picture(name)]
            self.ignored.update(os.path.splitext(name)[1].lower() for name in set(files) - set(kept))
            below = sorted([*kept, *(name for name, is_folder in shown.items() if is_folder)], key=natural)
            todo += [(os.path.join(path, name), shown[name]) for name in reversed(below)]


def is_picture(name: str) -> bool:
    """Whether a file is one of a video's frames, by its suffix."""
    return name.lower().endswith((".jpg", ".jpeg"))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()  # is_dir raises where links go round


def natural(name: str) -> tuple[list[str | int], str]:
    """What sorts names as people do: numbers by value, letters whatever their case."""
    parts = re.split("([0-9]+)", name)
    return [int(part) if i % 2 else part.casefold() for i, part in enumerate(parts)], name


def find_named(names: Iterable[str]) -> Found:
    """The videos that a user names, each once, in the order in which they are named: files of any suffix, folders
    (`Found.add`), and patterns (`*`, `?`, `[…]`, `**`) where no file has that name. What is not there stays in the
    list: the scan says so."""
    found, order = Found(), dict[str, str]()
    for name in names:
        paths = [name] if os.path.lexists(name) else _matches(name)
        if not paths:
            found.empty.append(name)
        for path in paths or [name]:
            if os.path.isdir(path):
                some = Found()
                some.add(path)
                found.ignored += some.ignored
                if not some.videos:
                    found.empty.append(path)
            else:
                some = Found([path])
            for video in some.videos or [path]:
                order.setdefault(os.path.abspath(video), video)
    found.videos = list(order.values())
    return found


def passed_over(ignored: Counter[str]) -> str:
    """A sentence on files that are no videos, by suffix; "" without any."""
    kinds = ", ".join(f"{count} {suffix or 'without a suffix'}" for suffix, count in ignored.most_common(5))
    return printable(f"passed over as no videos: {kinds}{', …' if len(ignored) > 5 else ''}") if ignored else ""


def _matches(pattern: str) -> list[str]:
    """What lies where a pattern says, in natural order. A picture is no match: its folder may be a video."""
    try:
        paths = glob.glob(pattern, recursive=True)
    except (ValueError, re.error):  # NUL
        return []
    return sorted((path for path in paths if not is_picture(path) or os.path.isdir(path)), key=natural)
