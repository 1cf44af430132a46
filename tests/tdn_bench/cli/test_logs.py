"""--quiet, --verbose, --log-file: what is said, and what is kept."""

import re
import sys
import warnings
from pathlib import Path

import pytest

from tdn_bench.cli import run_command
from tdn_bench.cli.logs import INHERITED, inherited, take_log_flags
from tdn_bench.errors import UserError, log


def talk(argv: object) -> None:
    print("result")
    print("a note", file=sys.stderr)
    log.info("what is done")
    log.debug("in detail")
    warnings.warn("beware\nof this", stacklevel=1)
    if argv == ["fail"]:
        raise UserError("x: wrong")
    if argv == ["fault"]:
        raise ValueError("odd")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["-q"], ""),
        (["--quiet", "fail"], "error: x: wrong\n"),
        ([], "a note\nwhat is done\nwarning: beware of this\n"),
    ],
)
def test_quiet_says_only_errors_and_results(words: list[str], said: str, capsys) -> None:
    run_command(talk, words)
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("result\n", said)


def test_verbose_says_more_and_where_an_error_was(capsys) -> None:
    assert run_command(talk, ["-v", "fail"]) == 2
    error = capsys.readouterr().err
    assert "in detail\n" in error
    assert "in talk" in error


def test_the_log_file_has_everything_with_times_and_tracebacks(tmp_path: Path, capsys) -> None:
    file = tmp_path / "new" / "run.log"
    assert run_command(talk, ["--log-file", str(file), "-q", "fail"]) == 2
    assert run_command(talk, [f"--log-file={file}", "fault"]) == 70
    capsys.readouterr()
    written = file.read_text()
    for line in ("stdout: result", "stderr: a note", "what is done", "in detail", "beware of this", "error: x: wrong"):
        assert (
            re.search(rf"^\d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d,\d{{3}} \w+ +[\w.]+: .*{line}", "x", re.M) or line in written
        )
    assert all(re.match(r"\d{4}-\d\d-\d\d |Traceback|  |\w+(\.\w+)*: |\w+Error", line) for line in written.splitlines())
    assert written.count("Traceback (most recent call last)") == 2
    log.info("after")
    assert "after" not in file.read_text()


def test_flags_that_cannot_be(tmp_path: Path, capsys) -> None:
    (tmp_path / "file").touch()
    for words, said in (
        (["-q", "-v"], "--quiet and --verbose exclude each other"),
        (["--log-file"], "--log-file: needs a file"),
        (["--log-file", str(tmp_path)], f"--log-file {tmp_path}: is not a regular file"),
        (["--log-file", str(tmp_path / "file" / "x")], "cannot be written"),
    ):
        assert run_command(talk, words) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert said in captured.err
        assert captured.err.count("\n") == 1


def test_what_is_no_log_is_not_written_to(tmp_path: Path, capsys) -> None:
    weights = tmp_path / "best.safetensors"
    weights.write_bytes(b"\x10\0\0\0\0\0\0\0{}")
    assert run_command(talk, ["--log-file", str(weights)]) == 2
    assert (
        capsys.readouterr().err == f"error: --log-file {weights}: is there already, and is no log; name another file\n"
    )
    assert weights.read_bytes() == b"\x10\0\0\0\0\0\0\0{}"
    (tmp_path / "empty.log").touch()
    assert run_command(talk, ["--log-file", str(tmp_path / "empty.log")]) == 0


def test_words_after_two_dashes_are_the_commands(tmp_path: Path) -> None:
    flags, left = take_log_flags(["a", "--", "-q"])
    assert (flags.quiet, left) == (False, ["a", "--", "-q"])


def test_processes_that_a_command_starts_inherit(monkeypatch, capsys) -> None:
    seen: dict[str, str] = {}
    run_command(lambda argv: seen.update(inherited()), ["-q"])
    assert seen == {INHERITED: "--quiet"}
    assert inherited() == {}
    monkeypatch.setenv(INHERITED, "--quiet")
    run_command(talk, [])
    assert capsys.readouterr().err == ""
