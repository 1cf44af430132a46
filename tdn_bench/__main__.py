"""`tdn-bench COMMAND …`, or `python -m tdn_bench.COMMAND …`. A command is a file of this folder with a `main`."""

from __future__ import annotations

import ast
import sys
from importlib import import_module
from pathlib import Path

from tdn_bench.errors import EXIT_USER_ERROR, begin, end, say


def commands() -> dict[str, str]:
    """Every command by name, and what it does: the first line of its file, which is read, not imported."""
    found = {}
    for path in sorted(Path(__file__).parent.glob("[!_]*.py")):
        module = ast.parse(path.read_bytes())
        if any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in module.body):
            summary = (ast.get_docstring(module) or "").partition("\n")[0]
            found[path.stem.replace("_", "-")] = summary.rstrip(".")
    return found


def main() -> int:
    """Run a command; 2 for an unknown one."""
    try:
        begin()
        return _run()
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001  # while the command is imported
        return end(error)


def _run() -> int:
    known = commands()
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help"):
        print("usage: tdn-bench COMMAND [--help] …\n")
        print("\n".join(f"  {command:12s}{what}" for command, what in known.items()), flush=True)
        return 0
    if name not in known:
        say(f"error: unknown command {name!r}; choose one of {', '.join(known)}")
        return EXIT_USER_ERROR
    from tdn_bench.cli import run_command

    return run_command(import_module(f"tdn_bench.{name.replace('-', '_')}").main, sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
