"""`tdn-bench COMMAND` and `python -m tdn_bench.COMMAND`: help, errors in one line, exit statuses."""

import json
import subprocess
import sys

import pytest

from tdn_bench.__main__ import COMMANDS
from tdn_bench.cli import run_command
from tdn_bench.doctor import main as doctor
from tdn_bench.prepare import main as prepare


def run(*arguments):
    return subprocess.run([sys.executable, "-m", "tdn_bench", *arguments], capture_output=True, text=True, timeout=120)


def test_help_names_every_command():
    done = run("--help")
    assert done.returncode == 0
    for command in COMMANDS:
        assert f"  {command} " in done.stdout


@pytest.mark.parametrize("command", [c for c in COMMANDS if c != "list"])
def test_every_command_has_help(command, capsys):
    from importlib import import_module

    main = import_module(f"tdn_bench.{command.replace('-', '_')}").main
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    assert f"tdn-bench {command}" in capsys.readouterr().out


def test_an_unknown_command_and_an_unknown_folder():
    done = run("nope")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    done = run("prepare", "--data", "/nowhere")
    assert done.returncode == 2
    assert done.stderr.startswith("error: /nowhere: no such folder")


def test_prepare_counts_and_names_bad_files(motion_data, tmp_path, capsys):
    import shutil

    data = tmp_path / "set"
    shutil.copytree(motion_data, data)
    first, second = sorted((data / "20bn-something-something-v2").iterdir())[:2]
    first.unlink()
    second.write_bytes(b"")
    assert run_command(prepare, ["--data", str(data), "--workers", "1", "--out", str(tmp_path / "m.jsonl")]) == 0
    out = capsys.readouterr().out
    assert "14 of 16 videos usable (14 vp9)" in out
    assert f"bad: {first}: no such file" in out
    assert f"bad: {second}: empty file" in out
    rows = [json.loads(line) for line in (tmp_path / "m.jsonl").read_text().splitlines()]
    assert len(rows) == 24
    assert sum(r["status"] == "ok" for r in rows) == 22


def test_doctor_lists_every_engine(capsys):
    assert run_command(doctor, ["--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert "eager     ready" in out
    assert "trt       missing: " in out
    assert "pyav      ready" in out
