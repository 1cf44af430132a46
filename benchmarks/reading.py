"""What the scan's decoding costs, and what a clip of a long file does: `python benchmarks/reading.py --videos FILE …`.

The scan is compared with what any scan must do: checksum and demultiplexing. Then a clip of three near frames is
decoded at the end of a short and of a long file of the same encoding; time and memory should be the same for both.
Ways take turns, file by file.
"""

from __future__ import annotations

import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch

from pipelines.clip import ClipSpec
from pipelines.container import open_video
from pipelines.cpu import decode_clip
from pipelines.ledger import NOBODY
from pipelines.manifest import as_video
from pipelines.odd_clips import numbered_frames
from pipelines.plan import ClipPlan
from pipelines.reading import Packets
from pipelines.scan import checksum, scan_file
from tdn_bench.cli import run_command
from tdn_bench.records import default_folder, make_record, write_record
from tdn_bench.records.record import record_folder

SPEC = ClipSpec(num_segments=1, frames_per_segment=3, size=64)


@dataclass(frozen=True)
class Benchmark:
    """Time the scan's levels, and clips of a short and a long file; write a record."""

    videos: tuple[Path, ...]
    """Videos to scan."""
    rounds: int = 5
    """Times that every way takes each file; the quickest counts."""
    long_frames: int = 100_000
    """Frames of the long file; the short one has 1,000."""
    results: Path | None = None
    """Folder for the record; default: runs/benchmarks. To publish: results/<machine>."""


def container_only(path: str) -> None:
    """What every scan does: the checksum and one pass over the packets."""
    checksum(path)
    with open_video(path) as (container, stream):
        Packets.of(container, stream)


def quickest_ms(ways: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """CPU milliseconds of this thread, the least of some rounds, ways in turn."""
    best = dict.fromkeys(ways, float("inf"))
    for _ in range(rounds):
        for name, way in ways.items():
            start = time.thread_time()
            way()
            best[name] = min(best[name], 1000 * (time.thread_time() - start))
    return best


def make_video(path: Path, frames: int) -> Path:
    """H.264 of 64 × 64 pixels with a key frame in 250, from few pictures over and over."""
    pictures = [av.VideoFrame.from_ndarray(picture, format="rgb24") for picture in numbered_frames(64, 64, 64)]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"preset": "ultrafast", "g": "250"})
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for i in range(frames):
            picture = pictures[i % 64]
            picture.pts = i
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return path


def clip_at_end(path: Path) -> Callable[[], object]:
    """Decode three frames shortly behind the last key frame."""
    video = as_video(path)
    last = (video.file.num_frames - 1) // 250 * 250
    plan = ClipPlan(video, np.arange(last + 3, last + 6).reshape(1, 3), (0, 0, 64, 64), False, 0)
    return partial(decode_clip, plan, SPEC, NOBODY)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print and write a record."""
    import tyro

    config = tyro.cli(Benchmark, args=argv, prog="benchmarks/reading.py")
    record_folder(config.results, "benchmarks")
    samples: dict[str, list[float]] = {"container_ms": [], "sample_ms": [], "all_ms": []}
    for path in map(str, config.videos):
        ways = {"container_ms": container_only, "sample_ms": scan_file, "all_ms": partial(scan_file, level="all")}
        for name, value in quickest_ms({n: partial(w, path) for n, w in ways.items()}, config.rounds).items():
            samples[name].append(value)
    figures: dict[str, Any] = {f"mean_{name}": statistics.mean(values) for name, values in samples.items()}
    for name in ("sample", "all"):
        figures[f"{name}_to_container"] = sum(samples[f"{name}_ms"]) / sum(samples["container_ms"])
    with tempfile.TemporaryDirectory() as folder:
        clips = {
            f"clip_of_{n}_ms": clip_at_end(make_video(Path(folder, f"{n}.mp4"), n)) for n in (1000, config.long_frames)
        }
        before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        found = quickest_ms(clips, max(config.rounds, 10))
        figures |= found | {"long_to_short": found[f"clip_of_{config.long_frames}_ms"] / found["clip_of_1000_ms"]}
        figures["memory_added_by_clips_mb"] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb) / 1024
    for name, value in figures.items():
        print(f"{name:30s}{value:10.2f}")
    settings = asdict(config)
    device = torch.device("cpu")
    record = make_record("benchmark", "reading", figures=figures, samples=samples, settings=settings, device=device)
    print(f"record: {write_record(record, config.results or default_folder('benchmarks'))}")


if __name__ == "__main__":
    raise SystemExit(run_command(main))
