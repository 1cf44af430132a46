"""Completion of commands, flags and their values by the shell."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping

from tdn_bench.catalogue import commands
from tdn_bench.cli.interface import Interface, add_arguments
from tdn_bench.cli.run import describe

SHELLS = ("bash", "zsh", "tcsh")


def script(shell: str, mains: Mapping[str, Callable[..., object]]) -> str:
    """A script that a shell sources, or keeps where its completions lie. `mains` are the commands' by name."""
    import shtab

    root = argparse.ArgumentParser(prog="tdn-bench")
    root.add_argument("--version", action="store_true", help="versions of this program and its libraries")
    root.add_argument("--print-completion", choices=SHELLS, help="this script")
    below = root.add_subparsers()
    said = commands()
    for name, main in mains.items():
        _add(below, name, said[name], describe(main))
    return shtab.complete(root, shell)


def _add(below: argparse._SubParsersAction, name: str, what: str, interface: Interface) -> None:
    parser = below.add_parser(name, help=what.replace("%", "%%"), description=what.replace("%", "%%"))
    if interface.kinds is not None:
        kinds = parser.add_subparsers()
        for kind, inner in interface.kinds.items():
            _add(kinds, kind, inner.what.partition("\n")[0], inner)
        return
    add_arguments(parser, interface, complete=True)
    parser.add_argument("--help-all", action="store_true", help="all flags")
    parser.add_argument("-q", "--quiet", action="store_true", help="only results and errors")
    parser.add_argument("-v", "--verbose", action="store_true", help="more of what is done")
    for name in ("--config", "--log-file"):
        import shtab

        parser.add_argument(name).complete = shtab.FILE  # type: ignore[attr-defined]
