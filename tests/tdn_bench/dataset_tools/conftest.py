"""A data set that a test may break."""

import shutil
from pathlib import Path

import pytest


@pytest.fixture
def data(motion_data: Path, tmp_path: Path) -> Path:
    """A copy of the session's synthetic set."""
    return Path(shutil.copytree(motion_data, tmp_path / "set"))
