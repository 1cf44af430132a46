"""A run's folder: whatever dies, is damaged, is full or is shared, what is resumed from is whole."""

import errno
import fcntl
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pipelines import files
from tdn_bench.checkpoint import read_tensors
from tdn_bench.errors import UserError
from tdn_bench.training import store as store_module
from tdn_bench.training.store import RunStore


def state(value: float) -> dict[str, Any]:
    return {"notes": f"{value}", "network": {"w": torch.full((3,), value)}}


@contextmanager
def opened(folder: Path, **flags: Any) -> Iterator[RunStore]:
    with RunStore.claim(folder, **({"resume": True, "overwrite": False} | flags)) as store:
        yield store


def newest(folder: Path) -> tuple[tuple[int, int], float] | None:
    with opened(folder) as store:
        loaded = store.newest()
    return None if loaded is None else (loaded.position, float(loaded.state["network"]["w"][0]))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """Four checkpoints, of which three are kept."""
    with opened(tmp_path) as store:
        for step in range(4):
            store.save(state(step), (0, step), wait=True)
    return tmp_path


def test_the_newest_are_kept_and_the_newest_is_resumed_from(saved: Path) -> None:
    assert newest(saved) == ((0, 3), 3.0)
    assert sorted(p.name for p in (saved / "checkpoints").iterdir()) == [
        f"epoch-0000-step-00000{step}.pt" for step in (1, 2, 3)
    ]
    with opened(saved) as store:
        store.save(state(4), (1, 0), wait=True)
    assert newest(saved) == ((1, 0), 4.0)


def test_what_is_written_is_what_was_when_it_was_handed_over(tmp_path: Path) -> None:
    tensor = torch.zeros(1 << 20)
    with opened(tmp_path) as store:
        store.save({"network": {"w": tensor}}, (0, 1))
        tensor += 1  # training goes on
    assert newest(tmp_path) == ((0, 1), 0.0)


def test_two_hundred_cuts_and_flips_never_give_a_wrong_state(saved: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = saved / "checkpoints/epoch-0000-step-000003.pt"
    whole = file.read_bytes()
    chance = random.Random(0)
    with opened(saved) as store:
        for number in range(200):
            place = chance.randrange(len(whole))
            damaged = bytearray(whole)
            damaged[place] ^= 1 << chance.randrange(8)
            file.write_bytes(whole[:place] if number % 2 else damaged)
            loaded = store.newest()
            assert loaded is not None
            assert (loaded.position, loaded.state["notes"]) == ((0, 2), "2")
    said = capfd.readouterr().err
    assert "epoch-0000-step-000003.pt: missing, or changed since it was written; going on from" in said
    file.write_bytes(whole)
    assert newest(saved) == ((0, 3), 3.0)


def test_where_none_is_whole_that_is_one_line(saved: Path) -> None:
    for file in (saved / "checkpoints").iterdir():
        file.write_bytes(b"x")
    with pytest.raises(UserError, match=r"no checkpoint is whole; put a copy of one back, or start anew"):
        newest(saved)


HOSTILE: dict[str, Any] = {
    "cut": b'{"format',
    "no object": b"[]",
    "deep": b"[" * 100_000,
    "large": b" " * (2**20 + 1),
    "another version": {"format": "tdn_bench run 9"},
    "a file elsewhere": {"file": "../../etc/passwd"},
    "a file of another kind": {"file": "checkpoints/../run.json"},
    "a position that is not its own": {"step": 7},
    "a number of words": {"bytes": "many"},
    "no bytes": {"bytes": 0},
    "a boolean": {"epoch": True},
    "something more": {"run": "rm -rf"},
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_damaged_manifest_is_said_and_the_files_count(saved: Path, kind: str, capfd: Any) -> None:
    raw = json.loads((saved / "run.json").read_text())
    damage = HOSTILE[kind]
    if isinstance(damage, dict) and "format" not in damage:
        raw["checkpoints"][-1] |= damage
        damage = raw
    (saved / "run.json").write_bytes(damage if isinstance(damage, bytes) else json.dumps(damage).encode())
    assert newest(saved) == ((0, 3), 3.0)
    said = capfd.readouterr().err
    assert "run.json: " in said
    assert "going by the checkpoints that there are" in said
    assert said.count("\n") == 1


def test_a_missing_manifest_too(saved: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (saved / "run.json").unlink()
    assert newest(saved) == ((0, 3), 3.0)
    assert "run.json: missing; going by the checkpoints that there are" in capfd.readouterr().err


class Killed(BaseException):
    """No handler of the product's catches it, as none catches SIGKILL."""


@pytest.mark.parametrize("number", range(1, 16))
def test_death_between_any_two_changes_of_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """An epoch's weights, then its checkpoint, twice: weights are never older than what the manifest says of them."""
    network = nn.Linear(2, 1)
    seen = 0

    def dying(call: Any) -> Any:
        def wrapped(*args: Any, **options: Any) -> Any:
            nonlocal seen
            seen += 1
            if seen == number:
                raise Killed
            return call(*args, **options)

        return wrapped

    def run(store: RunStore) -> None:
        for epoch in (1, 2):
            with torch.no_grad():
                network.weight.fill_(epoch)
            for name in ("last", "best"):
                store.save_weights(name, network, {"epoch": epoch, "top1": 50.0})
            store.save(state(epoch), (epoch, 0), wait=True)

    with monkeypatch.context() as patch, opened(tmp_path, keep=1) as store:
        patch.setattr(os, "replace", dying(os.replace))
        patch.setattr(Path, "unlink", dying(Path.unlink))
        try:
            run(store)
        except Killed:
            store._pending.clear()
        patch.undo()
    found = newest(tmp_path)
    manifest = json.loads((tmp_path / "run.json").read_text()) if (tmp_path / "run.json").exists() else {}
    for name, of in manifest.get("weights", {}).items():
        tensors, notes = read_tensors(tmp_path / name)
        assert notes["epoch"] == float(tensors["weight"][0, 0])
        assert notes["epoch"] >= of["epoch"]
    if found is not None:
        position, value = found
        assert position == (int(value), 0)
        assert position[0] <= read_tensors(tmp_path / "last.safetensors")[1]["epoch"]


@pytest.mark.parametrize("left", [0, 1000, 100_000])
def test_a_full_disk_is_said_and_training_goes_on(tmp_path: Path, left: int) -> None:
    """By a real limit on the size of files, in a process of its own."""
    program = f"""
import resource, signal, sys, torch
from pathlib import Path
from tdn_bench.errors import UserError
from tdn_bench.training.store import RunStore
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
small, large = ({{"network": {{"w": torch.zeros(n)}}}} for n in (3, 1 << 20))
with RunStore.claim(Path(sys.argv[1]), resume=True, overwrite=False) as store:
    store.save(small, (0, 1), wait=True)
    resource.setrlimit(resource.RLIMIT_FSIZE, ({left}, resource.RLIM_INFINITY))
    store.save(large, (0, 2))
    store.save(large, (0, 3))
    try:
        store.save(large, (0, 4), wait=True)
    except UserError as e:
        print(e)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    print(store.newest().position)
    store.save(small, (0, 5), wait=True)
    print(store.newest().position)
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    error, before, after = done.stdout.splitlines()
    assert "File too large" in error
    assert "make room, then go on with --resume" in error
    assert (before, after) == ("(0, 1)", "(0, 5)")
    assert done.stderr.count("training goes on, what was saved before is kept") == 1
    assert not list(tmp_path.rglob(".saving-*"))


@pytest.mark.parametrize("what", ["last.safetensors", "checkpoints"])
def test_a_write_that_failed_is_not_forgotten_for_another_that_went_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    def full(path: Path, content: Any, write: Any = files.write_whole) -> None:
        if what in str(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(path, content)

    monkeypatch.setattr("tdn_bench.checkpoint.tensor_files.write_whole", full)
    with opened(tmp_path) as store:
        store.save_weights("last", nn.Linear(1, 1), {"epoch": 1, "top1": None})
        store.save(state(1), (1, 0))
        with pytest.raises(UserError, match=rf"{what}.*No space left.*make room, then go on with --resume"):
            store.wait()


def test_a_folder_holds_one_run_and_is_written_by_one(saved: Path) -> None:
    with pytest.raises(UserError, match=r"holds a run already .*--resume.*--overwrite"), opened(saved, resume=False):
        pass
    with opened(saved):
        for flags in ({}, {"overwrite": True}):
            with pytest.raises(UserError, match="another training is writing there"), opened(saved, **flags):
                pass
    assert not (saved / ".owner").exists()


@pytest.mark.parametrize("locks", [True, False])
def test_without_locks_an_owner_that_lives_is_left_alone(
    saved: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], locks: bool
) -> None:
    """A file system without locks, and one that knows them on one machine only: the owner is on another."""

    def none(*_: object) -> None:
        if not locks:
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", none)
    monkeypatch.setattr(store_module, "WATCH_S", 1.0)
    monkeypatch.setattr(store_module, "BEAT_S", 0.1)
    with monkeypatch.context() as elsewhere:
        if locks:
            elsewhere.setattr(store_module, "_machine", lambda: "another")
        first = RunStore.claim(saved, resume=True, overwrite=False)
        first.__enter__()
    with pytest.raises(UserError, match="another training is writing there"), opened(saved):
        pass
    assert "watching it for 1 s" in capfd.readouterr().err
    first.__exit__(None, None, None)


def test_without_locks_an_owner_that_is_gone_is_replaced_and_one_that_comes_back_stops(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOLCK, "No locks")))
    monkeypatch.setattr(store_module, "WATCH_S", 0.2)
    monkeypatch.setattr(store_module, "BEAT_S", 60.0)  # as if it were stopped
    with opened(saved) as stopped:
        with opened(saved) as other:
            other.save(state(8), (8, 0), wait=True)
            with pytest.raises(UserError, match="another training is writing there"):
                stopped.save(state(9), (9, 0), wait=True)
        assert newest(saved) == ((8, 0), 8.0)


def test_a_run_of_an_earlier_version_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "last.pt").write_bytes(b"x")
    with pytest.raises(UserError, match=r"last\.pt: is of an earlier version.*--overwrite"):
        newest(tmp_path)
    with pytest.raises(UserError, match=r"holds a run already \(last\.pt\)"), opened(tmp_path, resume=False):
        pass


def test_the_folder_that_a_killed_run_left_is_cleared(saved: Path) -> None:
    for folder in (saved, saved / "checkpoints"):
        (folder / ".saving-1-abcd.part").write_bytes(b"half")
    assert newest(saved) == ((0, 3), 3.0)
    assert not list(saved.rglob(".saving-*"))
