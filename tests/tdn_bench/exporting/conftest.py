"""A trained checkpoint with class names, and what `tdn-bench export` says of it."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pipelines.synthetic import CLASSES
from tdn_bench.checkpoint import save_checkpoint
from tdn_bench.cli import run_command
from tdn_bench.export import main
from tdn_bench.models import create_model

HOSTILE = (
    'a "quoted" name',
    "turned \u202e round",
    "no \\n line, one \\ backslash",
    "<script>alert(1)</script>",
    "naïve: 3:4",
    "' }",
    "e",
)
Run = Callable[..., tuple[int, str, str]]


def write_checkpoint(path: Path, classes: tuple[str, ...]) -> Path:
    torch.manual_seed(0)
    network = create_model("tdn_resnet_small", num_classes=len(classes), num_segments=4)
    torch.nn.init.normal_(network.classifier.weight, 0, 0.1)
    notes = {"model": "tdn_resnet_small", "num_segments": 4, "size": 64, "crop_ratio": 0.875, "classes": list(classes)}
    save_checkpoint(network, path, notes)
    return path


@pytest.fixture(scope="session")
def trained_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("trained") / "best.safetensors", CLASSES)


@pytest.fixture(scope="session")
def hostile_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its class names hold what breaks formats."""
    return write_checkpoint(tmp_path_factory.mktemp("hostile") / "best.safetensors", HOSTILE)


@pytest.fixture
def export(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command; gives its status, and what it wrote to stdout and stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        try:
            status = run_command(main, [str(argument) for argument in arguments])
        except SystemExit as stop:
            status = stop.code if isinstance(stop.code, int) else 1
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run
