"""Run the whole way on synthetic videos, to a report."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from engines import ENGINES
from pipelines.processes import cores, max_workers
from pipelines.synthetic import CLASSES, VALIDATION_START, make_dataset
from tdn_bench.cli import Command, begin_run, parse, pick_device, run_command
from tdn_bench.cli.ranges import DAY_S, check_ranges
from tdn_bench.errors import UserError, log
from tdn_bench.recipes import demo as demo_recipe
from tdn_bench.records import check_file, check_folder, machine_name, utc_now
from tdn_bench.reporting import html_path, write_report

EXAMPLES = (
    "tdn-bench demo",
    "tdn-bench demo --train-videos 64 --validation-videos 32 --epochs 1 --seconds 1",
)
COMMON = ("output", "results", "train_videos", "validation_videos", "epochs", "seconds", "device", "workers")


@dataclass(frozen=True)
class Demo:
    """Train TDN and TSN on synthetic motion, measure every engine and loader that can run here, write a report."""

    output: Path = Path("runs/demo")
    """Folder for videos and checkpoints."""
    results: Path | None = None
    """Folder for the records and the report; default: OUTPUT/records. To publish: results/<machine>/demo."""
    train_videos: int = 640
    """Synthetic videos to train on."""
    validation_videos: int = 160
    """Synthetic videos held out."""
    epochs: int = demo_recipe().optimization.epochs
    """Of both networks."""
    seconds: float = 4
    """Measure each engine and loader for at least this long."""
    device: str = "auto"
    """cuda, cuda:1 or cpu. auto: a GPU if there is one."""
    workers: int | None = None
    """Decoding threads and rendering processes; default: one per core."""

    def check(self) -> None:
        """Raise UserError for a number that cannot be."""
        videos = len(CLASSES), VALIDATION_START  # a clip of each class at least
        check_ranges(self, train_videos=videos, validation_videos=videos, epochs=(1, 10_000), seconds=(0, DAY_S))
        check_ranges(self, workers=(1, max_workers()))


def train(config: Demo, data: Path, folder: Path, side_by_side: bool) -> dict[str, Path]:
    """Train both networks by the same recipe; return their checkpoints. Raises UserError where one fails.

    Without a GPU they train side by side, each on half of the processors: a small network leaves a second thread
    idle for much of the time, so that both together take little longer than one.
    """
    threads = max(1, cores() // 2) if side_by_side else None
    workers = config.workers or threads
    running: dict[str, Command] = {}

    def finish(kind: str) -> None:
        if (error := running.pop(kind).wait()) is not None:
            for other in running.values():
                other.stop()
            raise UserError(f"training {kind}: {error}")

    for kind in ("tdn", "tsn"):
        flags = [
            "demo",
            "--overwrite",
            "--name",
            f"demo-{kind}",
            "--model",
            f"{kind}_resnet_small",
            "--data",
            str(data),
        ]
        flags += ["--output", str(config.output / kind), "--results", str(folder), "--epochs", str(config.epochs)]
        flags += ["--device", config.device, *(["--workers", str(workers)] if workers else [])]
        running[kind] = Command("tdn_bench.train", flags, threads)
        if not side_by_side:
            finish(kind)
    for kind in list(running):
        finish(kind)
    return {kind: config.output / kind / "last.safetensors" for kind in ("tdn", "tsn")}


def measurements(config: Demo, checkpoints: dict[str, Path], device: str) -> dict[str, list[str]]:
    """What is measured, each with its flags of `tdn-bench throughput`; `device` is the type of the one that is used."""
    with_tdn, with_tsn = (["--checkpoint", str(checkpoints[k]), "--device", config.device] for k in ("tdn", "tsn"))
    found = {f"engine {engine}": ["--engine", engine, *with_tdn] for engine in ENGINES}
    found["engine openvino, int8"] = ["--engine", "openvino", "--precision", "int8", *with_tdn]
    found["engine eager, TSN"] = [*with_tsn, "--name", "tsn-eager"]
    for where in dict.fromkeys(("cpu", device)):
        for backend in ("pyav", "dali") if where == "cpu" else ("dali",):
            flags = ["--engine", "none", "--device", where, "--backend", backend, "--name", f"{backend}-{where}"]
            found[f"loader {backend} on the {where}"] = [*flags, "--checkpoint", str(checkpoints["tdn"])]
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Run the demo: data, training, measurement, report."""
    config = parse(Demo, argv, "demo", examples=EXAMPLES, common=COMMON)
    begun, started = time.perf_counter(), utc_now()
    device = pick_device(config.device)
    folder = config.results or config.output / "records"
    check_folder("--output", config.output)
    check_file("--results", folder / "report.md")
    check_folder("--results", folder)
    begin_run(folder, "demo", config)

    def step(title: str) -> None:
        log.info("[%4.0f s] %s", time.perf_counter() - begun, title)

    step("synthetic motion videos")
    data = make_dataset(
        config.output / "data", train=config.train_videos, validation=config.validation_videos, workers=config.workers
    )
    side_by_side = device.type == "cpu" and cores() > 1
    step(f"training tdn and tsn: same backbone, same budget{', side by side' if side_by_side else ''}")
    checkpoints = train(config, data, folder, side_by_side)

    common = ["--data", str(data), "--seconds", str(config.seconds), "--results", str(folder)]
    if config.workers is not None:
        common += ["--workers", str(config.workers)]
    missing = []
    for title, flags in measurements(config, checkpoints, device.type).items():
        step(title)
        error = Command("tdn_bench.throughput", [*common, *flags]).wait()
        if error is not None:
            print(f"  left out: {error}", flush=True)
            missing.append(f"{title}: {error}")
    step("report")
    path = write_report(folder, since=started, missing=missing)
    print(f"page: {html_path(folder)}")
    print(f"report: {path}")
    if config.results is None:
        published = Path("results") / machine_name(device) / "demo"
        print(f"To publish it, copy {folder} to {published}, or run the demo with --results {published}.")


if __name__ == "__main__":
    raise SystemExit(run_command(main))
