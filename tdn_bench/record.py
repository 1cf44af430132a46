"""Records: one measured run as JSON, with raw samples, units in the key names, and what it was run on."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from pipelines.manifest import Manifest
from tdn_bench.environment import commit, describe_machine, versions
from tdn_bench.errors import UserError

SCHEMA_VERSION = 1
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
) -> Record:
    """A record of this process's run, machine, versions and commit filled in."""
    data = None
    if manifest is not None:
        data = {"name": manifest.name, "digest": manifest.digest(), "videos": len(manifest.videos)}
    return Record(
        kind, name, figures, samples, settings, _command(), describe_machine(device), versions(), COMMIT, data,
        utc_now(), details or {},
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


def write_record(record: Record, folder: Path) -> Path:
    """Write `<kind>-<name>-<time>.json` below `folder`, whole or not at all; no record is ever overwritten."""
    stamp = record.created_utc.replace("-", "").replace(":", "")
    text = json.dumps(asdict(record), indent=1, default=str, ensure_ascii=False) + "\n"
    temporary = folder / f".{record.kind}-{os.getpid()}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8")
        for number in range(1000):
            path = folder / f"{record.kind}-{record.name}-{stamp}{f'-{number}' if number else ''}.json"
            try:
                os.link(temporary, path)  # unlike rename, fails where the name is taken
            except FileExistsError:
                continue
            except OSError:  # a file system without links
                if path.exists():
                    continue
                os.replace(temporary, path)
                return path
            temporary.unlink()
            return path
    except OSError as e:
        raise UserError(f"{folder}: cannot hold records ({e.strerror})") from e
    raise AssertionError("a thousand records of one name in one second")


def read_record(path: Path) -> Record:
    """Read one record. Raises UserError where the file is not one, or is of a newer schema."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        newer = raw["schema_version"] > SCHEMA_VERSION
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
