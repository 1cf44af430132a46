"""A table of networks, trained by one recipe with several seeds, beside the published rows.

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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from tdn_bench.cli import Command, known_variant, settings_of
from tdn_bench.cli.progress import progress
from tdn_bench.cli.ranges import MAX_SEED
from tdn_bench.errors import UserError
from tdn_bench.models.complexity import measure
from tdn_bench.models.variants import VARIANTS
from tdn_bench.recipes import RECIPES, Modern, Processes, Recipe
from tdn_bench.records import Record, make_record, read_record
from tdn_bench.records.published import PUBLISHED, Published
from tdn_bench.records.tables import markdown_table
from tdn_bench.training.run_state import NOT_OF_THE_RESULT


@dataclass(frozen=True)
class Table:
    """Variants that are compared with each other, and the published table that they are of, or its part ("1a")."""

    what: str
    variants: tuple[str, ...]
    published: str = "1"


TABLES: dict[str, Table] = {
    "table1a": Table("what difference does", ("tdn_s_concat_l_average", "tdn_s_concat", "tdn_l_average", "tdn"), "1a"),
    "table1b": Table(
        "how the S-TDM's motion joins appearance",
        ("tdn_s_gate", "tdn_s_channel_gate", "tdn_s_residual_gate", "tdn_s_residual_channel_gate", "tdn"),
        published="1b",
    ),
    "table1c": Table(
        "the parts of the L-TDM",
        ("tdn_l_addition", "tdn_l_channel_gate", "tdn_l_one_scale", "tdn_l_forward", "tdn"),
        published="1c",
    ),
    "table1d": Table("in which stages", ("tdn_s1_l2345", "tdn", "tdn_s123_l45"), "1d"),
    "table1e": Table("which of the two modules", ("tsn", "s_tdm", "l_tdm", "tdn"), "1e"),
    "table1f": Table(
        "other temporal modules, with as many frames too",
        ("tsn", "tsn++", "tconv", "tconv++", "tsm", "tsm++", "teinet", "teinet++", "tdn"),
        published="1f",
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
# A type checker wants literals written out; what may be typed is what the tables and the recipes are.
if TYPE_CHECKING:
    TableName = str
    RecipeName = str
else:
    TableName = Literal[tuple(TABLES)]
    RecipeName = Literal[tuple(RECIPES)]

# Of data the flag that names them counts, wherever they lie.
_NOT_IN_A_NAME = (*NOT_OF_THE_RESULT, "data", "manifest", "max_nonfinite_steps")
# Settings that came later: where they are as they were without them, runs of before keep their names.
_LATER = (
    *("limit", "micro_batch_size", "checkpoint_activations"),
    *(f.name for part in (Processes, Modern) for f in fields(part)),
)


@dataclass(frozen=True, kw_only=True)
class AblationFlags:
    """Which networks are trained, and how."""

    table: TableName
    """Which networks (`tdn-bench list`)."""
    recipe: RecipeName = "demo"
    """How they are trained (`tdn-bench train RECIPE --help`)."""
    data: Path | None = None
    """The data set's folder; default for demo: synthetic motion videos, rendered once."""
    backbone: str | None = None
    """resnet50, resnet101 or resnet_small; default: the recipe's."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Every network is trained once with each: they decide weights, order and augmentation."""
    train_flags: str = ""
    """More flags for every training, in one string: --train-flags='--epochs 4 --lr 0.02'."""
    output: Path = Path("runs/ablate")
    """Folder for videos and checkpoints."""

    def check(self) -> None:
        """Raise UserError for seeds and flags that cannot be."""
        if not self.seeds or not all(0 <= s <= MAX_SEED for s in self.seeds) or len(set(self.seeds)) < len(self.seeds):
            raise UserError(f"--seeds: name each seed once, from 0 to {MAX_SEED}")
        try:
            shlex.split(self.train_flags)
        except ValueError as e:
            raise UserError(f"--train-flags {self.train_flags!r}: {e}") from e


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


@dataclass(frozen=True)
class Ablation:
    """What finished runs came to."""

    figures: Mapping[str, Mapping[str, Any]]  # by variant
    records: Sequence[Record]  # of the runs
    table: str  # Markdown


def plan_runs(config: AblationFlags, recipe: Recipe, synthetic: Path | None = None) -> list[Run]:
    """All trainings of the table, seed by seed: an interrupted one has whole seeds first. `recipe` is what
    `config.recipe` names; `synthetic` is where its videos were rendered, if they were. Raises UserError for a network
    that there is not."""
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
            output = config.output / f"{config.recipe}-{variant}-seed{seed}-{_key(flags, recipe)}"
            rendered = ["--data", str(synthetic)] if synthetic is not None else []  # the same clips wherever they lie
            runs.append(Run(variant, seed, (*flags, *rendered), output))
    return runs


def _key(flags: Sequence[str], recipe: Recipe) -> str:
    """Eight digits that stand for all that decides a run's result. The order of the settings counts: another one
    would give finished runs new names, and train them again."""
    settings = settings_of(recipe.data) | settings_of(recipe.loader) | settings_of(recipe)
    settings |= {"lr": recipe.optimization.peak_lr}
    usual = settings_of(Recipe())
    left_out = {*_NOT_IN_A_NAME, "lr_per_64_clips", *(name for name in _LATER if settings[name] == usual[name])}
    deciding = {name: value for name, value in settings.items() if name not in left_out}
    return hashlib.sha256(json.dumps([flags, deciding], default=str).encode()).hexdigest()[:8]


def find_record(run: Run, folder: Path) -> Record | None:
    """The newest record of a finished run; None where it has not been finished."""
    records = (read_record(path) for path in sorted(folder.glob(f"train-{run.name}-*.json")))
    done = [r for r in records if Path(str(r.settings.get("output"))).name == run.output.name]
    return done[-1] if done else None


def train_all(runs: Sequence[Run], folder: Path, parallel: int, threads: int | None, device: str) -> None:
    """Train what has no record in `folder` yet, `parallel` at a time, with `threads` each (None: the default). Raises
    UserError with the first failure's reason."""
    todo = [run for run in runs if find_record(run, folder) is None]
    print(f"{len(runs)} trainings, {len(runs) - len(todo)} of them done before", flush=True)
    running: dict[Command, Run] = {}
    # a scheduler's SIGTERM ends the trainings too: else they would go on unseen, and a second start beside them
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        with progress("Training", len(runs), "networks", done=len(runs) - len(todo)) as advance:
            while todo or running:
                while todo and len(running) < parallel:
                    run = todo.pop(0)
                    running[Command("tdn_bench.train", _flags(run, folder, threads, device), threads)] = run
                for command in [c for c in running if not c.running]:
                    run = running.pop(command)
                    if (error := command.wait()) is not None:
                        raise UserError(f"training {run.name}: {error}; run the same command to go on")
                    advance(1)
                time.sleep(0.2)
    finally:
        for command in running:
            command.stop()
        signal.signal(signal.SIGTERM, before)


def _flags(run: Run, folder: Path, threads: int | None, device: str) -> list[str]:
    """Of `tdn-bench train`, for one run; it goes on where it was stopped before."""
    flags = [*run.flags, "--name", run.name, "--output", str(run.output), "--results", str(folder), "--device", device]
    flags += ["--workers", str(threads)] if threads else []
    return [*flags, "--resume", "auto"]


def tabulate(config: AblationFlags, runs: Sequence[Run], folder: Path) -> Ablation:
    """Figures and table of the runs, whose records lie in `folder`; every variant needs one at least."""
    found = [(run, record) for run in runs if (record := find_record(run, folder)) is not None]
    table = TABLES[config.table]
    figures: dict[str, dict[str, Any]] = {}
    rows = []
    for variant in table.variants:
        records = [record for run, record in found if run.variant == variant]
        figures[variant] = _figures(records)
        rows.append(_row(variant, records, figures[variant], table.published))
    header = ["network", "what", "T × L", "G mult-adds", "top-1 %, mean ± sd", "by seed", "published"]
    return Ablation(figures, [record for _, record in found], markdown_table(header, rows))


def _figures(records: Sequence[Record]) -> dict[str, Any]:
    """Of one variant's runs."""
    values = [r.figures["top1_percent"] for r in records]
    settings, classes = records[0].settings, records[0].details["classes"]
    count = measure(
        settings["model"],
        num_segments=settings["num_segments"],
        size=settings["size"],
        num_classes=len(classes),
    ).total
    return {
        "top1_percent_mean": statistics.mean(values),
        "top1_percent_sd": statistics.stdev(values) if len(values) > 1 else None,
        "seeds": len(values),
        "gmacs": count.macs / 1e9,
        "parameters": count.parameters,
        "train_s_mean": statistics.mean(r.figures["train_s"] for r in records),
    }


def _row(variant: str, records: Sequence[Record], figures: Mapping[str, Any], published: str) -> list[str]:
    spread = figures["top1_percent_sd"]
    return [
        variant,
        VARIANTS[variant].what,
        f"{records[0].settings['num_segments']} × {VARIANTS[variant].frames_per_segment}",
        f"{figures['gmacs']:.3f}",
        f"{figures['top1_percent_mean']:.1f}" + (f" ± {spread:.1f}" if spread is not None else ""),
        " ".join(f"{r.figures['top1_percent']:.1f}" for r in records),
        _published(variant, published),
    ]


def _published(variant: str, table: str) -> str:
    """The published accuracies of a variant on ResNet-50 in a table, each with its data and frames; no ensembles."""
    rows = [r for r in PUBLISHED if (r.variant, r.backbone) == (variant, "resnet50") and r.source.startswith(table)]
    rows = [r for r in rows if r.top1_percent is not None and "+" not in r.frames]
    said = (f"{r.top1_percent:g} ({r.data}, {r.frames}{_of_frames(r)})" for r in rows)
    return "; ".join(dict.fromkeys(said)) or "–"


def _of_frames(row: Published) -> str:
    """What a source leaves out that counts segments: the frames of each that the network reads."""
    frames = VARIANTS[row.variant].frames_per_segment if row.variant else 1
    return f" × {frames}" if row.frames.isdigit() and frames > 1 and not str(row.variant).endswith("++") else ""


def page(config: AblationFlags, ablation: Ablation) -> str:
    """The table as a Markdown page that says what was trained."""
    first = ablation.records[0]
    title = f"# {config.table}: {TABLES[config.table].what}"
    what = (
        f"Recipe {config.recipe}, {first.settings['epochs']} epochs, {first.settings['size']} px, data "
        f"{first.data['name'] if first.data else '?'}; seeds {', '.join(map(str, config.seeds))}; "
        "± is the sample standard deviation over seeds. Published figures are of other data and larger networks: "
        "compare orders, not values."
    )
    return f"{title}\n\n{what}\n\n{ablation.table}\n"


def ablation_record(
    config: AblationFlags, ablation: Ablation, settings: Mapping[str, Any], device: torch.device
) -> Record:
    """The table as a record; `settings` are the command's flags."""
    by_variant = {v: [r for r in ablation.records if r.name.startswith(f"{v}-seed")] for v in ablation.figures}
    return make_record(
        "ablation",
        f"{config.table}-{config.recipe}",
        figures=ablation.figures,
        samples={v: [r.figures["top1_percent"] for r in records] for v, records in by_variant.items()},
        settings=settings,
        device=device,
        details={
            "commits": sorted({r.commit or "unknown" for r in ablation.records}),
            "data": ablation.records[0].data,
        },
    )
