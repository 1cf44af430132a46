"""Every command and every kind of one, with what can be typed after it, as its own `main` says."""

from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any

from tdn_bench.catalogue import commands
from tdn_bench.cli.interface import Interface
from tdn_bench.cli.run import describe

# What cannot be left out, by command: enough for a command line that is refused for its number alone.
NEEDED = {
    "ablate": ["ordering"],
    "browse": ["sthv2"],
    "evaluate": ["--checkpoint", "x"],
    "export": ["x", "--format", "onnx"],
    "history": ["x"],
    "predict": ["x", "--checkpoint", "x"],
    "prepare": ["lists", "--train-list", "x", "--val-list", "x"],
}


def main_of(command: str) -> Callable[[Any], object]:
    return import_module(f"tdn_bench.{command.replace('-', '_')}").main


@cache
def interfaces() -> dict[str, Interface]:
    """By command, with its kind where it has kinds: `train demo`."""
    found = {}
    for name in commands():
        outer = describe(main_of(name))
        for inner in [outer] if outer.kinds is None else outer.kinds.values():
            found[inner.command] = inner
    return found


def needed(interface: Interface) -> list[str]:
    """The words after a command's name without which it says what is missing."""
    command, *kind = interface.command.split()
    words = [*kind, *NEEDED.get(command, [])]
    if command not in NEEDED:
        for f in interface.flags:
            if f.required:
                words += ["x"] if f.positional else [f"--{f.name.replace('_', '-')}", "x"]
    return words
