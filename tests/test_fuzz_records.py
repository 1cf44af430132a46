"""A slice of `tests/fuzz_records.py`: damaged and hostile records and baselines are shown or named, in one line."""

import fuzz_records


def test_damaged_records_are_shown_or_named(tmp_path):
    found = fuzz_records.fuzz_records(tmp_path, 24, seed=1, at_once=24)
    assert found["named"] > 8
    assert found["shown"] > 2


def test_damaged_baselines_are_refused_or_compared(tmp_path):
    found = fuzz_records.fuzz_baselines(tmp_path / "b", 24, seed=1)
    assert found["refused"] > 8
    assert found["compared: status 0"] > 2
