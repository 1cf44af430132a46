"""How every command begins and ends: its flags, the user's errors in one line, signals, and exit statuses."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

from engines import EngineError
from pipelines.errors import DataError
from tdn_bench.catalogue import choose_one
from tdn_bench.cli.child import end_with_parent
from tdn_bench.cli.config_file import ConfigFile, forget_run, keep_run
from tdn_bench.cli.help import help_text
from tdn_bench.cli.interface import Interface, interface_of
from tdn_bench.cli.logs import INHERITED, logging_as, take_log_flags
from tdn_bench.cli.settings import leaves
from tdn_bench.errors import (
    EXIT_USER_ERROR,
    Terminated,
    UserError,
    end,
    leave,
    log,
    open_streams,
    tell,
    without_credentials,
)

T = TypeVar("T")


class Described(BaseException):
    """What `describe` asks for, on its way out of a command's `main`."""

    def __init__(self, interface: Interface) -> None:
        self.interface = interface


_ASKED: list[str] = ["--describe"]  # this very list, in place of a command line


def describe(main: Callable[[Any], object]) -> Interface:
    """What can be typed after a command's name; nothing is run."""
    try:
        main(_ASKED)
    except Described as found:
        return found.interface
    raise AssertionError("a command's main parses its flags first")


def parse(
    flags: type[T],
    argv: Sequence[str] | None,
    command: str,
    *config: Any,
    examples: Sequence[str] = (),
    common: Sequence[str] = (),
) -> T:
    """The dataclass `flags` from a command line (default: this process's), and from the file that `--config` names;
    `config` are tyro's markers. Flags of the dataclasses within have no prefix. `examples` are shell lines that --help
    ends with, `common` the flags, as fields, that it shows; --help-all shows every one. Raises UserError for what is
    no flag or value of the command, and for what the `check()` of the dataclasses refuses; ends with SystemExit(0)
    after --help."""
    interface = interface_of(command, flags, MISSING, *config, examples=examples, common=common)
    if argv is _ASKED:
        raise Described(interface)
    return _parsed(interface, sys.argv[1:] if argv is None else argv)


def parse_subcommand(
    kinds: Mapping[str, Any],
    argv: Sequence[str] | None,
    command: str,
    *config: Any,
    examples: Sequence[str] = (),
    common: Sequence[str] = (),
) -> Any:
    """`parse` for a command of several kinds: the first word says which of the dataclasses. `common` are fields that
    not every kind needs to have."""
    return parse_kind(kinds, argv, command, *config, examples=examples, common=common)[1]


def parse_kind(
    kinds: Mapping[str, Any],
    argv: Sequence[str] | None,
    command: str,
    *config: Any,
    examples: Sequence[str] = (),
    common: Sequence[str] = (),
    kind: str = "KIND",
    what: Mapping[str, str] | None = None,
) -> tuple[str, Any]:
    """`parse_subcommand`, with the kind's name. A kind may be an instance, whose values are then the defaults. --help
    calls the word `kind`, and says `what` each is where that is not its class's docstring."""
    inner = {}
    for name, of in kinds.items():
        make, default = (of, MISSING) if isinstance(of, type) else (type(of), of)
        assert is_dataclass(make)
        found = interface_of(f"{command} {name}", make, default, *config, what=(what or {}).get(name, ""))
        mine = [line for line in examples if f" {command} {name}" in f"{line} "]
        known = [field for field in common if field in found.by_name]
        inner[name] = Interface(found.command, found.what, make, found.flags, examples=mine, common=known)
    outer = Interface(command, kind, kinds=inner, examples=examples)
    if argv is _ASKED:
        raise Described(outer)
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] in (["-h"], ["--help"], ["--help-all"]):
        _show(help_text(outer))
    if words and not words[0].startswith("-"):
        name, words = words[0], words[1:]
    else:
        name = next((ConfigFile(Path(f)).kind(command) or "" for f in _config_named(words)), "")
    if name not in inner:
        wrong = f"{command} {name}: no such {kind}" if name else f"{kind} is missing"
        raise UserError(f"{wrong}; {choose_one(name, inner)}")
    return name, _parsed(inner[name], words, tuple(inner))


def _parsed(interface: Interface, words: Sequence[str], kinds: Sequence[str] = ()) -> Any:
    before_dashes = list(words)[: list(words).index("--")] if "--" in words else words
    if {"-h", "--help", "--help-all"} & set(before_dashes):
        _show(help_text(interface, everything="--help-all" in before_dashes))
    files = _config_named(words)
    typed = interface.values(_without_config(words))
    given: dict[str, Any] = {}
    for name in files:
        given |= ConfigFile(Path(name)).values(interface, kinds)
    config = interface.build(given | typed)
    check_all(config)
    shown = {name: without_credentials(v) if isinstance(v, str) else v for name, v, _ in leaves(config)}
    log.debug("flags: %s", ", ".join(f"{name}={value!r}" for name, value in shown.items()))
    return config


def check_all(config: Any) -> None:
    """Call `check()` of all dataclasses that a command's is composed of, where they have one, then its own: they raise
    UserError for what cannot be, before any work."""
    for f in fields(config):
        if is_dataclass(part := getattr(config, f.name)):
            check_all(part)
    if callable(check := getattr(config, "check", None)):
        check()


def _config_named(words: Sequence[str]) -> list[str]:
    """The files that --config names."""
    found = [word.partition("=")[2] for word in words if word.startswith("--config=")]
    for i, word in enumerate(words):
        if word == "--config":
            if i + 1 == len(words):
                raise UserError("--config: needs a file")
            found.append(words[i + 1])
    if "" in found:
        raise UserError("--config: is empty: name a file")
    return found


def _without_config(words: Sequence[str]) -> list[str]:
    named = {i + j for i, word in enumerate(words) if word == "--config" for j in (0, 1)}
    return [word for i, word in enumerate(words) if i not in named and not word.startswith("--config=")]


def _show(page: str) -> None:
    print(page, flush=True)
    raise SystemExit(0)


def run_command(command: Callable[[Sequence[str] | None], None], argv: Sequence[str] | None = None) -> int:
    """Run a command's `main` and return its exit status: the user's errors become one line on stderr and status 2, a
    fault of ours a traceback and status 70; see `tdn_bench.errors.end`. Takes the flags that every command has: -q, -v
    and --log-file."""
    open_streams()
    end_with_parent()
    with ExitStack() as stack:
        try:
            words = [*shlex.split(os.environ.pop(INHERITED, "")), *(sys.argv[1:] if argv is None else argv)]
            said, words = take_log_flags(words)
            stack.enter_context(logging_as(said))
            with _signals_raise():
                try:
                    command(words)
                finally:
                    sys.stdout.flush()  # what cannot be written is an error, and not Python's to tell as it ends
        except (UserError, DataError, EngineError) as error:
            forget_run()
            tell(f"error: {error}", error)
            return EXIT_USER_ERROR
        except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001  # whatever it is has a status, and no other's
            return end(error)
        finally:
            keep_run()
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
