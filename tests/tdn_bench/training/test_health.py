"""Steps that are not finite, through the loop's own eyes and in whole runs; what a run logs; what its record says."""

import errno
import json
import math
import os
import re
import statistics
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from support.flags import configure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from tdn_bench.checkpoint import read_metadata
from tdn_bench.errors import UserError
from tdn_bench.measurement.interference import Watch
from tdn_bench.models import FrameClassifier
from tdn_bench.models.complexity import measure
from tdn_bench.recipes import Recipe, demo
from tdn_bench.training import health, loop, train, train_record
from tdn_bench.training.health import NonFiniteSteps, note_steps
from tdn_bench.training.progress import StepLog
from tdn_bench.training.run_state import Partial


def tiny(data: Path, output: Path, **changes: Any) -> Recipe:
    """Runs of four steps an epoch."""
    flags = {"batch_size": 4, "epochs": 2, "evaluate_every": 2, "workers": 1, "device": "cpu"}
    return configure(demo(), data=data, output=output, **(flags | {"model": "tsn_resnet_small"} | changes))


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()]


VALUES = st.sampled_from([0.5, 2.0, math.nan, math.inf])


@given(st.lists(st.tuples(VALUES, VALUES), min_size=1, max_size=12), st.integers(1, 6), st.booleans(), st.data())
def test_steps_are_counted_as_one_by_one_in_any_parts(
    steps: list[tuple[float, float]], most: int, scaled: bool, data: st.DataObject
) -> None:
    """Against counting in the whole list, at every step anew."""
    expected_stop = None
    for n in range(1, len(steps) + 1):
        lost = [not math.isfinite(loss) for loss, _ in steps[:n]]
        skipped = [not math.isfinite(norm) for _, norm in steps[:n]]
        either = [a or b for a, b in zip(lost, skipped, strict=True)]
        in_row = n - 1 - max((i for i, bad in enumerate(either) if not bad), default=-1)
        counted = max(sum(lost), 0 if scaled else sum(skipped))
        if in_row >= min(most, 20) or counted >= most:
            expected_stop = n - 1
            break
    cut = data.draw(st.integers(0, len(steps)))

    def noted() -> Partial:
        partial = Partial(train_s=3.0, replaced=1)
        for part in (steps[:cut], steps[cut:]):
            losses, norms = [loss for loss, _ in part], [norm for _, norm in part]
            partial = note_steps(partial, losses, norms, scaled=scaled, steps=20, most=most)
        return partial

    if expected_stop is not None:
        with pytest.raises(NonFiniteSteps) as caught:
            noted()
        assert caught.value.step == expected_stop
        return
    partial = noted()
    assert partial.losses == [loss if math.isfinite(loss) else None for loss, _ in steps]
    assert partial.skipped == sum(not math.isfinite(norm) for _, norm in steps)
    assert (partial.train_s, partial.replaced) == (3.0, 1)
    json.dumps(asdict(partial), allow_nan=False)  # a state holds no NaN


def test_an_epoch_of_nothing_else_ends_the_run_however_many_are_allowed() -> None:
    with pytest.raises(NonFiniteSteps, match="3 steps in a row"):
        note_steps(Partial(), [1.0] * 3, [math.nan] * 3, scaled=True, steps=3, most=100)


def poison(monkeypatch: pytest.MonkeyPatch, *which: int) -> None:
    """Make the forward passes of these training steps give NaN."""
    forward, count = FrameClassifier.forward, iter(range(10**6))

    def spoiled(self: FrameClassifier, frames: torch.Tensor) -> torch.Tensor:
        logits = forward(self, frames)
        return logits * math.nan if self.training and next(count) in which else logits

    monkeypatch.setattr(FrameClassifier, "forward", spoiled)


def test_a_run_survives_a_step_that_is_not_finite_and_counts_it(
    motion_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    poison(monkeypatch, 1)
    recipe = tiny(motion_data, tmp_path)
    result = train(recipe, progress=False)
    assert [e.skipped_steps for e in result.epochs] == [1, 0]
    assert train_record(recipe, result).figures["skipped_steps"] == 1
    assert all(map(math.isfinite, (e.loss for e in result.epochs)))
    assert result.scores.logits.isfinite().all()
    assert [row["skipped"] for row in rows(tmp_path)] == [1, 0]
    assert "1 steps skipped" in capsys.readouterr().out


def test_a_run_resumed_amid_such_steps_ends_as_one_that_was_not(
    motion_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, 1, 2)
    whole = train(tiny(motion_data, tmp_path / "whole", save_steps=2), progress=False)
    monkeypatch.undo()
    poison(monkeypatch, 1, 2)
    saved = loop.Saving.save

    def stop(self: loop.Saving) -> None:
        saved(self)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop.Saving, "save", stop)
        with pytest.raises(KeyboardInterrupt):
            train(tiny(motion_data, tmp_path / "cut", save_steps=2), progress=False)
    resumed = train(tiny(motion_data, tmp_path / "cut", save_steps=2, resume="yes"), progress=False)
    assert [e.skipped_steps for e in resumed.epochs] == [2, 0]
    assert [e.loss for e in resumed.epochs] == [e.loss for e in whole.epochs]
    assert torch.equal(resumed.scores.logits, whole.scores.logits)
    assert [(r["epoch"], r["step"]) for r in rows(tmp_path / "cut")] == [(1, 2), (1, 4), (2, 2), (2, 4)]


def test_too_many_such_steps_end_the_run_and_their_clips_are_kept(
    motion_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, 5, 6)
    batches = []
    real = loop.TrainStep.__call__

    def noted(self: Any, frames: torch.Tensor, labels: torch.Tensor, epoch: float) -> Any:
        batches.append((frames.clone(), labels.clone()))
        return real(self, frames, labels, epoch)

    monkeypatch.setattr(loop.TrainStep, "__call__", noted)
    recipe = tiny(motion_data, tmp_path, max_nonfinite_steps=2)
    with pytest.raises(UserError, match=r"epoch 2: 2 steps in a row.*videos .* smaller --lr, from the last") as caught:
        train(recipe, progress=False)
    (file,) = tmp_path.glob("nonfinite-*.safetensors")
    assert file.name == "nonfinite-epoch-0002-step-000002.safetensors"
    assert str(file) in str(caught.value)
    kept, notes = load_file(file), read_metadata(file)
    assert torch.equal(kept["frames"], batches[6][0])
    assert torch.equal(kept["labels"], batches[6][1])
    assert (notes["epoch"], notes["step"]) == (2, 2)
    assert ", ".join(notes["ids"]) in str(caught.value)
    assert "\n" not in str(caught.value)


def no_space(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_scalars_that_cannot_be_written_are_said_once(
    motion_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(SummaryWriter, "flush", no_space)
    result = train(tiny(motion_data, tmp_path), progress=False)
    assert len(result.epochs) == len(rows(tmp_path)) == 2
    said = capsys.readouterr().err.splitlines()
    assert len([line for line in said if "No space left on device" in line]) == 2  # of epochs, and of steps
    assert all("the training goes on" in line for line in said if "No space" in line)


def test_a_log_that_cannot_be_written_is_said_once(
    motion_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened = Path.open

    def full(self: Path, mode: str = "r", *arguments: Any, **more: Any) -> Any:
        if self.name == "steps.jsonl" and mode == "a":
            no_space()
        return opened(self, mode, *arguments, **more)

    monkeypatch.setattr(Path, "open", full)
    train(tiny(motion_data, tmp_path, epochs=2), progress=False)
    said = capsys.readouterr().err
    assert said.count("No space left on device") == 1
    assert "steps.jsonl: cannot be written (No space left on device); the training goes on" in said


def test_the_log_keeps_what_was_done_and_no_line_that_was_cut(tmp_path: Path) -> None:
    log = StepLog(tmp_path, (0, 0), steps=40)
    for epoch, step in ((0, 20), (0, 40), (1, 20), (1, 40)):
        log.write(epoch, step, {"loss": 1.0 + epoch, "gradient_norm": None})
    log.close()
    with (tmp_path / "steps.jsonl").open("a") as file:
        file.write('{"epoch": 1, "st\n[3]\n')
    log = StepLog(tmp_path, (1, 20), steps=40)
    assert [(r["epoch"], r["step"]) for r in rows(tmp_path)] == [(1, 20), (1, 40), (2, 20)]
    log.write(1, 40, {"loss": 7.0, "gradient_norm": 2.0})
    log.close()
    assert rows(tmp_path)[-1] == {"epoch": 2, "step": 40, "loss": 7.0, "gradient_norm": 2.0}
    events = EventAccumulator(str(tmp_path / "steps"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("steps/loss")] == [(20, 1), (40, 1), (60, 2), (80, 7)]


def test_a_run_of_before_goes_from_the_log(tmp_path: Path) -> None:
    log = StepLog(tmp_path, (0, 0), steps=4)
    log.write(0, 4, {"loss": 1.0})
    log.close()
    StepLog(tmp_path, (0, 0), steps=4).close()
    assert rows(tmp_path) == []


def test_figures_of_steps(
    motion_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(health, "device_peak", lambda device, precision: 1e12)
    monkeypatch.setattr(Watch, "verdict", lambda self, *_: ("void", ["other processes took 40% of the processors"]))
    recipe = tiny(motion_data, tmp_path)
    result = train(recipe, progress=False)
    macs = measure(recipe.model, num_segments=4, size=64).total.macs
    first, last = rows(tmp_path)
    for row in (first, last):
        parts = ("other", "wait", "forward", "backward", "all_reduce", "optimizer")
        assert sum(row[f"{part}_ms"] for part in parts) == pytest.approx(row["step_ms"], rel=1e-4)
        assert row["clips_per_s"] == pytest.approx(4000 / row["step_ms"], rel=1e-4)
        assert row["wait_share"] == pytest.approx(row["wait_ms"] / row["step_ms"], rel=1e-4)
        assert row["mfu"] == pytest.approx(row["clips_per_s"] * 6 * macs / 1e12, rel=1e-4)
        assert row["peak_memory_mb"] > 100
    assert [(r["epoch"], r["step"], r["steps"]) for r in (first, last)] == [(1, 4, 4), (2, 4, 4)]
    assert [first["loss"], last["loss"]] == pytest.approx([e.loss for e in result.epochs], rel=1e-5)
    line = capsys.readouterr().out.splitlines()[-1]
    told = f"gradient norm {last['gradient_norm']:.3g}, {last['step_ms']:.4g} ms/step ("
    assert told in line
    assert line.index("MFU") < line.index("top-1")
    record = train_record(recipe, result)
    assert record.figures["step_ms"] == pytest.approx(last["step_ms"], rel=1e-4)
    assert record.figures["model_flops_utilization"] == pytest.approx(last["mfu"], rel=1e-4)
    assert len(record.samples["step_ms"]) == 4
    train_ms = 1000 * result.epochs[-1].train_s  # the last look at the steps is no step's: much, of four small ones
    assert 0.3 * train_ms < sum(record.samples["step_ms"]) < 1.001 * train_ms
    # the clock and the ledger saw the same work
    working_ms = sum(record.figures[f"step_{part}_ms"] for part in ("forward", "backward", "optimizer"))
    assert working_ms == pytest.approx(4 * record.figures["ledger_train_ms"], rel=0.2)
    assert record.status == "unstable"  # its accuracy is as it would be
    assert record.status_reasons[0] == "times of the last epoch: other processes took 40% of the processors"
    assert "times of the last epoch: measured for less than 3 s or 10 steps" in record.status_reasons


@pytest.mark.slow
@pytest.mark.alone
def test_following_costs_next_to_nothing(motion_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a share of the demo's steps, in one run, with a look for every twenty of them; the least of five epochs, as
    others may take the processors."""
    shares, noting_s = [], []

    class Timed(health.Health):
        def after(self, *arguments: Any) -> None:
            begun = time.perf_counter()
            super().after(*arguments)
            noting_s.append(time.perf_counter() - begun)

        def look(self, *arguments: Any) -> Partial:
            begun = time.perf_counter()
            noted = super().look(*arguments)
            looking_s = time.perf_counter() - begun
            step_s = statistics.fmean(sum(step.values()) for step in self._seen) / 1000
            shares.append((noting_s[-1] + looking_s / health.LOOK_EVERY) / step_s)
            return noted

    monkeypatch.setattr(loop, "Health", Timed)
    train(tiny(motion_data, tmp_path, batch_size=8, epochs=5, model="tdn_resnet_small"), progress=False)
    assert min(shares) <= 0.005, shares


POISONED = """
import math, os
from tdn_bench.cli import run_command
from tdn_bench.models import FrameClassifier
from tdn_bench.train import main

def spoiled(self, frames, forward=FrameClassifier.forward):
    logits = forward(self, frames)
    return logits * math.nan if os.environ["RANK"] == "1" else logits

FrameClassifier.forward = spoiled
raise SystemExit(run_command(main))
"""


@pytest.mark.slow
def test_what_one_process_finds_all_decide_alike(motion_data: Path, tmp_path: Path) -> None:
    script = tmp_path / "poisoned.py"
    script.write_text(POISONED)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    command += ["demo", "--data", str(motion_data), "--output", str(tmp_path / "run"), "--batch-size", "4"]
    command += ["--model", "tsn_resnet_small", "--workers", "1", "--device", "cpu", "--max-nonfinite-steps", "3"]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert done.returncode != 0
    kept = sorted(path.name for path in (tmp_path / "run").glob("nonfinite-*"))
    assert kept == [f"nonfinite-epoch-0001-step-000002-rank-{rank}.safetensors" for rank in (0, 1)]
    for rank in (0, 1):
        why = "3 steps in a row had a loss or gradients that are not finite"
        assert re.search(rf"error: rank {rank} on \S+: epoch 1: {why}", done.stderr)
