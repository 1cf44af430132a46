"""What is loaded from a cache may run as code, or decide a number: nobody else may have written it.

Two bars, each enough by itself. A folder is used if this user and root alone can change what lies in it, or put another
in its place. A file in it is believed if it has the seal of this user: a keyed digest of its content, whose key lies in
a place of the user's own. Root is trusted, as root can do as it likes anyway.
"""

from __future__ import annotations

import fcntl
import grp
import hashlib
import hmac
import os
import pwd
import secrets
import stat
from contextlib import suppress
from io import BufferedReader
from pathlib import Path

SECRET_BYTES = 32


class NotPrivate(OSError):
    """One line: which folder or file others could have written, and what to do."""


def private_folder(path: Path) -> Path:
    """`path` with its links resolved. What is missing of it is made, for this user alone.

    A link of the user's own is followed: what counts is where it leads. Raises NotPrivate where anybody but this user
    and root could write into the folder, or replace it: it and all folders above it must be owned by them and closed
    to others. A sticky folder above it, such as /tmp, may be open. Raises another OSError where it cannot be made.
    """
    real = Path(os.path.realpath(path))
    for folder in (*reversed(real.parents), real):
        with suppress(FileExistsError):
            if not folder.exists():
                folder.mkdir(mode=0o700)
        about = folder.lstat()
        if not stat.S_ISDIR(about.st_mode):  # a link by now: somebody has just put it there
            raise NotPrivate(f"{folder} is no folder: remove it, or name another")
        _refuse_others(folder, about, shared=folder != real)
    return real


def open_private(path: Path) -> BufferedReader:
    """A file in a `private_folder`, open for reading. Raises NotPrivate for one that others can write or that is not a
    regular file (a link, a pipe), another OSError for one that cannot be read."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        if path.is_symlink():
            raise NotPrivate(f"{path} is a link, which is not followed: remove it") from error
        raise
    try:
        about = os.fstat(descriptor)  # of what is open, whatever lies at the path by now
        if not stat.S_ISREG(about.st_mode):
            raise NotPrivate(f"{path} is no regular file: remove it")
        _refuse_others(path, about)
    except NotPrivate:
        os.close(descriptor)
        raise
    return os.fdopen(descriptor, "rb")


def _refuse_others(path: Path, about: os.stat_result, shared: bool = False) -> None:
    """Raise NotPrivate where others own `path` or may write it; `shared`: a sticky folder may be open to all."""
    if about.st_uid not in (0, os.geteuid()):
        raise NotPrivate(f"{path} belongs to another user (number {about.st_uid}), who could plant code")
    if shared and about.st_mode & stat.S_ISVTX:
        return
    others = about.st_mode & stat.S_IWOTH
    if others or (about.st_mode & stat.S_IWGRP and not _own_group(about.st_gid)):
        advice = f"chmod go-w {path}" + (" (or +t, if it is meant for all)" if shared else "")
        raise NotPrivate(f"{path} can be written by other users, who could plant code: {advice}")


def _own_group(number: int) -> bool:
    """Whether a group is this user's alone, as Debian gives one to every user, who then has a umask of 0002: it has
    the user's name, and no other members."""
    try:
        group, user = grp.getgrgid(number), pwd.getpwuid(os.geteuid())
    except KeyError:  # as for many users of containers
        return False
    return group.gr_name == user.pw_name and set(group.gr_mem) <= {user.pw_name}


def state_folder() -> Path:
    """Where the key of this user's seals lies: ~/.local/state/tdn_bench. Raises NotPrivate for a user without a home
    folder, where XDG_STATE_HOME names no other place."""
    try:
        return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "tdn_bench"
    except RuntimeError as error:
        raise NotPrivate("this user has no home folder: set XDG_STATE_HOME to a folder of your own") from error


def _secret() -> bytes:
    """The key of this user's seals; made where there is none. Raises OSError."""
    path = private_folder(state_folder()) / "seal.key"
    with suppress(FileNotFoundError), open_private(path) as file:
        if len(found := file.read(SECRET_BYTES)) == SECRET_BYTES:
            return found
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # another process may be writing it
        found = file.read(SECRET_BYTES)
        if len(found) < SECRET_BYTES:
            found = secrets.token_bytes(SECRET_BYTES)
            file.seek(0)
            file.write(found)
            file.flush()
            os.fsync(file.fileno())
    return found


def seal(content: bytes) -> str:
    """The seal of `content`: 64 hexadecimal digits, which nobody else can make. Raises OSError where this user has no
    private place for the key."""
    return hmac.new(_secret(), content, hashlib.sha256).hexdigest()


def write_sealed(path: Path, content: bytes) -> None:
    """Write `content` with its seal: all of it or nothing, also when another process writes the same file. The folder
    is made. Raises OSError, NotPrivate among them."""
    path = private_folder(path.parent) / path.name
    part = path.with_name(f"{path.name}.{os.getpid()}")
    with suppress(FileNotFoundError):
        part.unlink()  # left by a dead process of this number
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(seal(content).encode() + content)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def read_sealed(path: Path) -> bytes:
    """What `write_sealed` wrote; empty where there is no such file, or one that this user has not written so."""
    try:
        with open_private(private_folder(path.parent) / path.name) as file:
            written = file.read()
        return written[64:] if hmac.compare_digest(written[:64], seal(written[64:]).encode()) else b""
    except OSError:
        return b""
