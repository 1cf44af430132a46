"""The shell lines and Python snippets of the documentation: found in its pages, and parsed by the real commands' flags.

A page may say `<!-- dry-run: REASON -->` on the line above a block: its lines are then parsed and not run.
"""

from __future__ import annotations

import importlib.util
import io
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

from support.paths import ROOT
from tdn_bench.__main__ import commands
from tdn_bench.cli import run, run_command

PAGES = sorted(
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "results/README.md", *(ROOT / "docs").rglob("*.md")]
)
SHELL, PYTHON = ("sh", "console"), "python"
DATA = ("bibtex", "csv", "dockerfile", "ini", "json", "html", "protobuf", "text", "toml", "yaml")  # read, not run
FENCE = re.compile(
    r"(?:^<!-- dry-run: (?P<dry>[^\n]+?) -->\n\n?)?^(?P<indent> *)```(?P<language>[^\n]*)\n(?P<text>.*?)^ *```$",
    re.MULTILINE | re.DOTALL,
)
OPERATORS = {"|", "||", "&", "&&", ";", "(", ")"}
REDIRECTIONS = {"<", ">", ">>", ">&", "&>"}


@dataclass(frozen=True)
class Block:
    """A fenced block of a page. `dry` is why it is parsed and not run, if the page says so."""

    page: Path
    line: int
    language: str
    text: str
    dry: str | None = None

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    def shell_lines(self) -> list[tuple[str, str]]:
        """(line, expected output) in order. Of a console, what follows `$ `. Continued lines are joined; lines that
        hold only a comment are left out."""
        if self.language == "console":
            parts = re.split(r"^\$ ", self.text, flags=re.MULTILINE)
            assert not parts[0].strip(), f"{self}: a console begins with `$ `"
            pairs = [re.match(r"((?:[^\n]*\\\n)*[^\n]*)\n?(.*)", part, re.DOTALL) for part in parts[1:]]
            return [(joined(pair[1]), pair[2]) for pair in pairs if pair]
        return [(line, "") for line in joined(self.text).splitlines() if shlex.split(line, comments=True)]


def joined(text: str) -> str:
    return re.sub(r"\\\n\s*", "", text)


def blocks(page: Path) -> list[Block]:
    """Every fenced block of a page, in order."""
    text = page.read_text(encoding="utf-8")
    found = [
        Block(
            page,
            text.count("\n", 0, m.start("language")) + 1,
            m["language"].strip(),
            "\n".join(line.removeprefix(m["indent"]) for line in m["text"].splitlines()),
            m["dry"],
        )
        for m in FENCE.finditer(text)
    ]
    fences = len(re.findall(r"^ *```", text, re.MULTILINE))
    assert fences == 2 * len(found), f"{page}: {fences} fences, and {len(found)} blocks were understood"
    return found


def simple_commands(line: str) -> list[list[str]]:
    """The words of each simple command of a shell line, without its comment, assignments and redirections."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>()")
    lexer.whitespace_split = True
    found: list[list[str]] = [[]]
    words = iter(lexer)
    for word in words:
        if word in REDIRECTIONS:
            next(words, None)
            if found[-1][-1:] in (["1"], ["2"]):  # of what is redirected
                found[-1].pop()
        elif word in OPERATORS:
            found.append([])
        elif found[-1] or not re.fullmatch(r"[A-Z_]+=.*", word, re.DOTALL):
            found[-1].append(word)
    return [as_tdn_bench(words) for words in found if words]


def as_tdn_bench(words: list[str]) -> list[str]:
    """`python -m tdn_bench.COMMAND` as `tdn-bench COMMAND`; other words as they are."""
    match words:
        case ["python", "-m", module, *rest] if module.startswith("tdn_bench.") and module.count(".") == 1:
            return ["tdn-bench", module.removeprefix("tdn_bench.").replace("_", "-"), *rest]
    return words


class Parsed(BaseException):
    """Ends a command once its flags are parsed; not an error, which the command would report."""


def command_module(name: str) -> ModuleType:
    """The module of a command by its name. An AssertionError for one that there is not."""
    assert name in commands(), f"there is no command {name!r}"
    return importlib.import_module(f"tdn_bench.{name.replace('-', '_')}")


@contextmanager
def ending_at(*places: tuple[Any, str]) -> Iterator[None]:
    """Within, functions that parse flags, attributes of modules, end with Parsed after they have parsed."""

    def stop(true: Callable[..., Any]) -> Callable[..., Any]:
        def parse(*arguments: Any, **options: Any) -> None:
            true(*arguments, **options)
            raise Parsed

        return parse

    patches = [patch.object(place, name, stop(getattr(place, name))) for place, name in places]
    for p in patches:
        p.start()
    try:
        yield
    finally:
        for p in patches:
            p.stop()


def parse_command(name: str, argv: list[str]) -> None:
    """Parse a command's flags by its own dataclasses; AssertionError where they are not its flags. What the flags name
    (files, cameras) is not looked for."""
    import tyro

    module = command_module(name)
    places = [(module, function) for function in vars(module) if function.startswith("parse")]
    with ending_at(*(places or [(tyro.extras, "overridable_config_cli")])), patch.object(run, "check_all", create=True):
        _parse(lambda: run_command(module.main, argv), f"tdn-bench {name} {shlex.join(argv)}")


def parse_script(path: Path, argv: list[str]) -> None:
    """The same for a script of this repository whose flags tyro parses."""
    import tyro

    assert path.is_file(), f"there is no {path}"
    spec = importlib.util.spec_from_file_location(f"script_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with ending_at((tyro, "cli")):
        _parse(lambda: module.main(argv), f"{path.name} {shlex.join(argv)}")


def _parse(run: Callable[[], int | None], what: str) -> None:
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            run()
    except Parsed:
        return
    except SystemExit as end:
        if end.code in (None, 0):  # --help
            return
    raise AssertionError(f"refused: {what}\n{said.getvalue()}")


def dry_run(line: str) -> None:
    """Check a shell line without running it: its syntax, that each program is one that the documentation may name, and
    that its flags are the real ones. Raises AssertionError."""
    done = subprocess.run(["bash", "-n", "-c", line], capture_output=True, text=True)
    assert done.returncode == 0, f"{line}\n{done.stderr}"
    for words in simple_commands(line):
        program = Path(words[0]).name or words[0]
        assert program in PROGRAMS, f"{words[0]!r}: no program that the documentation may name, in: {line}"
        PROGRAMS[program](words[1:])


def _tdn_bench(words: list[str]) -> None:
    if words[0].startswith("-"):
        assert words[0] in ("--help", "-h", "--version", "--help-all", "--print-completion", "-v"), words
        return
    parse_command(words[0], words[1:])


def _python(words: list[str]) -> None:
    command = as_tdn_bench(["python", *words])
    if command[0] == "tdn-bench":
        _tdn_bench(command[1:])
    elif words[0] == "-m" and words[1] == "pip":
        _pip(words[2:])
    elif words[0] == "-m":
        assert importlib.util.find_spec(words[1]), words
        if words[1].startswith("pipelines."):
            import tyro

            module = importlib.import_module(words[1])
            with ending_at((tyro, "cli")), patch.object(sys, "argv", [words[1], *words[2:]]):
                _parse(module.main, shlex.join(words))
    elif words[0] == "-c":
        compile(words[1], "-c", "exec")
    elif words[0].startswith("examples/"):
        assert (ROOT / words[0]).is_file(), words
    else:
        parse_script(ROOT / words[0], words[1:])


def _torchrun(words: list[str]) -> None:
    from torch.distributed.run import parse_args

    args = parse_args(words)
    _python(["-m", args.training_script, *args.training_script_args] if args.module else [args.training_script])


SET_BY_MAKE = (
    "MAKEFLAGS",
    "MFLAGS",
    "MAKEOVERRIDES",
    "MAKELEVEL",
    "ARGS",
    "NAME",
    "DATA",
    "GPUS",
)  # `make test ARGS=…`


def _make(words: list[str]) -> None:
    """The lines that make would run for a target, once it is set up."""
    arguments = [word for word in words if not word.startswith("-")]
    done = subprocess.run(
        ["make", "--dry-run", "--no-print-directory", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={name: value for name, value in os.environ.items() if name not in SET_BY_MAKE},
    )
    assert done.returncode == 0, done.stderr
    if arguments and not {"setup", "help", "clean"} & set(arguments):
        for line in joined(done.stdout).splitlines():
            if ("tdn_bench" in line and "pip install" not in line) or "benchmarks/" in line:
                dry_run(line)


def extras() -> set[str]:
    """The extras that pyproject.toml has."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        return set(tomllib.load(file)["project"]["optional-dependencies"])


def _pip(words: list[str]) -> None:
    for group in re.findall(r"(?:tdn_bench|\.)\[([\w,-]+)\]", " ".join(words)):
        assert set(group.split(",")) <= extras(), f"{group}: no such extras"


def _srun(words: list[str]) -> None:
    while words[0].startswith("-"):
        words = words[1:]
    PROGRAMS[words[0]](words[1:])


def _sbatch(words: list[str]) -> None:
    (script,) = [word for word in words if word.endswith((".sbatch", ".sh"))]
    assert (ROOT / script).is_file(), script


def _docker(words: list[str]) -> None:
    assert words[0] in ("build", "run"), words
    if words[0] == "build":
        assert (ROOT / "Dockerfile").is_file()
    elif "tdn_bench" in words:  # the image, whose entry point is tdn-bench
        _tdn_bench(words[words.index("tdn_bench") + 1 :])


def _known(words: list[str]) -> None:
    """A program of the system, which is taken at its word."""


PROGRAMS: dict[str, Callable[[list[str]], None]] = {
    "tdn-bench": _tdn_bench,
    "python": _python,
    "torchrun": _torchrun,
    "make": _make,
    "pip": _pip,
    "srun": _srun,
    "sbatch": _sbatch,
    "docker": _docker,
    **dict.fromkeys(
        (".", "source", "cat", "cd", "cp", "curl", "echo", "export", "ffmpeg", "git", "grep", "gunzip", "head", "jq"),
        _known,
    ),
    **dict.fromkeys(
        ("ls", "mkdir", "pre-commit", "ssh", "tail", "tritonserver", "eval", "wc", "jupyter", "huggingface-cli", "hf"),
        _known,
    ),
}
