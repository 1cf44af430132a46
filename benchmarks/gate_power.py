"""How often does the gate cry wolf, and what does it find? `make benchmark NAME=gate_power`.

Small workloads of identical code (loader, engine; synthetic clips, small network, one thread) are compared as
`tdn-bench regress` and `throughput --compare` compare: fresh processes that take turns, bootstrap of the log-ratios,
all figures of a comparison together at 99 %. In some turns of one of the two a stage is really slowed: after each piece
of its work it computes on for a share of the time that the piece took. A comparison is some rounds of two processes
each, with turns until a slow-down by the margin would be found nine times in ten, as `regress` has them, or until they
are --most-turns; the processes serve several comparisons, paired at random for each.

"Found" is an interval above no change: the weakest thing that the gate says of a time ("slower"). "Regression" is an
interval above the margin of 3 %. A slow-down by the margin itself cannot be told to exceed it.
"""

from __future__ import annotations

import math
import random
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipelines.ledger import Lane
from pipelines.synthetic import make_dataset
from tdn_bench.cli import run_command
from tdn_bench.errors import UserError
from tdn_bench.measurement.interference import Watch
from tdn_bench.measurement.statistics import Change, change
from tdn_bench.records import make_record, record_folder, write_record
from tdn_bench.regression import worker
from tdn_bench.regression.interleaving import WorkerProcess, WorkerSpec, started

STAGES = ("decode", "augment", "infer")  # each takes a tenth of a video's time or more
FIGURES = ("loader_ms", *(f"{stage}_ms" for stage in STAGES))
MARGIN = 0.03


@dataclass(frozen=True)
class Benchmark:
    """Compare identical code many times, then code that is slower by a known share."""

    false_alarms: int = 200
    """Comparisons of identical code."""
    power: int = 60
    """Comparisons of code slowed by each of --slowdowns, in a stage each in turn."""
    slowdowns: tuple[float, ...] = (0.03, 0.05, 0.10)
    """Shares by which a stage is slowed."""
    rounds: int = 12
    """Rounds of a comparison, each of two processes."""
    turns: int = 6
    """Turns of each side in each round, and as many again where they do not suffice."""
    most_turns: int = 48
    """Then the comparison ends (with twelve rounds: within 3 minutes for two sides, their start included)."""
    reuse: int = 20
    """Comparisons that the same processes serve, paired anew for each, before fresh ones take over."""
    max_seconds: float = 7200
    """Begin no comparison after so long."""
    videos: int = 8
    """Videos in a turn."""
    engine: str = "eager"
    """Engine of the comparisons."""
    data: Path = Path("runs/synthetic")
    """Videos; rendered where there are none."""
    results: Path | None = None
    """Folder for the record; default: runs/benchmarks. To publish: results/<machine>."""


class Slowed(worker.Worker):
    """A worker with a stage that can be slowed."""

    stage, share = "", 0.0

    def turn(self, parts: list[str], stage: str = "", share: float = 0.0) -> dict[str, float]:
        Slowed.stage, Slowed.share = stage, share
        return super().turn(parts)


def work_on(start_s: float) -> None:
    """Compute for a share of the time since `start_s`."""
    now = time.perf_counter()
    until = now + Slowed.share * (now - start_s)
    while time.perf_counter() < until:
        pass


def inject() -> None:
    """Let the loader's stages and the engine work on, where it is their turn."""
    from engines import Engine

    lap, call = Lane.lap, Engine.__call__

    def slow_lap(self: Lane, stage: str) -> None:
        if stage == Slowed.stage:
            work_on(self.last_s)
        lap(self, stage)

    def slow_call(self: Engine, frames: torch.Tensor) -> torch.Tensor:
        start = time.perf_counter()
        logits = call(self, frames)
        if Slowed.stage == "infer":
            work_on(start)
        return logits

    Lane.lap, Engine.__call__ = slow_lap, slow_call  # type: ignore[method-assign]


def compare(
    pool: Sequence[WorkerProcess], config: Benchmark, shares: Sequence[float], stage: str
) -> tuple[dict[float, dict[str, Change]], dict[str, list[float]], int]:
    """Rounds, each of two of the pool's processes: the changes of every figure for every share, the logarithms of the
    ratios in 1/10,000, round after round, and the turns in each round."""
    times: dict[str, list[list[dict[str, float]]]] = {name: [] for name in ("a", *(f"b{share:g}" for share in shares))}
    sides: list[list[tuple[str, WorkerProcess, float]]] = []
    for a, b in zip(pool[::2], pool[1::2], strict=True):
        sides.append([("a", a, 0.0), *((f"b{share:g}", b, share) for share in shares)])
        for rounds in times.values():
            rounds.append([])
    found: dict[float, dict[str, Change]] = {}
    raw: dict[str, list[float]] = {}
    taken = 0
    while taken < config.most_turns and (
        not found or max(c.detectable for changes in found.values() for c in changes.values()) > 1 + MARGIN
    ):
        for number, pair in enumerate(sides):
            for turn in range(config.turns):
                for name, process, share in reversed(pair) if (taken + turn) % 2 else pair:
                    parts = list(process.spec.parts)
                    times[name][number].append(process.ask("turn", parts, stage if share else "", share))
        taken += config.turns
        for share in shares:
            found[share] = {}
            for f in FIGURES:
                pairs = zip(times["a"], times[f"b{share:g}"], strict=True)
                ratios = [[math.log(y[f] / x[f]) for x, y in zip(*rounds, strict=True)] for rounds in pairs]
                found[share][f] = change(ratios, confidence=1 - 0.01 / len(FIGURES))
                raw[f"log_ratio_e4_{f}_by_{share:g}"] = [round(1e4 * x) for r in ratios for x in r]
    return found, raw, taken


def named(changes: dict[str, Change]) -> str | None:
    """The stage that is blamed: of those that are found slower, the one that is most."""
    slower = {f: c.ratio.value for f, c in changes.items() if c.ratio.low > 1 and f != "loader_ms"}
    return max(slower, key=lambda f: slower[f]).removesuffix("_ms") if slower else None


def tally(changes: dict[str, Change], stage: str) -> Counter[str]:
    """What the comparison says, each once."""
    figures = [f for f in changes if changes[f].ratio.low > 1]
    return Counter(
        comparisons=1,
        found=bool(figures),
        found_faster=any(c.ratio.high < 1 for c in changes.values()),
        named=named(changes) == stage,
        regression=any(c.verdict(MARGIN) == "regression" for c in changes.values()),
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Compare, print the shares, write a record."""
    import tyro

    config = tyro.cli(Benchmark, args=argv, prog="benchmarks/gate_power.py")
    results = record_folder(config.results, "benchmarks")
    if config.rounds * config.turns < 10 or config.videos < 1:
        raise UserError("--rounds × --turns must be at least 10, --videos at least 1")
    data = make_dataset(config.data, train=8, validation=64) if not config.data.exists() else config.data
    flags = ["--engine", config.engine, "--data", str(data), "--model", "tdn_resnet_small", "--num-segments", "4"]
    flags += ["--size", "64", "--batch-size", "4", "--workers", "1", "--device", "cpu"]
    alone = {"OMP_NUM_THREADS": "1"}
    spec = WorkerSpec("pool", tuple(flags), ("loader", "engine"), script=Path(__file__), environment=alone)
    counts: dict[float, Counter[str]] = {}
    by_stage: dict[str, Counter[str]] = {}
    samples: dict[str, list[float]] = {}
    seconds, starts, foreign, turns_taken, said_of = [], [], [], [], []
    generator = random.Random(0)
    begun, total = time.monotonic(), config.power + config.false_alarms
    for first in range(0, total, config.reuse):
        if time.monotonic() - begun > config.max_seconds:
            break
        start = time.monotonic()
        with started([spec] * (2 * config.rounds), config.videos) as (pool, *_):
            starts.append(time.monotonic() - start)
            for number in range(first, min(first + config.reuse, total)):
                if time.monotonic() - begun > config.max_seconds:
                    break
                generator.shuffle(pool)
                stage, start = STAGES[number % len(STAGES)], time.monotonic()
                # evenly among all
                slowed = number * config.power // total != (number + 1) * config.power // total
                with Watch([p.pid for p in pool]) as watch:
                    found, raw, taken = compare(pool, config, config.slowdowns if slowed else (0.0,), stage)
                seconds.append(2 / (1 + len(found)) * (time.monotonic() - start))  # of two sides, as users compare
                turns_taken.append(taken)
                foreign.append(watch.figures.get("foreign_cpu_share"))
                for name, values in raw.items():
                    samples.setdefault(f"{name}_{stage}", []).extend(values)
                for share, changes in found.items():
                    said = tally(changes, stage)
                    counts.setdefault(share, Counter()).update(said)
                    by_stage.setdefault(f"{share:g} {stage}", Counter()).update(said)
                    intervals = {
                        f: [round(v, 5) for v in (*astuple(c.ratio), c.detectable)] for f, c in changes.items()
                    }
                    said_of.append({"stage": stage, "by": share, "value_low_high_detectable": intervals})
                print(f"{len(seconds)}: {taken} turns; {line(counts)}", file=sys.stderr, flush=True)
    figures: dict[str, Any] = {"median_turns_s": float(np.median(seconds)), "longest_turns_s": max(seconds)}
    figures["median_start_s"] = float(np.median(starts))  # of the processes of one comparison
    figures["longest_s"] = max(seconds) + max(starts)
    print(f"{'slowed by':>10s}{'comparisons':>13s}{'found':>8s}{'stage named':>13s}{'regression':>12s}")
    for share, count in counts.items():
        n = count["comparisons"]
        rates = {k: 100 * count[k] / n for k in ("found", "found_faster", "named", "regression")}
        key = f"slowed_{100 * share:g}_percent"
        figures |= {f"{key}_comparisons": n} | {f"{key}_{k}_percent": v for k, v in rates.items()}
        right = f"{rates['named']:11.0f} %" if share else f"{'–':>13s}"
        print(f"{share:10.0%}{n:13d}{rates['found']:6.1f} %{right}{rates['regression']:10.1f} %")
    print(
        "a comparison of two sides: {median_turns_s:.1f} s of turns and {median_start_s:.1f} s to start its processes "
        "(medians), {longest_s:.1f} s at most".format(**figures)
    )
    record = make_record(
        "benchmark",
        "gate-power",
        figures=figures,
        samples=samples,
        settings=asdict(config),
        device=torch.device("cpu"),
        details={
            "by_stage": {k: dict(c) for k, c in by_stage.items()},
            "foreign_cpu_share": foreign,
            "seconds": seconds,
            "starts_s": starts,
            "turns": turns_taken,
            "comparisons": said_of,
        },
    )
    print(f"record: {write_record(record, results)}")


def line(counts: dict[float, Counter[str]]) -> str:
    return "; ".join(
        f"{s:.0%}: found {c['found']}, named {c['named']} of {c['comparisons']}" for s, c in counts.items()
    )


if __name__ == "__main__":
    if len(sys.argv) == 2 and sys.argv[1].isdecimal():  # a worker's process
        worker.Worker = Slowed  # type: ignore[misc]
        inject()
        worker.serve(Connection(int(sys.argv[1])))
    else:
        raise SystemExit(run_command(main))
