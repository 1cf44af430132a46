"""What `tdn-bench watch` saves by keeping features from window to window; `python benchmarks/kept_features.py`.

A window slides over one long video, a segment at a time. Each of them is labelled anew by an engine for whole clips;
in two parts with nothing kept; and in two parts with what the window before left. They take turns in one process
(A B C … A B C …); a saving is the median over the turns of the ratio within a turn, of wall time and of the process's
CPU time, which other processes disturb less. The logits of all windows are compared.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from engine_speed import NUM_CLASSES, make_frames, make_network
from torch import Tensor

from tdn_bench.cli import BuildFlags, Network, pick_device, run_command
from tdn_bench.correctness.logits import TOLERANCE, compare_logits
from tdn_bench.errors import UserError
from tdn_bench.recognizer import Trained
from tdn_bench.records import make_record, record_folder, write_record
from tdn_bench.watching.labeller import KEEPING, KeptFeatures, Labeller, WholeClips
from tdn_bench.watching.window import plan_windows

WHOLE, PARTS, KEPT = "whole", "nothing_kept", "kept"


@dataclass(frozen=True)
class Benchmark:
    """Time the three in turn, and write a record."""

    backbone: str = "resnet50"
    """resnet50, resnet101 or resnet_small."""
    engine: str = "eager"
    """eager or compile."""
    precision: str = "fp32"
    """In which precision."""
    size: int = 224
    """Height and width, pixels."""
    cells: int = 1
    """Segments by which the window moves."""
    rounds: int = 15
    """Timed windows."""
    device: str = "auto"
    """cuda, cuda:1, cpu; auto takes a GPU where there is one."""
    results: Path | None = None
    """Folder for the record; default: runs/benchmarks. To publish: results/<machine>."""


def main(argv: Sequence[str] | None = None) -> None:
    """Compare, print the saving, write a record."""
    import tyro

    config = tyro.cli(Benchmark, args=argv, prog="benchmarks/kept_features.py")
    results = record_folder(config.results, "benchmarks")
    if config.engine not in KEEPING or min(config.rounds, config.cells) < 1:
        raise UserError(f"--engine is one of {', '.join(KEEPING)}, --rounds and --cells at least 1")
    device = pick_device(config.device)
    classifier = make_network("tdn", config.backbone).to(device)
    model = f"tdn_{config.backbone}"
    network = Network(None, model, 8, config.size, 0.875)
    trained = Trained(network, tuple(map(str, range(NUM_CLASSES))), classifier)
    spec = trained.clip_spec()
    plan = plan_windows(spec, 68, config.cells * 8, grid=True)
    build = BuildFlags().spec(spec, 1, config.precision, device)
    labellers: dict[str, Labeller] = {
        WHOLE: WholeClips(trained, config.engine, build, BuildFlags()),
        PARTS: KeptFeatures(trained, config.engine, build),
        KEPT: KeptFeatures(trained, config.engine, build),
    }
    video = torch.cat([make_frames("tdn", 1, config.size).flatten(0, 2)] * 2)  # repeats after 40 frames, seen after 80

    def read(frames: np.ndarray) -> Tensor:
        return video[frames % len(video)]

    def window(name: str, frames: np.ndarray) -> tuple[float, float, Tensor]:
        if name == PARTS:
            labellers[name].close()
        start, cpu = time.perf_counter(), time.process_time()
        labellers[name].read(frames, read)
        probabilities = labellers[name].label()  # on the host, and so computed
        return 1000 * (time.perf_counter() - start), 1000 * (time.process_time() - cpu), probabilities

    samples: dict[str, list[float]] = {f"{name}{cpu}_ms": [] for name in labellers for cpu in ("", "_cpu")}
    worst, same, windows = 0.0, 0, 0
    for turn in range(-3, config.rounds):
        frames = plan.frames(plan.length - 1 + (turn + 3) * plan.hop)
        found = {name: window(name, frames) for name in labellers}
        logits = {name: p.log()[None] for name, (*_, p) in found.items()}  # up to a constant
        worst = max(worst, compare_logits(logits[KEPT], logits[WHOLE], config.precision).max_difference)
        same += torch.equal(logits[KEPT], logits[WHOLE])
        windows += 1
        if not worst <= TOLERANCE[config.precision]:
            raise UserError(f"kept features differ by {worst:.1e} of the logits' deviation")
        if turn >= 0:
            for name, (wall_ms, cpu_ms, _) in found.items():
                samples[f"{name}_ms"].append(wall_ms)
                samples[f"{name}_cpu_ms"].append(cpu_ms)
    medians = {name: statistics.median(times) for name, times in samples.items()}

    def saving(cpu: str) -> float:
        pairs = zip(samples[f"{KEPT}{cpu}_ms"], samples[f"{WHOLE}{cpu}_ms"], strict=True)
        return 100 * (1 - statistics.median(kept / whole for kept, whole in pairs))

    print(f"{model}, 8 × {config.size}², {config.engine} {config.precision}, {config.cells} of 8 segments new")
    for name, what in ((WHOLE, "whole clips"), (PARTS, "in two parts"), (KEPT, "features kept")):
        print(f"  {what:16s}{medians[f'{name}_ms']:9.1f} ms a window, {medians[f'{name}_cpu_ms']:9.1f} ms of CPU time")
    print(f"  saved {saving(''):.1f} % of the time, {saving('_cpu'):.1f} % of the CPU time")
    print(f"  logits differ by {worst:.1e} deviations; {same} of {windows} windows the same bit for bit")
    record = make_record(
        "benchmark",
        f"kept-features-{config.backbone}-{config.engine}-{config.precision}",
        figures={
            **medians,
            "saving_percent": saving(""),
            "cpu_saving_percent": saving("_cpu"),
            "max_difference": worst,
            "windows_equal_bit_for_bit": same,
            "windows_compared": windows,
        },
        samples=samples,
        settings=asdict(config),
        device=device,
        details={"threads": torch.get_num_threads()},
    )
    print(f"record: {write_record(record, results)}")


if __name__ == "__main__":
    raise SystemExit(run_command(main))
