"""Every number of every command: -1, NaN, infinity and what no run could have are refused in one line, before any
work. The flags are found by reflection, so a new one is tried, too."""

import contextlib
import io
import os
from pathlib import Path

import pytest
from support.commands import interfaces, main_of, needed

from tdn_bench.cli import run_command

ABSURD = "1000000000000000"
# A seed may be any whole number up to 2^63 - 1; the one beyond is refused.
SEEDS = ("seed", "seeds")
KINDS = [name for name in interfaces() if not name.startswith("train ") or name == "train demo"]  # recipes are alike


@pytest.mark.parametrize("name", KINDS)
def test_a_number_that_no_run_could_have_is_refused_before_work(name: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    interface = interfaces()[name]
    numbers = [f for f in interface.flags if f.kind in (int, float)]
    for f in numbers:
        for bad in ("-1", "nan", "inf", ABSURD if f.name not in SEEDS else str(2**63)):
            flag, said = f"--{f.name.replace('_', '-')}", io.StringIO()
            with contextlib.redirect_stderr(said):
                status = run_command(main_of(name.split()[0]), [*needed(interface), flag, bad])
            assert status == 2, f"{name} {flag} {bad}"
            assert said.getvalue().startswith(f"error: {flag} "), f"{name} {flag} {bad}: {said.getvalue()}"
            assert said.getvalue().count("\n") == 1
            assert os.listdir(tmp_path) == [], f"{name} {flag} {bad} left something behind"


@pytest.mark.parametrize("command", [["throughput"], ["scenario", "offline"], ["scenario", "server"]])
def test_a_precision_that_an_engine_has_not_is_refused_before_work(
    command, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [*command[1:], "--engine", "eager", "--precision", "int8", "--device", "cpu"]
    assert run_command(main_of(command[0]), words) == 2
    assert capsys.readouterr().err.startswith("error: engine 'eager' has no int8 on cpu; choose one of fp32")
    assert os.listdir(tmp_path) == []
