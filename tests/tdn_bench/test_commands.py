"""`tdn-bench COMMAND` and `python -m tdn_bench.COMMAND`: help, errors in one line, exit statuses."""

import subprocess
import sys
from pathlib import Path

import pytest

from tdn_bench.__main__ import commands
from tdn_bench.cli import run_command
from tdn_bench.doctor import main as doctor

COMMANDS = commands()


def run(*arguments):
    return subprocess.run([sys.executable, "-m", "tdn_bench", *arguments], capture_output=True, text=True, timeout=120)


def test_help_names_every_command():
    done = run("--help")
    assert done.returncode == 0
    for command, what in COMMANDS.items():
        assert f"  {command} " in done.stdout
        assert len(what) > 20


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command, capsys):
    from importlib import import_module

    module = import_module(f"tdn_bench.{command.replace('-', '_')}")
    main = module.main
    assert "raise SystemExit(run_command(main))" in Path(module.__file__).read_text()  # as `python -m`, too
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    assert f"tdn-bench {command}" in capsys.readouterr().out


def test_an_unknown_command_and_an_unknown_folder():
    done = run("nope")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    done = run("prepare", "sthv2", "--root", "/nowhere")
    assert done.returncode == 2
    assert done.stderr.startswith("error: /nowhere: no such folder")


def test_doctor_lists_every_engine(capsys):
    assert run_command(doctor, ["--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert "eager     ready" in out
    assert "trt       missing: " in out
    assert "pyav      ready" in out


def test_list_names_networks_recipes_and_tables(capsys):
    from tdn_bench.list import main

    assert run_command(main, []) == 0
    out = capsys.readouterr().out
    for name in ("tdn ", "sthv2", "table1a"):
        assert f"\n  {name}" in out


def test_a_reader_that_has_read_enough_is_no_error():
    talk = "import sys; from tdn_bench.cli.run import run_command; "
    talk += "sys.exit(run_command(lambda argv: [print('x' * 99) for _ in range(10**5)]))"
    process = subprocess.Popen([sys.executable, "-c", talk], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(60) == 141
    assert process.stderr is not None
    assert process.stderr.read() == ""
    process.stderr.close()
