"""A few of the random kills of `make soak`."""

from pathlib import Path

import pytest
from soak import kills


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "count"), [(1, 3), (2, 2)])
def test_a_run_killed_at_random_ends_as_one_that_was_not(tmp_path: Path, ranks: int, count: int) -> None:
    found = kills(tmp_path, ranks, count, seed=0)
    assert found["kills"] >= count
    assert found["different"] == 0
