"""Scan a data set before it is used: how many videos, of what kind, and which cannot be used and why."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pipelines.annotations import SPLITS
from pipelines.manifest import OK
from tdn_bench.cli import run_command
from tdn_bench.errors import UserError
from tdn_bench.flags import DataFlags


@dataclass(frozen=True, kw_only=True)
class Prepare(DataFlags):
    """Scan a data set's videos (remembered: a second run looks only at what changed)."""

    out: Path | None = None
    """Also write the manifest here, a JSON line a video."""


def main(argv: Sequence[str] | None = None) -> None:
    """Scan a data set and say what is missing or broken."""
    import tyro

    config = tyro.cli(Prepare, args=argv, prog="tdn-bench prepare")
    manifest = config.open()
    print(f"{manifest.name}: {len(manifest.classes)} classes, digest {manifest.digest()[:16]}")
    for split in SPLITS:
        files = [v.file for v in manifest.split(split)]
        good = [f for f in files if f.status == OK]
        codecs = ", ".join(f"{n} {codec}" for codec, n in Counter(f.codec for f in good).most_common())
        frames = sorted(f.num_frames for f in good) or [0]
        print(
            f"  {split}: {len(good)} of {len(files)} videos usable ({codecs or 'none'}), "
            f"{frames[0]}–{frames[-1]} frames, median {frames[len(frames) // 2]}, "
            f"{sum(f.bytes for f in files) / 1e6:.1f} MB"
        )
    bad = [v for v in manifest.videos if v.file.status != OK]
    for video in bad:
        print(f"  bad: {video.path}: {video.file.status}")
    if config.out is not None:
        rows = (asdict(v.sample) | asdict(v.file) for v in manifest.videos)
        try:
            config.out.parent.mkdir(parents=True, exist_ok=True)
            config.out.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        except OSError as e:
            raise UserError(f"--out {config.out}: cannot be written ({e.strerror})") from e
        print(f"manifest: {config.out}")


if __name__ == "__main__":
    raise SystemExit(run_command(main))
