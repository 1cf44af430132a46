"""A few of the random kills of `make soak`."""

from pathlib import Path

import pytest
from soak import kills


@pytest.mark.slow
def test_a_run_killed_at_random_ends_as_one_that_was_not(tmp_path: Path) -> None:
    found = kills(tmp_path, ranks=1, count=2, seed=0)
    assert found["kills"] >= 2
    assert found["different"] == 0
