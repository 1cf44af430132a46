"""Adding an engine, a data set, a command, a network: done in a copy of the sources, in as many places as
CONTRIBUTING.md says, and found by every command that has to know of it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.paths import ROOT


class Clone:
    """A copy of the packages that is changed by a test; `changed` are the places."""

    def __init__(self, root: Path) -> None:
        self.root, self.changed = root, set[str]()
        for package in ("tdn_bench", "pipelines", "engines", "storage"):
            shutil.copytree(ROOT / package, root / package, ignore=shutil.ignore_patterns("__pycache__"))

    def write(self, name: str, text: str) -> None:
        assert not (self.root / name).exists()
        (self.root / name).write_text(text, encoding="utf-8")
        self.changed.add(name)

    def insert(self, name: str, before: str, text: str) -> None:
        source = (self.root / name).read_text(encoding="utf-8")
        assert source.count(before) == 1, f"{name} has {before!r} {source.count(before)} times"
        (self.root / name).write_text(source.replace(before, text + before), encoding="utf-8")
        self.changed.add(name)

    def python(self, *arguments: str) -> str:
        environment = os.environ | {"PYTHONPATH": str(self.root), "COLUMNS": "200"}
        done = subprocess.run(
            [sys.executable, *arguments], cwd=self.root, env=environment, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    return Clone(tmp_path)


def test_an_engine_touches_two_places(clone: Clone) -> None:
    clone.write(
        "engines/mirror.py",
        """from engines.eager import EagerEngine


class MirrorEngine(EagerEngine):
    name = "mirror"
    cpu_precisions = ("fp32",)
""",
    )
    clone.insert("engines/registry.py", "    TorchTrtEngine,\n)", "    MirrorEngine,\n")
    clone.insert("engines/registry.py", "from engines.ort import", "from engines.mirror import MirrorEngine\n")
    assert len(clone.changed) == 2
    assert "mirror    ready: fp32" in clone.python("-m", "tdn_bench.doctor", "--device", "cpu")
    assert " mirror," in clone.python("-m", "tdn_bench.throughput", "--help-all")


def test_a_data_set_touches_one_place(clone: Clone) -> None:
    clone.insert(
        "pipelines/annotations.py",
        "DATASET_NAMES: tuple",
        """@register_dataset("jester")
def read_jester(root: Path, *, labels: Path | None = None) -> Annotations:
    samples = (Sample("1", "1.webm", "train", 0), Sample("2", "2.webm", "validation", 0))
    return Annotations("jester", root, ("wave",), samples)


""",
    )
    assert len(clone.changed) == 1
    program = """
from importlib import import_module
from pathlib import Path
from pipelines.annotations import read_dataset
print(read_dataset("jester", Path(".")).classes)
for command, *flags in (("train", "demo"), ("evaluate",), ("throughput",), ("prepare",)):
    try:
        import_module(f"tdn_bench.{command}").main([*flags, "--help-all"])
    except SystemExit:
        print("== end of", command)
"""
    classes, *helps = clone.python("-c", program).split("== end of")
    assert classes.startswith("('wave',)\n")
    assert all("jester" in text for text in (classes, *helps[:-1]))


def test_a_command_touches_one_place(clone: Clone) -> None:
    clone.write(
        "tdn_bench/hello_there.py",
        '''"""Greets somebody."""

from collections.abc import Sequence
from dataclasses import dataclass

from tdn_bench.cli import parse, run_command


@dataclass(frozen=True)
class Hello:
    name: str


def main(argv: Sequence[str] | None = None) -> None:
    print("hello", parse(Hello, argv, "hello-there").name)


if __name__ == "__main__":
    raise SystemExit(run_command(main))
''',
    )
    assert len(clone.changed) == 1
    assert "  hello-there Greets somebody\n" in clone.python("-m", "tdn_bench", "--help")
    for start in (["-m", "tdn_bench", "hello-there"], ["-m", "tdn_bench.hello_there"]):
        assert clone.python(*start, "--name", "you") == "hello you\n"


@pytest.mark.slow
def test_a_network_touches_two_places_and_its_test(clone: Clone) -> None:
    modules = "tdn_bench/models/temporal_modules.py"
    clone.insert(
        modules,
        "class ShiftedConvBN(",
        """class Reversed(nn.Module):
    def __init__(self, num_segments: int) -> None:
        super().__init__()
        self.num_segments = num_segments

    def forward(self, x: Tensor) -> Tensor:
        return x.unflatten(0, (-1, self.num_segments)).flip(1).flatten(0, 1)


""",
    )
    variants = "tdn_bench/models/variants.py"
    clone.insert(
        variants,
        "def tsm(",
        """def reversed_time(config: ResNetConfig, classes: int, t: int, dropout: float) -> SegmentNetwork:
    return SegmentNetwork(config, classes, t, lambda at: Bottleneck(at, temporal=Reversed(t)), dropout=dropout)


""",
    )
    clone.insert(
        variants, '    "tsm": Variant(tsm,', '    "reversed": Variant(reversed_time, "time runs backwards"),\n'
    )
    source = (clone.root / variants).read_text(encoding="utf-8")
    start = "from tdn_bench.models.temporal_modules import (\n"
    (clone.root / variants).write_text(source.replace(start, f"{start}    Reversed,\n"), encoding="utf-8")
    assert len(clone.changed) == 2
    assert "time runs backwards" in clone.python("-m", "tdn_bench.list")
    counted = clone.python("-m", "tdn_bench.complexity", "reversed_resnet50")
    assert "reversed_resnet50" in counted
