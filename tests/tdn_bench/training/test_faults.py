"""What befalls a training from outside: signals, clocks, videos that change, full disks, another number of ranks."""

import errno
import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support.flags import configure

from pipelines.errors import DataError
from pipelines.loader import ClipLoader
from pipelines.manifest import Manifest
from tdn_bench import train as command
from tdn_bench.cli import DataFlags, run_command
from tdn_bench.errors import Terminated, UserError
from tdn_bench.recipes import Recipe, demo
from tdn_bench.training import TrainResult, TrainStep, loop, progress, train, train_record

MODEL = "tsn_resnet_small"


def recipe_of(data: Path | None, output: Path, **changes: Any) -> Recipe:
    """Two epochs of four steps."""
    flags = {"batch_size": 4, "epochs": 2, "evaluate_every": 1, "workers": 1, "device": "cpu", "dropout": 0.5}
    return configure(demo(), data=data, output=output, model=MODEL, **(flags | changes))


@pytest.fixture(scope="module")
def whole(motion_data: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    """The run that nothing happens to."""
    return train(recipe_of(motion_data, tmp_path_factory.mktemp("whole")), progress=False)


def assert_same(result: TrainResult, whole: TrainResult) -> None:
    assert torch.equal(result.scores.logits, whole.scores.logits)
    assert [e.loss for e in result.epochs] == [e.loss for e in whole.epochs]
    assert [e.top1 for e in result.epochs] == [e.top1 for e in whole.epochs]


@pytest.fixture
def at_step(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[], object]], None]:
    """Do something after a step of the run, counted from 1."""

    def arrange(number: int, what: Callable[[], object]) -> None:
        seen = 0

        def step(self: TrainStep, *args: Any, original: Any = TrainStep.__call__) -> Any:
            nonlocal seen
            outcome = original(self, *args)
            seen += 1
            if seen == number:
                what()
            return outcome

        monkeypatch.setattr(TrainStep, "__call__", step)

    return arrange


def send(number: signal.Signals) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_in_a_step_ends_the_run_after_it_and_nothing_is_lost(
    motion_data: Path, tmp_path: Path, whole: TrainResult, at_step: Any, capsys: Any, number: signal.Signals
) -> None:
    recipe = recipe_of(motion_data, tmp_path)
    at_step(6, send(number))
    with pytest.raises(KeyboardInterrupt) as caught:
        train(recipe, progress=False)
    assert isinstance(caught.value, Terminated) == (number != signal.SIGINT)
    assert "saved after step 2 of epoch 2: go on with --resume" in capsys.readouterr().out
    assert signal.getsignal(number) is not None
    result = train(configure(recipe, resume="yes"), progress=False)
    assert "resumed after step 2 of epoch 2" in capsys.readouterr().out
    assert_same(result, whole)
    stretches = train_record(recipe, result).details["stretches"]
    assert [s["start"] for s in stretches] == [(0, 0), (1, 2)]
    assert sum(s["train_s"] for s in stretches) == pytest.approx(sum(e.train_s for e in result.epochs), rel=1e-6)


def test_a_signal_in_validation_ends_the_run_at_once(
    motion_data: Path, tmp_path: Path, whole: TrainResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of(motion_data, tmp_path)

    def score(*args: Any, done: Any, original: Any = loop.score, **options: Any) -> Any:
        def scored(*of: Any) -> None:
            send(signal.SIGTERM)()
            done(*of)

        return original(*args, done=scored, **options)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "score", score)
        with pytest.raises(Terminated):
            train(recipe, progress=False)
    assert_same(train(configure(recipe, resume="auto"), progress=False), whole)


def test_sigusr1_saves_and_the_run_goes_on(
    motion_data: Path, tmp_path: Path, whole: TrainResult, at_step: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = []

    def save(self: Any, state: Any, position: Any, *, original: Any = loop.RunStore.save, **options: Any) -> None:
        saved.append(position)
        original(self, state, position, **options)

    monkeypatch.setattr(loop.RunStore, "save", save)
    at_step(2, send(signal.SIGUSR1))
    assert_same(train(recipe_of(motion_data, tmp_path), progress=False), whole)
    assert saved == [(0, 2), (0, 4), (1, 0), (1, 4), (2, 0)]


def test_a_signal_that_was_ignored_stays_so(
    motion_data: Path, tmp_path: Path, whole: TrainResult, at_step: Any
) -> None:
    """As under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        at_step(2, send(signal.SIGHUP))
        assert_same(train(recipe_of(motion_data, tmp_path), progress=False), whole)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_nothing_depends_on_a_clock_that_jumps(
    motion_data: Path, tmp_path: Path, whole: TrainResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance, now = random.Random(0), time.time
    monkeypatch.setattr(time, "time", lambda: now() + chance.uniform(-1e8, 1e8))
    result = train(recipe_of(motion_data, tmp_path, save_minutes=1e-6), progress=False)
    assert_same(result, whole)
    assert all(0 < e.train_s < 600 for e in result.epochs)


@pytest.fixture
def own_data(motion_data: Path, tmp_path: Path) -> tuple[Path, Manifest]:
    shutil.copytree(motion_data, tmp_path / "set")
    manifest = DataFlags(data=tmp_path / "set").open(progress=False)
    manifest.write(tmp_path / "set.arrow")
    return tmp_path / "set.arrow", manifest


@pytest.mark.parametrize("change", ["lost", "changed"])
def test_a_video_that_changes_between_epochs_is_replaced_and_counted(
    own_data: tuple[Path, Manifest], tmp_path: Path, at_step: Any, change: str
) -> None:
    path, manifest = own_data
    video = Path(manifest.split("train")[3].path)

    def befall() -> None:
        video.unlink()
        if change == "changed":
            video.write_bytes(b"another video")

    at_step(4, befall)
    recipe = recipe_of(None, tmp_path / "run", manifest=path, max_bad_share=1, epochs=3)
    result = train(recipe, progress=False)
    assert result.bad_clips == 1
    assert str(video) in result.bad_clip_reasons
    assert result.epochs[-1].stand_ins >= 1
    log = (tmp_path / "run/bad_clips.jsonl").read_text().splitlines()
    assert [json.loads(line)["path"] for line in log] == [str(video)]
    with pytest.raises(DataError, match="--on-bad-clip skip"):
        train(configure(recipe, on_bad_clip="error", overwrite=True), progress=False)


def test_a_data_set_that_changed_since_the_stop_is_refused(
    motion_data: Path, tmp_path: Path, at_step: Any, capsys: Any
) -> None:
    shutil.copytree(motion_data, tmp_path / "set")
    recipe = recipe_of(tmp_path / "set", tmp_path / "run", max_bad_share=1)
    at_step(2, send(signal.SIGTERM))
    with pytest.raises(Terminated):
        train(recipe, progress=False)
    manifest = DataFlags(data=tmp_path / "set").open(progress=False)
    Path(manifest.split("train")[0].path).unlink()
    with pytest.raises(UserError, match=r"another data set \(digest .*--change data"):
        train(configure(recipe, resume="yes"), progress=False)
    capsys.readouterr()
    train(configure(recipe, resume="yes", change=("data",)), progress=False)
    assert "from here on data " in capsys.readouterr().out


def test_logs_that_cannot_be_written_end_no_training(
    motion_data: Path, tmp_path: Path, whole: TrainResult, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(progress.StepLog, "_append", full)
    assert_same(train(recipe_of(motion_data, tmp_path), progress=False), whole)
    assert capfd.readouterr().err.count("the training goes on") == 1


def test_a_list_of_bad_clips_that_cannot_be_written_ends_no_training(
    own_data: tuple[Path, Manifest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    def full(self: Path, *mode: str, original: Any = Path.open, **options: Any) -> Any:
        if self.name == "bad_clips.jsonl":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(self, *mode, **options)

    monkeypatch.setattr(Path, "open", full)
    path, manifest = own_data
    for number in (1, 3):
        Path(manifest.split("train")[number].path).unlink()
    result = train(recipe_of(None, tmp_path / "run", manifest=path, max_bad_share=1), progress=False)
    assert result.bad_clips == 2
    assert capfd.readouterr().err.count("bad_clips.jsonl: cannot be written (No space left on device)") == 1


def test_a_record_that_cannot_be_written_is_written_by_a_resumption(
    motion_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    flags = ["demo", "--data", str(motion_data), "--output", str(tmp_path), "--model", MODEL, "--epochs", "1"]
    flags += ["--batch-size", "4", "--workers", "1", "--device", "cpu", "--resume", "auto"]
    with monkeypatch.context() as patch:
        patch.setattr(command, "write_record", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left")))
        assert run_command(command.main, flags) == 2
    assert "No space left; free some space" in capfd.readouterr().err
    assert not list(tmp_path.glob("train-*.json"))
    assert run_command(command.main, flags) == 0
    (record,) = tmp_path.glob("train-*.json")
    assert len(json.loads(record.read_text())["samples"]["loss"]) == 1


@pytest.mark.parametrize("ranks", [2, 4])
def test_a_step_takes_the_same_clips_on_any_number_of_processes(motion_data: Path, ranks: int) -> None:
    """So a run can go on with more or fewer of them, at any step."""
    manifest = DataFlags(data=motion_data).open(progress=False)
    spec = demo().clip_spec()
    labels = tuple(range(len(manifest.classes)))

    def ids(batch_size: int, rank: int, world_size: int, first: int) -> Iterator[tuple[str, ...]]:
        loader = ClipLoader(
            manifest.split("train"), spec, batch_size, flipped_labels=labels, rank=rank, world_size=world_size
        )
        with loader:
            yield from (batch.ids for batch in loader.epoch(3, first_batch=first))

    alone = [set(batch) for batch in ids(8, 0, 1, 0)]
    assert len(alone) == 2
    for first in (0, 1):
        parts = [list(ids(8 // ranks, rank, ranks, first)) for rank in range(ranks)]
        together = [{name for part in parts for name in part[step]} for step in range(2 - first)]
        assert together == alone[first:]
