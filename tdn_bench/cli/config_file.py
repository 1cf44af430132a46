"""Flags in a TOML file: read by `--config FILE`, and written at the start of a run.

Keys are the flags' names, `batch_size` or `batch-size`. A table is for the command of its name, with its kind where it
has kinds: `[evaluate]`, `[train.demo]`; keys above the first table are for whichever command reads the file. The
command line wins over the table, the table over the keys above it.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

from pipelines.errors import printable
from pipelines.files import read_regular, write_whole
from tdn_bench.catalogue import commands, did_you_mean, versions_line
from tdn_bench.cli.interface import Flag, Interface, interface_of
from tdn_bench.errors import UserError
from tdn_bench.records import utc_now

MAX_BYTES = 2**20
# What a run is told once: a file that says it again would replace, or go on with, another run.
OF_THE_CALL = ("resume", "overwrite", "change", "update", "accept", "again", "step", "dry_run")


class ConfigFile:
    """A file's tables, and where their keys stand in it."""

    def __init__(self, path: Path) -> None:
        """Raises UserError for a file that cannot be read or is no TOML."""
        self.path, self._shown = path, printable(str(path))
        try:
            self._text = read_regular(path, MAX_BYTES).decode("utf-8-sig")  # Windows' editors begin a file with a mark
            self._tables: dict[str, Any] = tomllib.loads(self._text)
        except OSError as e:
            raise UserError(f"--config {self._shown}: cannot be read ({e.strerror})") from e
        except (ValueError, RecursionError) as e:
            raise UserError(f"--config {self._shown}: not a TOML file ({printable(str(e)):.200})") from e
        known = [name.replace("-", "_") for name in commands()]
        for name, table in self._tables.items():
            if isinstance(table, dict) and name.replace("-", "_") not in known:
                raise self._error(name, f"[{name}] is no command's table{did_you_mean(name, known)}")

    def kind(self, command: str) -> str | None:
        """The kind of a command that the file is for, where it has one table for it."""
        inner = [name for name, value in self._table(command).items() if isinstance(value, dict)]
        return inner[0] if len(inner) == 1 else None

    def values(self, interface: Interface, kinds: Collection[str] = ()) -> dict[str, Any]:
        """The flags that the file gives, by field. Raises UserError for a key that is no flag, and a value that is
        not its flag's; `kinds` are those of the command."""
        command, _, kind = interface.command.partition(" ")
        layers = [(None, self._tables), (command, self._table(command))]
        if kind:
            inner = self._table(command)
            for name, value in inner.items():
                if isinstance(value, dict) and name not in kinds:
                    raise self._error(name, f"[{command}.{name}]: no such kind{did_you_mean(name, kinds)}")
            layers.append((f"{command}.{kind}", inner.get(kind, {})))
        found = {}
        for table, keys in layers:
            spelled: dict[str, str] = {}
            for key, value in keys.items():
                if isinstance(value, dict) and (table is None or (kind and table == command)):
                    continue  # another command's, or another kind's
                f = self._flag(interface, table, key)
                if (other := spelled.setdefault(f.name, key)) != key:
                    raise self._error(key, f"{key} and {other} are one flag; keep one", table)
                try:
                    found[f.name] = f.take_plain(value)
                except ValueError as e:
                    raise self._error(key, f"{key} = {_as_typed(value):.60}: {e}", table) from e
        return found

    def _table(self, command: str) -> dict[str, Any]:
        names = (command, command.replace("-", "_"))
        return next((t for n in names if isinstance(t := self._tables.get(n), dict)), {})

    def _flag(self, interface: Interface, table: str | None, key: str) -> Flag:
        f = interface.by_name.get(key.replace("-", "_"))
        if f is None:
            close = did_you_mean(key, interface.by_name)
            if not close and table is None:
                close = "; a key of another command stands below its [command]"
            raise self._error(key, f"tdn-bench {interface.command} has no flag {printable(key)!r:.60}{close}", table)
        return f

    def _error(self, key: str, what: str, table: str | None = None) -> UserError:
        return UserError(f"{self._shown}{self._line(key, table)}: {what}")

    def _line(self, key: str, table: str | None) -> str:
        """`, line 3`, where the key stands; nothing where it cannot be told."""
        now = None
        for number, line in enumerate(self._text.splitlines(), 1):
            bare = line.strip()
            if bare.startswith("["):
                now = bare.strip("[] \t").partition("#")[0].strip("[] \t").replace('"', "")
                if table is None and now == key:
                    return f", line {number}"
            elif bare.partition("=")[0].strip().strip("\"'") == key and (now or "").replace("_", "-") == (
                table or ""
            ).replace("_", "-"):
                return f", line {number}"
        return ""


def to_toml(command: str, config: Any, leave_out: Collection[str] = OF_THE_CALL) -> str:
    """A dataclass of flags as the table of its command. What was left open is "none"; a text that was, and a path that
    is no UTF-8, which TOML cannot hold, are comments."""
    import tomli_w

    lines = [f"[{command.replace(' ', '.')}]"]
    for f in interface_of(command, type(config), config).flags:
        value = f.default  # of an interface that is made from this very config
        if f.name in leave_out:
            continue
        if value is None and (f.kind is str or "none" in f.choices):
            lines.append(f"# {f.name}: left open")
            continue
        plain = _plain("none" if value is None else value)
        try:
            line = re.sub(r"\n *", " ", tomli_w.dumps({f.name: plain}).strip())
            line.encode()
        except UnicodeEncodeError:
            line = f"# {f.name}: {printable(str(plain))} is no UTF-8"
        lines.append(line)
    return "\n".join(lines) + "\n"


def _as_typed(value: Any) -> str:
    """A value as a TOML file has it, to be shown: a number in quotes is seen to be one."""
    if isinstance(value, bool):
        return str(value).lower()
    return repr(value) if isinstance(value, str) else printable(str(value))


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    if isinstance(value, Path) and str(value) in ("None", "none"):
        return f"./{value}"
    return value if isinstance(value, bool | int | float | str) else str(value)


_undo: list[Callable[[], None]] = []  # where the run that is beginning is refused


def missing_folders(folder: Path) -> list[Path]:
    """Of a folder and those above it, the ones that are not there, the innermost first."""
    return [f for f in (folder, *folder.parents) if not f.exists()]


def begin_run(
    folder: Path,
    command: str,
    config: Any,
    name: str | None = None,
    beside: Collection[str] = (),
    made: Sequence[Path] | None = None,
) -> None:
    """Write the flags of a run, before its work, to the folder of its record: to `<command>-<time>.toml`, or `name`.
    One that was killed can so be told, too. `forget_run` takes it away again, and the folders that were made for it
    (`made`, unless this makes them), where nothing but the files `beside` it has come there. Raises UserError where it
    cannot be written."""
    made = missing_folders(folder) if made is None else made
    stamp = utc_now().replace("-", "").replace(":", "")
    names = (f"{command.replace(' ', '-')}-{stamp}{f'-{n}' if n else ''}.toml" for n in count())
    path = folder / name if name else next(p for n in names if not (p := folder / n).exists())
    before = path.read_bytes() if path.is_file() else None
    write_config(path, command, config)

    def undo() -> None:
        with suppress(OSError):  # it holds something by now
            if before is not None:
                write_whole(path, before)
                return
            path.unlink()
            if made and {entry.name for entry in folder.iterdir()} <= set(beside):
                for entry in folder.iterdir():
                    entry.unlink()
            for f in made:
                f.rmdir()

    _undo.append(undo)


def forget_run() -> None:
    """The run was refused: nothing of it stays."""
    while _undo:
        _undo.pop()()


def keep_run() -> None:
    """The run is over."""
    _undo.clear()


def write_config(path: Path, command: str, config: Any) -> None:
    """Write the flags of a run to a file that --config takes. Raises UserError where it cannot be written."""
    head = f"# {versions_line()}\n# tdn-bench {command} --config {printable(path.name)}\n"
    try:
        write_whole(path, (head + to_toml(command, config)).encode())
    except OSError as e:
        raise UserError(f"{printable(str(path))}: cannot be written ({e.strerror})") from e
