"""Two processes against one, and checkpointed activations against kept ones; `python benchmarks/ranks.py`.

Whole optimisation steps of the recipe's `TrainStep` on frames that are there already. All contestants live at once and
take turns (A B C A B C …), so that a busy machine slows all of them; ratios are of medians. Weak scaling is the clips/s
of two processes with a thread each, over gloo, ÷ those of one process with two threads on the same batch; and ÷ twice
those of one process with one thread on half of it. The last includes what two busy cores do to each other.
"""

from __future__ import annotations

import os
import resource
import socket
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp

from tdn_bench.cli import known_variant, run_command
from tdn_bench.errors import UserError
from tdn_bench.models import FrameClassifier, create_model
from tdn_bench.models.variants import VARIANTS
from tdn_bench.recipes import sthv2
from tdn_bench.records import make_record, record_folder, write_record
from tdn_bench.training import TrainStep
from tdn_bench.training.distributed import distributed, spread

NUM_CLASSES = 174


@dataclass(frozen=True)
class Benchmark:
    """Time steps of one and of two processes, and write a record."""

    model: str = "tdn_resnet50"
    """Network of the comparison of processes (`tdn-bench list`)."""
    batch_size: int = 4
    """Clips in a step, over all processes; an even number."""
    large_model: str = "tdn_resnet101"
    """Network of the comparison of activations, at one clip a step."""
    large_segments: int = 16
    """Its T."""
    size: int = 224
    """Height and width, pixels."""
    rounds: int = 6
    """Timed turns of each contestant, a step each."""
    results: Path | None = None
    """Folder for the record; default: runs/benchmarks. To publish: results/<machine>."""


@dataclass(frozen=True)
class Contestant:
    """What one or two processes train; they and their figures are called by its name."""

    name: str
    model: str
    segments: int
    batch_size: int  # over all its processes
    size: int
    processes: int = 1
    threads: int = 1  # of each process
    recompute: bool = False


def work(of: Contestant, rank: int, port: int, asked: Connection) -> None:
    """A process of a contestant: a step whenever it is asked for one; the answer is how long it took, in seconds, and
    the process's peak memory so far, in bytes, without what was there before the first step."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(of.processes), "MASTER_ADDR": "127.0.0.1"}
    os.environ |= {"LOCAL_RANK": str(rank), "MASTER_PORT": str(port)}
    torch.set_num_threads(of.threads)
    torch.manual_seed(0)
    with distributed(torch.device("cpu")) as (ranks, device):
        network = create_model(of.model, num_classes=NUM_CLASSES, num_segments=of.segments, dropout=0)
        if of.recompute:
            network.checkpoint_activations()
        step = TrainStep(FrameClassifier(network).train(), sthv2().optimization, "fp32", device)
        step.adopt(spread(step.classifier, ranks, device, sync_norm=False, compiled=False, accumulates=False))
        clips = of.batch_size // of.processes
        variant = VARIANTS[of.model.rpartition("_resnet")[0]]
        shape = (clips, of.segments, variant.frames_per_segment, of.size, of.size, 3)
        frames, labels = torch.randint(0, 256, shape, dtype=torch.uint8), torch.arange(clips)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        while asked.recv():
            start = time.perf_counter()
            step(frames, labels, 0)
            asked.send(
                (time.perf_counter() - start, 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))
            )


class Running:
    """A contestant's processes."""

    def __init__(self, of: Contestant) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.pipes, theirs = zip(*(mp.Pipe() for _ in range(of.processes)), strict=True)
        jobs = [(of, rank, port, pipe) for rank, pipe in enumerate(theirs)]
        self.processes = [mp.get_context("spawn").Process(target=work, args=job, daemon=True) for job in jobs]
        for process in self.processes:
            process.start()

    def step(self) -> tuple[float, int]:
        """A step of all its processes: the slowest one's seconds, and the most bytes that one of them has taken."""
        for pipe in self.pipes:
            pipe.send(True)
        seconds, peaks = zip(*(pipe.recv() for pipe in self.pipes), strict=True)
        return max(seconds), max(peaks)

    def close(self) -> None:
        for pipe in self.pipes:
            pipe.send(False)
        for process in self.processes:
            process.join()


def take_turns(contestants: Sequence[Contestant], rounds: int) -> tuple[dict[str, Any], dict[str, list[float]]]:
    """Figures (ms a step, clips/s, peak bytes) and samples of contestants that take turns; two turns do not count."""
    running = {of.name: Running(of) for of in contestants}
    samples: dict[str, list[float]] = {f"{of.name}_ms": [] for of in contestants}
    figures: dict[str, Any] = {}
    for turn in range(-2, rounds):
        for name, its in running.items():
            seconds, figures[f"{name}_peak_bytes"] = its.step()
            if turn >= 0:
                samples[f"{name}_ms"].append(1000 * seconds)
    for of in contestants:
        running[of.name].close()
        figures[f"{of.name}_ms"] = ms = statistics.median(samples[f"{of.name}_ms"])
        figures[f"{of.name}_clips_per_s"] = 1000 * of.batch_size / ms
    return figures, samples


def main(argv: Sequence[str] | None = None) -> None:
    """Compare, print the ratios, write a record."""
    import tyro

    config = tyro.cli(Benchmark, args=argv, prog="benchmarks/ranks.py")
    results = record_folder(config.results, "benchmarks")
    if config.batch_size < 2 or config.batch_size % 2 or config.rounds < 1:
        raise UserError("--batch-size must be even, and --rounds at least 1")
    known_variant(config.large_model)
    of = (config.model, known_variant(config.model).num_segments, config.batch_size, config.size)
    two, wide = Contestant("two_processes", *of, processes=2), Contestant("two_threads", *of, threads=2)
    figures, samples = take_turns(
        (two, wide, replace(wide, name="one_thread", batch_size=of[2] // 2, threads=1)), config.rounds
    )
    figures["two_processes_to_two_threads"] = figures["two_processes_clips_per_s"] / figures["two_threads_clips_per_s"]
    figures["weak_scaling"] = figures["two_processes_clips_per_s"] / figures["one_thread_clips_per_s"] / 2
    kept = Contestant("kept", config.large_model, config.large_segments, 1, config.size, threads=2)
    found, raw = take_turns((kept, replace(kept, name="recomputed", recompute=True)), config.rounds)
    figures |= found
    figures["recomputed_to_kept_time"] = found["recomputed_ms"] / found["kept_ms"]
    figures["recomputed_to_kept_memory"] = found["recomputed_peak_bytes"] / found["kept_peak_bytes"]
    for name, value in figures.items():
        print(f"{name:32s}{value:14.4g}")
    device, settings = torch.device("cpu"), asdict(config)
    name = f"ranks-{config.model.rpartition('_')[2]}"
    record = make_record("benchmark", name, figures=figures, samples=samples | raw, settings=settings, device=device)
    print(f"record: {write_record(record, results)}")


if __name__ == "__main__":
    raise SystemExit(run_command(main))
