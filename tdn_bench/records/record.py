"""Records: one measured run as JSON, with raw samples, units in the key names, and what it was run on.

`record.schema.json`, beside this file and installed with it, says the same to other programs (JSON Schema 2020-12).
"""

from __future__ import annotations

import json
import os
import re
import secrets
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipelines.manifest import Manifest
from tdn_bench.errors import UserError
from tdn_bench.records.environment import commit, describe_machine, versions

SCHEMA_VERSION = 2
STATUSES = ("stable", "unstable", "void", "unwatched")
COMMIT = commit()  # asked at the start: of the code that runs, not of a commit made meanwhile


@dataclass(frozen=True)
class Record:
    """One run. `figures` are its results and `samples` the raw values behind them; keys end in their unit
    (`_s`, `_ms`, `_percent`, `_bytes`, `_per_s`, …)."""

    kind: str  # train, throughput, loader, scenario, gpu_suite, benchmark
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
    """A record of this process's run, machine, versions and commit filled in."""
    assert status in STATUSES, status
    data = None
    if manifest is not None:
        data = {"name": manifest.name, "digest": manifest.digest(), "videos": len(manifest.videos)}
    return Record(
        kind, name, figures, samples, settings, _command(), describe_machine(device), versions(), COMMIT, data,
        utc_now(), details or {}, status, status_reasons,
    )  # fmt: skip


def utc_now() -> str:
    """The time as records write it; such strings sort by time."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _command() -> list[str]:
    """The command line, with the module's name in place of its file's."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is not None:
        return ["python", "-m", spec.name.removesuffix(".__main__"), *sys.argv[1:]]
    script = Path(sys.argv[0])  # an installed command's path is the machine's own affair
    return [script.name if script.is_absolute() else str(script), *sys.argv[1:]]


def check_folder(flag: str, folder: Path) -> None:
    """Raise UserError where a command could not leave its results: to be known before hours of work, not after."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as e:
        raise UserError(f"{flag} {folder}: cannot be written ({e.strerror})") from e


def to_json(record: Record) -> bytes:
    """What JSON cannot say is changed: NaN and infinities become null, numpy's numbers plain ones, the rest text."""
    text = json.dumps(asdict(record), default=lambda x: x.item() if isinstance(x, np.generic) else str(x))
    plain = json.loads(text, parse_constant=lambda _: None)
    text = json.dumps(plain, indent=1, ensure_ascii=False) + "\n"
    text = re.sub(r'\[\n[^][{}"]*\]', lambda m: " ".join(m[0].split()), text)  # a list of numbers: one line
    # a file name that is no UTF-8 has lone surrogates: they are kept, as \udcXX
    return text.encode("utf-8", "backslashreplace")


def write_record(record: Record, folder: Path) -> Path:
    """Write `<kind>-<name>-<time>.json` below `folder`, whole or not at all; no record is ever overwritten, however
    many threads, processes and hosts write there. NaN and infinities are written as null."""
    stem = f"{record.kind}-{record.name}-{record.created_utc.replace('-', '').replace(':', '')}"
    temporary = folder / f".{record.kind}-{secrets.token_hex(8)}.tmp"
    content = to_json(record)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())  # before it has its name: no power cut leaves half a record
            return _give_name(temporary, stem)
        finally:
            temporary.unlink(missing_ok=True)
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
    """Read one record of this or an older schema. Raises UserError where the file is not one, or is of a newer
    schema."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        newer = raw["schema_version"] > SCHEMA_VERSION
        while raw["schema_version"] < SCHEMA_VERSION:
            version = raw["schema_version"]
            raw = _UPGRADES[version](raw) | {"schema_version": version + 1}
        record = None if newer else Record(**raw)
    except (OSError, ValueError, TypeError, KeyError) as e:
        raise UserError(f"{path}: not a record ({e})") from e
    if record is None:
        raise UserError(f"{path}: record of schema {raw['schema_version']}, this version reads up to {SCHEMA_VERSION}")
    return record


def latest_records(folder: Path, since: str = "") -> list[Record]:
    """The newest record of every kind and name in `folder`, oldest first; none older than `since` (see utc_now)."""
    newest: dict[tuple[str, str], Record] = {}
    records = [read_record(path) for path in sorted(folder.glob("*.json"))]
    for record in sorted(records, key=lambda r: r.created_utc):
        if record.created_utc >= since:
            newest[record.kind, record.name] = record
    return sorted(newest.values(), key=lambda r: r.created_utc)
