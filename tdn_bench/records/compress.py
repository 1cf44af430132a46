"""`python -m tdn_bench.records.compress FILE …`: published records with many samples, made small; nothing is lost.

A record's samples move to `<record>.samples.json.xz` beside it. The record names that file under `samples_file`, with
its SHA-256 and a summary of each series, and `read_record` joins the two again. Keep them together.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from pipelines.files import whole_file
from tdn_bench.errors import UserError
from tdn_bench.records.record import laid_out, read_record


def compress_samples(path: Path) -> Path:
    """Move the samples of the record at `path` to a compressed file beside it, and return that file's path. All else
    in the record stays as it is; where this is interrupted, the record is as before. Raises UserError where `path` is
    not a record, has no samples of its own, or cannot be written."""
    whole = read_record(path)
    raw = json.loads(path.read_text(encoding="utf-8"))
    if not raw["samples"]:
        raise UserError(f"{path}: has no samples to compress, or they are compressed already")
    beside = path.with_name(f"{path.stem}.samples.json.xz")
    content = lzma.compress(json.dumps(raw["samples"], separators=(",", ":")).encode(), preset=9 | lzma.PRESET_EXTREME)
    apart = {
        "name": beside.name,
        "sha256": hashlib.sha256(content).hexdigest(),
        "count_min_median_max": {key: _summary(values) for key, values in raw["samples"].items()},
    }
    small: dict[str, object] = {}
    for key, value in raw.items():
        small |= {"samples": {}, "samples_file": apart} if key == "samples" else {key: value}
    try:
        beside.write_bytes(content)
        with whole_file(path) as temporary:
            temporary.write_bytes(laid_out(small))
            assert read_record(temporary) == whole
    except OSError as e:
        raise UserError(f"{path}: cannot be rewritten ({e.strerror})") from e
    return beside


def _summary(values: Sequence[float | None]) -> list[float | None]:
    known = [v for v in values if v is not None]
    return [len(values), *((min(known), statistics.median(known), max(known)) if known else (None, None, None))]


def main(argv: Sequence[str] | None = None) -> int:
    """Compress the samples of every record named; exit status 2 where one cannot be."""
    paths = [Path(name) for name in (sys.argv[1:] if argv is None else argv)]
    try:
        if not paths:
            raise UserError("usage: python -m tdn_bench.records.compress FILE …; name records (*.json)")
        for path in paths:
            before = path.stat().st_size if path.exists() else 0
            beside = compress_samples(path)
            print(f"{path}: {before} bytes, now {path.stat().st_size} and {beside.stat().st_size} in {beside.name}")
    except UserError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
