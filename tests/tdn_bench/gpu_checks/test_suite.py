from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from pipelines.errors import BadClip
from tdn_bench.gpu_checks import suite as gpu_suite
from tdn_bench.gpu_checks.suite import (
    CODECS,
    STEPS,
    Outcome,
    Run,
    Sizes,
    dry,
    numbered_frames,
    read_numbers,
    table,
    write_numbered,
)
from tdn_bench.records.record import read_record

CPU = torch.device("cpu")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A run smaller than the dry one, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    sizes = replace(dry(), matrix_side=32, copy_bytes=1024, clip_sizes=((160, 120),), clip_frames=24, plans_per_clip=1)
    return Run(sizes, CPU, tmp_path / "results")


def test_reads_the_numbers_it_renders() -> None:
    frames = torch.from_numpy(numbered_frames(256, 64, 48))
    assert read_numbers(frames, flip=False).tolist() == list(range(256))
    assert read_numbers(frames.flip(2), flip=True).tolist() == list(range(256))
    assert read_numbers(frames.view(4, 64, 48, 64, 3), flip=False).shape == (4, 64)


@pytest.mark.parametrize("codec", CODECS)
def test_numbers_survive_encoding(codec: str, tmp_path: Path) -> None:
    path = tmp_path / f"numbered.{CODECS[codec][1]}"
    try:
        write_numbered(path, codec, 30, 160, 120)
    except (av.error.FFmpegError, ValueError) as e:
        pytest.skip(f"no encoder: {e}")
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    pictures = torch.from_numpy(np.stack([frame.to_ndarray(format="rgb24") for frame in frames]))
    assert read_numbers(pictures, flip=False).tolist() == list(range(30))
    assert any(frame.pict_type == av.video.frame.PictureType.B for frame in frames) == (codec != "vp9")


def test_decoder_step_passes(run: Run) -> None:
    found = gpu_suite.decoder(run)
    assert found.failures == []
    assert found.figures["files_checked"] == 3 - len(found.details)
    assert found.figures["rgb_difference_mean"] < 10


class OffByOne:
    """A decoder with the mistakes that the step is there to find: it returns the frame after, and refuses nothing."""

    def __init__(self, segments: int) -> None:
        self.segments = segments

    def __call__(self, plans: list) -> list[torch.Tensor | BadClip]:
        pictures = torch.from_numpy(numbered_frames(256, 64, 64))
        return [pictures[torch.from_numpy(plan.frames + 1)] for plan in plans]

    def close(self) -> None:
        pass


def test_decoder_step_finds_a_wrong_decoder(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    real = gpu_suite.create_decoder
    wrong = OffByOne(run.sizes.num_segments)
    monkeypatch.setattr(gpu_suite, "create_decoder", lambda name, *a: wrong if name == "dali" else real(name, *a))
    failures = "\n".join(gpu_suite.decoder(run).failures)
    for expected in (
        "dali returned", "a cut file was not refused", "a file of garbage was not refused",
        "an index past the end was not refused", "was lost or changed", "did not refuse h264 by name",
    ):  # fmt: skip
        assert expected in failures
    assert "pyav returned" not in failures


def test_ceilings_and_loader_steps(run: Run) -> None:
    record = gpu_suite.run_step("ceilings", run)
    assert record.details["failures"] == []
    assert record.figures["matmul_tflop_per_s"] > 0
    found = gpu_suite.loader(run)
    assert found.failures == []
    assert {"pyav_cpu_batch4_clips_per_s", "dali_cpu_batch4_clips_per_s", "dali_over_pyav"} <= found.figures.keys()


def test_flops_are_those_of_the_network(run: Run) -> None:
    network = run.network()
    one = gpu_suite.count_flops(network, run.frames(1), backward=False)
    assert gpu_suite.count_flops(network, run.frames(2), backward=False) == 2 * one
    assert 2 * one < gpu_suite.count_flops(network, run.frames(1), backward=True) < 3.1 * one
    assert next(network.parameters()).device == CPU


def test_engine_step_reports_a_case_that_fails(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run = replace(run, sizes=replace(run.sizes, engine_batches=(1,)))
    assert gpu_suite.engine(run, name="eager").failures == []

    def disagree(*_: object) -> None:
        raise gpu_suite.UserError("the engine is not the network")

    monkeypatch.setattr(gpu_suite, "check_engine", disagree)
    found = gpu_suite.engine(run, name="eager")
    assert found.failures == ["eager fp32_batch1: the engine is not the network"]
    assert not found.samples  # what fails its check is not timed


def test_failed_check_is_shown_and_run_again(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes = iter([Outcome(failures=["one thing is wrong"]), Outcome(rows=[gpu_suite.Row("speed", "9 a second")])])
    monkeypatch.setitem(STEPS, "ceilings", lambda _: next(outcomes))
    monkeypatch.setattr(gpu_suite, "utc_now", lambda: "2000")

    def in_this_process(module: str, arguments: list[str], sizes: Sizes) -> str | None:
        record = gpu_suite.run_step(arguments[1], run)
        return "exit status 1" if record.details["failures"] else None

    monkeypatch.setattr(gpu_suite, "run_module", in_this_process)
    assert table([gpu_suite.supervise("ceilings", run, again=False)]) == "ceilings: FAILED\n    ! one thing is wrong"
    assert gpu_suite.find_record("ceilings", run) is not None
    for record in run.folder.iterdir():
        record.unlink()  # both would be of the same second
    assert gpu_suite.supervise("ceilings", run, again=False).text == "passed"
    assert gpu_suite.supervise("ceilings", run, again=False).text == "passed (earlier)"


def test_step_that_breaks_off_has_failed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for error, shown in (("killed by signal 11", "killed by signal 11"), (None, "left no record")):
        monkeypatch.setattr(gpu_suite, "run_module", lambda *_, error=error: error)
        assert shown in table([gpu_suite.supervise("decoder", run, again=False)])


def test_record_of_other_settings_does_not_count(run: Run) -> None:
    gpu_suite.run_step("ceilings", run)
    assert gpu_suite.find_record("ceilings", run) is not None
    assert gpu_suite.find_record("ceilings", replace(run, sizes=replace(run.sizes, matrix_side=64))) is None
    assert gpu_suite.find_record("decoder", run) is None


def test_command_goes_on_after_a_failure_and_resumes(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["--device", "cpu", "--results", str(tmp_path / "r"), "--data", str(tmp_path / "none")]
    command += ["--only", "ceilings", "loader", "engine-trt"]
    for verdict in ("passed", "passed (earlier)"):  # the second time the failed step runs again, and it alone
        with pytest.raises(SystemExit) as ended:
            gpu_suite.main(command)
        assert ended.value.code == 1
        shown = capfd.readouterr().out
        assert f"ceilings: {verdict}\n" in shown
        assert "loader: FAILED\n    ! " in shown  # no such data
        assert f"engine-trt: {verdict}\n" in shown
        assert "not run: " in shown
    assert sorted(read_record(p).name for p in (tmp_path / "r").iterdir()) == ["ceilings", "engine-trt"]


def test_unknown_step_is_refused(tmp_path: Path) -> None:
    with pytest.raises(gpu_suite.UserError, match="unknown step nonsense; choose of ceilings, decoder"):
        gpu_suite.main(["--device", "cpu", "--only", "nonsense"])
