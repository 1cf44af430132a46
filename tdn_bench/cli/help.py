"""What --help says: a screen with the flags that most people want, or all of them by groups."""

from __future__ import annotations

import re
import shutil
import textwrap
from dataclasses import MISSING
from itertools import groupby
from typing import Any

from tdn_bench.cli.interface import WORDS, Flag, Interface

MOST_FLAGS = 11  # on a screen of 24 lines, beside the examples
WIDEST_LEFT = 32
EVERYWHERE = "Every command takes --config FILE.toml, -q, -v and --log-file FILE (docs/commands.md)."


def help_text(interface: Interface, everything: bool = False) -> str:
    """The page of a command. One for a screen has a line for each of the flags that `common` names."""
    width = min(100, max(60, shutil.get_terminal_size().columns))
    if interface.kinds is not None:
        return _kinds_page(interface, width)
    flags = interface.flags
    paragraphs = [" ".join(p.split()) for p in interface.what.split("\n\n")]
    lines = [_usage(interface), ""]
    if everything:
        for paragraph in filter(None, paragraphs):
            lines += [*_wrap(paragraph, width), ""]
        for owner, group in groupby(sorted(flags, key=lambda f: len(f.path)), lambda f: f.owner):
            if owner is not interface.make and owner.__doc__:
                lines += [f"{first_sentence(owner.__doc__)}"]
            for f in group:
                said = f"{f.text}{_choices(f)}{_default(f)}"
                lines.append(f"  {_typed(f, True)}")
                lines += _wrap(said.strip(), width, initial_indent=" " * 6, subsequent_indent=" " * 6)
            lines.append("")
        lines += _wrap(EVERYWHERE, width)
    else:
        lines += _wrap(first_sentence(interface.what), width, max_lines=2, placeholder=" …")
        shown = _common(interface)
        left = max((len(_typed(f)) for f in shown), default=0) + 2
        lines += ["", *(f"  {_typed(f):{left}s}{_clipped(f, width - left - 2)}" for f in shown)]
        more = f"All {len(flags)} flags: --help-all. " if len(shown) < len(flags) else ""
        lines += _wrap(more + EVERYWHERE, width)
    return "\n".join([*lines, *_examples(interface)])


def _wrap(text: str, width: int, **options: Any) -> list[str]:
    return textwrap.wrap(text, width, break_on_hyphens=False, **options)


def first_sentence(text: str) -> str:
    """Of a docstring."""
    return re.split(r"(?<=[.!?])\s+(?=[A-Z`])", " ".join(text.partition("\n\n")[0].split()))[0]


def _usage(interface: Interface) -> str:
    places = [f for f in interface.flags if f.positional]
    words = [f.shown + ("" if f.count == 1 else " …") for f in places]
    shown = [word if f.required else f"[{word}]" for f, word in zip(places, words, strict=True)]
    needed = [_typed(f) for f in interface.flags if f.required and not f.positional]
    return " ".join(["usage: tdn-bench", interface.command, *shown, *needed, *["[FLAGS]"] * (len(interface.flags) > 0)])


def _kinds_page(interface: Interface, width: int) -> str:
    assert interface.kinds is not None
    variants = [name for name in interface.kinds if any(name.startswith(f"{other}_") for other in interface.kinds)]
    listed = {name: kind for name, kind in interface.kinds.items() if name not in variants}
    left = max(map(len, listed)) + 4
    lines = [f"usage: tdn-bench {interface.command} {interface.what} [FLAGS]", ""]
    for name, kind in listed.items():
        said = textwrap.shorten(first_sentence(kind.what).rstrip("."), width - left, placeholder=" …")
        lines.append(f"  {name:{left - 2}s}{said}")
    if variants:
        lines += ["", *textwrap.wrap(f"Variants: {', '.join(variants)}.", width)]
    lines += ["", f"The flags of each: tdn-bench {interface.command} {interface.what} --help."]
    return "\n".join([*lines, *_wrap(EVERYWHERE, width), *_examples(interface)])


def _examples(interface: Interface) -> list[str]:
    return ["", "examples:", *(f"  {line}" for line in interface.examples)] if interface.examples else []


def _common(interface: Interface) -> list[Flag]:
    """The flags of the short page: those without a default, then those that the command names, or its first ones."""
    places = [f for f in interface.flags if f.positional or f.required]
    named = [interface.by_name[name] for name in interface.common] or list(interface.flags)
    rest = [f for f in named if f not in places]
    return [*places, *(rest if interface.common else rest[: MOST_FLAGS - len(places)])]


def _typed(f: Flag, in_full: bool = False) -> str:
    """`--batch-size N`, as it is typed."""
    if f.positional:
        return f.shown + ("" if f.count == 1 else " …")
    if f.kind is bool:
        return f.shown if f.default in (False, None) else f"--[no-]{f.shown[2:]}"
    word = f.metavar or WORDS.get(f.kind, "NAME")
    if f.choices and len(braces := f"{{{','.join(f.choices)}}}") + len(f.shown) + 3 <= WIDEST_LEFT:
        word = braces
    word = f"[{'|'.join(c for c in f.choices if c != 'no')}]" if f.bare else word
    word = f"{word} …" if f.count is None and not f.appends else " ".join([word] * (f.count or 1))
    also = f" ({', '.join(f.aliases)})" if in_full and f.aliases else ""
    return f"{f.shown} {word}{also}"


def _choices(f: Flag) -> str:
    return f" One of {', '.join(f.choices)}." if f.choices and not _typed(f).endswith("}") else ""


def _default(f: Flag) -> str:
    """The default in brackets, where the text would not say."""
    value = f.default
    if value in (None, (), False, True, "") or value is MISSING:
        return ""
    number = f"{value:.4g}" if isinstance(value, float) else None
    return f" [{number or (' '.join(map(str, value)) if isinstance(value, tuple) else value)}]"


def _clipped(f: Flag, width: int) -> str:
    """The first sentence and the default, in one line."""
    default, said = _default(f), first_sentence(f.text)
    return f"{textwrap.shorten(said, max(20, width - len(default)), placeholder=' …')}{default}"
