"""Built engines kept on disk: a second start loads what the first one built.

An entry is a payload and a header (its whole key and the payload's checksum), named by a digest of the key, beside a
lock. A payload is handed out only while header, key and checksum fit together. The processor or card is part of the
key, so a folder may be copied to another machine: what was built for a different one is never asked for there.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
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

KEEP_BYTES = 20 * 10**9


@dataclass(frozen=True)
class Artifact:
    """A built file, and whether an earlier call had built it."""

    path: Path
    hit: bool


def default_cache_dir() -> Path:
    """Where built engines are cached unless the user names a folder: ~/.cache/tdn_bench/engines."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tdn_bench" / "engines"


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
    It is built where there is none, or none that is whole and has this very key; a process that wants the same key
    waits meanwhile, and then has it. What `build` raises goes through and leaves no entry. A folder that cannot be
    written costs a warning and a build at every start. Raises EngineError for one that cannot be made.
    """
    stem = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
    payload = folder / f"{stem}{suffix}"
    problem: OSError | None = None
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context(_lock(payload.with_suffix(".lock"), fcntl.LOCK_SH))
        except OSError as error:
            if not folder.is_dir() and folder != default_cache_dir():
                raise EngineError(f"cannot create the engine cache {folder}, name another folder: {error}") from error
            problem = error
        hit = _intact(payload, key)
        if not hit and problem is None:
            fcntl.flock(lock, fcntl.LOCK_EX)
            hit = _intact(payload, key)  # somebody may have built it while this process waited
            if not hit:
                try:
                    _store(payload, key, build)
                except OSError as error:
                    problem = error
        if problem is None:
            os.utime(lock)  # for `prune`
            with suppress(OSError):
                prune(folder, keep_bytes)
        elif not hit:
            warnings.warn(
                f"cannot write to the engine cache {folder}, engines are built anew at every start: {problem}",
                stacklevel=3,
            )
            payload = Path(stack.enter_context(tempfile.TemporaryDirectory())) / payload.name
            build(payload)
        yield Artifact(payload, hit)


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


def _header(payload: Path, key: Mapping[str, Any]) -> bytes:
    """What the header of the payload must be."""
    with payload.open("rb") as file:
        checksum = hashlib.file_digest(file, "sha256").hexdigest()
    return json.dumps({"sha256": checksum, "key": key}, sort_keys=True, indent=1).encode()


def _intact(payload: Path, key: Mapping[str, Any]) -> bool:
    header = payload.with_suffix(".json")
    try:  # is_file, as a pipe would be waited for
        return payload.is_file() and header.is_file() and header.read_bytes() == _header(payload, key)
    except OSError:
        return False


def _store(payload: Path, key: Mapping[str, Any], build: Callable[[Path], None]) -> None:
    """Build an entry in the place of what is there. The caller holds the lock: another part is a dead builder's."""
    part = payload.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    try:
        build(part / payload.name)
        header = part / "header"
        header.write_bytes(_header(part / payload.name, key))
        (part / payload.name).replace(payload)
        header.replace(payload.with_suffix(".json"))
    finally:
        shutil.rmtree(part, ignore_errors=True)


@contextmanager
def _lock(path: Path, operation: int) -> Iterator[int]:
    """The system frees it when its holder dies. The file stays: two processes could hold a deleted and a new one."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, operation)
        yield descriptor
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)  # a forked child may have inherited the descriptor
        os.close(descriptor)
