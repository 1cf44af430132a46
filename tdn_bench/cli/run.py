"""How every command begins and ends: its flags, the user's errors in one line, and exit statuses."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from engines import EngineError
from pipelines.errors import DataError
from tdn_bench.errors import UserError

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141

T = TypeVar("T")


def parse(flags: type[T], argv: Sequence[str] | None, command: str, *config: Any) -> T:
    """The dataclass `flags` from a command line (default: this process's); `config` are more of tyro's settings. Flags
    of the dataclasses within have no prefix. Ends with SystemExit for flags that are not the command's."""
    import tyro

    return tyro.cli(flags, args=argv, prog=f"tdn-bench {command}", config=(tyro.conf.OmitArgPrefixes, *config))


def parse_subcommand(
    kinds: Mapping[str, Callable[..., Any]], argv: Sequence[str] | None, command: str, *config: Any
) -> Any:
    """`parse` for a command of several kinds: the first word says which of the dataclasses."""
    import tyro

    return tyro.extras.subcommand_cli_from_dict(
        dict(kinds), args=argv, prog=f"tdn-bench {command}", config=(tyro.conf.OmitArgPrefixes, *config)
    )


def run_command(command: Callable[[Sequence[str] | None], None], argv: Sequence[str] | None = None) -> int:
    """Run a command's `main`; the user's errors become one line on stderr and exit status 2."""
    try:
        command(argv)
    except (UserError, DataError, EngineError) as e:
        print(f"error: {e}", file=sys.stderr)
        return EXIT_USER_ERROR
    except BrokenPipeError:  # `… | head` has read enough; what is left must not fail again when Python exits
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    return 0
