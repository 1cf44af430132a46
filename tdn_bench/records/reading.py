"""Whether a file is a record: everything that `record.schema.json` says of one is looked at before it is believed."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any

MAX_BYTES = 2**27  # of a record or of its samples, unpacked: a small file may hold any number of zeros
MAX_NAME, MAX_NESTING = 1000, 64
MAX_NUMBER, MAX_DIGITS = 1e100, 100  # larger ones overflow where they are added or drawn
STATUSES = ("stable", "unstable", "void", "unwatched")
_UNIT = re.compile(r"_(s|ms|us|percent|db|bytes|hz|w|j|flop|macs|per_s|per_video)\Z")
_COMMIT = re.compile(r"([0-9a-f]{40}|[0-9a-f]{64})\+?")


def parse_json(content: bytes) -> Any:
    """What JSON in UTF-8 says. Raises ValueError where it is none, holds a number that no measurement gives (NaN,
    1e999), or is nested more than MAX_NESTING deep."""
    try:
        value = json.loads(content.decode(), parse_constant=_no_number, parse_float=_float, parse_int=_int)
    except RecursionError as e:
        raise ValueError(f"nested more than {MAX_NESTING} deep") from e
    _check_nesting(value, MAX_NESTING)
    return value


def _no_number(text: str) -> float:
    raise ValueError(f"holds {text:.20}, which no measurement gives")


def _float(text: str) -> float:
    value = float(text)
    return value if abs(value) <= MAX_NUMBER else _no_number(text)


def _int(text: str) -> int:
    if len(text) > MAX_DIGITS:
        _no_number(text)
    return int(text)


def _check_nesting(value: Any, left: int) -> None:
    if not left:
        raise ValueError(f"nested more than {MAX_NESTING} deep")
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            if isinstance(inner, dict | list):
                _check_nesting(inner, left - 1)


def check_record(raw: Mapping[str, Any]) -> None:
    """Raise ValueError with the first thing that is not as the schema says. Fields are known to be there, and no
    others."""
    for key in ("kind", "name"):
        _check(isinstance(raw[key], str) and 0 < len(raw[key]) <= MAX_NAME, f"{key} is no text of 1 to {MAX_NAME}")
    for key in ("settings", "details"):
        _check(isinstance(raw[key], dict), f"{key} is no object")
    for key in ("command", "status_reasons"):
        _check(_is_list_of(raw[key], str), f"{key} is no list of text")
    _check(raw["status"] in STATUSES, f"status is none of {', '.join(STATUSES)}")
    _check(_is_time(raw["created_utc"]), "created_utc is no time such as 2026-01-31T23:59:59Z")
    commit = raw["commit"]
    _check(commit is None or (isinstance(commit, str) and bool(_COMMIT.fullmatch(commit))), "commit is none of git's")
    _check_machine(raw["machine"])
    versions = raw["versions"]
    known = isinstance(versions, dict) and _is_list_of(list(versions.values()), str)
    _check(known and {"python", "torch"} <= versions.keys(), "versions does not say those of python and torch")
    _check_data(raw["data"])
    check_samples(raw["samples"])
    _check_figures(raw["figures"], "figures")


def _check_machine(machine: Any) -> None:
    _check(isinstance(machine, dict), "machine is no object")
    for key in ("name", "cpu", "device"):
        _check(isinstance(machine.get(key), str), f"machine has no {key}")
    _check(bool(machine["name"]), "machine has no name")
    for key in ("cores", "memory_bytes"):
        _check(type(machine.get(key)) is int and machine[key] >= 1, f"machine has no {key}")
    _check(isinstance(machine.get("gpu"), str | None), "machine's gpu is no text")
    for key in ("gpu_memory_bytes", "gpu_power_limit_w"):
        value = machine.get(key)
        _check(value is None or (is_number(value) and value >= 0), f"machine's {key} is no number")


def _check_data(data: Any) -> None:
    whole = isinstance(data, dict) and all(isinstance(data.get(k), str) for k in ("name", "digest"))
    whole = whole and type(data.get("videos")) is int and data["videos"] >= 0
    _check(data is None or whole, "data has no name, digest and number of videos")


def check_samples(samples: Any) -> None:
    """Raise ValueError where these are no lists of numbers by name."""
    _check(isinstance(samples, dict), "samples is no object")
    for name, values in samples.items():
        good = isinstance(values, list) and all(v is None or is_number(v) for v in values)
        _check(good, f"samples of {name} are no list of numbers")


def _check_figures(figures: Any, where: str) -> None:
    _check(isinstance(figures, dict), f"{where} is no object")
    for key, value in figures.items():
        _check(bool(key), f"{where} has a key without a name")
        if _UNIT.search(key):
            _check(value is None or is_number(value), f"{where}.{key} is no number")
        elif isinstance(value, dict):
            _check_figures(value, f"{where}.{key}")


def is_number(value: object) -> bool:
    """Whether this is a number of JSON's: True is none."""
    return type(value) in (int, float)


def _is_list_of(value: Any, kind: type) -> bool:
    return isinstance(value, list) and all(isinstance(v, kind) for v in value)


def _is_time(value: Any) -> bool:
    try:
        return len(value) == 20 and bool(datetime.strptime(value, "%Y-%m-%dT%H:%M:%SZ"))
    except (ValueError, TypeError):
        return False


def _check(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ValueError(otherwise)
