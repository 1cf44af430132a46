"""A manifest of a million videos: `python benchmarks/manifest_scale.py`.

Each sample is a fresh process that opens the written manifest, builds the training loader of one rank of 64 and plans
the epoch's first batch, as a training run does before its first step. Memory is what the process holds more than
before opening (its resident set, mapped pages of the file included).
"""

from __future__ import annotations

import json
import multiprocessing
import resource
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from pipelines.annotations import Sample
from pipelines.clip import ClipSpec
from pipelines.loader import ClipLoader
from pipelines.manifest import Manifest, Video, VideoFile
from tdn_bench.cli import run_command
from tdn_bench.records import make_record, record_folder, write_record

CLASSES = tuple(f"class {i}" for i in range(400))


@dataclass(frozen=True)
class Benchmark:
    """Time a large manifest, and write a record."""

    rows: int = 1_000_000
    """Videos in the manifest; one in twenty is a validation video, one in a thousand cannot be used."""
    ranks: int = 64
    """Processes over which an epoch is divided."""
    rounds: int = 5
    """Fresh processes that open the manifest."""
    results: Path | None = None
    """Folder for the record; default: runs/benchmarks. To publish: results/<machine>."""


def rows(count: int) -> Iterator[Video]:
    """Rows as varied as those of Kinetics."""
    rng = np.random.default_rng(0)
    for i in range(count):
        name = f"{rng.bytes(6).hex()}_{i:06d}_{i + 10:06d}"
        label = int(rng.integers(400))
        file = VideoFile(
            bytes=int(rng.integers(2**20)),
            mtime_ns=i,
            sha256=rng.bytes(32).hex(),
            codec="h264",
            width=340,
            height=256,
            fps=30.0,
            num_frames=int(rng.integers(60, 301)),
            keyframe_spacing=250,
            status="empty file" if i % 1000 == 7 else "ok",
        )
        path = f"/videos/{CLASSES[label]}/{name}.mp4"
        yield Video(Sample(name, path, label, "validation" if i % 20 == 3 else "train"), file)


def resident_bytes() -> tuple[int, int]:
    """Memory of this process, and of it what is mapped from files (shared with other processes, and given back when
    memory is short)."""
    with open("/proc/self/statm") as f:
        _, resident, mapped, *_ = map(int, f.read().split())
    return resident * resource.getpagesize(), mapped * resource.getpagesize()


def open_and_plan(path: str, ranks: int) -> dict[str, float]:
    """In a fresh process: what opening and the first batch's plan take."""
    resident, mapped = resident_bytes()
    start = time.perf_counter()
    manifest = Manifest.open(Path(path))
    train = manifest.split("train")
    opened = time.perf_counter()
    loader = ClipLoader(
        train, ClipSpec(), 8, flipped_labels=tuple(range(400)), backend="pyav", workers=1, world_size=ranks
    )
    built = time.perf_counter()
    batches = len(loader)
    plans = [loader.plan(p, 3) for p in islice(loader._shard(3).tolist(), 8)]
    planned = time.perf_counter()
    assert len(plans) == 8
    loader.close()
    resident_now, mapped_now = resident_bytes()
    return {
        "open_s": opened - start,
        "loader_s": built - opened,
        "first_batch_plan_s": planned - built,
        "more_memory_bytes": resident_now - resident,
        "of_it_mapped_bytes": mapped_now - mapped,
        "batches": batches,
    }


def check_shards(path: Path, ranks: int) -> int:
    """Shards of one epoch: disjoint, equal, and all but a remainder of the usable videos. Returns videos visited."""
    train = Manifest.open(path).split("train")
    seen = np.zeros(len(train), np.int64)
    for rank in range(ranks):
        loader = ClipLoader(
            train,
            ClipSpec(),
            1,
            flipped_labels=tuple(range(400)),
            backend="pyav",
            workers=1,
            rank=rank,
            world_size=ranks,
        )
        np.add.at(seen, loader._shard(3), 1)
        loader.close()
    usable = int(train.where("status", "ok").sum())
    assert seen.max() == 1, "two ranks share a video"
    assert usable - seen.sum() < ranks, "videos are left out"
    return int(seen.sum())


def main(argv: Sequence[str] | None = None) -> None:
    """Write, open, plan and divide, and write a record."""
    import tyro

    config = tyro.cli(Benchmark, args=argv, prog="benchmarks/manifest_scale.py")
    results = record_folder(config.results, "benchmarks")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "manifest.arrow"
        start = time.perf_counter()
        Manifest.of("scale", CLASSES, rows(config.rows), Path("/videos")).write(path)
        figures: dict[str, float] = {"build_and_write_s": time.perf_counter() - start}
        figures["file_bytes"] = path.stat().st_size
        spawn = multiprocessing.get_context("spawn")
        found: list[dict[str, float]] = []
        for _ in range(config.rounds):
            with spawn.Pool(1) as pool:
                found.append(pool.apply(open_and_plan, (str(path), config.ranks)))
        samples = {name: [f[name] for f in found] for name in found[0]}
        figures |= {name: statistics.median(values) for name, values in samples.items()}
        figures["videos_over_all_ranks"] = check_shards(path, config.ranks)
    print(json.dumps(figures, indent=1))
    device = torch.device("cpu")
    record = make_record(
        "benchmark", "manifest-scale", figures=figures, samples=samples, settings=asdict(config), device=device
    )
    print(f"record: {write_record(record, results)}")


if __name__ == "__main__":
    raise SystemExit(run_command(main))
