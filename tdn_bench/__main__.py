"""`tdn-bench COMMAND …`, or `python -m tdn_bench.COMMAND …`. A command is a file of this folder with a `main`."""

from __future__ import annotations

import sys
from importlib import import_module

from tdn_bench.catalogue import choose_one, commands, overview, versions_line
from tdn_bench.errors import EXIT_USER_ERROR, begin, end, say


def main() -> int:
    """Run a command; 2 for an unknown one."""
    try:
        begin()
        return _run(sys.argv[1:] or ["--help"])
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001  # while the command is imported
        return end(error)


def _run(words: list[str]) -> int:
    first, rest = words[0], words[1:]
    if first in ("-h", "--help", "--help-all", "help") and not (first == "help" and rest):
        print(overview(), flush=True)
        return 0
    if first in ("-V", "--version"):
        print(versions_line(), flush=True)
        return 0
    if first.startswith("--print-completion"):
        from tdn_bench.cli import run_command
        from tdn_bench.cli.completion import SHELLS, script

        shell = first.partition("=")[2] or (rest[0] if rest else "")
        if shell not in SHELLS:
            say(f"error: --print-completion {shell}: {choose_one(shell, SHELLS)}")
            return EXIT_USER_ERROR
        mains = {name: import_module(f"tdn_bench.{name.replace('-', '_')}").main for name in commands()}
        return run_command(lambda _: print(script(shell, mains)), [])
    if first == "help":
        first, rest = rest[0], ["--help"]
    known = commands()
    if first not in known:
        said = f"unknown command {first!r}" if first[:1] != "-" else f"{first}: the command comes first"
        say(f"error: {said}; {choose_one(first, known)}")
        return EXIT_USER_ERROR
    from tdn_bench.cli import run_command

    return run_command(import_module(f"tdn_bench.{first.replace('-', '_')}").main, rest)


if __name__ == "__main__":
    sys.exit(main())
