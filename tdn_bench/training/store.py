"""The folder of a run: its checkpoints, its last and best weights, and the manifest that says which belong together.

    OUTPUT/run.json                                the manifest: written last, so that all it names is there and whole
    OUTPUT/checkpoints/epoch-0003-step-000120.pt   what `--resume` needs, after three epochs and 120 steps of the next
    OUTPUT/last.safetensors, best.safetensors      weights of the last finished epoch, and of the best one

A process may die between any two writes. A checkpoint that the manifest does not name yet is not resumed from.
Weights are written before the manifest and before the checkpoint of their epoch: they are never older than what it
says, and a run that goes on from before makes the same ones again.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from pipelines.files import clear_debris, read_regular, write_whole
from tdn_bench.checkpoint import CheckpointError, read_training_state, write_tensors, write_training_state
from tdn_bench.errors import UserError, log
from tdn_bench.records import utc_now

MANIFEST, LAST, BEST, LOCK, OWNER = "run.json", "last.safetensors", "best.safetensors", ".lock", ".owner"
FOLDER = "checkpoints"
FORMAT = "tdn_bench run 1"
OLD_STATE = "last.pt"  # of versions that knew whole epochs only
BEAT_S, WATCH_S = 5.0, 16.0  # how often an owner shows that it lives, and how long another one waits to see it
MAX_BYTES = 2**20  # of a manifest
_NAME = re.compile(FOLDER + r"/epoch-(\d{4,9})-step-(\d{6,12})\.pt")
_ANEW = "put a copy of one back, or start anew with --overwrite"

Position = tuple[int, int]  # epochs, and steps of the next one, that were done


@dataclass(frozen=True)
class Loaded:
    """A checkpoint that was read whole."""

    file: Path
    state: dict[str, Any]
    position: Position


@dataclass(frozen=True)
class File:
    """What the manifest says of a file: its name below the run's folder, and the content that it must have."""

    file: str
    bytes: int
    sha256: str
    saved: str  # when, in UTC
    epoch: int
    step: int = 0
    top1: float | None = None

    @classmethod
    def of(cls, folder: Path, name: str, **notes: Any) -> File:
        with (folder / name).open("rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
        return cls(name, (folder / name).stat().st_size, digest, utc_now(), **notes)

    @property
    def position(self) -> Position:
        return self.epoch, self.step

    def is_whole(self, folder: Path) -> bool:
        try:
            now = File.of(folder, self.file, epoch=self.epoch)
        except OSError:
            return False
        return (now.bytes, now.sha256) == (self.bytes, self.sha256)


def check_free(folder: Path, *, resume: bool, overwrite: bool) -> None:
    """Raise UserError where an earlier run lies in the folder and nobody said what becomes of it."""
    names = [*sorted(p.name for p in (folder / FOLDER).glob("*.pt")), OLD_STATE, LAST, BEST]
    held = [name for name in names if (folder / name).exists() or (folder / FOLDER / name).exists()]
    if held and not (resume or overwrite):
        raise UserError(
            f"--output {folder}: holds a run already ({held[0]}); go on with it with --resume, replace it "
            "with --overwrite, or name another folder"
        )


class RunStore:
    """One run's folder, written by one process. `claim` opens it.

    Checkpoints and weights are copied at once and written in the background, in the order of the calls. Where that
    fails, as on a full disk, it is said, the files of before stay, and training goes on; `wait` raises it.
    """

    def __init__(self, folder: Path, keep: int, *, replacing: bool) -> None:
        self.folder, self._keep, self._replacing = folder, keep, replacing
        self._token = secrets.token_hex(16)
        self._checkpoints: list[File] = []  # oldest first
        self._weights: dict[str, File] = {}
        self._known = False  # whether the manifest was read, or need not be
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoints")
        self._pending: list[Future[None]] = []
        self._failures: dict[str, str] = {}  # of the newest write of a kind
        self._unowned: UserError | None = None

    @classmethod
    @contextmanager
    def claim(cls, folder: Path, *, resume: bool, overwrite: bool, keep: int = 3) -> Iterator[RunStore]:
        """Keep the folder for this run alone, until the end of the context or of the process. Raises UserError where
        another process writes there, and where an earlier run lies there and nobody said what becomes of it."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = (folder / LOCK).open("a")
        except OSError as e:
            raise UserError(f"--output {folder}: cannot be locked ({e.strerror}: {LOCK})") from e
        with lock:
            locked = _lock(lock.fileno(), folder)
            check_free(folder, resume=resume, overwrite=overwrite)
            store = cls(folder, keep, replacing=overwrite)
            store._own(locked)
            for place in (folder, folder / FOLDER):
                clear_debris(place)
            ended = threading.Event()
            threading.Thread(target=store._beat, args=(ended,), daemon=True).start()
            try:
                yield store
            finally:
                ended.set()
                store._thread.shutdown()
                if store._is_owner():
                    (folder / OWNER).unlink(missing_ok=True)

    # Whose folder it is ------------------------------------------------------------------------------------------

    def _own(self, locked: bool) -> None:
        """Write down that the folder is this run's. A lock is known to the machines of a network in some file systems
        only, and in others to none: there an earlier owner is watched for a while, and lives if its file changes."""
        file = self.folder / OWNER
        try:
            mine = json.dumps({"machine": _machine(), "token": self._token})
            before = _seen(file)
            if before is not None and not (locked and before[0].get("machine") == _machine()):
                log.info("%s: another training may be writing there; watching it for %g s", self.folder, WATCH_S)
                end = time.monotonic() + WATCH_S
                while time.monotonic() < end:
                    time.sleep(min(0.5, WATCH_S / 8))
                    if (now := _seen(file)) is not None and now != before:
                        raise _taken(self.folder)
            write_whole(file, mine.encode())
        except OSError as e:
            raise UserError(f"--output {self.folder}: cannot be written ({e.strerror}: {OWNER})") from e

    def _is_owner(self) -> bool:
        found = _seen(self.folder / OWNER)
        return found is not None and found[0].get("token") == self._token

    def _beat(self, ended: threading.Event) -> None:
        while not ended.wait(BEAT_S):
            if self._is_owner():
                with suppress(OSError):
                    os.utime(self.folder / OWNER)

    # Reading -----------------------------------------------------------------------------------------------------

    def newest(self) -> Loaded | None:
        """The newest checkpoint that is whole, None where the folder holds none. A damaged one is named, and the one
        before it taken. Raises UserError where none is whole, and for the folder of an earlier version."""
        self._read_manifest()
        named = bool(self._checkpoints)
        while self._checkpoints:
            newest = self._checkpoints[-1]
            try:
                if newest.bytes and not newest.is_whole(self.folder):
                    raise CheckpointError(f"{self.folder / newest.file}: missing, or changed since it was written")
                state = read_training_state(self.folder / newest.file)
                return Loaded(self.folder / newest.file, state, newest.position)
            except UserError as e:
                self._checkpoints.pop()
                before = f"going on from {self._checkpoints[-1].file}" if self._checkpoints else "none is left"
                log.warning("%s; %s", e, before)
        if named:
            raise CheckpointError(f"{self.folder}: no checkpoint is whole; {_ANEW}")
        if (self.folder / OLD_STATE).exists():
            raise CheckpointError(
                f"{self.folder / OLD_STATE}: is of an earlier version, which cannot be resumed; start anew with "
                f"--overwrite, from its weights with --checkpoint {LAST} if you like"
            )
        return None

    def _read_manifest(self) -> None:
        """Take over what the manifest names; where there is none that can be read, the checkpoints that there are."""
        self._known, file = True, self.folder / MANIFEST
        try:
            raw = json.loads(read_regular(file, MAX_BYTES))
            if raw["format"] != FORMAT:
                raise ValueError(f"of another version: {str(raw['format'])[:40]!r}")
            self._checkpoints = [_entry(e, _NAME) for e in raw["checkpoints"]]
            weights = {name: raw["weights"].get(name) for name in (LAST, BEST)}
            self._weights = {n: _entry(e, re.compile(re.escape(n))) for n, e in weights.items() if e is not None}
        except FileNotFoundError:
            self._checkpoints = self._found()
            if self._checkpoints:
                log.warning("%s: missing; going by the checkpoints that there are", file)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
            self._checkpoints, self._weights = self._found(), {}
            log.warning("%s: cannot be used (%s); going by the checkpoints that there are", file, e)

    def _found(self) -> list[File]:
        """The checkpoints that lie there, by their names; nothing is known of their content."""
        names = (f"{FOLDER}/{p.name}" for p in (self.folder / FOLDER).glob("*.pt"))
        found = [(int(m[1]), int(m[2]), m[0]) for name in names if (m := _NAME.fullmatch(name))]
        return [File(name, 0, "", "", epoch, step) for epoch, step, name in sorted(found)]

    # Writing -----------------------------------------------------------------------------------------------------

    def save(self, state: Mapping[str, object], position: Position, *, wait: bool = False) -> None:
        """Write a checkpoint: its tensors are copied now, written in the background. With `wait`, return when it is on
        the disk, and raise UserError where it cannot be. Raises UserError where another run has taken the folder."""
        if not self._known and not self._replacing:
            self._read_manifest()
        self._drain()
        if not (self._checkpoints and self._checkpoints[-1].position == position):  # else no step was done since
            self._submit(FOLDER, partial(self._write_checkpoint, _copy(state), position))
        if wait:
            self.wait()

    def save_weights(self, name: str, network: nn.Module, notes: Mapping[str, Any]) -> None:
        """Write the weights `last` or `best`, in the background too; `notes` hold their `epoch` and `top1`."""
        file = f"{name}.safetensors"
        self._submit(file, partial(self._write_weights, file, _copy(network.state_dict()), notes))

    def wait(self) -> None:
        """Return when all is on the disk. Raises UserError where it could not be written."""
        self._drain()
        for said in self._failures.values():
            raise UserError(f"{said}; make room, then go on with --resume")

    def _submit(self, what: str, write: Callable[[], None]) -> None:
        self._pending.append(self._thread.submit(self._guarded, what, write))

    def _drain(self) -> None:
        """Wait for what is being written: no more than one copy of a state is held."""
        pending, self._pending = self._pending, []
        for future in pending:
            future.result()
        if self._unowned is not None:
            raise self._unowned

    def _guarded(self, what: str, write: Callable[[], None]) -> None:
        """Write, unless the folder was lost. A failure is said, and kept until a later write of the kind goes well."""
        if self._unowned is not None:
            return
        try:
            if not self._is_owner():
                self._unowned = _taken(self.folder)
                return
            write()
            self._failures.pop(what, None)
        except (OSError, CheckpointError) as e:
            said = str(e) if isinstance(e, CheckpointError) else f"{self.folder}: cannot be written ({e.strerror})"
            if what not in self._failures:
                log.warning("%s; training goes on, what was saved before is kept", said)
            self._failures[what] = said

    def _write_checkpoint(self, state: Mapping[str, object], position: Position) -> None:
        epoch, step = position
        name = f"{FOLDER}/epoch-{epoch:04}-step-{step:06}.pt"
        write_training_state(self.folder / name, state)
        earlier = [c for c in self._checkpoints if c.file != name][-self._keep + 1 :] if self._keep > 1 else []
        self._checkpoints = [*earlier, File.of(self.folder, name, epoch=epoch, step=step)]
        self._commit()

    def _write_weights(self, file: str, tensors: Mapping[str, Tensor], notes: Mapping[str, Any]) -> None:
        write_tensors(self.folder / file, tensors, notes)
        self._weights[file] = File.of(self.folder, file, epoch=notes["epoch"], top1=notes["top1"])

    def _commit(self) -> None:
        """Write the manifest, then remove what it names no more."""
        content = {
            "format": FORMAT,
            "checkpoints": [asdict(c) for c in self._checkpoints],
            "weights": {name: asdict(file) for name, file in self._weights.items()},
        }
        write_whole(self.folder / MANIFEST, json.dumps(content, indent=1).encode())
        named = {c.file for c in self._checkpoints}
        for path in (self.folder / FOLDER).glob("*.pt"):
            if f"{FOLDER}/{path.name}" not in named:
                path.unlink(missing_ok=True)
        if self._replacing:  # the run that lay here is replaced from here on
            self._replacing = False
            for name in {LAST, BEST, OLD_STATE} - self._weights.keys():
                (self.folder / name).unlink(missing_ok=True)


def _lock(descriptor: int, folder: Path) -> bool:
    """Lock a file until it is closed; whether the file system can. Raises UserError where it is locked."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as e:
        raise _taken(folder) from e
    except OSError:  # some network file systems
        return False
    return True


def _taken(folder: Path) -> UserError:
    return UserError(f"--output {folder}: another training is writing there; wait for its end, or name another folder")


def _machine() -> str:
    """This machine, until it is started anew; containers on it share its locks."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return os.uname().nodename


def _seen(file: Path) -> tuple[dict[str, Any], int] | None:
    """What an owner wrote, and when it last showed that it lives, by whatever clock; None where there is none."""
    try:
        with file.open("rb") as content:  # opened: over a network, what is known without may be old
            said, at = json.loads(content.read(1000)), os.fstat(content.fileno()).st_mtime_ns
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError):
        return {}, 0
    return (said, at) if isinstance(said, dict) else ({}, at)


def _entry(raw: Any, name: re.Pattern[str]) -> File:
    """A file of the manifest. Raises ValueError or TypeError for what it never says."""
    file = File(**raw)
    texts, numbers = (file.file, file.sha256, file.saved), (file.bytes, file.epoch, file.step)
    right = all(type(t) is str for t in texts) and all(type(n) is int and n >= 0 for n in numbers)
    if not right or not name.fullmatch(file.file) or file.bytes < 1:
        raise ValueError(f"it names {str(raw)[:60]}")
    if (match := _NAME.fullmatch(file.file)) and file.position != (int(match[1]), int(match[2])):
        raise ValueError(f"its {file.file} is of another position")
    return file


def _copy(value: Any) -> Any:
    """The same values on the CPU, in memory of their own: training goes on while they are written."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        return {name: _copy(item) for name, item in value.items()}
    return value
