"""What runs the steps: processes of their own, earlier records, the table, and the command."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from tdn_bench import gpu_suite
from tdn_bench.errors import UserError
from tdn_bench.gpu_checks import STEPS, Outcome, Row, Run, Sizes, find_record, run_step, supervise, supervisor, table
from tdn_bench.gpu_checks.run import run_quietly
from tdn_bench.records import read_record


def test_failed_check_is_shown_and_run_again(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes = iter([Outcome(failures=["one thing is wrong"]), Outcome(rows=[Row("speed", "9 a second")])])
    monkeypatch.setitem(STEPS, "ceilings", lambda _: next(outcomes))
    monkeypatch.setattr(supervisor, "utc_now", lambda: "2000")

    def in_this_process(module: str, flags: Sequence[str], sizes: Sizes) -> str | None:
        record = run_step(flags[1], run)
        return "exit status 1" if record.details["failures"] else None

    monkeypatch.setattr(supervisor, "run_quietly", in_this_process)
    assert table([supervise("ceilings", run, again=False)]) == "ceilings: FAILED\n    ! one thing is wrong"
    assert find_record("ceilings", run) is not None
    for record in run.folder.glob("*.json"):
        record.unlink()  # both would be of the same second
    assert supervise("ceilings", run, again=False).text == "passed"
    assert supervise("ceilings", run, again=False).text == "passed (earlier)"


def test_step_that_breaks_off_has_failed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for error, shown in (("killed by signal 11", "killed by signal 11"), (None, "left no record")):
        monkeypatch.setattr(supervisor, "run_quietly", lambda *_, error=error: error)
        assert shown in table([supervise("decoder", run, again=False)])


def test_record_of_other_settings_does_not_count(run: Run) -> None:
    run_step("ceilings", run)
    assert find_record("ceilings", run) is not None
    assert find_record("ceilings", replace(run, sizes=replace(run.sizes, matrix_side=64))) is None
    assert find_record("decoder", run) is None


def test_process_that_fails_says_why_and_one_that_hangs_is_ended(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "child.py").write_text(
        "import os, sys, time\nprint('chatter')\nprint('before\\nerror: it broke', file=sys.stderr, flush=True)\n"
        "if sys.argv[1] == 'hang': time.sleep(60)\nsys.exit(int(os.environ['OMP_NUM_THREADS']))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)  # where this process imports from, its children do
    assert run_quietly("child", ["fail"], replace(run.sizes, threads=3)) == "it broke"
    assert capfd.readouterr() == ("", "before\nerror: it broke\n")
    assert run_quietly("child", ["pass"], replace(run.sizes, threads=0)) is None
    assert capfd.readouterr() == ("", "")
    assert run_quietly("child", ["hang"], replace(run.sizes, step_timeout_s=1)) == "did not end within 1 s"


@pytest.mark.slow
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
    assert sorted(read_record(p).name for p in (tmp_path / "r").glob("*.json")) == ["ceilings", "engine-trt"]


@pytest.mark.parametrize("flag", ["--only", "--step"])
def test_unknown_step_is_refused(flag: str) -> None:
    with pytest.raises(UserError, match=f"{flag} nonsense: no such step; choose from ceilings, decoder"):
        gpu_suite.main(["--device", "cpu", flag, "nonsense"])


def test_no_run_writes_into_results_unasked() -> None:
    assert gpu_suite.prepare(gpu_suite.GpuSuite(device="cpu")).folder == Path("runs/gpu-suite-dry")
