"""The whole way in one command: synthetic videos → TDN and TSN trained → every engine and loader measured → report."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from engines import ENGINES
from pipelines.synthetic import make_dataset
from tdn_bench.cli import run_command
from tdn_bench.environment import machine_name
from tdn_bench.flags import pick_device
from tdn_bench.recipes import demo as demo_recipe
from tdn_bench.record import utc_now, write_record
from tdn_bench.report import write_report
from tdn_bench.train import train, train_record


@dataclass(frozen=True)
class Demo:
    """Train TDN and TSN on synthetic motion, measure every engine and loader that can run here, write a report."""

    output: Path = Path("runs/demo")
    """Videos and checkpoints."""
    results: Path = Path("results")
    """Records and the report go to <results>/<machine>/demo/."""
    train_videos: int = 640
    """Synthetic videos to train on."""
    validation_videos: int = 160
    """Synthetic videos held out."""
    epochs: int = demo_recipe().epochs
    """Of both networks."""
    seconds: float = 4
    """Measure each engine and loader for at least this long."""
    device: str = "auto"
    """cuda, cuda:1, cpu; auto takes a GPU where there is one."""
    workers: int | None = None
    """Decoding threads and rendering processes; default: one a core."""


def _measure(arguments: Sequence[str]) -> str | None:
    """Run one measurement in a process of its own (its memory and failures stay its own); the error, if any."""
    command = [sys.executable, "-m", "tdn_bench.throughput", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    print(done.stdout, end="", flush=True)
    if done.returncode == 0:
        return None
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    return lines[-1].removeprefix("error: ") if lines else f"exit status {done.returncode}"


def main(argv: Sequence[str] | None = None) -> None:
    """The demo: data, training, measurement, report."""
    import tyro

    config = tyro.cli(Demo, args=argv, prog="tdn-bench demo")
    start, started = time.perf_counter(), utc_now()
    device = pick_device(config.device)
    folder = config.results / machine_name(device) / "demo"

    def step(title: str) -> None:
        print(f"\n[{time.perf_counter() - start:4.0f} s] {title}", flush=True)

    step("synthetic motion videos")
    data = make_dataset(
        config.output / "data", train=config.train_videos, validation=config.validation_videos, workers=config.workers
    )
    checkpoints = {}
    for kind in ("tdn", "tsn"):
        step(f"training {kind} (same backbone, same budget)")
        recipe = replace(
            demo_recipe(),
            name=f"demo-{kind}",
            model=f"{kind}_resnet_small",
            data=data,
            epochs=config.epochs,
            output=config.output / kind,
            device=config.device,
            workers=config.workers,
        )
        result = train(recipe)
        write_record(train_record(recipe, result), folder)
        checkpoints[kind] = result.checkpoint

    common = ["--data", str(data), "--seconds", str(config.seconds), "--results", str(folder)]
    if config.workers is not None:
        common += ["--workers", str(config.workers)]
    with_tdn = ["--checkpoint", str(checkpoints["tdn"]), "--device", config.device]
    measurements = {f"engine {engine}": ["--engine", engine, *with_tdn] for engine in ENGINES}
    measurements["engine eager, TSN"] = ["--checkpoint", str(checkpoints["tsn"]), "--name", "tsn-eager"]
    for where in dict.fromkeys(("cpu", device.type)):
        for backend in ("pyav", "dali") if where == "cpu" else ("dali",):
            flags = ["--engine", "none", "--device", where, "--backend", backend, "--name", f"{backend}-{where}"]
            measurements[f"loader {backend} on the {where}"] = [*flags, "--checkpoint", str(checkpoints["tdn"])]
    missing = []
    for title, flags in measurements.items():
        step(title)
        error = _measure([*common, *flags])
        if error is not None:
            print(f"  left out: {error}", flush=True)
            missing.append(f"{title}: {error}")
    step("report")
    print(f"report: {write_report(folder, since=started, missing=missing)}")


if __name__ == "__main__":
    raise SystemExit(run_command(main))
