"""Protocol buffers' text format, as Triton reads its model configurations in: written only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class Symbol(str):
    """A value of an enumeration: it is written without quotes."""


def to_pbtxt(message: Mapping[str, Any], indent: str = "") -> str:
    """A message in the text format: text, numbers, Symbol, messages (mappings), and lists of them, which repeat."""
    lines = []
    for field, value in message.items():
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, Mapping):
                inside = to_pbtxt(one, f"{indent}  ")
                lines.append(f"{indent}{field} {{\n{inside}{indent}}}\n")
            else:
                lines.append(f"{indent}{field}: {_scalar(one)}\n")
    return "".join(lines)


def _scalar(value: object) -> str:
    if isinstance(value, Symbol):
        return str(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    assert isinstance(value, str)
    text = value.encode(errors="backslashreplace")  # a lone surrogate is no UTF-8
    return '"' + "".join(chr(b) if 32 <= b < 127 and b not in b'"\\' else f"\\{b:03o}" for b in text) + '"'
