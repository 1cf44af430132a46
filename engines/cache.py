"""Built engines kept on disk: a second start loads what the first one built.

An entry is a payload and a header (its whole key, the payload's checksum and the user's seal), named by a digest of the
key, beside a lock. A payload is handed out only while header, key and checksum fit together, and only to the user who
built it, from a folder that nobody else can write: a built engine is code (`storage.private`). The processor or card is
part of the key: what was built for a different one is never asked for.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.spec import EngineError
from storage.private import NotPrivate, open_private, private_folder, seal

KEEP_BYTES = 20 * 10**9
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Artifact:
    """A built file, and whether an earlier call had built it."""

    path: Path
    hit: bool


def default_cache_dir() -> Path:
    """Where built engines are cached unless the user names a folder: ~/.cache/tdn_bench/engines. Raises EngineError
    for a user without a home folder, where XDG_CACHE_HOME does not name another."""
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError as error:
        raise EngineError("this user has no home folder: set XDG_CACHE_HOME, or use --no-cache") from error
    return base / "tdn_bench" / "engines"


@contextmanager
def cached(
    folder: Path,
    key: Mapping[str, Any],
    build: Callable[[Path], None],
    *,
    suffix: str = ".engine",
    keep_bytes: int = KEEP_BYTES,
) -> Iterator[Artifact]:
    """`with cached(…) as artifact:` gives the file that `build(path)` writes for `key`; the path holds inside the with.

    `key` is fit for JSON, `keep_bytes` is the size that the folder may have (`prune`), `suffix` the file name's.
    It is built where there is none, or none that is whole, has this very key and was built by this user; a process that
    wants the same key waits meanwhile, and then has it. What `build` raises goes through and leaves no entry. A folder
    that cannot be written, or a default one that is not private, costs a warning and a build at every start. Raises
    EngineError for a named one that is not private or cannot be made.
    """
    stem = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
    private: Path | None = None
    problem: OSError | None = None
    with ExitStack() as stack:
        try:
            private = private_folder(folder)
            seal(b"")  # is there a place for the key?
            lock = stack.enter_context(_lock(private / f"{stem}.lock", fcntl.LOCK_SH))
        except OSError as error:
            if private is None and folder != default_cache_dir():
                raise EngineError(f"cannot use the engine cache {folder}: {error}; name another folder") from error
            problem = error
        payload = (private or folder) / f"{stem}{suffix}"
        hit = private is not None and _intact(payload, key)
        if not hit and problem is None:
            fcntl.flock(lock, fcntl.LOCK_EX)
            hit = _intact(payload, key)  # somebody may have built it while this process waited
            if not hit:
                if os.path.lexists(payload):
                    warnings.warn(f"{payload} is not what you built here: it is built anew", stacklevel=3)
                try:
                    _store(payload, key, build)
                except OSError as error:
                    problem = error
        if problem is None:
            os.utime(lock)  # for `prune`
            with suppress(OSError):
                prune(payload.parent, keep_bytes)
        elif not hit:
            warnings.warn(
                f"cannot write to the engine cache {folder}, engines are built anew at every start: {problem}",
                stacklevel=3,
            )
            payload = stack.enter_context(temporary_folder()) / payload.name
            build(payload)
        log.debug("engine %s: %s", payload.name, "taken from the cache" if hit else "built")
        yield Artifact(payload, hit)


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder for as long as the with lasts. Raises EngineError where others could put something else in its place, or
    there is none."""
    try:
        folder = tempfile.TemporaryDirectory()
    except OSError as error:  # its message is of several folders
        raise EngineError(f"no temporary folder can be made, set TMPDIR to one that can be written: {error}") from error
    with folder as name:
        try:
            private_folder(Path(name))
        except NotPrivate as error:
            raise EngineError(f"{error}; or set TMPDIR to a folder of your own") from error
        yield Path(name)


def prune(folder: Path, keep_bytes: int = KEEP_BYTES) -> None:
    """Remove what dead builders left, and the least recently used entries beyond `keep_bytes`; none that is in use."""
    total = 0
    for lock in sorted(folder.glob("[0-9a-f]" * 32 + ".lock"), key=lambda path: path.stat().st_mtime, reverse=True):
        with suppress(OSError):  # somebody else removes it, or uses it
            files = [path for path in folder.glob(f"{lock.stem}.*") if path != lock]
            total += sum(path.stat().st_size for path in files)
            doomed = [path for path in files if total > keep_bytes or path.suffix == ".part"]
            if doomed:
                with _lock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB):
                    for path in doomed:
                        path.unlink() if path.is_file() else shutil.rmtree(path)


def entries(folder: Path) -> dict[str, list[Path]]:
    """The entries of a cache by their stem: the files of each, its lock first. A link is none."""
    found = {}
    for lock in sorted(folder.glob("[0-9a-f]" * 32 + ".lock")):
        files = [path for path in sorted(folder.glob(f"{lock.stem}.*")) if path != lock]
        if files and not lock.is_symlink():
            found[lock.stem] = [lock, *files]
    return found


def remove_entry(files: list[Path]) -> bool:
    """Remove an entry that nobody uses, but for its lock; whether it could be."""
    lock, *others = files
    try:
        with _lock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB):
            for path in others:
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
    except OSError:
        return False
    return True


def _header(payload: Path, key: Mapping[str, Any]) -> bytes:
    """What the header of the payload must be. Raises OSError, NotPrivate among them."""
    with open_private(payload) as file:
        checksum = hashlib.file_digest(file, "sha256").hexdigest()
    about = {"sha256": checksum, "key": key}
    sealed = seal(json.dumps(about, sort_keys=True).encode())
    return json.dumps({**about, "seal": sealed}, sort_keys=True, indent=1).encode()


def _intact(payload: Path, key: Mapping[str, Any]) -> bool:
    try:
        with open_private(payload.with_suffix(".json")) as header:
            return header.read() == _header(payload, key)
    except OSError:
        return False


def _store(payload: Path, key: Mapping[str, Any], build: Callable[[Path], None]) -> None:
    """Build an entry in the place of what is there. The caller holds the lock: another part is a dead builder's."""
    part = payload.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(mode=0o700)
    try:
        build(part / payload.name)
        (part / payload.name).chmod(0o600)  # whatever the umask of the user, or a library, has made of it
        header = part / "header"
        header.touch(mode=0o600)
        header.write_bytes(_header(part / payload.name, key))
        (part / payload.name).replace(payload)
        header.replace(payload.with_suffix(".json"))
    finally:
        shutil.rmtree(part, ignore_errors=True)


@contextmanager
def _lock(path: Path, operation: int) -> Iterator[int]:
    """The system frees it when its holder dies. The file stays: two processes could hold a deleted and a new one."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, operation)
        yield descriptor
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)  # a forked child may have inherited the descriptor
        os.close(descriptor)
