"""A checked engine, videos for it, and the threads between them: what a scenario loads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engines import Engine
from pipelines.ledger import Ledger
from pipelines.loader import ClipLoader
from pipelines.manifest import OK, Manifest
from tdn_bench.cli import Workload
from tdn_bench.cli.progress import progress
from tdn_bench.correctness.logits import LogitComparison
from tdn_bench.loadgen.arrivals import nth_video
from tdn_bench.loadgen.driver import Goal, burst_rate, run_closed
from tdn_bench.loadgen.pipeline import Pipeline
from tdn_bench.measurement.throughput import open_engine
from tdn_bench.measurement.time_breakdown import break_down


@dataclass
class Service:
    """An engine that agrees with the network, and videos for it. A query is a video file, answered when its logits are
    on the host."""

    workload: Workload
    goal: Goal  # of the scenario: what is warm-up
    seed: int  # of the order of videos
    batch_wait_s: float
    loader: ClipLoader
    engine: Engine
    manifest: Manifest
    comparison: LogitComparison
    positions: np.ndarray  # int64: the usable videos in the split
    undecoded: int = 0  # queries whose video could not be decoded
    threads: list[dict[str, Any]] = field(default_factory=list)  # of the run that counts, as the ledger has them

    @property
    def videos(self) -> int:
        return len(self.positions)

    @contextmanager
    def pipeline(self, video: Callable[[int], int]) -> Iterator[Pipeline]:
        """Fresh threads for one run, in which query n asks for the usable video `video(n)`."""
        loader = self.loader

        def decode(numbers: list[int]) -> list[Tensor | None]:
            clips = loader.decode([int(self.positions[video(n)]) for n in numbers])
            self.undecoded += sum(clip is None for clip in clips)
            return clips

        # a decoder that takes one call at a time is given as much as fits into a batch
        threads, at_once = (loader.workers, 1) if loader.decoder.concurrent else (1, self.workload.batch_size)
        with Pipeline(
            decode,
            self._classify,
            threads=threads,
            decode_batch=at_once,
            batch_size=self.workload.batch_size,
            batch_wait_s=self.batch_wait_s,
            ledger=loader.ledger,
        ) as pipeline:
            yield pipeline

    def _classify(self, clips: list[Tensor]) -> None:
        loader, lane = self.loader, self.loader.ledger.lane()
        frames = torch.stack(clips)
        if frames.device.type != loader.device.type:
            frames = frames.pin_memory().to(loader.device, non_blocking=True)
        lane.lap("copy")
        with loader.ledger.on_device("infer"):
            logits = self.engine(frames)
        lane.lap("infer")
        logits.cpu()  # waits for a GPU
        lane.lap("copy_back")

    def usage(self, pipeline: Pipeline) -> dict[str, Any]:
        """How busy engine and decoders were, and where the time went: the run is over."""
        usage = pipeline.usage()
        breakdown = break_down(self.loader.ledger)
        self.threads = breakdown.threads
        clips = round(usage["batches"] * usage["mean_batch_size"])
        return usage | breakdown.figures(max(1, clips))

    def closed(
        self, per_query: int, seconds: float, max_seconds: float, samples: int
    ) -> tuple[list[float], dict[str, Any]]:
        """Latencies (ms) of queries that wait for each other, and how busy engine and decoders were."""
        shown = progress(f"Queries in turn, at most {max_seconds:.0f} s", None, "", still=True)
        with shown, self.pipeline(partial(nth_video, videos=self.videos, seed=self.seed)) as pipeline:
            goal = replace(self.goal, seconds=seconds)
            latency_s = run_closed(pipeline, per_query, goal, max_seconds=max_seconds, samples=samples)
            return [round(1000 * s, 3) for s in latency_s], self.usage(pipeline)

    def burst(self) -> float:
        """Queries a second where all arrive at once: a short Offline by the way that queries take, to start from."""
        batch = self.workload.batch_size
        with self.pipeline(partial(nth_video, videos=self.videos, seed=self.seed)) as pipeline:
            burst_rate(pipeline, 4 * batch)
            return burst_rate(pipeline, 8 * batch)


@contextmanager
def open_service(workload: Workload, goal: Goal, *, seed: int, batch_wait_s: float, trace: bool) -> Iterator[Service]:
    """Build the workload's engine, and hold it against eager fp32 on the first clips of the split."""
    manifest = workload.open_data()
    videos = manifest.split(workload.subset)
    loader = workload.open_loader(videos, Ledger(workload.device, trace=trace))
    with loader, open_engine(workload, loader, manifest) as (engine, comparison):
        positions = np.flatnonzero(videos.where("status", OK))
        yield Service(workload, goal, seed, batch_wait_s, loader, engine, manifest, comparison, positions)
