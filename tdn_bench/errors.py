"""How a command ends: exit statuses, and what is said where the user, the machine or we are to act.

Loads nothing, so that it is there while a command is still being imported.
"""

from __future__ import annotations

import errno
import io
import logging
import os
import re
import signal
import sys
import traceback
from contextlib import suppress
from types import FrameType
from typing import TextIO

from pipelines.errors import printable

EXIT_USER_ERROR = 2
EXIT_FAULT = 70  # EX_SOFTWARE of sysexits.h; 1 is what a command found, such as a regression
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141


class _Console(logging.Handler):
    """What is said, on stderr as it is then; what nobody expected with its traceback."""

    def emit(self, record: logging.LogRecord) -> None:
        for line in getattr(record, "trace", ()):
            say(line)
        say(record.getMessage())


CONSOLE = _Console(logging.INFO)
log = logging.getLogger("tdn_bench")  # all that a command says beside its results
log.addHandler(CONSOLE)
log.setLevel(logging.DEBUG)
log.propagate = False


def without_credentials(text: str) -> str:
    """A URL as it may be shown: user, password, query and fragment hidden; other text as it is."""
    match = re.match(r"([A-Za-z][A-Za-z0-9+.-]*://)(.*)", text, re.DOTALL)
    if match is None:
        return printable(text)
    rest = match[2]
    if "@" in rest:  # not the first: a password may hold one, and / and ? too where nobody escaped them
        rest = "***@" + rest.rpartition("@")[2]
    path = re.split("[?#]", rest, maxsplit=1)[0]
    return printable(match[1] + path + ("?…" if path != rest else ""))


class UserError(Exception):
    """One line: what is wrong with which file or flag, and what to do. Commands print it and exit with 2."""


class Terminated(KeyboardInterrupt):
    """The system asks this process to end, by the signal `number`. Whoever cleans up for Ctrl-C does so for this."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def begin() -> None:
    """Before a command is imported, which takes seconds. Raises OSError where the current folder was removed."""
    open_streams()
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, leave)
    os.getcwd()  # without one torch would end this process, with a word about MKL


def leave(number: int, frame: FrameType | None) -> None:
    """Ctrl-C while nothing is at work: libraries that are being imported would answer a KeyboardInterrupt with errors
    of their own."""
    say("interrupted")
    os._exit(EXIT_INTERRUPTED)


def open_streams() -> None:
    """See to it that the standard streams are open and take every character: closed, the next file to be opened would
    get what is printed; and a name need not fit the terminal's encoding."""
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free, which is this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115  # for as long as we live
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def end(error: BaseException) -> int:
    """Say on stderr why a command ends, and return its exit status. A fault of ours is shown with its traceback."""
    output_is_lost = not _flush(sys.stdout)
    status = EXIT_USER_ERROR
    if isinstance(error, BrokenPipeError):  # `… | head` has read enough
        return EXIT_BROKEN_PIPE
    unexpected = False
    if isinstance(error, Terminated):
        said, status = f"ended by {signal.Signals(error.number).name}", 128 + error.number
    elif isinstance(error, KeyboardInterrupt):
        said, status = "interrupted", EXIT_INTERRUPTED
    elif isinstance(error, OSError) and error.errno is not None:
        what = error.filename if error.filename is not None else "stdout" if output_is_lost else None
        said = f"error: {'' if what is None else f'{os.fsdecode(what)}: '}{error.strerror}{_advice(error.errno)}"
    elif (lack := _memory_error(error)) is not None:
        said = f"error: memory ran out ({lack}); use a smaller batch, fewer --workers, or a larger machine"
    else:
        unexpected = True
        what = "".join(traceback.format_exception_only(error)).strip().splitlines()[-1]
        said = f"error: this is a fault of tdn_bench, not yours; please report it with the lines above: {what}"
        status = EXIT_FAULT
    tell(said, error, unexpected)
    return status


def tell(said: str, error: BaseException, unexpected: bool = False) -> None:
    """Say why a command ends; with its traceback where it is unexpected, else that goes to the log file."""
    trace = [printable(line) for line in "".join(traceback.format_exception(error)).splitlines()]
    log.error(printable(said), extra={"trace": trace if unexpected else []})
    if not unexpected:
        log.debug("where that was", extra={"trace": trace})


def say(line: str) -> None:
    """Print a line on stderr, if that can be written; also where nothing else is to be said (`--quiet`)."""
    stream = getattr(sys.stderr, "through", sys.stderr)
    with suppress(OSError):
        print(printable(line), file=stream, flush=True)
    _flush(stream)


def _advice(number: int) -> str:
    if number in (errno.ENOSPC, errno.EDQUOT):
        return "; free some space, or name another folder"
    try:
        os.getcwd()
    except FileNotFoundError:
        return "; the current folder was removed: change to another"
    return ""


def _memory_error(error: BaseException) -> str | None:
    """What could not be allocated, by Python, or by torch on the processor or a card; None for another error."""
    text = str(error).strip().partition("\n")[0]
    torchs = isinstance(error, RuntimeError) and ("can't allocate memory" in text or "out of memory" in text)
    return (text or "Python") if torchs or isinstance(error, MemoryError) else None


def _flush(stream: TextIO) -> bool:
    """Whether what was printed could be written. If not, it is thrown away: Python would try again as it ends, and end
    with a status of its own."""
    try:
        stream.flush()
    except OSError:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
        return False
    return True
