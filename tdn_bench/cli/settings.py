"""A command's flags as a record keeps them, and as a command line gives them again."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import fields, is_dataclass
from typing import Any

import torch

from tdn_bench.errors import UserError

# What records, and earlier commits, call the flags that were renamed since.
RECORD_KEYS = {"dynamic_batch": "ranged", "exclude_layers": "keep", "cache_dir": "cache_folder"}


def leaves(config: Any) -> Iterator[tuple[str, Any, Any]]:
    """(name, value, default) of every flag of a dataclass, and of those that it is composed of. The default is the
    innermost class's own: what a flag has that nobody names."""
    for f in fields(config):
        value = getattr(config, f.name)
        if is_dataclass(value):
            yield from leaves(value)
        else:
            yield f.name, value, f.default


def settings_of(config: Any) -> dict[str, Any]:
    """All flags by name, flat, as records have them."""
    found = [
        (RECORD_KEYS.get(name, name), str(value) if isinstance(value, torch.device) else value)
        for name, value, _ in leaves(config)
    ]
    assert len(dict(found)) == len(found), "two flags of one name"
    return dict(found)


def flag(name: str) -> str:
    """`max_seconds` as it is typed: `--max-seconds`."""
    return f"--{name.replace('_', '-')}"


def check_range(name: str, value: float | None, low: float, high: float) -> None:
    """Raise UserError unless the number of a flag, if it is given, is from `low` to `high`. NaN is not."""
    if value is not None and not low <= value <= high:
        text = str(value) if len(str(value)) <= 24 else f"{value!s:.20}…"
        ends = [str(end) if isinstance(end, int) else f"{end:g}" for end in (low, high)]
        raise UserError(f"{flag(name)} {text}: must be from {ends[0]} to {ends[1]}")


def as_flags(config: Any, leave_out: Collection[str] = ()) -> list[list[str]]:
    """The command line that gives a dataclass of flags its values: those that are not the defaults, a flag with its
    values each, by the names that an earlier commit's command knows too."""
    found = []
    for name, value, default in leaves(config):
        if name in leave_out or value == default:
            continue
        name = RECORD_KEYS.get(name, name)
        if isinstance(value, bool):
            found.append([flag(name) if value else flag(f"no_{name}")])
        elif isinstance(value, tuple):
            found.append([flag(name), *map(str, value)])
        else:
            found.append([flag(name), str(value)])
    return found
