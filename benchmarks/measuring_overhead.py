"""What measuring costs: `python benchmarks/measuring_overhead.py`.

One run from file to label, in one process, with the ledger off, on, and keeping spans for a trace, in random order
every round, by the same loader: two of a kind differ by a percent. On the smallest clips and network that this project
has, where a share is largest; `--engine none` leaves out the network, too. What --trace writes after the run is not
part of it.

On a shared machine such a ratio is known to a percent or two, which is more than there is to know. So a fourth kind
makes every entry --repeat times: what it takes longer, divided by that, is what entries cost where they are made.
`booked_percent` is what they cost in a loop of nothing else, of the CPU time of a run without.
"""

from __future__ import annotations

import gc
import random
import statistics
import time
import timeit
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from engines import create_engine
from pipelines.ledger import Lane, Ledger
from pipelines.synthetic import make_dataset
from tdn_bench.cli import SYNTHETIC_DATA, DataFlags, NetworkFlags, WorkloadFlags, pick_device, run_command
from tdn_bench.measurement.statistics import percentile
from tdn_bench.measurement.throughput import run_batches
from tdn_bench.records import make_record, record_folder, write_record


@dataclass(frozen=True)
class Benchmark:
    """Compare runs with the ledger on, tracing and off, and write a record."""

    engine: Literal["eager", "none"] = "eager"
    """What runs the network."""
    data: Path | None = None
    """A data set in Something-Something V2's layout; default: a small synthetic one."""
    passes: int = 1
    """Over the validation videos, a run."""
    rounds: int = 150
    """Runs of each kind."""
    repeat: int = 50
    """How often every entry is made in the runs that tell its cost."""
    device: str = "cpu"
    """cuda, cuda:1, cpu."""
    workers: int = 1
    """Decoding threads; one, and one of the network's, is what leaves the least to chance on two cores."""
    results: Path | None = None
    """Folder for the record; default: runs/benchmarks. To publish: results/<machine>."""


@contextmanager
def repeated(times: int) -> Iterator[None]:
    """Lanes make every entry so many times. What they hold is wrong then."""
    kept = {name: getattr(Lane, name) for name in ("begin", "lap", "end")}

    def again(method: Callable[..., None]) -> Callable[..., None]:
        def call(*arguments: object) -> None:
            for _ in range(times):
                method(*arguments)

        return call

    for name, method in kept.items():  # `add` is called by them, and else a few times a batch
        setattr(Lane, name, again(method))
    try:
        yield
    finally:
        for name, method in kept.items():
            setattr(Lane, name, method)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and write a record."""
    import tyro

    config = tyro.cli(Benchmark, args=argv, prog="benchmarks/measuring_overhead.py")
    results = record_folder(config.results, "benchmarks")
    device = pick_device(config.device)
    torch.set_num_threads(1)
    data = config.data or make_dataset(SYNTHETIC_DATA, train=8, validation=64, workers=config.workers)
    workload = WorkloadFlags(
        device=str(device),
        precision="fp32",
        network=NetworkFlags(model="tdn_resnet_small", num_segments=4, size=64),
        data=DataFlags(data=data, workers=config.workers),
    ).resolve()
    manifest = workload.data.open()
    videos = manifest.split("validation")
    ledger = Ledger(device)
    # on, with spans
    kinds = {"off": (False, False), "on": (True, False), "trace": (True, True), "repeated": (True, False)}
    wall_s: dict[str, list[float]] = {name: [] for name in kinds}
    cpu_s: dict[str, list[float]] = {name: [] for name in kinds}
    entries = 0
    with ExitStack() as stack:
        classify: Callable[[Tensor], Tensor] | None = None
        if config.engine != "none":
            classifier = workload.network.build(manifest.classes, device)
            classify = stack.enter_context(create_engine(config.engine, classifier, workload.engine_spec()))
        loader = stack.enter_context(workload.open_loader(videos, ledger))
        rng = random.Random(0)
        for number in range(config.rounds + 1):
            for name in rng.sample(list(kinds), len(kinds)):
                ledger.on, ledger.trace = kinds[name]
                gc.collect()
                with repeated(config.repeat) if name == "repeated" else nullcontext():
                    wall, cpu = time.perf_counter(), time.process_time()
                    run_batches(loader, classify, config.passes)
                    if number:  # the first round warms up
                        wall_s[name].append(time.perf_counter() - wall)
                        cpu_s[name].append(time.process_time() - cpu)
                if name == "trace":
                    entries = sum(len(lane.spans or ()) for lane in ledger.lanes)
    figures: dict[str, object] = {"videos": config.passes * len(videos), "rounds": config.rounds}
    for kind, samples in (("wall", wall_s), ("cpu", cpu_s)):
        for name in ("on", "trace", "repeated"):
            ratios = [a / b for a, b in zip(samples[name], samples["off"], strict=True)]
            median = percentile(ratios, 50)
            print(f"{kind} time, ledger {name} ÷ off: {median.value:.4f} [{median.low:.4f}, {median.high:.4f}]")
            key = f"{kind}_{name}_to_off"
            figures |= {key: median.value, f"{key}_low": median.low, f"{key}_high": median.high}
            if name == "repeated":
                ends = [100 * (r - 1) / config.repeat for r in (median.value, median.low, median.high)]
                print(f"  so entries take {ends[0]:.2f} % [{ends[1]:.2f}, {ends[2]:.2f}] of it")
                figures |= dict(zip((f"{kind}_percent{end}" for end in ("", "_low", "_high")), ends, strict=True))
    samples = {f"{n}_wall_s": v for n, v in wall_s.items()} | {f"{n}_cpu_s": v for n, v in cpu_s.items()}
    for kind, lane in (("on", Lane()), ("trace", Lane(trace=True))):
        entry_s = min(timeit.repeat(lambda lane=lane: lane.lap("decode"), number=10_000, repeat=10)) / 10_000
        share = 100 * entries * entry_s / statistics.median(cpu_s["off"])
        print(f"{entries} entries of {1e9 * entry_s:.0f} ns, ledger {kind}: {share:.2f} % of a run's CPU time")
        figures |= {f"booked_{kind}_percent": share, f"entry_{kind}_ns": 1e9 * entry_s, "entries": entries}
    name = f"measuring-overhead-{config.engine}"
    record = make_record(
        "benchmark", name, figures=figures, samples=samples, settings=asdict(config), device=device, manifest=manifest
    )
    print(f"record: {write_record(record, results)}")


if __name__ == "__main__":
    raise SystemExit(run_command(main))
