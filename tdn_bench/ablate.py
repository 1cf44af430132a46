"""Train a table of networks beside the paper's rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import PositionalRequiredArgs

from pipelines.files import write_whole
from pipelines.processes import cores
from tdn_bench.cli import begin_run, parse, pick_device, run_command, settings_of
from tdn_bench.cli.ranges import check_ranges
from tdn_bench.errors import UserError
from tdn_bench.recipes import RECIPES
from tdn_bench.records import check_file, check_folder, write_record
from tdn_bench.training.ablation import AblationFlags, ablation_record, page, plan_runs, tabulate, train_all

EXAMPLES = (
    "tdn-bench ablate ordering",
    "tdn-bench ablate networks --recipe ucf101 --data UCF-101 --seeds 0 1",
    "tdn-bench ablate table1e --train-flags='--epochs 4'",
)
COMMON = ("recipe", "data", "backbone", "seeds", "train_flags", "output", "parallel", "results")


@dataclass(frozen=True, kw_only=True)
class Ablate:
    """Train every network of a table by one recipe, with several seeds, and tabulate them beside the published rows.
    Run it again to go on where it stopped."""

    ablation: AblationFlags
    parallel: int | None = None
    """Trainings at a time; default: one per core without a GPU, one with it."""
    results: Path | None = None
    """Folder for the records and the table; default: OUTPUT/records. To publish: results/<machine>/ablate."""

    def check(self) -> None:
        """Raise UserError for a number that cannot be."""
        check_ranges(self, parallel=(1, 256))


def main(argv: Sequence[str] | None = None) -> None:
    """Train, tabulate, write a record and the table."""
    command = parse(Ablate, argv, "ablate", PositionalRequiredArgs, examples=EXAMPLES, common=COMMON)
    config = command.ablation
    recipe = RECIPES[config.recipe]()
    device = pick_device(recipe.device)
    parallel = command.parallel or (cores() if device.type == "cpu" else 1)
    threads = max(1, cores() // parallel) if device.type == "cpu" else None
    folder = command.results or config.output / "records"
    check_folder("--output", config.output)
    check_folder("--results", folder)
    path = folder / f"{config.table}-{config.recipe}.md"
    check_file("--results", path)
    begin_run(folder, "ablate", command)
    synthetic = None
    if config.data is None and config.recipe == "demo":
        from pipelines.synthetic import make_dataset

        synthetic = make_dataset(config.output / "data", train=640, validation=160)
    runs = plan_runs(config, recipe, synthetic)
    train_all(runs, folder, parallel, threads, str(device))
    ablation = tabulate(config, runs, folder)
    written = write_record(ablation_record(config, ablation, settings_of(command), device), folder)
    try:
        write_whole(path, page(config, ablation).encode())
    except OSError as e:
        raise UserError(f"{path}: cannot be written ({e.strerror})") from e
    print(f"\n{ablation.table}\n\ntable: {path}\nrecord: {written}")


if __name__ == "__main__":
    raise SystemExit(run_command(main))
