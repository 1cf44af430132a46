"""Train a table of networks by one recipe and several seeds, and tabulate it beside the published rows.

Every run is a `tdn-bench train` of its own with its own record; a run whose record is there is not trained again, one
that was stopped goes on from its last epoch. A run's folder is named after everything that decides its result.
"""

from __future__ import annotations

import hashlib
import json
import shlex
import signal
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pipelines.processes import cores
from tdn_bench.cli.child import Command
from tdn_bench.cli.flags import known_variant, pick_device
from tdn_bench.cli.run import run_command
from tdn_bench.errors import UserError
from tdn_bench.models.complexity import measure
from tdn_bench.models.variants import VARIANTS
from tdn_bench.recipes import RECIPES, Recipe
from tdn_bench.records.environment import machine_name
from tdn_bench.records.published import PUBLISHED
from tdn_bench.records.record import Record, check_folder, make_record, read_record, write_record
from tdn_bench.reporting.report import markdown_table


@dataclass(frozen=True)
class Table:
    """Variants that are compared with each other, and the published table that they are of."""

    what: str
    variants: tuple[str, ...]
    published: str = "1"


TABLES: dict[str, Table] = {
    "table1a": Table("what difference does", ("tdn_s_concat_l_average", "tdn_s_concat", "tdn_l_average", "tdn")),
    "table1b": Table(
        "how the S-TDM's motion joins appearance",
        ("tdn_s_gate", "tdn_s_channel_gate", "tdn_s_residual_gate", "tdn_s_residual_channel_gate", "tdn"),
    ),
    "table1c": Table(
        "the parts of the L-TDM",
        ("tdn_l_addition", "tdn_l_channel_gate", "tdn_l_one_scale", "tdn_l_forward", "tdn"),
    ),
    "table1d": Table("in which stages", ("tdn_s1_l2345", "tdn", "tdn_s123_l45")),
    "table1e": Table("which of the two modules", ("tsn", "s_tdm", "l_tdm", "tdn")),
    "table1f": Table(
        "other temporal modules, with as many frames too",
        ("tsn", "tsn++", "tconv", "tconv++", "tsm", "tsm++", "teinet", "teinet++", "tdn"),
    ),
    "ordering": Table(
        "the order that the paper claims: still frames, neighbours, differences, both",
        ("tsn", "tconv", "tsm", "tdn_s_concat_l_average", "tdn_s_concat", "tdn_l_average", "s_tdm", "l_tdm", "tdn"),
    ),
    "networks": Table(
        "every network that the paper compares",
        ("tsn", "tconv", "tsm", "teinet", "stm", "tea", "tanet", "gst", "i3d", "s_tdm", "l_tdm", "tdn"),
        published="2",
    ),
}
# Where runs lie, and what a run's speed but not its result depends on; data that is named counts as a flag.
_NOT_OF_THE_RESULT = ("name", "output", "results", "resume", "workers", "device", "data", "manifest")


@dataclass(frozen=True, kw_only=True)
class Ablate:
    """Train every network of a table by one recipe, with several seeds, and tabulate them beside the published rows.
    Run again to go on where it stopped."""

    table: Literal["table1a", "table1b", "table1c", "table1d", "table1e", "table1f", "ordering", "networks"]
    """Which networks (`tdn-bench list`)."""
    recipe: Literal["sthv1", "sthv2", "kinetics400", "ucf101", "hmdb51", "demo"] = "demo"
    """How they are trained (`tdn-bench train RECIPE --help`)."""
    data: Path | None = None
    """The data set's folder; default for demo: synthetic motion videos, rendered once."""
    backbone: str | None = None
    """resnet50, resnet101 or resnet_small; default: the recipe's."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """One training each, of weights, order and augmentation."""
    train_flags: str = ""
    """More flags for every training, in one string: --train-flags='--epochs 4 --lr 0.02'."""
    parallel: int | None = None
    """Trainings at a time; default: one a core without a GPU, one with it."""
    output: Path = Path("runs/ablate")
    """Videos and checkpoints."""
    results: Path | None = None
    """Folder for records and the table; default: results/<machine>/ablate/."""


@dataclass(frozen=True)
class Run:
    """One training: what is trained, the flags that say so, and where it lies."""

    variant: str
    seed: int
    flags: tuple[str, ...]
    output: Path

    @property
    def name(self) -> str:
        return f"{self.variant}-seed{self.seed}"


def plan_runs(config: Ablate, recipe: Recipe, synthetic: Path | None = None) -> list[Run]:
    """All trainings of the table, seed by seed: an interrupted one has whole seeds first."""
    backbone = config.backbone or recipe.model.partition("_")[2]
    runs = []
    for seed in config.seeds:
        for variant in TABLES[config.table].variants:
            model = f"{variant}_{backbone}"
            known_variant(model)
            flags = [config.recipe, "--model", model, "--seed", str(seed)]
            if recipe.num_segments is not None:  # I3D reads four times as many frames as the others have segments
                segments = recipe.num_segments * VARIANTS[variant].num_segments // VARIANTS["tdn"].num_segments
                flags += ["--num-segments", str(segments)]
            flags += shlex.split(config.train_flags)
            if config.data is not None:
                flags += ["--data", str(config.data.absolute())]
            key = hashlib.sha256(json.dumps([flags, _settings(recipe)], default=str).encode()).hexdigest()[:8]
            output = config.output / f"{config.recipe}-{variant}-seed{seed}-{key}"
            rendered = ["--data", str(synthetic)] if synthetic is not None else []  # the same clips wherever they lie
            runs.append(Run(variant, seed, (*flags, *rendered), output))
    return runs


def _settings(recipe: Recipe) -> dict[str, Any]:
    return {k: v for k, v in asdict(recipe).items() if k not in _NOT_OF_THE_RESULT}


def find_record(run: Run, folder: Path) -> Record | None:
    """The newest record of a finished run; None where it has not been finished."""
    records = (read_record(path) for path in sorted(folder.glob(f"train-{run.name}-*.json")))
    done = [r for r in records if Path(r.settings["output"]).name == run.output.name]
    return done[-1] if done else None


def train_all(runs: Sequence[Run], folder: Path, parallel: int, threads: int | None, device: str) -> None:
    """Train what has no record yet, `parallel` at a time. Raises UserError with the first failure's reason."""
    todo = [run for run in runs if find_record(run, folder) is None]
    print(f"{len(runs)} trainings, {len(runs) - len(todo)} of them done before", flush=True)
    running: dict[Command, Run] = {}
    # a scheduler's SIGTERM ends the trainings too: else they would go on unseen, and a second start beside them
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        while todo or running:
            while todo and len(running) < parallel:
                run = todo.pop(0)
                flags = [*run.flags, "--name", run.name, "--output", str(run.output), "--results", str(folder)]
                flags += ["--device", device, *(["--workers", str(threads)] if threads else [])]
                flags += ["--resume"] if (run.output / "last.pt").exists() else []
                running[Command("tdn_bench.train", flags, threads)] = run
            for command in [c for c in running if not c.running]:
                run = running.pop(command)
                if (error := command.wait()) is not None:
                    raise UserError(f"training {run.name}: {error}; run the same command to go on")
            time.sleep(0.2)
    finally:
        for command in running:
            command.stop()
        signal.signal(signal.SIGTERM, before)


def tabulate(config: Ablate, runs: Sequence[Run], folder: Path) -> tuple[dict[str, Any], list[Record], str]:
    """Figures by variant, the runs' records, and the table as Markdown."""
    found = [(run, record) for run in runs if (record := find_record(run, folder)) is not None]
    figures: dict[str, Any] = {}
    rows = []
    for variant in TABLES[config.table].variants:
        records = [record for run, record in found if run.variant == variant]
        values = [r.figures["top1_percent"] for r in records]
        spread = statistics.stdev(values) if len(values) > 1 else None
        settings = records[0].settings
        count = measure(settings["model"], num_segments=settings["num_segments"], size=settings["size"],
                        num_classes=len(records[0].details["classes"]))  # fmt: skip
        figures[variant] = {
            "top1_percent_mean": statistics.mean(values), "top1_percent_sd": spread, "seeds": len(values),
            "gmacs": count.total.macs / 1e9, "parameters": count.total.parameters,
            "train_s_mean": statistics.mean(r.figures["train_s"] for r in records),
        }  # fmt: skip
        rows.append(
            [
                variant,
                VARIANTS[variant].what,
                f"{settings['num_segments']} × {VARIANTS[variant].frames_per_segment}",
                f"{count.total.macs / 1e9:.3f}",
                f"{statistics.mean(values):.1f}" + (f" ± {spread:.1f}" if spread is not None else ""),
                " ".join(f"{v:.1f}" for v in values),
                _published(variant, TABLES[config.table].published),
            ]
        )
    header = ["network", "what", "T × L", "G mult-adds", "top-1 %, mean ± sd", "by seed", "published"]
    return figures, [record for _, record in found], markdown_table(header, rows)


def _published(variant: str, table: str) -> str:
    """The published accuracies of a variant on ResNet-50 in a table, each with its data and frames; no ensembles."""
    rows = [r for r in PUBLISHED if (r.variant, r.table, r.backbone) == (variant, table, "resnet50")]
    rows = [r for r in rows if r.top1_percent is not None and "+" not in r.frames]
    return "; ".join(f"{r.top1_percent:g} ({r.data}, {r.frames})" for r in rows) or "–"


def main(argv: Sequence[str] | None = None) -> None:
    """Train, tabulate, write a record and the table."""
    import tyro

    config = tyro.cli(Ablate, args=argv, prog="tdn-bench ablate", config=(tyro.conf.PositionalRequiredArgs,))
    if not config.seeds or min(config.seeds) < 0 or len(set(config.seeds)) < len(config.seeds):
        raise UserError("--seeds: name each seed once, from 0 on")
    if config.parallel is not None and config.parallel < 1:
        raise UserError(f"--parallel {config.parallel}: must be at least 1")
    recipe = RECIPES[config.recipe]()
    device = pick_device(recipe.device)
    parallel = config.parallel or (cores() if device.type == "cpu" else 1)
    threads = max(1, cores() // parallel) if device.type == "cpu" else None
    folder = config.results or Path("results") / machine_name(device) / "ablate"
    check_folder("--results", folder)
    check_folder("--output", config.output)
    synthetic = None
    if config.data is None and config.recipe == "demo":
        from pipelines.synthetic import make_dataset

        synthetic = make_dataset(config.output / "data", train=640, validation=160)
    runs = plan_runs(config, recipe, synthetic)
    train_all(runs, folder, parallel, threads, str(device))
    figures, records, table = tabulate(config, runs, folder)
    epochs = records[0].settings["epochs"]
    title = (
        f"# {config.table}: {TABLES[config.table].what}\n\n"
        f"Recipe {config.recipe}, {epochs} epochs, {records[0].settings['size']} px, data "
        f"{records[0].data['name'] if records[0].data else '?'}; seeds {', '.join(map(str, config.seeds))}; "
        "± is the sample standard deviation over seeds. Published figures are of other data and larger networks: "
        "compare orders, not values."
    )
    record = make_record(
        "ablation", f"{config.table}-{config.recipe}", figures=figures,
        samples={v: [r.figures["top1_percent"] for r in records if r.name.startswith(f"{v}-seed")] for v in figures},
        settings=asdict(config), device=device,
        details={"commits": sorted({r.commit or "unknown" for r in records}), "data": records[0].data},
    )  # fmt: skip
    path = folder / f"{config.table}-{config.recipe}.md"
    written = write_record(record, folder)
    path.write_text(f"{title}\n\n{table}\n", encoding="utf-8")
    print(f"\n{table}\n\ntable: {path}\nrecord: {written}")


if __name__ == "__main__":
    raise SystemExit(run_command(main))
