"""The range of every number that a user may type: a flag beyond it is refused before any work."""

from __future__ import annotations

from typing import Any

from tdn_bench.cli.settings import check_range

DAY_S = 86_400.0
MAX_BATCH = 1024  # clips: more would fill the memory of any machine
MAX_SEED = 2**63 - 1
LEAST = 1e-6  # where a number must be above 0


def check_ranges(config: Any, **limits: tuple[float, float]) -> None:
    """Raise UserError for a flag of the dataclass `config` that is not from the lowest to the highest of its `limits`,
    NaN among them. A flag that is None was left out."""
    for name, (low, high) in limits.items():
        check_range(name, getattr(config, name), low, high)
