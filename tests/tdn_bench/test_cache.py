"""`tdn-bench cache`: shows what is kept, and removes what is provably its own."""

import json
import os
from pathlib import Path

import pytest

from engines.cache import cached
from pipelines.synthetic import files_of
from tdn_bench.cache import main
from tdn_bench.cli import run_command


@pytest.fixture
def home(tmp_path: Path, monkeypatch) -> Path:
    """A cache with one of each kind, a folder with runs, and much of the user's own. Returns the cache's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    base = tmp_path / "cache" / "tdn_bench"
    with cached(base / "engines", {"a": 1}, lambda path: path.write_bytes(b"engine")):
        pass
    (base / "torchinductor" / "x").mkdir(parents=True)
    (base / "torchinductor" / "x" / "kernel.so").write_bytes(b"kernel")
    (base / f"clips-{'0' * 16}.jsonl").write_text('{"manifest_version": 3}\n')
    (base / f"other-{'0' * 16}.jsonl").write_text('{"mine": 3}\n')
    (base / "notes.txt").write_text("mine")
    (base / ".saving-999-ab.part").write_bytes(b"half")
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "treasure.txt").write_text("mine")
    (base / "torchinductor" / "link").symlink_to(secret)
    (base / f"link-{'0' * 16}.jsonl").symlink_to(secret / "treasure.txt")
    (base / "triton").symlink_to(secret)
    videos = work / "runs/synthetic"
    (videos / "labels").mkdir(parents=True)
    (videos / "labels/synthetic.json").write_text(json.dumps({"version": 1, "seed": 0}))
    (videos / "20bn-something-something-v2").mkdir()
    (videos / "20bn-something-something-v2/7.webm").write_bytes(b"clip")
    (videos / "20bn-something-something-v2/holiday.webm").write_bytes(b"mine")
    (work / "runs/train").mkdir()
    (work / "runs/train/best.safetensors").write_bytes(b"mine")
    (work / "runs/gpu-suite-data").symlink_to(secret)
    return base


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir() or path.is_symlink()}


def test_it_shows_and_removes_nothing_by_itself(home: Path, capsys) -> None:
    before = files(home.parent.parent)
    assert run_command(main, []) == 0
    shown = capsys.readouterr().out
    for kind in ("built engine", "compiled", "scan of a data set", "synthetic videos", "left half written"):
        assert shown.count(kind) == 1
    assert run_command(main, ["--prune", "--all", "--dry-run"]) == 0
    assert "5 of 5 would be removed" in capsys.readouterr().out
    assert files(home.parent.parent) == before


def test_all_takes_what_is_its_own_and_nothing_else(home: Path, capsys) -> None:
    top = home.parent.parent
    before = files(top)
    assert run_command(main, ["--prune", "--all"]) == 0
    assert "5 of 5 removed" in capsys.readouterr().out
    gone = {Path(name).name for name in before - files(top)}
    assert {"7.webm", "synthetic.json", "kernel.so", f"clips-{'0' * 16}.jsonl", ".saving-999-ab.part"} <= gone
    kept = {"treasure.txt", "notes.txt", "holiday.webm", "best.safetensors", f"other-{'0' * 16}.jsonl", "triton"}
    assert not kept & gone
    assert (top / "secret/treasure.txt").read_text() == "mine"


def test_only_what_is_old_and_what_was_left_half_written(home: Path, capsys) -> None:
    scan = home / f"clips-{'0' * 16}.jsonl"
    os.utime(scan, (0, 0))
    assert run_command(main, ["--prune", "--older-than", "7"]) == 0
    assert "2 of 2 removed" in capsys.readouterr().out
    assert not scan.exists()
    assert (home / "torchinductor/x/kernel.so").exists()


def test_an_engine_in_use_stays(home: Path, capsys) -> None:
    with cached(home / "engines", {"a": 1}, lambda path: None) as artifact:
        assert run_command(main, ["--prune", "--all"]) == 0
        assert artifact.path.read_bytes() == b"engine"
    assert "4 of 5 removed" in capsys.readouterr().out


def test_a_folder_that_others_can_write_is_left_alone(home: Path, capsys) -> None:
    home.chmod(0o777)
    assert run_command(main, ["--prune", "--all"]) == 2
    assert "nothing was removed" in capsys.readouterr().err
    assert (home / "notes.txt").exists()


@pytest.mark.parametrize("words", [["--all"], ["--dry-run"], ["--older-than", "3"]])
def test_what_goes_with_prune_alone(words: list[str], capsys) -> None:
    assert run_command(main, words) == 2
    assert "add --prune" in capsys.readouterr().err


def test_nothing_is_kept(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "none"))
    monkeypatch.chdir(tmp_path)
    assert run_command(main, ["--prune"]) == 0
    assert "nothing is kept" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_synthetic_data_without_their_mark_are_nobodys(tmp_path: Path) -> None:
    (tmp_path / "20bn-something-something-v2").mkdir()
    (tmp_path / "20bn-something-something-v2/1.webm").touch()
    assert files_of(tmp_path) == []
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels/synthetic.json").write_text("[]")
    assert files_of(tmp_path) == []
