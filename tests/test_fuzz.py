"""A slice of `make fuzz`: damaged files never crash a backend, and never pass for good ones with black or repeated
frames. With real clips beside the repository these are damaged, else clips made on the spot."""

from pathlib import Path

import pytest
import torch
from fuzz import Verdict, fuzz, judge, made_sources, shared_sources
from support.damage import FILE_KINDS, FOLDER_KINDS, Damaged
from support.paths import SHARED

from pipelines.errors import BadClip


@pytest.mark.parametrize("real", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_damaged_files_are_named_or_whole(tmp_path: Path, real: bool) -> None:
    pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    if real and not (SHARED / "data").is_dir():
        pytest.skip(f"no real data at {SHARED / 'data'}")
    sources = shared_sources(SHARED / "data", 2) if real else made_sources(tmp_path / "made")
    found = fuzz(sources, tmp_path / "damaged", 104, seed=7, backends=("pyav", "dali"))
    assert found["kinds"] == len({*FILE_KINDS, *FOLDER_KINDS})
    assert found["refused_by_scan"] > 30
    # a suffix changes no content: everything else does, and a checksum tells
    assert found["same_checksum"] == found["pyav_after_scan_by_kind"]["wrong_suffix: intact"]
    for backend in ("pyav", "dali"):
        for when in ("after_scan", "before_scan"):
            assert found[f"{backend}_{when}_black"] == []
            assert found[f"{backend}_{when}_repeated"] == []
            assert found[f"{backend}_{when}_named"] > 0


def test_the_judge_sees_black_and_repeated_frames() -> None:
    """The checks themselves, on clips that a broken decoder could hand on."""
    damaged = Damaged(Path("/x/a.webm"), Path("/x/b.webm"), "burst", "")
    original = torch.randint(40, 255, (8, 5, 16, 16, 3), dtype=torch.uint8)
    faults = {"intact": original, "altered": 255 - original, "black": original.clone(), "repeated": original.clone()}
    faults["black"][3, 2] = 0
    faults["repeated"][4, 1] = faults["repeated"][4, 0]
    for fault, clip in faults.items():
        verdict = Verdict()
        judge(clip, original, damaged, verdict)
        assert verdict.intact == (fault == "intact")
        assert verdict.altered == (fault != "intact")
        assert bool(verdict.black) == (fault == "black")
        assert bool(verdict.repeated) == (fault == "repeated")
    verdict = Verdict()
    judge(BadClip("a", "/x/a.webm", "cannot be decoded"), original, damaged, verdict)
    assert (verdict.named, verdict.by_kind) == (1, {"burst: named": 1})
