"""Markdown: tables, and text from data that must not become markup."""

from __future__ import annotations

import re
from collections.abc import Sequence

from pipelines.errors import printable

_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "@": "&#64;"}  # no HTML, and nobody is notified
# An underscore within a word is none: names stay readable.
_MARKUP = re.compile(r"[\\`*\[~$|&<>@]|(?<![^\W_])_|_(?![^\W_])|^[#+-](?!\d)|^\d+(?=[.)](?:\s|$))")


class Markdown(str):
    """Text that is Markdown already."""

    __slots__ = ()


def markdown_text(text: str) -> Markdown:
    """Any text as Markdown that shows it as it is, on one line; what is `Markdown` stays."""
    if isinstance(text, Markdown):
        return text
    return Markdown(_MARKUP.sub(lambda m: _ENTITIES.get(m[0]) or _escaped(m[0]), printable(text)))


def _escaped(found: str) -> str:
    return f"{found}\\" if found.isdigit() else f"\\{found}"


def markdown_code(text: str) -> Markdown:
    """Any text as Markdown's `code`, on one line; what no `code` in a table takes, as plain text."""
    shown = printable(text)
    return markdown_text(shown) if re.search(r"[`|\\]", shown) or not shown.strip() else Markdown(f"`{shown}`")


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of a header and rows of as many cells, without a newline at its end. Cells that are not `Markdown` are
    shown as they are."""
    lines = [header, [Markdown("---")] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(markdown_text, line)) + " |" for line in lines)
