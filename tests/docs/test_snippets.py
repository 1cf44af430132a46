"""Every shell line and every Python snippet of the README and the pages: parsed in the fast tests, run in the slow ones
on small synthetic data. What needs a GPU, many minutes or the network is only parsed; `why_not_run` says which and why.
"""

import ast
import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from doctest import ELLIPSIS, NORMALIZE_WHITESPACE, OutputChecker
from pathlib import Path
from typing import Any

import pytest
import torch
from support.paths import ROOT
from support.snippet_world import add_scores, make_world, names, placed
from support.snippets import DATA, PAGES, PYTHON, SHELL, Block, blocks, command_module, dry_run, simple_commands

from tdn_bench.__main__ import commands
from tdn_bench.cli import run_command

BLOCKS = {str(page.relative_to(ROOT)): blocks(page) for page in PAGES}
WITH_SHELL = [page for page, found in BLOCKS.items() if any(b.language in SHELL for b in found)]
TO_RUN = [page for page, found in BLOCKS.items() if any(b.language in (*SHELL, PYTHON) for b in found)]
MINUTES = ("ablate", "demo", "gpu-suite", "regress", "scenario")
FOUND = {"doctor": (0, 1), "parity": (0, 1)}  # exit statuses that are no error
SMALL = ["--model", "tdn_resnet_small", "--num-segments", "2", "--size", "64"]


def why_not_run(words: list[str]) -> str | None:
    """Why a simple command is only parsed; None for one that is run."""
    if words[0] == "python":
        return "a benchmark, which takes minutes" if words[1].startswith("benchmarks/") else None
    if words[0] != "tdn-bench":
        return "not a command of this project"
    if words[1] in MINUTES:
        return "takes minutes; it has tests of its own"
    if words[1] == "pull" or (words[1] == "push" and "--dry-run" not in words) or "hf-hub:" in " ".join(words):
        return "asks the Hugging Face Hub"
    if "--track" in words:
        return "needs a tracker, which users install themselves"
    if "--compare" in words:
        return "takes turns for minutes; it has tests of its own"
    if words[1] == "train" and words[2] not in ("demo", "folders"):
        return "a training that needs a GPU"
    if words[1] == "train" and "--resume" in words:
        return "goes on with a run that is not there; it has tests of its own"
    if words[1] == "evaluate" and "tdn_resnet50" in words:
        return "a large network, which takes minutes on a CPU"
    return None


def smaller(words: list[str]) -> list[str]:
    """A command with flags that make it quick; the last of two counts."""
    if words[1] == "throughput":
        small = [] if "--checkpoint" in words or "none" in words else SMALL
        return [*words, *small, "--seconds", "0", "--batch-size", "4"]
    if words[1:3] == ["parity", "engines"] and "--engines" not in words:
        return [*words, "--engines", "onnx"]
    if words[1] == "train":
        return [*words, *SMALL, "--epochs", "1", "--batch-size", "4"]
    return words


@pytest.fixture(scope="session")
def made_world(tmp_path_factory: pytest.TempPathFactory, motion_data: Path) -> Path:
    return make_world(tmp_path_factory.mktemp("world"), motion_data)


@pytest.fixture
def world(made_world: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, with all that the pages assume; `tdn-bench` is on the path of its shell."""
    monkeypatch.chdir(made_world)
    programs = made_world / "bin"
    programs.mkdir(exist_ok=True)
    for name, words in (("tdn-bench", "-m tdn_bench"), ("python", "")):
        (programs / name).write_text(f'#!/bin/sh\nexec {sys.executable} {words} "$@"\n')
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("COLUMNS", "100")
    before = torch.get_num_threads()
    yield made_world
    torch.set_num_threads(before)


def run_line(line: str, capfd: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """(exit status, stdout, stderr) of a shell line: a plain command here, in this process; all else in a shell."""
    [words, *others] = simple_commands(line)
    if others or words[0] != "tdn-bench" or words[1].startswith("-") or re.search(r"[<>*]", line):
        done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=300)
        return done.returncode, done.stdout, done.stderr
    capfd.readouterr()
    try:
        status = run_command(command_module(words[1]).main, smaller(words)[2:])
    except SystemExit as end:  # --help
        status = int(end.code or 0)
    return status, *capfd.readouterr()


def write_config(page: str) -> None:
    """The file that a page's lines name by --config is the first TOML block of the page."""
    blocks = BLOCKS[page]
    lines = [line for block in blocks if block.language in SHELL for line, _ in block.shell_lines()]
    for name in {match[1] for line in lines if (match := re.search(r"--config (\S+)", line))}:
        Path(name).write_text(next(block.text for block in blocks if block.language == "toml"))


def run_shell(block: Block, capfd: pytest.CaptureFixture[str]) -> list[str]:
    """Run a block's lines, or parse those that are not run; what went wrong."""
    wrong = []
    for line, expected in block.shell_lines():
        simple = simple_commands(line)
        if block.dry or any(why_not_run(words) for words in simple):
            dry_run(line)
            continue
        status, out, err = run_line(placed(line), capfd)
        if status not in FOUND.get(simple[0][1], (0,)):
            wrong.append(f"{block}: {line}\nexit status {status}\n{out}{err}")
        elif expected and not OutputChecker().check_output(expected, out, ELLIPSIS | NORMALIZE_WHITESPACE):
            wrong.append(f"{block}: {line}\nexpected:\n{expected}\ngot:\n{out}")
    return wrong


def missing_modules(tree: ast.Module) -> list[str]:
    imports = [n for n in ast.walk(tree) if isinstance(n, ast.Import | ast.ImportFrom)]
    modules = {n.module or "" if isinstance(n, ast.ImportFrom) else n.names[0].name for n in imports}
    return [m for m in sorted(modules) if importlib.util.find_spec(m.partition(".")[0]) is None]


def run_python(block: Block, namespace: dict[str, Any]) -> list[str]:
    tree = ast.parse(block.text, str(block))
    if block.dry:
        return []
    if missing := missing_modules(tree):
        pytest.skip(f"{block}: needs {', '.join(missing)}")
    try:
        exec(compile(tree, str(block), "exec"), namespace)
    except Exception as error:  # noqa: BLE001  # whatever a snippet raises is what this test is about
        return [f"{block}: {type(error).__name__}: {error}"]
    return []


def run_page(page: str, capfd: pytest.CaptureFixture[str]) -> None:
    write_config(page)
    namespace, wrong = names(), []
    for block in BLOCKS[page]:
        if block.language in SHELL:
            wrong += run_shell(block, capfd)
        elif block.language == PYTHON:
            wrong += run_python(block, namespace)
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("page", BLOCKS)
def test_every_block_is_of_a_kind_that_is_tested(page: str) -> None:
    for block in BLOCKS[page]:
        assert block.language in (*SHELL, PYTHON, *DATA), f"{block}: {block.language!r}"


@pytest.mark.parametrize("page", WITH_SHELL)
def test_every_shell_line_names_real_commands_flags_and_choices(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_config(page)
    wrong = []
    for block in BLOCKS[page]:
        for line, _ in block.shell_lines() if block.language in SHELL else ():
            try:
                dry_run(line)
            except AssertionError as error:
                wrong.append(f"{block}: {error}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("command", commands())
def test_the_examples_of_a_commands_help_are_real_lines(command: str) -> None:
    for line in getattr(command_module(command), "EXAMPLES", ()):
        dry_run(line)


def test_what_is_no_command_flag_or_choice_is_found() -> None:
    dry_run("X=1 tdn-bench evaluate --checkpoint FILE --data 'a b' 2> /dev/null | head -3  # a comment")
    for line in (
        "tdn-bench evalute --data DIR",
        "tdn-bench evaluate --dta DIR",
        "tdn-bench evaluate --protocol two-clip",
        "tdn-bench throughput --engine nope",
        "tdn-bench list && tdn-bench nope",
        "torchrun --nproc-per-node 8 -m tdn_bench.train sthv2 --epoch-count 1",
        "make benchmark NAME=temporal_conv ARGS='--nope 1'",
        "make nope",
        "pip install 'tdn_bench[nope]'",
        "rm -rf runs",
        "tdn-bench list 'unclosed",
    ):
        with pytest.raises((AssertionError, ValueError)):
            dry_run(line)


def test_blocks_are_found_with_their_marks_and_lines(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "<!-- dry-run: a GPU -->\n```sh\na \\\n  b  # c\n# only a comment\n```\n"
        "- item\n\n  ```console\n  $ x\n  1\n\n  $ y\n  ```\n"
    )
    first, second = blocks(page)
    assert (first.dry, first.line, first.shell_lines()) == ("a GPU", 2, [("a b  # c", "")])
    assert (second.dry, second.shell_lines()) == (None, [("x", "1\n\n"), ("y", "")])
    page.write_text("```sh\nunclosed\n")
    with pytest.raises(AssertionError):
        blocks(page)


def test_the_front_pages_python_runs(world: Path) -> None:
    namespace = names()
    assert [
        wrong for block in BLOCKS["README.md"] if block.language == PYTHON for wrong in run_python(block, namespace)
    ] == []
    assert namespace["recognize"]("clip.mp4").top(1)[0][0] in namespace["recognize"].classes


@pytest.mark.slow
@pytest.mark.parametrize("page", TO_RUN)
def test_the_page_runs(page: str, world: Path, capfd: pytest.CaptureFixture[str]) -> None:
    if page == "docs/testing.md":
        add_scores()
    run_page(page, capfd)
