"""Training time until 95 % top-1 on synthetic motion, recipe against recipe: `python benchmarks/time_to_accuracy.py`.

The same network, videos, and validation after every epoch, centre crop, full size. Time is the wall time of the epochs
up to and with the first one after which validation has reached the goal; validation, saving and start are left out of
it. For each seed the recipes take turns, in an order that moves on by one: what is stated is the first one's time over
another one's with the same seed, the median over seeds. Five seeds bound a median at 93 %, by the smallest and the
largest. A recipe that does not reach the goal has no time, and what it has is a lower bound: it is said.

`--variants demo_fast without_ema with_mixup` does the same for `demo_fast` with an option more or less.
"""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from pipelines.synthetic import make_dataset
from tdn_bench.cli import DataFlags, pick_device, run_command
from tdn_bench.errors import UserError
from tdn_bench.measurement.statistics import TooFewSamples, percentile
from tdn_bench.recipes import Recipe, demo, demo_fast
from tdn_bench.records import make_record, record_folder, write_record
from tdn_bench.training import train

FAST = demo_fast()
OPTIONS: dict[str, Recipe] = {
    "without_ema": replace(FAST, modern=replace(FAST.modern, ema_decay=0.0)),
    "with_label_smoothing": replace(FAST, modern=replace(FAST.modern, label_smoothing=0.1)),
    "with_mixup": replace(FAST, modern=replace(FAST.modern, mixup_alpha=0.2)),
    "with_cutmix": replace(FAST, modern=replace(FAST.modern, cutmix_alpha=1.0)),
    "with_randaugment": replace(FAST, modern=replace(FAST.modern, randaugment=2)),
    "with_repeats": replace(  # as many steps
        FAST,
        modern=replace(FAST.modern, repeats=2),
        optimization=replace(FAST.optimization, epochs=-(-FAST.optimization.epochs // 2), warmup_epochs=0.25),
    ),
    "without_warmup": replace(FAST, optimization=replace(FAST.optimization, warmup_epochs=0)),
    "without_bf16": replace(FAST, precision="fp32"),
    "with_compile": replace(FAST, compile=True),
}
VARIANTS: dict[str, Recipe] = {"demo": demo(), "demo_fast": FAST} | OPTIONS


@dataclass(frozen=True)
class Benchmark:
    """Train recipes in turns until they reach an accuracy, and write a record."""

    variants: tuple[str, ...] = ("demo", "demo_fast")
    """What is compared, the first with each of the others."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Seeds of weights, order and augmentation."""
    goal: float = 95.0
    """Top-1 on the validation videos, percent."""
    train_videos: int = 640
    """Synthetic videos to train on, as `tdn-bench demo` does."""
    validation_videos: int = 160
    """Synthetic videos held out."""
    device: str = "auto"
    """cuda, cuda:1, cpu; auto takes a GPU where there is one."""
    output: Path = Path("runs/time_to_accuracy")
    """Folder for the videos, and for the run in hand."""
    results: Path | None = None
    """Folder for the record; default: runs/benchmarks. To publish: results/<machine>."""


@dataclass(frozen=True)
class Curve:
    """One training: what every epoch took and came to."""

    train_s: list[float]  # wall time of each epoch
    top1: list[float]  # after it, percent
    cpu_s: float  # of the process, validation and all

    def seconds_to(self, goal: float) -> float | None:
        """Training time until the goal; None where it was not reached."""
        reached = next((i for i, top1 in enumerate(self.top1) if top1 >= goal), None)
        return None if reached is None else sum(self.train_s[: reached + 1])


def run(recipe: Recipe, seed: int, config: Benchmark, data: Path) -> Curve:
    """Train once, with validation after every epoch."""
    folder = config.output / "run"
    shutil.rmtree(folder, ignore_errors=True)
    recipe = replace(
        recipe,
        data=DataFlags(data=data),
        seed=seed,
        evaluate_every=1,
        device=config.device,
        output=folder,
    )
    before = time.process_time()
    epochs = train(recipe, progress=False).epochs
    cpu_s = time.process_time() - before
    return Curve([e.train_s for e in epochs], [e.top1 for e in epochs if e.top1 is not None], cpu_s)


def figures_of(curves: dict[str, list[Curve]], goal: float) -> dict[str, Any]:
    """Of each variant: seeds that reached the goal, median time to it, last accuracy; of all but the first the ratio of
    times, over the seeds where both reached it."""
    first = next(iter(curves))
    found: dict[str, Any] = {}
    for name, of in curves.items():
        seconds = [curve.seconds_to(goal) for curve in of]
        reached = [s for s in seconds if s is not None]
        found[name] = {
            "seeds": len(of),
            "reached": len(reached),
            "seconds": statistics.median(reached) if reached else None,
            "epoch_s": statistics.median(s for curve in of for s in curve.train_s),
            "cpu_s": statistics.median(curve.cpu_s for curve in of),
            "last_top1_percent": sum(curve.top1[-1] for curve in of) / len(of),
            "lowest_last_top1_percent": min(curve.top1[-1] for curve in of),
        }
        if name == first:
            continue
        base = [curve.seconds_to(goal) for curve in curves[first]]
        ratios = [a / b for a, b in zip(base, seconds, strict=True) if a is not None and b is not None]
        if ratios:
            found[name]["times_quicker"] = statistics.median(ratios)
            try:
                interval = percentile(ratios, 50, 0.93)
                found[name] |= {"times_quicker_low": interval.low, "times_quicker_high": interval.high}
            except TooFewSamples:
                pass
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Train, print the ratios, write a record."""
    import tyro

    config = tyro.cli(Benchmark, args=argv, prog="benchmarks/time_to_accuracy.py")
    results = record_folder(config.results, "benchmarks")
    if unknown := [name for name in config.variants if name not in VARIANTS]:
        raise UserError(f"--variants {unknown[0]}: unknown; choose some of {', '.join(VARIANTS)}")
    if not 0 < config.goal <= 100:
        raise UserError(f"--goal {config.goal}: must be above 0 and at most 100")
    data = make_dataset(config.output / "data", train=config.train_videos, validation=config.validation_videos)
    names = list(dict.fromkeys(config.variants))
    curves: dict[str, list[Curve]] = {name: [] for name in names}
    for number, seed in enumerate(config.seeds):
        first = number % len(names)
        for name in (*names[first:], *names[:first]):
            curve = run(VARIANTS[name], seed, config, data)
            curves[name].append(curve)
            reached = curve.seconds_to(config.goal)
            told = "not reached" if reached is None else f"{reached:.1f} s"
            print(f"seed {seed} {name}: {config.goal:g} % after {told}; {curve.top1[-1]:.1f} % at the end", flush=True)
    figures = figures_of(curves, config.goal)
    for name, f in figures.items():
        told = "never" if f["seconds"] is None else f"{f['seconds']:.1f} s"
        ratio = f"; {f['times_quicker']:.2f} × as quick" if "times_quicker" in f else ""
        if "times_quicker_low" in f:
            ratio += f" [{f['times_quicker_low']:.2f}, {f['times_quicker_high']:.2f}]"
        print(
            f"{name}: {told} to {config.goal:g} % ({f['reached']} of {f['seeds']} seeds), "
            f"{f['last_top1_percent']:.1f} % at the end{ratio}"
        )
    record = make_record(
        "benchmark",
        "time-to-accuracy" if names == ["demo", "demo_fast"] else "training-options",
        figures=figures,
        samples={f"{name}_epoch_s": [s for c in of for s in c.train_s] for name, of in curves.items()}
        | {f"{name}_top1_percent": [t for c in of for t in c.top1] for name, of in curves.items()},
        settings=asdict(config),
        device=pick_device(config.device),
        details={
            "threads": torch.get_num_threads(),
            "curves": {name: [asdict(c) for c in of] for name, of in curves.items()},
            "recipes": {name: VARIANTS[name].settings() for name in names},
        },
    )
    print(f"record: {write_record(record, results)}")


if __name__ == "__main__":
    raise SystemExit(run_command(main))
