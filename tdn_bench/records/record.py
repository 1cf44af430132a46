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
import stat
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipelines.errors import printable
from pipelines.files import clear_debris, read_regular, sync, temporary_beside
from pipelines.manifest import Manifest
from tdn_bench.errors import UserError
from tdn_bench.records.environment import commit, describe_machine, processor_machine_name, versions
from tdn_bench.records.reading import MAX_BYTES, STATUSES, check_record, parse_json

SCHEMA_VERSION = 2
XZ_MEMORY_BYTES = 2**27  # twice what the highest preset needs; a header may ask for 4 GiB
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
    of form. A part of a data set (--limit) is said in `data` and in the name. A `status` other than stable, unstable,
    void or unwatched is a bug (AssertionError).
    """
    assert status in STATUSES, status
    data = None
    if manifest is not None:
        data = {"name": manifest.name, "digest": manifest.digest(), "videos": len(manifest.videos)}
        if manifest.whole:
            name = f"{name}-limit{settings.get('limit')}"
            data["of_videos"] = sum(manifest.whole.values())
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


def part_lines(record: Record) -> list[str]:
    """A line where the record is of a part of a data set only (--limit)."""
    data = record.data or {}
    return [f"  of {data['videos']:,} of {data['of_videos']:,} videos only (--limit)"] if "of_videos" in data else []


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
    """Look whether the folder that `flag` (as the user writes it: --results) names can be written, or made; it is not
    made, since a run that is refused would leave it behind. Clear it of what killed runs left half written. Raises
    UserError where no file can be written there: to be known before hours of work, not after."""
    try:
        there = next(f for f in (folder, *folder.parents) if f.exists() or f.is_symlink() or f == f.parent)
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(bytes(4096))  # a full disk still makes empty files
            file.flush()
    except (OSError, ValueError) as e:  # ValueError: NUL in a name
        why = e.strerror if isinstance(e, OSError) else e
        raise UserError(f"{flag} {printable(str(folder)):.300}: cannot be written ({why})") from e
    clear_debris(folder)


def record_folder(results: Path | None, command: str) -> Path:
    """Where a command's record goes: to the folder that --results names, or `default_folder`. Raises UserError where
    none can be written there."""
    folder = results or default_folder(command)
    check_folder("--results", folder)
    return folder


def check_file(flag: str, path: Path | None) -> None:
    """`check_folder` for a flag that names a file; None is a flag that was left out."""
    if path is None:
        return
    check_folder(flag, path.parent)
    try:
        status = path.stat()
    except FileNotFoundError:
        return
    except (OSError, ValueError) as e:  # too long a name; NUL in it
        why = e.strerror if isinstance(e, OSError) else e
        raise UserError(f"{flag} {printable(str(path)):.300}: cannot be written ({why})") from e
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{flag} {printable(str(path))}: is not a regular file; name another")
    if not os.access(path, os.W_OK):
        raise UserError(f"{flag} {printable(str(path))}: is write-protected; name another")


def check_name(flag: str, name: str | None) -> None:
    """Raise UserError where a name that `flag` gives is no part of a file's name, as it will have to be; None is a flag
    that was left out."""
    if name is not None and (not name.strip(". ") or "/" in name or printable(name) != name or len(name) > 100):
        why = "a record's file is named after it; at most 100 characters, without / and not only dots"
        raise UserError(f"{flag} {printable(name):.100}: {why}")


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
    many threads, processes and hosts write there. NaN and infinities are written as null; in the file's name, what is
    no letter or digit of the record's becomes a dash. Raises UserError where the folder takes no file."""
    time = record.created_utc.replace("-", "").replace(":", "")
    stem = f"{_file_name(record.kind)}-{_file_name(record.name)}-{time}"
    content = to_json(record)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with temporary_beside(folder / stem) as temporary:
            temporary.write_bytes(content)
            sync(temporary)
            return _give_name(temporary, stem)
    except OSError as e:
        raise UserError(f"{printable(str(folder))}: cannot hold records ({e.strerror})") from e


def _file_name(text: str) -> str:
    """A name from data as a part of a file's name."""
    return re.sub(r"[^\w.+=-]+", "-", text).encode()[:100].decode(errors="ignore")


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
    shown = printable(str(path))
    try:
        raw = parse_json(read_regular(path, MAX_BYTES))
        if not isinstance(raw, dict) or type(version := raw.get("schema_version")) is not int or version < 1:
            raise ValueError("has no schema_version")
        if version > SCHEMA_VERSION:
            raise UserError(f"{shown}: record of schema {version:.4g}, this version reads up to {SCHEMA_VERSION}")
        for older in range(version, SCHEMA_VERSION):
            raw = _UPGRADES[older](raw) | {"schema_version": older + 1}
        if "samples_file" in raw:
            raw["samples"] = _samples_beside(path, raw.pop("samples_file"))
        names = {f.name for f in fields(Record)}
        if odd := sorted(names ^ raw.keys()):
            raise ValueError(f"{'has no' if odd[0] in names else 'has an unknown field'} {odd[0]}")
        check_record(raw)
    except OSError as e:
        raise UserError(f"{shown}: cannot be read ({e.strerror})") from e
    except (ValueError, lzma.LZMAError) as e:
        raise UserError(f"{shown}: not a record ({printable(str(e)):.200})") from e
    return _named_by_its_processor(Record(**raw))


def _samples_beside(path: Path, said: Any) -> Any:
    """The samples of the record at `path`, from the compressed file that it names with its SHA-256."""
    if not isinstance(said, dict) or not all(isinstance(said.get(key), str) for key in ("name", "sha256")):
        raise ValueError("samples_file names no file with its sha256")
    beside = path.parent / Path(said["name"]).name  # never anywhere else
    shown = printable(str(beside))
    try:
        content = read_regular(beside, MAX_BYTES)
    except OSError as e:
        why = f"its samples cannot be read: {shown} ({e.strerror})"
        raise UserError(f"{printable(str(path))}: {why}; put it back there") from e
    if hashlib.sha256(content).hexdigest() != said["sha256"]:
        why = f"not the samples that {printable(path.name)} names (other SHA-256); put those back"
        raise UserError(f"{shown}: {why}")
    unpacking = lzma.LZMADecompressor(memlimit=XZ_MEMORY_BYTES)
    text = unpacking.decompress(content, MAX_BYTES)
    if not unpacking.eof:
        raise ValueError(f"{shown} is cut, or holds over {MAX_BYTES} bytes")
    return parse_json(text)


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


def read_records(paths: Iterable[Path]) -> tuple[dict[Path, Record], list[str]]:
    """All that are records, and of the others a line each that names the file and says why it is none."""
    records, others = {}, []
    for path in sorted(paths):
        try:
            records[path] = read_record(path)
        except UserError as e:
            others.append(str(e))
    return records, others
