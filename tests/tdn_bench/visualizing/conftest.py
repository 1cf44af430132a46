"""Checkpoints of small networks."""

from collections.abc import Callable
from pathlib import Path

import pytest
from support.networks import make
from support.planted import save


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Makes the checkpoint of a small network with random weights, once."""
    folder = tmp_path_factory.mktemp("networks")

    def of(variant: str) -> Path:
        path = folder / variant / "best.safetensors"
        if not path.exists():
            path.parent.mkdir()
            save(make(variant), variant, path)
        return path

    return of
