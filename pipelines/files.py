"""Files on disk: which may be opened at all, and how one is written whole or not at all."""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

NO_FILE = "no such file"
# What writing leaves where it is killed; the second kind bears the process that wrote it.
_DEBRIS = re.compile(r"\.saving-.+|\..+\.(?P<pid>\d{1,7})\.(tmp|part)")


def fault_of_file(path: Path, most_bytes: int | None = None) -> str | None:
    """Why `path` is not to be opened: not there, a folder, a pipe or a device, empty, over `most_bytes`. None where it
    is a regular file, or a link to one."""
    try:
        found = path.stat()
    except OSError as e:
        return NO_FILE if isinstance(e, FileNotFoundError) else (e.strerror or str(e))
    except ValueError:  # NUL, or a lone surrogate
        return "no file can have this name"
    if stat.S_ISDIR(found.st_mode):
        return "is a folder, not a file"
    if not stat.S_ISREG(found.st_mode):
        return "is a pipe or a device, not a file"
    if not found.st_size:
        return "is empty"
    if most_bytes is not None and found.st_size > most_bytes:
        return f"has {found.st_size} bytes, more than {most_bytes}"
    return None


def read_regular(path: Path, most_bytes: int) -> bytes:
    """The content of a file. Raises OSError as opening does, ValueError where it is none (a folder, a pipe, a device)
    or is larger, before it is read."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe that nobody writes would be waited for
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise ValueError("is not a regular file")
        if found.st_size <= most_bytes:
            with open(descriptor, "rb", closefd=False) as file:
                content = file.read(most_bytes + 1)  # it may grow
            if len(content) <= most_bytes:
                return content
    finally:
        os.close(descriptor)
    raise ValueError(f"is larger than {most_bytes / 2**20:.0f} MiB")


@contextmanager
def temporary_beside(path: Path) -> Iterator[Path]:
    """A new empty file in the folder of `path`, made where it is missing. The caller fills it and may move it away;
    else it is removed. Its mode follows the umask. Raises OSError.

    It is locked as long as its writer lives: `clear_debris` takes no other's, on whatever machine that runs.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        temporary = path.with_name(f".saving-{os.getpid()}-{secrets.token_hex(4)}.part")
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        with suppress(OSError):  # a file system without locks: nobody clears there
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink:
            break
        os.close(descriptor)  # somebody cleared it before it was locked
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)
        os.close(descriptor)


def sync(path: Path) -> None:
    """Wait until a file's content is on the disk: no power cut then leaves half of it under its name."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Wait until the names in a folder are on the disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_whole(path: Path, content: bytes | memoryview) -> None:
    """Write a file, or what a link leads to, whole or not at all. Raises OSError."""
    with whole_file(Path(os.path.realpath(path))) as temporary:
        temporary.write_bytes(content)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary file to fill, which takes the place of `path` when the block ends well, and is removed when not.
    Raises OSError."""
    with temporary_beside(path) as temporary:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
        with suppress(OSError):  # where a folder cannot be synced, as over some networks
            sync_folder(path.parent)


def clear_debris(folder: Path) -> None:
    """Remove what killed runs left half written in `folder` itself; never what a living process writes."""
    for path in find_debris(folder):
        remove_debris(path)


def find_debris(folder: Path) -> list[Path]:
    """What `clear_debris` would look at in `folder` itself: some of it a living process may still write."""
    found = []
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            debris = _DEBRIS.fullmatch(entry.name)
            if debris is None or _lives(debris["pid"]):
                continue
            is_folder = entry.is_dir(follow_symlinks=False) and debris["pid"] is None
            if is_folder or entry.is_file(follow_symlinks=False):
                found.append(Path(entry.path))
    return found


def remove_debris(path: Path) -> bool:
    """Remove something of `find_debris`, unless a living process writes it; whether that could be."""
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)  # earlier versions wrote into folders of this name
        else:
            _remove_unlocked(str(path))
    except OSError:
        return False
    return True


def _lives(pid: str | None) -> bool:
    try:
        if pid is not None:
            os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return pid is not None


def _remove_unlocked(path: str) -> None:
    """Remove a file that nobody holds locked. Raises OSError where somebody does."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.unlink(path)
    finally:
        os.close(descriptor)
