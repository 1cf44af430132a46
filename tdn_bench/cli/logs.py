"""--quiet, --verbose and --log-file, which every command has."""

from __future__ import annotations

import logging
import re
import shlex
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from pipelines.errors import printable
from tdn_bench.errors import CONSOLE, UserError, log, say, without_credentials
from tdn_bench.records import check_file

INHERITED = "TDN_BENCH_LOG_FLAGS"  # a variable: these flags of the process that started us


@dataclass(frozen=True)
class LogFlags:
    """What is said on stderr, and where all of it is kept."""

    quiet: bool = False
    """Only errors, beside the results."""
    verbose: bool = False
    """More of what is done; where an error was."""
    file: Path | None = None
    """Everything, with times; what is printed, too."""

    def words(self) -> list[str]:
        """As they are typed."""
        file = ["--log-file", str(self.file.absolute())] if self.file is not None else []
        return ["--quiet"] * self.quiet + ["--verbose"] * self.verbose + file


LIBRARIES = ("engines", "pipelines")  # what they log is heard, too
_now = LogFlags()
_TIME = re.compile(rb"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d")  # a log's lines begin with it


def take_log_flags(words: Sequence[str]) -> tuple[LogFlags, list[str]]:
    """These flags, and the words that are left. Raises UserError where they cannot be."""
    left: list[str] = []
    quiet = verbose = False
    file = None
    todo = iter(words)
    for word in todo:
        name, equals, value = word.partition("=")
        if word == "--":
            left += [word, *todo]
        elif word in ("-q", "--quiet"):
            quiet = True
        elif word in ("-v", "--verbose"):
            verbose = True
        elif name in ("--log-file", "--log_file"):
            file = value if equals else next(todo, "")
            if not file:
                raise UserError("--log-file: needs a file")
        else:
            left.append(word)
    if quiet and verbose:
        raise UserError("--quiet and --verbose exclude each other")
    return LogFlags(quiet, verbose, Path(file) if file is not None else None), left


def inherited() -> dict[str, str]:
    """The variable by which a process that is started has these flags, too."""
    return {INHERITED: shlex.join(words)} if (words := _now.words()) else {}


@contextmanager
def logging_as(flags: LogFlags) -> Iterator[None]:
    """Within: the flags hold; warnings are said in a line. Raises UserError for a log file that cannot be written,
    and for one that is something else, such as a checkpoint: its end is written to."""
    global _now
    before, level, show = _now, CONSOLE.level, warnings.showwarning
    with ExitStack() as stack:
        if flags.file is not None:
            stack.enter_context(_kept(flags.file))
        CONSOLE.setLevel(logging.ERROR if flags.quiet else logging.DEBUG if flags.verbose else logging.INFO)
        if flags.quiet or flags.file is not None:
            stack.enter_context(redirect_stderr(_Copied(sys.stderr, "stderr", flags.quiet)))  # type: ignore[type-var]
        for library in LIBRARIES:
            stack.enter_context(_heard(logging.getLogger(library)))
        _now = flags
        warnings.showwarning = _warn  # type: ignore[assignment]
        try:
            yield
        finally:
            _now, warnings.showwarning = before, show
            CONSOLE.setLevel(level)


def _warn(message: Any, category: type[Warning], filename: str, lineno: int, *rest: Any) -> None:
    log.warning("warning: %s", " ".join(str(message).split()))
    log.debug("(%s, %s line %d)", category.__name__, filename, lineno)


@contextmanager
def _heard(library: logging.Logger) -> Iterator[None]:
    before = library.level
    library.addHandler(CONSOLE)
    library.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        library.removeHandler(CONSOLE)
        library.setLevel(before)


@contextmanager
def _kept(path: Path) -> Iterator[None]:
    """Within: all that is said or printed goes to the end of a file as well."""
    check_file("--log-file", path)
    try:
        if path.exists() and (begins := path.open("rb").read(20)) and not _TIME.match(begins):
            raise UserError(f"--log-file {printable(str(path))}: is there already, and is no log; name another file")
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = _File(path, encoding="utf-8", errors="backslashreplace")
    except OSError as e:
        raise UserError(f"--log-file {printable(str(path))}: cannot be written ({e.strerror})") from e
    handler.setFormatter(_OneLine("%(asctime)s %(levelname)-7s %(name)s: %(message)s"))
    root = logging.getLogger()
    level = root.level
    log.addHandler(handler)
    root.addHandler(handler)
    root.setLevel(min(level, logging.INFO) or logging.INFO)
    try:
        log.debug("command: %s", shlex.join(map(without_credentials, sys.argv)))
        with redirect_stdout(_Copied(sys.stdout, "stdout")):  # type: ignore[type-var]
            yield
    finally:
        log.removeHandler(handler)
        root.removeHandler(handler)
        root.setLevel(level)
        handler.close()


class _OneLine(logging.Formatter):
    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = printable(record.message)
        return "\n".join([super().formatMessage(record), *getattr(record, "trace", ())])


class _File(logging.FileHandler):
    def handleError(self, record: logging.LogRecord) -> None:
        """A full disk costs the log, not the run."""
        log.removeHandler(self)
        logging.getLogger().removeHandler(self)
        say(f"warning: --log-file {self.baseFilename}: {sys.exc_info()[1]}; nothing more is written to it")


class _Copied:
    """A stream whose lines the log file has, too, but for bars that move; `silent`: the log file alone."""

    def __init__(self, stream: TextIO, name: str, silent: bool = False) -> None:
        self.through = stream
        self._name, self._silent, self._begun = name, silent, ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.through, name)

    def write(self, text: str) -> int:
        written = len(text) if self._silent else self.through.write(text)
        *lines, self._begun = (self._begun + text).split("\n")
        for line in lines:
            if line and "\x1b" not in line:
                for handler in log.handlers:
                    if isinstance(handler, _File):
                        handler.handle(log.makeRecord(self._name, logging.INFO, "", 0, line, (), None))
        return written
