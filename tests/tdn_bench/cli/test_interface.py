"""Help, what can be typed, and what is said of what cannot."""

import os
import pty
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import pytest
from support.commands import interfaces, main_of
from support.paths import ROOT
from tyro.conf import Positional, UseAppendAction, arg

from tdn_bench.catalogue import commands, did_you_mean
from tdn_bench.cli import parse, run_command
from tdn_bench.cli.help import help_text
from tdn_bench.cli.run import describe
from tdn_bench.errors import UserError

EVERY = interfaces()
NOISE = re.compile(r"\{None\}|None\||\|None|\bNoneType\b|\[STR|\{True,False\}|╭|│")


@pytest.mark.parametrize("columns", ["80", "100"])
@pytest.mark.parametrize("command", commands())
def test_help_fits_a_screen_and_ends_with_examples(command: str, columns: str, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    outer = describe(main_of(command))
    for interface in (outer, *(outer.kinds or {}).values()):
        page = help_text(interface)
        lines = page.splitlines()
        assert len(lines) <= 24
        assert lines[0].startswith(f"usage: tdn-bench {interface.command}")
        assert all(len(line) <= int(columns) or line.startswith("  tdn-bench") for line in lines), page
        assert not NOISE.search(page)
        if interface is outer:
            assert 2 <= len(interface.examples) <= 4
            assert "\nexamples:\n" in page


@pytest.mark.parametrize("name", EVERY)
def test_all_flags_are_in_the_long_help_and_have_a_text(name: str) -> None:
    page = help_text(EVERY[name], everything=True)
    assert not NOISE.search(page)
    for f in EVERY[name].flags:
        assert f.text, f"{name} {f.shown}: no docstring"
        assert f.positional or re.search(rf"--(\[no-\])?{f.name.replace('_', '-')}\b", page)
        assert all(choice in page for choice in f.choices)


@pytest.mark.parametrize("command", commands())
def test_every_example_can_be_typed(command: str) -> None:
    outer = describe(main_of(command))
    for line in outer.examples:
        for part in line.split(" | ")[0].split(" && "):
            words = shlex.split(part, comments=True)
            start = words.index(command) if command in words else words.index(f"tdn_bench.{command.replace('-', '_')}")
            words = words[start + 1 :]
            interface = outer if outer.kinds is None else outer.kinds[words.pop(0)]
            interface.build(interface.values(words))


@dataclass(frozen=True, kw_only=True)
class Inner:
    """Of what is inside."""

    size: int = 224
    """Pixels."""


@dataclass(frozen=True, kw_only=True)
class Flags:
    """Does things. And more."""

    videos: Annotated[Positional[tuple[Path, ...]], arg(metavar="VIDEO…")] = ()
    """What to look at."""
    inner: Inner = field(default_factory=lambda: Inner(size=64))
    mode: Literal["fast", "exact"] | None = None
    """How."""
    share: float | None = 0.5
    """How much."""
    pair: tuple[str, str] | None = None
    """Both."""
    deep: Annotated[bool, arg(aliases=("--profound",))] = False
    """Or shallow."""
    also: UseAppendAction[tuple[Path, ...]] = ()
    """Several times."""
    kind: Annotated[str, arg(name="class")] = "top"
    """Which."""
    crops: Literal[1, 3] = 1
    """Of a clip."""


def flags(line: str) -> Flags:
    return parse(Flags, shlex.split(line), "look", common=("mode", "size"))


def test_all_kinds_of_values() -> None:
    assert flags("") == Flags()
    assert flags("").inner.size == 64
    assert flags("a 'b c'").videos == (Path("a"), Path("b c"))
    assert flags("--size 96 --mode exact a") == Flags(videos=(Path("a"),), inner=Inner(size=96), mode="exact")
    assert flags("--share None").share is None
    assert flags("--share=1e-3").share == 0.001
    assert flags("--pair x y").pair == ("x", "y")
    assert flags("--profound").deep
    assert not flags("--deep --no-deep").deep
    assert flags("--also a --also b").also == (Path("a"), Path("b"))
    assert flags("--class dog").kind == "dog"
    assert flags("--crops 3").crops == 3
    assert flags("--size 1 --size 2").inner.size == 2
    assert flags("-- -odd-").videos == (Path("-odd-"),)
    assert flags("--size 96 --videos a b") == flags("a b --size 96") == flags("--videos=a b --size=96")
    assert flags("-- --videos").videos == (Path("--videos"),)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--sise 3", "unknown flag '--sise'; did you mean --size?"),
        ("--siz 3", "unknown flag '--siz'; did you mean --size?"),  # no abbreviation is guessed
        ("--size", "--size: needs a value"),
        ("--size x", "--size x: must be a whole number"),
        ("--size 1.5", "--size 1.5: must be a whole number"),
        ("--size -1e-3", "--size -1e-3: must be a whole number"),
        ("--share -1e-3", "--share -1e-3: must not be negative"),
        ("--share -inf", "--share -inf: must be a finite number"),
        (f"--size {2**63}", f"--size {2**63}: must be at most"),
        ("--mode fats", "--mode fats: did you mean fast?"),
        ("--mode zzz", "--mode zzz: choose one of fast, exact"),
        ("--pair x", "--pair takes 2 values"),
        ("--also ''", "--also : is empty: name a file or folder"),
        ("--deep=3", "ignored explicit argument '3'"),
        ("--config", "--config: needs a file"),
    ],
)
def test_what_cannot_be_typed_is_one_line(line: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        flags(line)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_was_meant() -> None:
    assert did_you_mean("evalaute", commands()) == "; did you mean evaluate?"
    assert did_you_mean("TRAIN", commands()) == "; did you mean train?"
    assert did_you_mean("", commands()) == did_you_mean("q" * 10**6, commands()) == ""


@pytest.mark.parametrize(
    ("command", "words", "said"),
    [
        ("train", ["demoo"], "error: train demoo: no such RECIPE; did you mean demo?"),
        ("train", [], "error: RECIPE is missing; choose one of sthv1, "),
        ("train", ["--lr", "1"], "error: RECIPE is missing; "),
        ("scenario", ["severr"], "error: scenario severr: no such KIND; did you mean server?"),
        ("throughput", ["--engine", "opnvino"], "error: --engine opnvino: did you mean openvino?"),
        ("throughput", ["--dataset", "sth2"], "error: --dataset sth2: did you mean sthv2?"),
        (
            "throughput",
            ["--model", "tdn_resnet5"],
            "error: --model: unknown model 'tdn_resnet5'; did you mean tdn_resnet50?",
        ),
        ("ablate", ["orderings"], "error: TABLE orderings: did you mean ordering?"),
        ("report", [], "error: FOLDER is missing: Folder with records"),
    ],
)
def test_commands_say_what_was_meant(command: str, words: list[str], said: str, capsys) -> None:
    assert run_command(main_of(command), words) == 2
    error = capsys.readouterr().err
    assert error.startswith(said)
    assert error.count("\n") == 1


def tdn(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | variables
    command = [sys.executable, "-m", "tdn_bench", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)


def test_the_first_word() -> None:
    overview = tdn("--help", COLUMNS="80").stdout.splitlines()
    assert len(overview) <= 30
    assert max(map(len, overview)) <= 80
    version = tdn("--version").stdout
    assert re.fullmatch(r"tdn-bench \S+ \(torch \S+, DALI \S+, PyAV \S+, Python \S+\)\n", version)
    done = tdn("evalaute")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: unknown command 'evalaute'; did you mean evaluate?\n"
    assert "the command comes first" in tdn("-q", "list").stderr


def in_a_terminal(*words: str) -> bytes:
    """What a command writes where all its streams are a terminal."""
    child, terminal = pty.fork()
    if child == 0:
        os.environ["PYTHONPATH"], os.environ["NO_COLOR"] = str(ROOT), "1"
        os.execv(sys.executable, [sys.executable, "-m", *words])
    written = b""
    try:
        while block := os.read(terminal, 4096):
            written += block
    except OSError:  # how a terminal ends
        pass
    os.waitpid(child, 0)
    return written


def test_no_colour_in_a_terminal_that_asks_for_none_and_no_escape_in_a_pipe() -> None:
    said = in_a_terminal("tdn_bench", "list", "--nope")
    assert b"unknown flag '--nope'" in said
    assert b"\x1b[" not in said
    for words in (["--help"], ["lisst"], ["list"]):
        done = tdn(*words, FORCE_COLOR="1")
        assert "\x1b" not in done.stdout + done.stderr
