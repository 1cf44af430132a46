"""How commands end: in one line for the user's errors, signals and the machine's limits; a status for our faults."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from support.paths import ROOT

from engines import EngineError
from pipelines.errors import BadClip, DataError, printable
from tdn_bench.cli import check_range, run_command
from tdn_bench.cli.child import LIFELINE, end_with_parent
from tdn_bench.cli.flags import check_memory
from tdn_bench.errors import Terminated, UserError
from tdn_bench.models import find_variant  # noqa: F401  # as commands do: torch is there


def ending(error: BaseException, capsys) -> tuple[int, list[str]]:
    """The exit status of a command that ends so, and what it says."""

    def main(argv: object) -> None:
        raise error

    return run_command(main), capsys.readouterr().err.splitlines()


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (UserError("a: b"), 2, "error: a: b"),
        (DataError("clip\x1b[31m\nx.mp4: no \udcff"), 2, r"error: clip\x1b[31m\x0ax.mp4: no \xff"),
        (BadClip("1", "x.mp4", "cut"), 2, "error: x.mp4: cut"),
        (EngineError("a\nb"), 2, "error: a b"),
        (
            OSError(errno.ENOSPC, "No space left on device", "/a/b"),
            2,
            "error: /a/b: No space left on device; free some",
        ),
        (
            OSError(errno.ENOSPC, "No space left on device"),
            2,
            "error: No space left on device; free some space, or name",
        ),
        (OSError(errno.EACCES, "Permission denied", b"/a/\xff"), 2, r"error: /a/\xff: Permission denied"),
        (MemoryError(), 2, "error: memory ran out (Python); use a smaller batch"),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried\nmore"),
            2,
            "error: memory ran out (CUDA out of memory. Tried)",
        ),
        (KeyboardInterrupt(), 130, "interrupted"),
        (Terminated(signal.SIGHUP), 129, "ended by SIGHUP"),
    ],
)
def test_what_the_user_can_mend_is_one_line(error, status: int, said: str, capsys) -> None:
    found, lines = ending(error, capsys)
    assert found == status
    assert len(lines) == 1
    assert lines[0].startswith(said)


def deepen() -> None:
    deepen()


@pytest.mark.parametrize(
    "error", [ValueError("odd\x1b[31m\nthing"), KeyError("k"), RuntimeError(), OSError("no number")]
)
def test_our_own_fault_has_a_traceback_and_a_status_of_its_own(error, capsys) -> None:
    status, lines = ending(error, capsys)
    assert status == 70
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[-1].startswith(
        "error: this is a fault of tdn_bench, not yours; please report it with the lines above: "
    )
    assert "\x1b" not in "".join(lines)


def test_endless_recursion_is_a_fault_too(capsys) -> None:
    assert run_command(lambda argv: deepen()) == 70
    assert "RecursionError" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("status", [0, 1, 3])
def test_a_verdict_stays_what_it_is(status: int) -> None:
    with pytest.raises(SystemExit) as stop:
        run_command(lambda argv: sys.exit(status))
    assert stop.value.code == status


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_cleans_up_and_is_told_in_one_line(number: signal.Signals, capsys) -> None:
    cleaned = []

    def main(argv: object) -> None:
        try:
            signal.raise_signal(number)
            time.sleep(10)
        finally:
            cleaned.append(True)

    before = signal.getsignal(number)
    assert run_command(main) == 128 + number
    assert cleaned == [True]
    assert capsys.readouterr().err == f"ended by {number.name}\n"
    assert signal.getsignal(number) is before


def test_a_signal_that_is_ignored_stays_so() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nohup
    try:
        assert run_command(lambda argv: signal.raise_signal(signal.SIGHUP)) == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_command_ends_with_the_process_that_started_it() -> None:
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(write)
        os.environ[LIFELINE] = str(read)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        end_with_parent()
        time.sleep(0 if LIFELINE in os.environ else 60)
        os._exit(0)
    os.close(read)
    time.sleep(0.1)
    assert os.waitpid(child, os.WNOHANG) == (0, 0)
    os.close(write)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM


TORCH = {
    "interrupted": "import time\nprint('on', flush=True)\ntry: time.sleep(60)\nexcept BaseException: raise ImportError",
    "broken": "raise OSError('libtorch_cpu.so: undefined symbol')",
    "missing": "raise ImportError('no torch')",
}


@pytest.mark.parametrize("command", [["tdn_bench", "list"], ["tdn_bench.list"]])
@pytest.mark.parametrize("kind", TORCH)
def test_what_happens_while_a_command_is_imported(kind: str, command: list[str], tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text(TORCH[kind])
    process = subprocess.Popen(
        [sys.executable, "-m", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a job in the background ignores it
    )
    if kind == "interrupted":
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    if kind == "interrupted":
        assert (process.returncode, said) == (130, "interrupted\n")
    else:
        assert process.returncode == 70
        assert "a fault of tdn_bench" in said.splitlines()[-1]


def shell(line: str, **variables: str) -> tuple[int, str]:
    """What a shell says of a line in which $TDN is the command; no torch is loaded by `--help`."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TDN": f"{sys.executable} -m tdn_bench"} | variables
    environment.pop("PYTHONUNBUFFERED", None)
    done = subprocess.run(["bash", "-c", line], env=environment, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout + done.stderr


def test_odd_streams() -> None:
    full = "error: stdout: No space left on device; free some space, or name another folder\n"
    if Path("/dev/full").exists():
        assert shell("$TDN --help >/dev/full") == (2, full)
        assert shell("$TDN nope 2>/dev/full") == (2, "")
    assert shell("$TDN --help >&-") == (0, "")
    assert shell("$TDN --help <&- >&- 2>&-") == (0, "")
    status, said = shell("$TDN --help", PYTHONIOENCODING="ascii")
    assert status == 0
    assert said.startswith("usage: tdn-bench COMMAND [--help] \\u2026")


def test_a_current_folder_that_is_gone(tmp_path: Path) -> None:
    line = f"mkdir {tmp_path}/gone; cd {tmp_path}/gone; rmdir {tmp_path}/gone; $TDN list"
    said = "error: No such file or directory; the current folder was removed: change to another\n"
    assert shell(line) == (2, said)


def test_printable_is_one_line_and_keeps_what_can_be_read() -> None:
    assert printable("Ein Käse, 中文 🎬 'x' \\n") == "Ein Käse, 中文 🎬 'x' \\n"
    assert printable("a\n\x1b[2J\x00\u202e\ud800\u2028") == r"a\x0a\x1b[2J\x00\u202e\ud800\u2028"


@pytest.mark.parametrize("value", [0, 1025, -1, float("nan"), float("inf"), 10**400])
def test_a_number_out_of_range_is_named(value: float) -> None:
    with pytest.raises(UserError, match=r"^--num-segments .*: must be from 1 to 1024$"):
        check_range("num_segments", value, 1, 1024)
    for good in (1, 1024, None):
        check_range("num_segments", good, 1, 1024)


def test_clips_beyond_the_memory_are_refused_before_it_is_taken() -> None:
    from pipelines.clip import ClipSpec

    spec = ClipSpec(num_segments=8, frames_per_segment=5, size=224)
    with pytest.raises(
        UserError, match=r"^--batch-size 1000000: clips of 8 × 5 frames of 224² pixels would take 2.41e\+04 GB"
    ):
        check_memory("batch_size", 10**6, spec)
    with pytest.raises(UserError, match="must be at least 1"):
        check_memory("batch_size", 0, spec)
    check_memory("batch_size", 4, spec)
