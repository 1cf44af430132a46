"""Throughput: the figures against slow arithmetic, the check before timing, and whole runs on a few clips."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from support.flags import configure

import tdn_bench.correctness.engine_check as engine_check
from tdn_bench.cli import run_command
from tdn_bench.correctness.engine_check import EngineMismatch, check_engine
from tdn_bench.correctness.logits import compare_logits
from tdn_bench.measurement.throughput import Throughput, Timings, measure, timing_figures
from tdn_bench.records import read_record
from tdn_bench.throughput import main, summary


def test_figures_from_raw_timings():
    timings = Timings(
        interval_s=[0.4, 0.2, 0.3],
        wait_s=[0.1, 0.0, 0.1],
        infer_s=[0.3, 0.1, 0.2],
        videos=[4, 4, 2],
    )
    f = timing_figures(timings, 4, 5)
    per_video = [100, 50, 150]
    assert f["ms_per_video"] == pytest.approx(90)
    assert not [name for name in f if name.startswith("p") and "ms_per_video" in name]  # three batches bound none
    many = replace(timings, interval_s=timings.interval_s * 14, videos=timings.videos * 14)
    g = timing_figures(many, 4, 5)
    expected = np.percentile(per_video * 14, (50, 90))
    assert [g[f"p{q}_ms_per_video"] for q in (50, 90)] == pytest.approx(expected)
    assert g["p50_low_ms_per_video"] <= g["p50_ms_per_video"] <= g["p50_high_ms_per_video"]
    assert "p99_ms_per_video" not in g  # of 42 batches
    assert f["clips_per_s"] == pytest.approx(10 / 0.9)
    assert f["frames_per_s"] == pytest.approx(10 * 20 / 0.9)
    assert f["real_time"] is True
    assert timing_figures(replace(timings, interval_s=[4, 2, 3]), 4, 5)["real_time"] is False


@pytest.mark.parametrize("engine", ["eager", "onnx", "none"])
def test_a_run_counts_every_video_and_writes_its_record(small_checkpoint, motion_data, tmp_path, capsys, engine):
    flags = ["--engine", engine, "--checkpoint", str(small_checkpoint), "--data", str(motion_data), "--device", "cpu"]
    flags += ["--batch-size", "3", "--seconds", "0", "--warmup-batches", "1", "--workers", "1"]
    flags += ["--results", str(tmp_path)]
    assert run_command(main, flags) == 0
    (path,) = tmp_path.glob("*.json")
    record = read_record(path)
    f = record.figures
    assert f["videos"] == sum(record.samples["videos"]) == 8
    assert record.samples["videos"] == [3, 3, 2]
    assert f["wall_s"] == pytest.approx(sum(record.samples["interval_s"]))
    assert f["ms_per_video"] == pytest.approx(1000 * f["wall_s"] / 8)
    for wait, infer, interval in zip(*(record.samples[k] for k in ("wait_s", "infer_s", "interval_s")), strict=True):
        assert wait + infer <= interval + 1e-3
    assert record.settings["size"] == 64  # from the checkpoint's notes
    assert record.settings["num_segments"] == 4
    if engine == "none":
        assert record.kind == "loader"
        assert "top1_percent" not in f
    else:
        assert record.kind == "throughput"
        assert 0 <= f["top1_percent"] <= f["top5_percent"] <= 100
        assert record.details["agreement_with_eager_fp32"]["top1_percent"] == 100
    assert summary(record) in capsys.readouterr().out


def test_backends_agree_on_what_is_measured(small_checkpoint, motion_data):
    config = configure(Throughput(), checkpoint=small_checkpoint, data=motion_data, device="cpu")
    config = configure(config, seconds=0, batch_size=8, workers=1)
    digests = {measure(configure(config, backend=b)).data["digest"] for b in ("pyav", "dali")}
    assert len(digests) == 1


def test_without_a_gpu_trt_says_what_is_missing(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run_command(main, ["--engine", "trt", "--device", "cpu"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "trt" in error
    assert "GPU" in error
    assert list(tmp_path.iterdir()) == []  # found out before anything was rendered or read


def test_a_trace_that_cannot_be_written_is_known_before_the_run(motion_data, tmp_path, capsys):
    (tmp_path / "file").touch()
    for place in (tmp_path / "file" / "trace.json", tmp_path):
        flags = ["--engine", "none", "--data", str(motion_data), "--device", "cpu", "--trace", str(place)]
        assert run_command(main, flags) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert f"--trace {place}" in error or f"--trace {place.parent}" in error


def test_an_engine_that_is_not_the_network_is_not_timed(small_checkpoint, motion_data, monkeypatch, capsys):
    class Constant:
        build_s = 0.0

        def __init__(self, engine):
            self.engine = engine

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.engine.close()

        def __call__(self, frames):
            return self.engine(frames)[:1].expand(len(frames), -1)

    real = engine_check.create_engine

    def create(name, network, spec, **_):
        engine = real("eager", network, spec)
        return Constant(engine) if name == "onnx" else engine

    monkeypatch.setattr(engine_check, "create_engine", create)
    flags = ["--engine", "onnx", "--checkpoint", str(small_checkpoint), "--data", str(motion_data), "--device", "cpu"]
    assert run_command(main, [*flags, "--workers", "1"]) == 2
    assert "not the network" in capsys.readouterr().err


def reference(frames: torch.Tensor) -> torch.Tensor:
    """A made-up network whose logits depend on all of a clip."""
    return frames.flatten(1).float()[:, :12] / 50


FRAMES = [
    torch.randint(0, 256, (4, 2, 5, 8, 8, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(i))
    for i in (0, 1)
]


def test_an_engine_that_is_the_network_passes():
    assert check_engine(reference, reference, FRAMES, "fp32").max_difference == 0
    rounded = check_engine(lambda f: reference(f).bfloat16(), reference, FRAMES, "bf16")
    assert 0 < rounded.max_difference < 0.1
    assert rounded.top1_percent > 90


@pytest.mark.parametrize(
    "wrong",
    [
        lambda f: reference(f)[:1].expand(len(f), -1),  # the first clip's answer for all
        lambda f: reference(f).roll(1, 0),  # another clip's answer
        lambda f: reference(f.flip(-1)),  # BGR for RGB
        lambda f: reference(f) + 1,
        lambda f: reference(f) * float("nan"),
        lambda f: reference(f).bfloat16(),  # less precision than it says
    ],
)
def test_an_engine_that_is_not_the_network_is_caught(wrong):
    with pytest.raises(EngineMismatch):
        check_engine(wrong, reference, FRAMES, "fp32")


def test_differences_are_in_deviations_of_the_logits():
    wanted = torch.tensor([[0.0, 2.0], [4.0, 2.0]])
    found = compare_logits(wanted + torch.tensor([[0.5, 0], [0, 0]]), wanted)
    assert found.max_difference == pytest.approx(0.5 / max(wanted.std(), (wanted - wanted.mean(0)).std()))
    assert found.top1_percent == 100
    assert compare_logits(wanted.flip(1), wanted).top1_percent == 0
