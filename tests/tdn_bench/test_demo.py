"""`tdn-bench demo`: what it runs, and that it leaves nothing outside runs/ but where it is told to."""

from pathlib import Path

import pytest
import torch

from tdn_bench import demo
from tdn_bench.cli import run_command
from tdn_bench.records import make_record, write_record

QUICK = ["--train-videos", "8", "--validation-videos", "8", "--epochs", "1", "--workers", "1", "--device", "cpu"]


@pytest.fixture
def started(tmp_path, monkeypatch):
    """What the demo starts, in a folder of its own; every loader's run leaves a record, and the engine trt fails."""
    monkeypatch.chdir(tmp_path)
    commands = []

    class Command:
        def __init__(self, module, flags, threads=None):
            self.flags = flags
            commands.append((module, flags))
            if "none" in flags:
                name, folder = (flags[flags.index(flag) + 1] for flag in ("--name", "--results"))
                figures = {"clips_per_s": 2.0, "ms_per_video": 500.0}
                cpu = torch.device("cpu")
                record = make_record("loader", name, figures=figures, samples={}, settings={}, device=cpu)
                write_record(record, Path(folder))

        def wait(self):
            return "no GPU" if "trt" in self.flags else None

    monkeypatch.setattr(demo, "Command", Command)
    return commands


def test_everything_lies_below_runs_unless_it_is_published(started, tmp_path, capsys):
    assert run_command(demo.main, QUICK) == 0
    out = capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
    page = (tmp_path / "runs" / "demo" / "records" / "report.md").read_text()
    assert "- engine trt: no GPU" in page
    assert "| pyav-cpu | 2.0 |" in page
    *_, report, publish = out.splitlines()
    assert report == "report: runs/demo/records/report.md"
    assert "--results results/" in publish
    assert run_command(demo.main, [*QUICK, "--results", "results/here/demo"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "report: results/here/demo/report.md"
    assert (tmp_path / "results" / "here" / "demo" / "report.md").exists()


def test_both_networks_are_trained_and_every_engine_is_measured(started):
    assert run_command(demo.main, QUICK) == 0
    trained = [flags for module, flags in started if module == "tdn_bench.train"]
    assert [flags[flags.index("--model") + 1] for flags in trained] == ["tdn_resnet_small", "tsn_resnet_small"]
    measured = [flags for module, flags in started if module == "tdn_bench.throughput"]
    engines = [flags[flags.index("--engine") + 1] for flags in measured if "--engine" in flags]
    assert set(engines) == {*demo.ENGINES, "none"}
    assert all(flags[flags.index("--device") + 1] == "cpu" for flags in measured)
