"""What `train --dry-run` says, and that it leaves nothing behind."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.flags import configure

from tdn_bench.errors import UserError
from tdn_bench.recipes import demo
from tdn_bench.train import main
from tdn_bench.training import train
from tdn_bench.training.dry_run import Estimate, count_validations, dry_run

FLAGS = ["--model", "tsn_resnet_small", "--workers", "1", "--device", "cpu", "--batch-size", "4"]


def test_the_estimate_of_made_up_times():
    e = Estimate(epochs=3, steps=100, step_s=0.5, validations=2, validation_s=30, processes=8, kept_bytes=0)
    assert e.epoch_s == 50
    assert e.run_s == 3 * 50 + 2 * 30
    assert e.device_hours == pytest.approx(8 * 210 / 3600)


@pytest.mark.parametrize("every", [1, 2, 3, 4, 7, 12, 20])
def test_validations_are_counted_as_the_loop_does_them(every: int):
    for epochs in range(1, 15):
        done = [n for n in range(1, epochs + 1) if n == epochs or n % every == 0]
        assert count_validations(epochs, every) == len(done)


def test_it_says_what_a_run_costs_and_writes_nothing(motion_data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main(["demo", "--data", str(motion_data), "--output", "a/b", "--dry-run", *FLAGS])
    told = capsys.readouterr().out
    assert not list(tmp_path.iterdir())
    assert "16 to train on, 8 to validate" in told
    assert "4 an epoch of 4 clips; 12 epochs" in told
    for line in ("num_segments = 4", 'device = "cpu"', 'precision = "fp32"', "workers = 1", "lr = 0.005"):
        assert line in told
    assert "M parameters" in told
    assert "GiB" in told


def test_one_step_an_epoch_is_enough(motion_data, tmp_path):
    recipe = configure(demo(), data=motion_data, output=tmp_path / "out", device="cpu", workers=1, batch_size=16)
    estimate = dry_run("demo", configure(recipe, model="tsn_resnet_small", epochs=5, evaluate_every=2))
    assert (estimate.steps, estimate.epochs, estimate.validations, estimate.processes) == (1, 5, 3, 1)
    assert estimate.step_s > 0
    assert estimate.validation_s > 0


def test_disk_is_what_a_run_leaves(motion_data, tmp_path):
    recipe = configure(demo(), data=motion_data, output=tmp_path / "out", device="cpu", workers=1, batch_size=8)
    recipe = configure(recipe, model="tsn_resnet_small", epochs=2, evaluate_every=1, keep_checkpoints=2)
    expected = dry_run("demo", recipe).kept_bytes
    train(recipe, progress=False)
    kept = sum(f.stat().st_size for f in recipe.output.rglob("*") if f.suffix in (".pt", ".safetensors"))
    assert expected == pytest.approx(kept, rel=0.1)


@pytest.mark.slow
def test_with_two_processes_the_first_tells(motion_data, tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    flags = ["-m", "tdn_bench.train", "demo", "--data", str(motion_data), "--output", "out", "--dry-run", *FLAGS]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    ran = subprocess.run([*torchrun, *flags], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert ran.stdout.count("Nothing was written") == 1
    assert "4 an epoch of 4 clips, 2 on each of 2 processes" in ran.stdout
    assert "process-hours" in ran.stdout
    assert not list(tmp_path.iterdir())


def test_it_refuses_what_a_run_would(motion_data, tmp_path):
    (tmp_path / "last.safetensors").touch()
    flags = ["demo", "--data", str(motion_data), "--output", str(tmp_path), "--dry-run", *FLAGS]
    with pytest.raises(UserError, match="holds a run already"):
        main(flags)
    with pytest.raises(UserError, match="--dry-run and --resume"):
        main([*flags, "--resume"])
    with pytest.raises(UserError, match="--epochs 0"):
        main([*flags, "--epochs", "0"])
    assert sorted(os.listdir(tmp_path)) == ["last.safetensors"]


@pytest.mark.slow
@pytest.mark.alone
def test_the_estimate_of_an_epoch_is_near_what_it_takes(motion_data: Path, tmp_path: Path):
    recipe = configure(demo(), data=motion_data, output=tmp_path / "out", device="cpu", batch_size=2, epochs=3)
    expected = dry_run("demo", recipe).epoch_s
    took = train(recipe, progress=False).epochs[-1].train_s
    assert took / 2 < expected < took * 2
