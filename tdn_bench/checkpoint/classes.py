"""Which of a checkpoint's classes is which of a data set's: by name, where both have names."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

from tdn_bench.checkpoint.tensor_files import CheckpointError

ADVICE = "use the data set that it was trained on, or train it on this one with --finetune"
SHOWN = 3  # differences that an error names
# What copies of one data set write differently: spaces, underscores, brackets, quotes, and hyphens within words.
_SPELLING = re.compile(r"[\s_\[\](){}'\"]|(?<=[^\W\d])-(?=[^\W\d])")


@dataclass(frozen=True)
class ClassMatch:
    """How a checkpoint's classes fit a data set's. `order` gives the checkpoint's index of each of the data set's
    classes, None where they are the same; `note` is a line for the user where anything had to be matched."""

    order: tuple[int, ...] | None = None
    note: str | None = None


def match_classes(
    known: Sequence[str] | None,
    wanted: Sequence[str],
    where: object,
    other: object = "the data set",
    advice: str = ADVICE,
) -> ClassMatch:
    """Match the classes `known` to a checkpoint (None: it has no names) to those of a data set, `wanted`.

    Equal names in another order are matched, and so are names that differ only in spelling: case, spaces, underscores,
    brackets, quotes, hyphens within words. Where either side has no names ("0", "1", … stand for none), only their
    number is compared. Errors call the two sides `where` and `other`, and end with `advice`. Raises CheckpointError for
    other classes.
    """
    if known is None:
        return ClassMatch()
    if list(known) == list(wanted):
        return ClassMatch()
    if (order := _places(known, wanted)) is not None:
        note = f"{where}: knows these classes in another order; they are matched by name ({_moved(known, order)})"
        return ClassMatch(order, note)
    if are_numbers(known) or are_numbers(wanted):
        if len(known) == len(wanted):
            return ClassMatch()
        raise CheckpointError(f"{where}: knows {len(known)} classes, {other} has {len(wanted)}; {advice}")
    spelt = [[_spelling(name) for name in names] for names in (known, wanted)]
    if (order := _places(*spelt)) is not None:
        i = next(i for i, place in enumerate(order) if known[place] != wanted[i])
        note = f"{where}: spells classes differently, as {known[order[i]]!r} for {wanted[i]!r}"
        if order == tuple(range(len(order))):
            return ClassMatch(None, note)
        return ClassMatch(order, f"{note}, and has another order; they are matched by name ({_moved(known, order)})")
    raise CheckpointError(f"{where}: not of the same classes: {_differences(known, wanted, other)}; {advice}")


def _places(known: Sequence[str], wanted: Sequence[str]) -> tuple[int, ...] | None:
    """Where each of `wanted` is in `known`; None where they are not the same names, each once."""
    place = {name: i for i, name in enumerate(known)}
    if len(place) != len(known) or place.keys() != set(wanted) or len(wanted) != len(known):
        return None
    return tuple(place[name] for name in wanted)


def _moved(known: Sequence[str], order: Sequence[int]) -> str:
    i = next(i for i, place in enumerate(order) if place != i)
    return f"{sum(place != i for i, place in enumerate(order))} moved, first {known[order[i]]!r} from {order[i]} to {i}"


def are_numbers(names: Sequence[str]) -> bool:
    """Whether names are but the classes' own numbers: what a list without names gets."""
    return list(names) == [str(i) for i in range(len(names))]


def _spelling(name: str) -> str:
    return _SPELLING.sub("", unicodedata.normalize("NFKC", name).casefold())


def _differences(known: Sequence[str], wanted: Sequence[str], other: object) -> str:
    pairs = [(i, k, w) for i, (k, w) in enumerate(zip_longest(known, wanted)) if k != w]
    shown = "; ".join(f"class {i} is {_named(k)} there, {_named(w)} in {other}" for i, k, w in pairs[:SHOWN])
    rest = f"; {len(pairs) - SHOWN} more" if len(pairs) > SHOWN else ""
    numbers = f" ({len(known)} and {len(wanted)} classes)" if len(known) != len(wanted) else ""
    return f"{shown}{rest}{numbers}"


def _named(name: str | None) -> str:
    return "none" if name is None else repr(name if len(name) <= 60 else f"{name[:60]}…")
