"""Nothing is counted until it no longer gets faster."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable


def warm_up(
    work: Callable[[], float], *, min_calls: int = 4, min_s: float = 0.0, max_s: float = 20.0, tolerance: float = 0.05
) -> dict[str, float | bool]:
    """Call `work`, which returns what it took (s), until it no longer gets faster: at least `min_calls` times and
    `min_s` seconds, then until the median of the last quarter of the calls is within `tolerance` of the quarter before;
    at most `max_s` seconds. Returns how long, how often, and whether it was stable by then."""
    taken: list[float] = []
    start, stable = time.perf_counter(), False
    while not stable and (len(taken) < min_calls or time.perf_counter() - start < max_s):
        taken.append(work())
        quarter = max(1, len(taken) // 4)
        if len(taken) >= max(2, min_calls) and time.perf_counter() - start >= min_s:
            last, before = (statistics.median(part) for part in (taken[-quarter:], taken[-2 * quarter : -quarter]))
            stable = last >= (1 - tolerance) * before
    return {"warmup_s": time.perf_counter() - start, "warmup_calls": len(taken), "warmup_stable": stable}
