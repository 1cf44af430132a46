"""The commands by name, and words that were meant; loads nothing, so that `tdn-bench --help` is there at once."""

from __future__ import annotations

import ast
import difflib
import shutil
import sys
import textwrap
from collections.abc import Iterable
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

# In the order of `tdn-bench --help`; a command that no group names comes last.
GROUPS: dict[str, tuple[str, ...]] = {
    "start": ("demo", "predict", "doctor", "list"),
    "data": ("prepare", "browse", "transcode"),
    "train": ("train", "ablate"),
    "measure": ("evaluate", "scores", "throughput", "scenario", "complexity"),
    "guard": ("regress", "parity", "gpu-suite"),
    "look": ("visualize", "watch", "report", "history"),
    "share": ("export", "push", "pull"),
    "keep": ("cache",),
}
_VERSIONS = {"torch": ("torch",), "DALI": ("nvidia-dali-cuda120", "nvidia-dali-cuda130"), "PyAV": ("av",)}


@cache
def commands() -> dict[str, str]:
    """Every command by name, and what it does: the first line of its file, which is read, not imported."""
    found = {}
    for path in sorted(Path(__file__).parent.glob("[!_]*.py")):
        module = ast.parse(path.read_bytes())
        if any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in module.body):
            summary = (ast.get_docstring(module) or "").partition("\n")[0]
            found[path.stem.replace("_", "-")] = summary.rstrip(".")
    return found


def overview() -> str:
    """What `tdn-bench --help` says: a line for each command, by groups."""
    known = commands()
    placed = {name: group for group, names in GROUPS.items() for name in names if name in known}
    names = [*placed, *(name for name in known if name not in placed)]
    width = min(100, max(60, shutil.get_terminal_size().columns))
    lines, last = ["usage: tdn-bench COMMAND [--help] …", ""], ""
    for name in names:
        group = placed.get(name, "more")
        said = textwrap.shorten(known[name], width - 21, placeholder=" …")
        lines.append(f"{group if group != last else '':7s}  {name:12s}{said}")
        last = group
    return "\n".join([*lines, "", "tdn-bench --version; tdn-bench --print-completion bash|zsh|tcsh"])


def versions_line() -> str:
    """This program's version, and those of the libraries that decide what it computes."""
    found = {name: next(filter(None, map(_installed, packages)), "missing") for name, packages in _VERSIONS.items()}
    python = ".".join(map(str, sys.version_info[:3]))
    own = sys.modules["tdn_bench"].__version__  # which is there; to import it would be a circle
    return f"tdn-bench {own} ({', '.join(f'{k} {v}' for k, v in found.items())}, Python {python})"


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean evaluate?` where a known word is like it, else nothing. Letter case does not count."""
    by_lower = {name.lower(): name for name in known}
    begun = [name for name in by_lower if len(word) > 2 and name.startswith(word.lower())]
    close = begun[:1] or difflib.get_close_matches(word[:100].lower(), by_lower, n=1, cutoff=0.6)
    return f"; did you mean {by_lower[close[0]]}?" if close else ""


def choose_one(word: str, known: Iterable[str]) -> str:
    """What to say of a word that is none of those known: the one that was meant, else all."""
    known = list(known)
    return (did_you_mean(word, known) or f"; choose one of {', '.join(known)}").removeprefix("; ")
