"""Train a network by a recipe: Something-Something, Kinetics, UCF101, HMDB51, or the demo's synthetic videos."""

from __future__ import annotations

import os
from collections.abc import Sequence

from tdn_bench.cli import run_command
from tdn_bench.recipes import RECIPES
from tdn_bench.records import part_lines, write_record
from tdn_bench.training.loop import train
from tdn_bench.training.result import train_record


def main(argv: Sequence[str] | None = None) -> None:
    """Train by a named recipe; every field of the recipe is a flag."""
    import tyro

    configs = {name: ((make.__doc__ or "").splitlines()[0], make()) for name, make in RECIPES.items()}
    recipe = tyro.extras.overridable_config_cli(
        configs, args=argv, prog="tdn-bench train", config=(tyro.conf.OmitArgPrefixes,)
    )
    result = train(recipe)
    if int(os.environ.get("RANK", "0")) == 0:
        print(f"checkpoint: {result.checkpoint}")
        record = train_record(recipe, result)
        print(*part_lines(record), f"record: {write_record(record, recipe.results or recipe.output)}", sep="\n")


if __name__ == "__main__":
    raise SystemExit(run_command(main))
