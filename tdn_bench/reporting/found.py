"""Which records a report is of: those below a folder, the newest of each kind and name, by whose and what machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from pipelines.errors import printable
from tdn_bench.errors import UserError
from tdn_bench.records import Record, machine_text, read_records
from tdn_bench.records.environment import tracked_files

Group = tuple[bool, str]  # published, and the machine's line


@dataclass(frozen=True)
class Found:
    """A record and the file that it was read from; `published` where git tracks that."""

    path: Path
    record: Record
    published: bool
    shown: str  # the file, relative to the report's folder

    @property
    def group(self) -> Group:
        """What records must have in common to stand in one table: whose they are, and of what machine."""
        return self.published, machine_text(self.record.machine)


@dataclass(frozen=True)
class Collection:
    """What a report is of: all records of a folder, oldest first, those that are shown, and a line for each JSON file
    that is no record."""

    folder: Path
    every: Sequence[Found]
    chosen: Sequence[Found]
    others: Sequence[str]

    @property
    def groups(self) -> dict[Group, list[Found]]:
        """The shown records by source: own ones before published ones."""
        ordered = sorted(self.chosen, key=lambda f: (*f.group, f.record.created_utc))
        return {group: list(of) for group, of in groupby(ordered, lambda f: f.group)}


def collect(folder: Path, since: str = "") -> Collection:
    """The records below a folder, none of those shown older than `since`. Folders whose names begin with a dot are
    passed over. Raises UserError where there is none."""
    shown = printable(str(folder))
    if not folder.is_dir():
        raise UserError(f"{shown}: no such folder")
    paths = [p for p in folder.rglob("*.json") if not any(x.startswith(".") for x in p.relative_to(folder).parts)]
    records, others = read_records(paths)
    if not records:
        why = f"; {len(others)} cannot be read, the first: {others[0]}" if others else " (*.json)"
        raise UserError(f"{shown}: holds no records{why}")
    tracked = tracked_files(folder)
    names = {path: path.relative_to(folder).as_posix() for path in records}
    every = [Found(path, r, names[path] in tracked, printable(names[path])) for path, r in records.items()]
    every.sort(key=lambda f: f.record.created_utc)
    chosen = newest([f for f in every if f.record.created_utc >= since])
    if not chosen:
        raise UserError(f"{shown}: holds no records since {since}")
    return Collection(folder, every, chosen, others)


def newest(found: Sequence[Found]) -> list[Found]:
    """The newest of every source, kind and name, oldest first. Where that is void, the newest that is not, too: a void
    run hides no good one."""
    last: dict[tuple[object, ...], Found] = {}
    for f in sorted(found, key=lambda f: f.record.created_utc):
        last[f.group, f.record.kind, f.record.name, f.record.status == "void"] = f
    void = {key for key in last if key[-1]}
    for key in void:
        if (good := last.get((*key[:-1], False))) and good.record.created_utc > last[key].record.created_utc:
            del last[key]
    return sorted(last.values(), key=lambda f: f.record.created_utc)
