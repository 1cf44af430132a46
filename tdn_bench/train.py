"""Train a network by a recipe."""

from __future__ import annotations

import os
from collections.abc import Sequence

from tdn_bench.cli import begin_run, parse_kind, run_command
from tdn_bench.cli.config_file import missing_folders
from tdn_bench.recipes import RECIPES
from tdn_bench.records import part_lines, write_record
from tdn_bench.training.checks import resolve
from tdn_bench.training.dry_run import dry_run
from tdn_bench.training.loop import train
from tdn_bench.training.result import train_record
from tdn_bench.training.store import LOCK

EXAMPLES = (
    "tdn-bench train demo --data runs/demo/data --output runs/mine",
    "tdn-bench train sthv2 --data something-something-v2 --init resnet50.pth",
    "tdn-bench train sthv2_r101_16f --data something-something-v2 --init resnet101.pth --dry-run",
    "tdn-bench train sthv2 --resume --output runs/sthv2",
    "torchrun --nproc-per-node 8 -m tdn_bench.train kinetics400 --data k400",
)
COMMON = (
    *("data", "dataset", "manifest", "model", "num_segments", "init", "finetune", "batch_size"),
    *("epochs", "lr", "output", "resume", "dry_run"),
)


def main(argv: Sequence[str] | None = None) -> None:
    """Train by a named recipe; every field of the recipe is a flag."""
    what = {name: (make.__doc__ or "").splitlines()[0] for name, make in RECIPES.items()}
    recipes = {name: make() for name, make in RECIPES.items()}
    name, recipe = parse_kind(recipes, argv, "train", examples=EXAMPLES, common=COMMON, kind="RECIPE", what=what)
    if recipe.dry_run:
        dry_run(name, recipe)
        return
    made = missing_folders(recipe.output)

    def begun() -> None:
        begin_run(recipe.output, f"train {name}", recipe, "config.toml", beside=(LOCK,), made=made)
        begin_run(recipe.output, f"train {name}", resolve(recipe), "recipe.toml", made=())

    result = train(recipe, begun=begun)
    if int(os.environ.get("RANK", "0")) == 0:
        print(f"checkpoint: {result.checkpoint}")
        record = train_record(recipe, result)
        print(*part_lines(record), f"record: {write_record(record, recipe.results or recipe.output)}", sep="\n")


if __name__ == "__main__":
    raise SystemExit(run_command(main))
