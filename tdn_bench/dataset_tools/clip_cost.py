"""What one clip costs: the measure that all figures of loading are made of."""

from __future__ import annotations

import time

from pipelines.clip import ClipSpec
from pipelines.cpu import decode_clip
from pipelines.ledger import Lane
from pipelines.plan import ClipPlan

SPEC = ClipSpec()
ROUNDS = 3  # every clip is measured once in each


def cpu_ms(plan: ClipPlan, lane: Lane) -> float:
    """Milliseconds of CPU time to decode a clip of SPEC, in this thread and in those that its decoder may start; `lane`
    takes the wall time of its stages. Raises BadClip."""
    clock = time.process_time()
    lane.begin()
    decode_clip(plan, SPEC, lane)
    return 1000 * (time.process_time() - clock)
