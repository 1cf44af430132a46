"""How every command begins and ends: its flags, the user's errors in one line, signals, and exit statuses."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar

from engines import EngineError
from pipelines.errors import DataError
from tdn_bench.cli.child import end_with_parent
from tdn_bench.errors import EXIT_USER_ERROR, Terminated, UserError, end, leave, open_streams, say

T = TypeVar("T")


def parse(
    flags: type[T],
    argv: Sequence[str] | None,
    command: str,
    *config: Any,
    examples: Sequence[str] = (),
    common: Sequence[str] = (),
) -> T:
    """The dataclass `flags` from a command line (default: this process's); `config` are more of tyro's settings. Flags
    of the dataclasses within have no prefix. `examples` are shell lines that --help ends with, `common` the flags, as
    fields, that it shows; --help-all shows every one. Ends with SystemExit for flags that are not the command's."""
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
    """Run a command's `main` and return its exit status: the user's errors become one line on stderr and status 2, a
    fault of ours a traceback and status 70; see `tdn_bench.errors.end`."""
    open_streams()
    end_with_parent()
    try:
        with _signals_raise():
            try:
                command(argv)
            finally:
                sys.stdout.flush()  # what cannot be written is an error, and not Python's to tell as it ends
    except (UserError, DataError, EngineError) as error:
        say(f"error: {error}")
        return EXIT_USER_ERROR
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001  # whatever it is has a status, and no other's
        return end(error)
    return 0


@contextmanager
def _signals_raise() -> Iterator[None]:
    """Within, SIGTERM and SIGHUP raise Terminated, so that files are closed and children end; a second one ends this
    process at once. One that is ignored (`nohup`), or that somebody else handles, stays so. Ctrl-C is Python's own
    again (`tdn_bench.errors.begin`)."""

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        raise Terminated(number)

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)}
    within: dict[signal.Signals, Any] = {
        n: stop for n in (signal.SIGTERM, signal.SIGHUP) if before[n] is signal.SIG_DFL
    }
    if before[signal.SIGINT] is leave:
        within[signal.SIGINT] = signal.default_int_handler
    if threading.current_thread() is not threading.main_thread():  # which alone gets signals
        within = {}
    for number, handler in within.items():
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number in within:
            signal.signal(number, before[number])
