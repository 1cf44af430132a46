"""Arrow files that hold a checksum of themselves: damage is found before anything is read from them."""

from __future__ import annotations

import hashlib
import mmap
import re
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa

from pipelines.errors import DataError
from pipelines.files import fault_of_file

# A note of the table's schema, which Arrow writes at both ends of the file.
_SEAL = re.compile(rb"sha256 of this file, with zeros in place of these digits: ([0-9a-f]{64})")
UNSEALED = f"sha256 of this file, with zeros in place of these digits: {0:064}"
MAX_BYTES = 2**33


def write_sealed(table: pa.Table, path: Path) -> None:
    """Write a table that has UNSEALED among its schema's notes. Raises OSError."""
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as data:
        places = list(_SEAL.finditer(data))
        digest = _digest(data, places).encode()
        for place in places:
            file.seek(place.start(1))
            file.write(digest)
        del places, place


def read_sealed(path: Path, kind: str, command: str) -> pa.Table:
    """Map what `write_sealed` wrote into memory, every value of it valid. `kind` and `command` are what errors call the
    file and what makes one. Raises DataError for any other file and for a damaged one."""

    def error(reason: str) -> DataError:
        return DataError(f"{path}: not a readable {kind} ({reason}); make one with `{command}`")

    if (fault := fault_of_file(path, MAX_BYTES)) is not None:
        raise error(fault)
    try:
        with path.open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        places = list(_SEAL.finditer(data))
        if not places:
            raise error("it has no checksum, as this version writes it")
        if {place[1] for place in places} != {_digest(data, places).encode()}:
            raise error("it is damaged, or was changed by another program: its checksum does not fit")
        table = pa.ipc.open_file(pa.py_buffer(data)).read_all()
        table.validate(full=True)
    except (OSError, MemoryError, ValueError, pa.ArrowException) as e:  # ValueError: of names that are no UTF-8
        raise error((str(e).splitlines() or [type(e).__name__])[0]) from e
    return table


def _digest(data: mmap.mmap, places: Iterable[re.Match[bytes]]) -> str:
    total, start = hashlib.sha256(), 0
    with memoryview(data) as view:
        for place in places:
            total.update(view[start : place.start(1)])
            total.update(b"0" * 64)
            start = place.end(1)
        total.update(view[start:])
    return total.hexdigest()
