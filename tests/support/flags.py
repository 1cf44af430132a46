"""Nested dataclasses of flags, set by the flags' flat names."""

from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

T = TypeVar("T")


def configure(config: T, **flags: Any) -> T:
    """`config` with some flags changed, wherever in it they lie: `configure(demo(), epochs=1, data=path)`."""
    changed, left = _configure(config, flags)
    assert not left, f"no such flags: {sorted(left)}"
    return changed


def _configure(config: Any, flags: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    own: dict[str, Any] = {}
    for f in fields(config):
        value = getattr(config, f.name)
        if is_dataclass(value):
            own[f.name], flags = _configure(value, flags)
        elif f.name in flags:
            own[f.name] = flags[f.name]
            flags = {name: v for name, v in flags.items() if name != f.name}
    return replace(config, **own), flags
