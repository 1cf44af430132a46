"""The search for the highest load that a system bears."""

from __future__ import annotations

import math
from collections.abc import Callable


def search(
    passes: Callable[[float], bool],
    confirms: Callable[[float], bool],
    guess: float,
    *,
    resolution: float,
    lowest: float,
    whole: bool = False,
) -> tuple[float | None, float]:
    """The highest load that passes and is confirmed, and the lowest that was refused, no more than `resolution` apart
    (a share; of `whole` loads at least one). Doubles or halves from a guess until it has both, then bisects. Where a
    load is not confirmed it goes back by growing steps, and bisects what it went back too far; None where nothing down
    to `lowest` passes."""

    def step(load: float) -> float:
        return max(1, math.floor(load * resolution)) if whole else load * resolution

    best, refused = None, math.inf
    load = max(lowest, math.floor(guess)) if whole else guess
    while best is None or refused == math.inf:
        if passes(load):
            best = load
        else:
            refused = load
        if refused < math.inf and best is None and load <= lowest:
            return None, refused
        load = load * 2 if refused == math.inf else max(lowest, load // 2 if whole else load / 2)

    def bisect(passes: Callable[[float], bool], best: float, refused: float) -> tuple[float, float]:
        while refused - best > step(best):
            middle = (best + refused) // 2 if whole else (best + refused) / 2
            best, refused = (middle, refused) if passes(middle) else (best, middle)
        return best, refused

    best, refused = bisect(passes, best, refused)
    share = 1 + resolution
    while not confirms(best):
        refused, best, share = best, min(best - 1, best // share) if whole else best / share, share * share
        if best < lowest:
            return None, refused
    return bisect(confirms, best, refused)
