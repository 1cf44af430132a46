"""`tdn-bench ablate`: what is trained, what is trained again, and the table."""

import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
import torch
from support.flags import configure

from pipelines.errors import DataError
from tdn_bench.ablate import main
from tdn_bench.cli import run_command
from tdn_bench.errors import UserError
from tdn_bench.models.variants import VARIANTS
from tdn_bench.recipes import RECIPES, demo
from tdn_bench.records import Record, make_record, write_record
from tdn_bench.training import ablation
from tdn_bench.training.ablation import (
    TABLES,
    AblationFlags,
    Run,
    Table,
    find_record,
    plan_runs,
    tabulate,
)

CONFIG = AblationFlags(table="table1e", seeds=(0, 7))


def finished(run: Run, top1: float, model: str) -> Record:
    settings = {"output": str(run.output), "model": model, "num_segments": 4, "size": 64, "epochs": 3}
    return make_record(
        "train",
        run.name,
        figures={"top1_percent": top1, "train_s": 10.0},
        samples={},
        settings=settings,
        device=torch.device("cpu"),
        details={"classes": ["a", "b"]},
    )


def test_tables_are_of_known_variants_and_hold_the_network_itself() -> None:
    for name, table in TABLES.items():
        assert set(table.variants) <= set(VARIANTS), name
        assert len(set(table.variants)) == len(table.variants)
        assert "tdn" in table.variants
    assert {v for v in VARIANTS if v.startswith("tdn")} <= {v for t in TABLES.values() for v in t.variants}


def test_a_runs_folder_is_named_after_all_that_decides_its_result() -> None:
    runs = plan_runs(CONFIG, demo())
    assert [(run.variant, run.seed) for run in runs] == [(v, s) for s in (0, 7) for v in TABLES["table1e"].variants]
    again = plan_runs(replace(CONFIG, table="table1f"), demo(), Path("synthetic"))
    assert runs[3].output == next(run.output for run in again if run.name == "tdn-seed0")  # shared by tables
    for other in (
        plan_runs(replace(CONFIG, data=Path("elsewhere")), demo()),
        plan_runs(replace(CONFIG, train_flags="--epochs 4"), demo()),
        plan_runs(CONFIG, configure(demo(), lr=0.02)),
        plan_runs(replace(CONFIG, backbone="resnet50"), demo()),
        plan_runs(replace(CONFIG, recipe="sthv2"), demo()),
    ):
        assert not {run.output for run in runs} & {run.output for run in other}
    (i3d,) = (run for run in plan_runs(replace(CONFIG, table="networks", seeds=(0,)), demo()) if "i3d" in run.name)
    assert i3d.flags[i3d.flags.index("--num-segments") + 1] == "16"  # 32 of the others' 8, as 16 of 4
    with pytest.raises(UserError, match="unknown model 'tsn_vgg'"):
        plan_runs(replace(CONFIG, backbone="vgg"), demo())


@pytest.mark.parametrize(
    ("recipe", "folder"),
    [
        ("demo", "demo-tdn-seed0-6b16af3b"),
        ("sthv2", "sthv2-tdn-seed0-2701278a"),
        ("kinetics400", "kinetics400-tdn-seed0-e82359fb"),
        ("hmdb51", "hmdb51-tdn-seed0-ccae4a05"),
    ],
)
def test_runs_keep_the_names_that_they_were_finished_under(recipe: str, folder: str) -> None:
    """Under other names they would all be trained again."""
    runs = plan_runs(replace(CONFIG, recipe=recipe), RECIPES[recipe]())
    assert folder in {run.output.name for run in runs}


def test_only_the_same_runs_record_counts(tmp_path: Path) -> None:
    run, other = plan_runs(CONFIG, demo())[0], plan_runs(CONFIG, configure(demo(), lr=0.5))[0]
    assert find_record(run, tmp_path) is None
    write_record(finished(other, 1, "tsn_resnet_small"), tmp_path)
    assert find_record(run, tmp_path) is None
    for top1, when in ((2.0, "2026-01-01"), (3.0, "2026-01-02")):
        record = finished(run, top1, "tsn_resnet_small")
        write_record(replace(record, created_utc=f"{when}T00:00:00Z"), tmp_path)
    found = find_record(run, tmp_path)
    assert found is not None
    assert found.figures["top1_percent"] == 3


def test_the_table_holds_means_deviations_and_published_figures_apart(tmp_path: Path) -> None:
    runs = plan_runs(CONFIG, demo())
    for run in runs:
        top1 = {0: 50.0, 7: 54.0}[run.seed] if run.variant == "tdn" else 10.0
        write_record(finished(run, top1, f"{run.variant}_resnet_small"), tmp_path)
    found = tabulate(CONFIG, runs, tmp_path)
    figures = found.figures
    assert len(found.records) == 8
    assert figures["tdn"]["top1_percent_mean"] == 52
    assert figures["tdn"]["top1_percent_sd"] == pytest.approx(8**0.5)  # of 50 and 54, over n − 1
    header, _, *rows = found.table.splitlines()
    assert header.split(" | ")[4:] == ["top-1 %, mean ± sd", "by seed", "published |"]
    row = next(r for r in rows if r.startswith("| tdn |"))
    assert "| 52.0 ± 2.8 | 50.0 54.0 | 52.3 (sthv1, 8 × 5) |" in row
    assert next(r for r in rows if r.startswith("| tsn |")).endswith("| 10.0 ± 0.0 | 10.0 10.0 | – |")


class InThisProcess:
    """A `Command` that has run by the time it is there: no interpreter to start, no torch to load."""

    running = False

    def __init__(self, module: str, flags: Sequence[str], threads: int | None = None) -> None:
        self._error = None
        try:
            import_module(module).main(flags)
        except (UserError, DataError) as e:
            self._error = str(e)

    def wait(self) -> str | None:
        return self._error

    def stop(self) -> None:
        pass


@pytest.mark.parametrize("processes", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_it_trains_what_is_missing_goes_on_where_it_stopped_and_names_what_failed(
    motion_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    processes: bool,
) -> None:
    if not processes:
        monkeypatch.setattr(ablation, "Command", InThisProcess)
    monkeypatch.setitem(TABLES, "table1e", Table("two of them", ("tsn", "tconv")))
    flags = ["table1e", "--data", str(motion_data), "--seeds", "0", "--output", str(tmp_path / "runs")]
    flags += ["--results", str(tmp_path / "results")]
    short = "--train-flags=--epochs 1 --batch-size 4"
    assert run_command(main, [*flags, "--train-flags=--epochs 1 --batch-size 5000"]) == 2
    assert "training t" in (error := capfd.readouterr().err.strip().splitlines()[-1])
    assert "5000" in error
    assert not list((tmp_path / "results").glob("train-*"))
    main([*flags, short])
    assert "2 trainings, 0 of them done before" in (out := capfd.readouterr().out)
    assert "| tsn |" in out
    page = (tmp_path / "results" / "table1e-demo.md").read_text()
    assert "± is the sample standard deviation" in page
    main([*flags, short])
    assert "2 trainings, 2 of them done before" in capfd.readouterr().out
    for path in (tmp_path / "results").glob("train-tconv-*"):
        path.unlink()  # as after an interruption between the last epoch and the record
    main([*flags, short])
    assert "2 trainings, 1 of them done before" in (out := capfd.readouterr().out)
    assert "epoch 1/1" not in out  # nothing was trained again
    assert len(list((tmp_path / "results").glob("ablation-table1e-demo-*.json"))) == 3


@pytest.mark.slow
def test_a_stop_from_outside_stops_the_trainings(motion_data: Path, tmp_path: Path) -> None:
    flags = ["table1e", "--data", str(motion_data), "--seeds", "0", "--output", str(tmp_path), "--parallel", "1"]
    flags += ["--results", str(tmp_path / "results"), "--train-flags=--epochs 500 --batch-size 4"]
    command = [sys.executable, "-m", "tdn_bench.ablate", *flags]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "epoch 1/500" in line:
                break
        process.terminate()
        assert process.wait(timeout=60) == 128 + signal.SIGTERM
        rest = process.stdout.read()  # ends when the training, which has the same pipe, has ended too
    assert "epoch 500/500" not in rest


def test_wrong_use_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for flags, word in ((["--seeds", "1", "1"], "--seeds"), (["--parallel", "0"], "--parallel 0")):
        assert run_command(main, ["table1a", *flags]) == 2
        assert word in capsys.readouterr().err
