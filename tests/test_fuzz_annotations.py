"""A slice of `make fuzz`: hostile annotation files end in one line, or in annotations that hold together."""

from pathlib import Path

import pytest
from fuzz_annotations import SETS, fuzz


@pytest.mark.parametrize("count", [8 * len(SETS), pytest.param(1500, marks=pytest.mark.slow)])
def test_hostile_annotations_are_refused_in_one_line_or_right(tmp_path: Path, count: int) -> None:
    found = fuzz(tmp_path, count, seed=3)
    assert found["read"] + found["refused"] == count
    assert found["refused"] > count / 2
