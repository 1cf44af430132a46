"""Name the networks, recipes and ablation tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tdn_bench.cli import parse, run_command
from tdn_bench.models.variants import BACKBONES, VARIANTS
from tdn_bench.recipes import RECIPES
from tdn_bench.training.ablation import TABLES

EXAMPLES = (
    "tdn-bench list",
    "tdn-bench list | grep tdn",
)
COMMON = ()


@dataclass(frozen=True)
class List:
    """Name the networks, the recipes, and the tables that `tdn-bench ablate` trains."""


def main(argv: Sequence[str] | None = None) -> None:
    """Name the networks, the recipes and the tables that `ablate` trains."""
    parse(List, argv, "list", examples=EXAMPLES, common=COMMON)
    print("models: <variant>_<backbone>, backbones " + ", ".join(BACKBONES))
    for name, variant in VARIANTS.items():
        clip = f"{variant.num_segments} × {variant.frames_per_segment} frames"
        print(f"  {name:30s}{clip:15s}{variant.what}")
    print("recipes")
    for name, make in RECIPES.items():
        print(f"  {name:22s}{(make.__doc__ or '').splitlines()[0]}")
    print("tables of networks (tdn-bench ablate)")
    for name, table in TABLES.items():
        print(f"  {name:14s}{table.what}: {', '.join(table.variants)}")


if __name__ == "__main__":
    raise SystemExit(run_command(main))
