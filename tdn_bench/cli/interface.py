"""A command's flags, read from its dataclass: what the command line, --help, a --config file and the shell's
completion all go by.

The dataclass may be composed of others; their flags have no prefix. A value is a bool, int, float, str, Path, a
Literal, one of these or None, a pair of them, or any number of them (`tuple[X, ...]`).
"""

from __future__ import annotations

import argparse
import math
import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

from tyro.conf import PositionalRequiredArgs

from tdn_bench.catalogue import choose_one, did_you_mean
from tdn_bench.cli.settings import flag
from tdn_bench.errors import UserError

T = TypeVar("T")
MOST = 2**63 - 1  # of a whole number; of any other, where no flag says less
WORDS: dict[Any, str] = {int: "N", float: "X", str: "TEXT", Path: "PATH"}
NAMES: dict[Any, str] = {int: "a whole number", float: "a number", bool: "true or false"}


@dataclass(frozen=True)
class Flag:
    """One flag. `path` are the fields that lead to it, `kind` is the type of one value, `count` how many it takes
    (None: any number), `default` what it is where nobody says (MISSING: somebody must)."""

    path: tuple[str, ...]
    owner: type
    kind: Any
    count: int | None
    optional: bool
    default: Any
    positional: bool = False
    aliases: tuple[str, ...] = ()
    called: str | None = None  # where the field cannot have its name, such as `class`
    metavar: str | None = None
    appends: bool = False  # it may be given several times

    @property
    def field(self) -> str:
        return self.path[-1]

    @property
    def name(self) -> str:
        """`batch_size`."""
        return self.called or self.field

    @property
    def shown(self) -> str:
        """As it is typed: `--batch-size`; `DATASET` where it has a place instead."""
        return (self.metavar or self.name.upper()).rstrip("… ") if self.positional else flag(self.name)

    @property
    def required(self) -> bool:
        return self.default is MISSING

    @property
    def choices(self) -> tuple[str, ...]:
        """The words that it takes; none where it takes any."""
        return tuple(map(str, get_args(self.kind))) if get_origin(self.kind) is Literal else ()

    @property
    def bare(self) -> str | None:
        """What it is where it is typed without a value: `yes`, if it can be that."""
        return "yes" if "yes" in self.choices else None

    @cached_property
    def text(self) -> str:
        """What its docstring says, in one line."""
        from docstring_parser import parse_from_object

        texts = {p.arg_name: p.description or "" for p in parse_from_object(self.owner).params}
        return " ".join(texts.get(self.field, "").split())

    def take(self, words: Sequence[str]) -> Any:
        """The value that words of a command line or of a file stand for. Raises ValueError, which says what is
        wrong with it."""
        if (
            self.optional
            and list(words) in (["None"], ["none"])
            and self.kind is not str
            and "none" not in self.choices
        ):
            return None
        if self.count == 1:
            return self._one(words[0])
        if self.count is not None and len(words) != self.count:
            raise ValueError(f"takes {self.count} values")
        return tuple(map(self._one, words))

    def take_plain(self, value: Any) -> Any:
        """`take` for a value of a file, which has a type: a number in quotes is none. Raises ValueError."""
        values = value if isinstance(value, list) else [value]
        if self.count == 1 and isinstance(value, list):
            raise ValueError("takes one value, not a list")
        if self.count is None and not isinstance(value, list):
            raise ValueError("takes a list")
        for one in values:
            none = self.optional and one == "none"
            is_number = isinstance(one, int | float) and not isinstance(one, bool)
            right = {bool: isinstance(one, bool), int: type(one) is int, float: is_number}
            plain = isinstance(one, str) or (bool(self.choices) and is_number)
            if not none and not right.get(self.kind, plain):
                raise ValueError(f"must be {NAMES.get(self.kind, 'text in quotes')}")
        return self.take([str(one) for one in values])

    def _one(self, word: str) -> Any:
        if self.choices:
            if word not in self.choices:
                raise ValueError(choose_one(word, self.choices))
            return get_args(self.kind)[self.choices.index(word)]
        if self.kind is bool:
            return word in ("True", "true")
        if self.kind is Path:
            if not word:
                raise ValueError("is empty: name a file or folder")
            return Path(word)
        try:
            value = self.kind(word)
        except ValueError as e:
            raise ValueError(f"must be {NAMES[self.kind]}") from e
        if self.kind in (int, float):
            self._check_number(value)
        return value

    def _check_number(self, value: float) -> None:
        """No flag has a use for a number that is none, or that nothing could count to; few have one below 0."""
        if not math.isfinite(value) or abs(value) > MOST:
            raise ValueError("must be a finite number" if isinstance(value, float) else f"must be at most {MOST}")
        if value < 0 and not (isinstance(self.default, int | float) and self.default < 0):
            raise ValueError("must not be negative")


@dataclass(frozen=True)
class Interface:
    """What can be typed after a command's name: the flags of a dataclass, or one of several kinds, each with flags."""

    command: str  # `train`, or with its kind `train demo`
    what: str
    make: Any = None  # the dataclass
    flags: tuple[Flag, ...] = ()
    kinds: Mapping[str, Interface] | None = None
    examples: Sequence[str] = ()
    common: Sequence[str] = ()

    @cached_property
    def by_name(self) -> dict[str, Flag]:
        """Flags by name, other names and those of the fields included."""
        others = {f: [a.lstrip("-").replace("-", "_") for a in f.aliases] for f in self.flags}
        return {name: f for f in self.flags for name in (f.name, f.field, *others[f])}

    def values(self, words: Sequence[str]) -> dict[str, Any]:
        """What a command line gives, by name. Raises UserError for what cannot be typed."""
        parser = Tokens(prog=f"tdn-bench {self.command}", add_help=False, allow_abbrev=False)
        add_arguments(parser, self)
        known, rest = parser.parse_known_args(
            self._in_place([_one_spelling(self, word) for word in _join_negative(words)])
        )
        for word in rest:
            typed = word.partition("=")[0]
            if word.startswith("-") and word != "-":
                names = [flag(name) for f in self.flags for name in _spellings(f)]
                raise UserError(f"unknown flag {typed!r}{did_you_mean(typed, [*names, *GENERAL])}{self._hint}")
            raise UserError(f"{word!r}: one word too many{did_you_mean(word, self.by_name)}{self._hint}")
        found = {}
        for name, given in vars(known).items():
            f = self.by_name[name]
            words = [str(given)] if isinstance(given, str | bool) else given
            try:
                found[name] = f.take(words)
            except ValueError as e:
                raise UserError(f"{f.shown} {' '.join(words):.60}: {e}") from e
        return found

    def _in_place(self, words: list[str]) -> list[str]:
        """`--dataset folders` as `folders`, where that is the one value that has a place: other commands have a flag of
        the name."""
        places = [flag(f.name) for f in self.flags if f.positional]
        if len(places) != 1:
            return words
        end = words.index("--") if "--" in words else len(words)
        named = [word.removeprefix(f"{places[0]}=") for word in words[:end] if word != places[0]]
        return named + words[end:]

    @property
    def _hint(self) -> str:
        return f"; see tdn-bench {self.command} --help-all"

    def build(self, values: Mapping[str, Any]) -> Any:
        """The dataclass with these values by name, and else its defaults. Raises UserError where one is missing."""
        for f in self.flags:
            if f.required and f.name not in values:
                what = f.text.partition(". ")[0].rstrip(".")
                raise UserError(f"{f.shown} is missing{what and ': '}{what}; see tdn-bench {self.command} --help")
        return _build(self.make, {f.path: values.get(f.name, f.default) for f in self.flags}, ())


GENERAL = ("--help", "--help-all", "--config", "--quiet", "--verbose", "--log-file")


class Tokens(argparse.ArgumentParser):
    """Splits words into flags and values, which stay text."""

    def error(self, message: str) -> NoReturn:
        message = message.removeprefix("argument ").replace(": expected one argument", ": needs a value")
        message = message.replace(": expected at least one argument", ": needs a value")
        raise UserError(message.replace(": expected", " takes").replace("arguments", "values"))


def interface_of(
    command: str, make: type, default: Any = MISSING, *markers: Any, what: str = "", **shown: Sequence[str]
) -> Interface:
    """The flags of a dataclass; `default` is an instance whose values are the defaults. `markers` are tyro's."""
    flags = tuple(_flags(make, default, (), PositionalRequiredArgs in markers))
    assert len({f.name for f in flags}) == len(flags), f"{command}: two flags of one name"
    doc = make.__doc__ or ""
    return Interface(command, what or ("" if doc.startswith(f"{make.__name__}(") else doc), make, flags, **shown)  # type: ignore[arg-type]


def _flags(make: type, default: Any, path: tuple[str, ...], required_have_places: bool) -> list[Flag]:
    hints = get_type_hints(make, include_extras=True)
    found: list[Flag] = []
    for f in fields(make):
        value = f.default if f.default_factory is MISSING else f.default_factory()
        if default is not MISSING:
            value = getattr(default, f.name)
        hint: Any = hints[f.name]
        metadata: list[Any] = []
        if get_origin(hint) is Annotated:
            hint, *metadata = get_args(hint)
        if is_dataclass(hint):
            found += _flags(hint, value, (*path, f.name), required_have_places)  # type: ignore[arg-type]
            continue
        kind, optional = _without_none(hint)
        count: int | None = 1
        marks = [str(m) for m in metadata]
        arg = next((m for m in metadata if hasattr(m, "metavar")), None)
        if get_origin(kind) is tuple:
            kinds = get_args(kind)
            kind, count = kinds[0], None if kinds[-1] is ... else len(kinds)
        known = kind in (bool, int, float, str, Path) or get_origin(kind) is Literal
        assert known, f"{make.__name__}.{f.name}: no flag can be a {kind}"
        found.append(
            Flag(
                (*path, f.name),
                make,
                kind,
                count,
                optional,
                value,
                positional="Positional" in marks or (required_have_places and value is MISSING),
                aliases=tuple(getattr(arg, "aliases", None) or ()),
                called=getattr(arg, "name", None),
                metavar=getattr(arg, "metavar", None),
                appends="UseAppendAction" in marks,
            )
        )
    return found


def _without_none(hint: Any) -> tuple[Any, bool]:
    """`X | None` without None, and whether it had it."""
    if get_origin(hint) in (Union, types.UnionType):
        rest = [kind for kind in get_args(hint) if kind is not type(None)]
        assert len(rest) == 1, f"no flag can be a {hint}"
        return rest[0], True
    return hint, False


def _build(make: Any, values: Mapping[tuple[str, ...], Any], path: tuple[str, ...]) -> Any:
    own = {}
    hints = get_type_hints(make)
    for f in fields(make):
        at = (*path, f.name)
        own[f.name] = _build(hints[f.name], values, at) if is_dataclass(hints[f.name]) else values[at]
    return make(**own)


def add_arguments(parser: argparse.ArgumentParser, interface: Interface, complete: bool = False) -> None:
    """Give an argparse parser the flags. With `complete`, also what a shell can offer: choices and files."""
    for f in interface.flags:
        options: dict[str, Any] = {"default": argparse.SUPPRESS}
        if complete:
            options |= {"help": f.text.replace("%", "%%")}
            options |= {"choices": f.choices} if f.choices else {}
        if f.positional:
            nargs = "?" if f.count == 1 else "*"
            action = parser.add_argument(f.name, nargs=nargs, **options)
        else:
            names = [flag(f.name), *f.aliases]
            if f.kind is bool:
                action = parser.add_argument(*names, dest=f.name, action=argparse.BooleanOptionalAction, **options)
            else:
                takes: dict[str, Any] = {"nargs": "*" if f.count is None else f.count} if f.count != 1 else {}
                takes = {"action": "append"} if f.appends else takes
                takes |= {"nargs": "?", "const": f.bare} if f.bare else {}
                action = parser.add_argument(*names, dest=f.name, **takes, **options)
        if complete and f.kind is Path:
            import shtab

            action.complete = shtab.FILE  # type: ignore[attr-defined]


def _spellings(f: Flag) -> list[str]:
    return [] if f.positional else [f.name, f"no_{f.name}"] if f.kind is bool else [f.name]


def _one_spelling(interface: Interface, word: str) -> str:
    """`--batch_size=8` as `--batch-size=8`."""
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value if name.startswith("--") else word


def _join_negative(words: Sequence[str]) -> list[str]:
    """A flag and a negative number as one word: argparse takes -1e-3 and -inf for flags."""
    joined: list[str] = []
    for word in words:
        number = word.startswith("-") and _is_number(word)
        if number and joined and joined[-1].startswith("--") and "=" not in joined[-1]:
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True
