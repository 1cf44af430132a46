"""Records: one measured run as JSON, with raw samples, units in the key names, and what it was run on.

`record.schema.json`, beside this file and installed with it, says the same to other programs (JSON Schema 2020-12).
A published record may keep its samples in a compressed file beside it (see `compress.py`); `read_record` joins them.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import os
import re
import secrets
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipelines.files import clear_debris, sync, temporary_beside
from pipelines.manifest import Manifest
from tdn_bench.errors import UserError
from tdn_bench.records.environment import commit, describe_machine, processor_machine_name, versions

SCHEMA_VERSION = 2
MAX_SAMPLES_BYTES = 2**30  # unpacked: a small file may hold any number of zeros
STATUSES = ("stable", "unstable", "void", "unwatched")
COMMIT = commit()  # asked at the start: of the code that runs, not of a commit made meanwhile


@dataclass(frozen=True)
class Record:
    """One run. `figures` are its results and `samples` the raw values behind them, in the order in which they were
    taken; keys end in their unit (`_s`, `_ms`, `_percent` from 0 to 100, `_bytes`, `_per_s`, …)."""

    kind: str  # train, throughput, loader, scenario, gpu_suite, benchmark, …; runs of one kind have the same figures
    name: str
    figures: Mapping[str, Any]
    samples: Mapping[str, Sequence[float]]
    settings: Mapping[str, Any]  # the recipe, or the command's flags, in full
    command: Sequence[str]
    machine: Mapping[str, Any]
    versions: Mapping[str, str]
    commit: str | None
    data: Mapping[str, Any] | None  # data set: name, digest, videos
    created_utc: str
    details: Mapping[str, Any] = field(default_factory=dict)
    status: str = "stable"  # or unstable, void (not to be used); unwatched: nothing looked for disturbances
    status_reasons: Sequence[str] = ()  # what disturbed the run: throttling, foreign load, drift
    schema_version: int = SCHEMA_VERSION


def make_record(
    kind: str,
    name: str,
    *,
    figures: Mapping[str, Any],
    samples: Mapping[str, Sequence[float]],
    settings: Mapping[str, Any],
    device: torch.device,
    manifest: Manifest | None = None,
    details: Mapping[str, Any] | None = None,
    status: str = "unwatched",
    status_reasons: Sequence[str] = (),
) -> Record:
    """A record of this process's run, made now: command, machine, versions, commit and time are filled in.

    `figures` and `samples` have keys that end in their unit; `settings` are the command's flags in full, defaults
    included; `device` is the one that ran; `manifest` that of the videos, None where none were read; `details` are free
    of form. A `status` other than stable, unstable, void or unwatched is a bug (AssertionError).
    """
    assert status in STATUSES, status
    data = None
    if manifest is not None:
        data = {"name": manifest.name, "digest": manifest.digest(), "videos": len(manifest.videos)}
    return Record(
        kind=kind,
        name=name,
        figures=figures,
        samples=samples,
        settings=settings,
        command=_command(),
        machine=describe_machine(device),
        versions=versions(),
        commit=COMMIT,
        data=data,
        created_utc=utc_now(),
        details=details or {},
        status=status,
        status_reasons=status_reasons,
    )


def default_folder(command: str) -> Path:
    """`runs/<command>`: where a run's own records go. A user's run never writes into a tracked file; to publish a
    record is to say so, with `--results results/<machine>` (see `machine_name`)."""
    return Path("runs") / command


def utc_now() -> str:
    """The time in UTC as records write it, 2026-01-31T23:59:59Z; such strings sort by time."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _command() -> list[str]:
    """The command line, with the module's name in place of its file's."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is not None:
        return ["python", "-m", spec.name.removesuffix(".__main__"), *sys.argv[1:]]
    script = Path(sys.argv[0])  # an installed command's path is the machine's own affair
    return [script.name if script.is_absolute() else str(script), *sys.argv[1:]]


def check_folder(flag: str, folder: Path) -> None:
    """Make the folder that `flag` (as the user writes it: --results) names, and clear it of what killed runs left half
    written. Raises UserError where no file can be written there: to be known before hours of work, not after."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as e:
        raise UserError(f"{flag} {folder}: cannot be written ({e.strerror})") from e
    clear_debris(folder)


def to_json(record: Record) -> bytes:
    """What JSON cannot say is changed: NaN and infinities become null, numpy's numbers plain ones, the rest text."""
    text = json.dumps(asdict(record), default=lambda x: x.item() if isinstance(x, np.generic) else str(x))
    return laid_out(json.loads(text, parse_constant=lambda _: None))


def laid_out(plain: Mapping[str, Any]) -> bytes:
    """A record's JSON as its file has it."""
    text = json.dumps(plain, indent=1, ensure_ascii=False) + "\n"
    text = re.sub(r'\[\n[^][{}"]*\]', lambda m: " ".join(m[0].split()), text)  # a list of numbers: one line
    # a file name that is no UTF-8 has lone surrogates: they are kept, as \udcXX
    return text.encode("utf-8", "backslashreplace")


def write_record(record: Record, folder: Path) -> Path:
    """Write `<kind>-<name>-<time>.json` below `folder`, whole or not at all; no record is ever overwritten, however
    many threads, processes and hosts write there. NaN and infinities are written as null. Raises UserError where the
    folder takes no file."""
    stem = f"{record.kind}-{record.name}-{record.created_utc.replace('-', '').replace(':', '')}"
    content = to_json(record)
    try:
        with temporary_beside(folder / stem) as temporary:
            temporary.write_bytes(content)
            sync(temporary)
            return _give_name(temporary, stem)
    except OSError as e:
        raise UserError(f"{folder}: cannot hold records ({e.strerror})") from e


def _give_name(temporary: Path, stem: str) -> Path:
    """Move a file to the first free `<stem>[-number].json`."""
    for number in range(1000):
        path = temporary.with_name(f"{stem}{f'-{number}' if number else ''}.json")
        try:
            os.link(temporary, path)  # unlike rename, fails where the name is taken
        except FileExistsError:
            continue
        except OSError:  # a file system without links; to look for a free name is a race, so one that nobody else has
            path = temporary.with_name(f"{stem}-{secrets.token_hex(8)}.json")
            os.replace(temporary, path)
        return path
    raise AssertionError("a thousand records of one name in one second")


def _from_1(raw: dict[str, Any]) -> dict[str, Any]:
    """Version 1 did not look for disturbances: its records are neither stable nor unstable."""
    return raw | {"status": "unwatched", "status_reasons": []}


_UPGRADES: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {1: _from_1}  # from a version to the next


def read_record(path: Path) -> Record:
    """Read one record of this or an older schema, its samples joined where they lie in a file beside it. Raises
    UserError where the file is not a record or is of a newer schema, and where its samples are missing or changed."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        newer = raw["schema_version"] > SCHEMA_VERSION
        while raw["schema_version"] < SCHEMA_VERSION:
            version = raw["schema_version"]
            raw = _UPGRADES[version](raw) | {"schema_version": version + 1}
        if not newer and "samples_file" in raw:
            raw["samples"] = _samples_beside(path, raw.pop("samples_file"))
        record = None if newer else Record(**raw)
    except (OSError, ValueError, TypeError, KeyError, lzma.LZMAError) as e:
        raise UserError(f"{path}: not a record ({e})") from e
    if record is None:
        raise UserError(f"{path}: record of schema {raw['schema_version']}, this version reads up to {SCHEMA_VERSION}")
    return _named_by_its_processor(record)


def _samples_beside(path: Path, said: Mapping[str, Any]) -> dict[str, list[float]]:
    """The samples of the record at `path`, from the compressed file that it names with its SHA-256."""
    beside = path.parent / Path(said["name"]).name  # never anywhere else
    try:
        content = beside.read_bytes()
    except OSError as e:
        raise UserError(f"{path}: its samples cannot be read: {beside} ({e.strerror}); put it back there") from e
    if hashlib.sha256(content).hexdigest() != said["sha256"]:
        raise UserError(f"{beside}: not the samples that {path.name} names (other SHA-256); put those back")
    unpacking = lzma.LZMADecompressor()
    text = unpacking.decompress(content, MAX_SAMPLES_BYTES)
    if not unpacking.eof:
        raise ValueError(f"{beside.name} is cut, or holds over {MAX_SAMPLES_BYTES} bytes")
    samples = json.loads(text)
    if not isinstance(samples, dict) or not all(isinstance(values, list) for values in samples.values()):
        raise ValueError(f"{beside.name} holds no samples by name")
    return samples


def _named_by_its_processor(record: Record) -> Record:
    """Machines without a GPU were once named cpu-<N>core: they get the name that they would have today, so that a
    machine's older and newer records stand together."""
    old = re.fullmatch(r"cpu-(\d+)core", str(record.machine.get("name")))
    if old is None:
        return record
    name = processor_machine_name(str(record.machine.get("cpu", "")), int(old[1]))
    return replace(record, machine={**record.machine, "name": name})


def latest_records(folder: Path, since: str = "") -> list[Record]:
    """The newest record of every kind and name in `folder` itself (not below it), oldest first; none older than
    `since`, a time as `utc_now` writes it. Raises UserError where a JSON file there is not a record."""
    newest: dict[tuple[str, str], Record] = {}
    records = [read_record(path) for path in sorted(folder.glob("*.json"))]
    for record in sorted(records, key=lambda r: r.created_utc):
        if record.created_utc >= since:
            newest[record.kind, record.name] = record
    return sorted(newest.values(), key=lambda r: r.created_utc)
