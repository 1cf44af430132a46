"""A run of the suite that is smaller than the dry one."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tdn_bench.gpu_checks import Run, dry


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A run smaller than the dry one, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    sizes = replace(dry(), matrix_side=32, copy_bytes=1024, clip_sizes=((160, 120),), clip_frames=24, plans_per_clip=1)
    return Run(sizes, torch.device("cpu"), tmp_path / "results")
