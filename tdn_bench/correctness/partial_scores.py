"""The scores of an evaluation that is not over: kept batch by batch, so that a killed one goes on where it stopped.

A file of lines: first the key, which says everything that decides a score; then each batch, a JSON line and the bytes
of its logits behind it, with a checksum. Only the whole key, and files that are as they were, let a run go on; what
follows a batch that is cut, damaged, or of a video that has changed since is scored anew.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import stat
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np
import torch

from pipelines.clip import ClipBatch
from pipelines.errors import BadClip, printable
from pipelines.loader import ClipLoader
from pipelines.manifest import Manifest
from pipelines.scan import checksum, file_stat
from tdn_bench.cli import Network
from tdn_bench.correctness.scores import Scores
from tdn_bench.errors import UserError
from tdn_bench.hub import local_checkpoint
from tdn_bench.records import describe_machine, versions

FORMAT = "tdn_bench partial scores 1"
MAX_LINE = 2**24  # bytes
FOLDER = Path("runs/evaluate")  # where no --scores names a file
PROJECT = Path(__file__).resolve().parents[2]
SOURCES = ("pipelines", "tdn_bench/checkpoint", "tdn_bench/models")  # that a score depends on


def partial_file(scores: Path | None, key: Mapping[str, Any]) -> Path:
    """Where the evaluation that `key` says is kept: beside the file of its scores, else below FOLDER."""
    if scores is not None:
        return scores.with_name(f"{scores.name}.partial")
    return FOLDER / f"{hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]}.partial"


def evaluation_key(
    network: Network, manifest: Manifest, subset: str, loader: ClipLoader, batch_size: int
) -> dict[str, Any]:
    """All that decides what `network` says of a split, bit for bit, fit for JSON; `batch_size` is its largest batch."""
    assert network.checkpoint is not None
    machine = describe_machine(loader.device)
    return {
        "checkpoint": checksum(str(local_checkpoint(network.checkpoint))),
        "network": asdict(network) | {"checkpoint": None},
        "data": manifest.digest(),
        "subset": subset,
        "classes": list(manifest.classes),
        "protocol": asdict(loader.spec),
        "batches": [loader.batch_size, batch_size],
        "backend": loader.decoder.name,
        "checksums": loader.bad_clips.policy.verify_checksums,
        "machine": [machine[name] for name in ("name", "device", "torch_threads")],
        "versions": versions(),
        "sources": _sources(),
    }


def _sources() -> str:
    total = hashlib.sha256()
    for file in sorted(file for folder in SOURCES for file in (PROJECT / folder).glob("*.py")):
        total.update(f"{file.name} {checksum(str(file))}\n".encode())
    return total.hexdigest()


class PartialScores:
    """What an evaluation has found so far, in the file `path`; of the evaluation that `key`, fit for JSON, says.

    `parts` are the scores of the batches before number `next_batch` of `loader`, an evaluation's, whose bad clips among
    them are counted. `note` says so in a line, None where the file says nothing. `fresh` forgets what is there. A file
    that cannot be written, or that another process writes, keeps nothing, and `note` says why. Raises DataError where
    the bad clips so far end the run.
    """

    def __init__(self, path: Path, key: Mapping[str, Any], loader: ClipLoader, *, fresh: bool = False) -> None:
        self.path, self._loader = path, loader
        self.parts: list[Scores] = []
        self.next_batch = 0
        self.note: str | None = None
        self._made = [folder for folder in path.parents if not folder.exists()]
        self._file: IO[bytes] | None = None
        try:
            self._file = self._open()
        except OSError as e:
            why = "another run writes there" if isinstance(e, BlockingIOError) else e.strerror
            self.note = f"scores are not kept on the way ({printable(str(path))}: {why})"
            return
        header = json.dumps({"format": FORMAT, "key": key}, sort_keys=True).encode() + b"\n"
        end = 0
        if not fresh:
            try:
                end = self._read(header)
            except OSError as e:
                self._file.close()
                raise UserError(f"{path}: cannot be read ({e.strerror}); --fresh starts anew without it") from e
        self._file.seek(end)
        self._file.truncate()
        self._write(b"" if end else header)

    @property
    def done(self) -> int:
        """Videos that are scored."""
        return sum(len(part.ids) for part in self.parts)

    def _open(self) -> IO[bytes]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(self.path, flags, 0o666)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise OSError(errno.EINVAL, "is not a regular file")
        file = os.fdopen(descriptor, "r+b")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise
        except OSError:  # a file system without locks
            pass
        return file

    def _read(self, header: bytes) -> int:
        """Take over the batches that count; return where in the file they end, 0 where it is not this evaluation's."""
        file = self._file
        assert file is not None
        there = file.readline(MAX_LINE)
        if there != header:
            if there:
                self.note = (
                    f"{printable(str(self.path))}: of another evaluation ({_difference(there, header)}); begun anew"
                )
            return 0
        end, bad = file.tell(), dict[str, str]()
        size = os.fstat(file.fileno()).st_size
        while (batch := self._read_batch(file, size)) is not None:
            part, number, reasons = batch
            self.parts.append(part)
            self.next_batch, end = number + 1, file.tell()
            bad |= reasons
        for bad_path, reason in bad.items():
            self._loader.bad_clips.add(BadClip(bad_path, bad_path, reason))
        self._loader.bad_clips.check_share()
        if self.parts:
            total = len(self._loader.videos)
            self.note = f"going on with {self.done:,} of {total:,} videos from {printable(str(self.path))}"
        return end

    def _read_batch(self, file: IO[bytes], size: int) -> tuple[Scores, int, dict[str, str]] | None:
        """The next batch: scores, number, bad clips before or in it. None where there is none that counts."""
        try:
            line = json.loads(file.readline(MAX_LINE))
            shape, number = [int(n) for n in line["shape"]], int(line["number"])
            files, bad, ids = dict(line["files"]), dict(line["bad"]), tuple(map(str, line["ids"]))
            labels, wanted = torch.tensor(line.pop("labels"), dtype=torch.int64), str(line["sha256"])
            count = 4 * int(np.prod(shape, dtype=object))
            if len(shape) != 3 or min(shape) < 1 or count > size or not len(ids) == len(labels) == shape[0]:
                return None
            content = file.read(count)
        except (ValueError, KeyError, TypeError, RecursionError, OverflowError):
            return None
        whole = number >= self.next_batch and _seal(number, ids, labels, files, bad, content) == wanted
        if not whole or list(files) != self._loader.paths(self.next_batch, number + 1):
            return None
        if any(_stat(path) != then for path, then in files.items()):
            return None
        logits = torch.frombuffer(bytearray(content), dtype=torch.float32).view(shape)
        return Scores(ids, logits, labels), number, bad

    def add(self, batch: ClipBatch, part: Scores) -> None:
        """Keep the scores of a batch. Raises UserError where the disk takes no more."""
        if self._file is None:
            self.parts.append(part)
            return
        files = {path: _stat(path) for path in self._loader.paths(self.next_batch, batch.number + 1)}
        known = self._loader.bad_clips.reasons
        bad = {path: known[path] for path in files if path in known}
        content = part.logits.contiguous().numpy().tobytes()
        line = {"number": batch.number, "ids": part.ids, "labels": part.labels.tolist(), "files": files, "bad": bad}
        line |= {"shape": part.logits.shape, "sha256": _seal(batch.number, part.ids, part.labels, files, bad, content)}
        self._write(json.dumps(line).encode() + b"\n" + content)
        self.parts.append(part)
        self.next_batch = batch.number + 1

    def _write(self, content: bytes) -> None:
        assert self._file is not None
        try:
            self._file.write(content)
            self._file.flush()
        except OSError as e:
            with suppress(OSError):
                self._file.close()
            why = f"{printable(str(self.path))}: scores cannot be kept ({e.strerror})"
            raise UserError(f"{why}; make room, then run the same command to go on") from e

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Where the evaluation was interrupted, say where its scores are; without any, the file is removed."""
        if self._file is None or kind is None:
            return
        with suppress(OSError):
            self._file.close()
        if not self.next_batch:
            self.remove()
        else:
            say = f"kept {self.done:,} of {len(self._loader.videos):,} videos in {printable(str(self.path))}"
            print(f"{say}; the same command goes on from there", file=sys.stderr)

    def remove(self) -> None:
        """Remove the file, and the folders that were made for it if nothing else is in them."""
        if self._file is None:
            return
        self._file.close()
        self.path.unlink(missing_ok=True)
        with suppress(OSError):
            for folder in self._made or [folder for folder in self.path.parents if folder == FOLDER]:
                folder.rmdir()


def _stat(path: str) -> list[int] | None:
    """Size and time of a file, as JSON has them; None where it is gone."""
    try:
        return list(file_stat(path))
    except OSError:
        return None


def _seal(number: int, ids: tuple[str, ...], labels: torch.Tensor, files: Any, bad: Any, content: bytes) -> str:
    text = json.dumps([number, list(ids), labels.tolist(), files, bad]).encode()
    return hashlib.sha256(text + content).hexdigest()


def _difference(there: bytes, header: bytes) -> str:
    """What in the keys of two evaluations differs, by name."""
    now = json.loads(header)["key"]
    try:
        past = json.loads(there)["key"]
        names = sorted(name for name in now.keys() | past.keys() if now.get(name) != past.get(name))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return "or damaged"
    return printable(f"other {', '.join(names)}")[:200]
