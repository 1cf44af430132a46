"""Every number has a range: what is beyond it is one line that names the flag, before any work."""

import math

import pytest

from tdn_bench import ablate, complexity, demo, evaluate, parity, regress, scenario, throughput
from tdn_bench.cli import run_command
from tdn_bench.cli.ranges import check_ranges
from tdn_bench.errors import UserError
from tdn_bench.measurement import TimingFlags

BEYOND = [
    *((throughput, flags) for flags in ("--interval nan", "--interval 0", "--interval inf", "--seconds nan")),
    *((throughput, flags) for flags in ("--seconds inf", "--seconds -1", "--max-seconds nan", "--max-seconds 1e300")),
    *((throughput, flags) for flags in ("--warmup-batches -1", "--warmup-batches 1000000000", "--confidence nan")),
    *((throughput, flags) for flags in ("--batch-size 0", "--batch-size 1000000", f"--batch-size {10**40}")),
    *(
        (scenario, f"server {flags}")
        for flags in ("--latency-bound-ms nan", "--latency-bound-ms 0", "--percentile 100")
    ),
    *((scenario, f"server {flags}") for flags in ("--rate-resolution nan", "--batch-wait-ms inf", "--seed -1")),
    *((scenario, f"live-streams {flags}") for flags in ("--fps nan", "--fps 0", "--deadline-ms nan", "--on-time 1")),
    *((scenario, flags) for flags in ("multi-stream --samples-per-query 1000000", "single-stream --max-seconds nan")),
    *((scenario, flags) for flags in ("single-stream --warmup-seconds nan", "offline --interval nan")),
    (scenario, "single-stream --seconds 100"),  # of at most 60
    *((regress, flags) for flags in ("--margin nan", "--margin -1", "--transfer nan", "--memory-margin inf")),
    *((regress, flags) for flags in ("--accuracy-margin nan", "--confidence 1", "--confidence nan", "--round-s nan")),
    *((regress, flags) for flags in ("--max-seconds nan", "--max-seconds 0", "--videos 0", "--threads -1")),
    *((regress, flags) for flags in ("--batch-size 1000000", "--videos 1000000000")),
    *((complexity, flags) for flags in ("--num-segments 1000000", "--num-segments 0", "--size 1000000", "--size 0")),
    *((complexity, flags) for flags in ("--num-classes 0", "--num-classes 1000000000000")),
    *((ablate, flags) for flags in ("ordering --parallel 0", "ordering --parallel 1000000", "ordering --seeds -1")),
    *((demo, flags) for flags in ("--seconds nan", "--epochs 0", "--train-videos -1", "--workers 1000000")),
    *((evaluate, f"--checkpoint x {flags}") for flags in ("--clips 0", "--clips 1000000", "--batch-size 1000000")),
    *((parity, f"engines {flags}") for flags in ("--batch-size 1000000", "--limit 0")),
]


@pytest.mark.parametrize(("command", "flags"), BEYOND, ids=lambda x: x if isinstance(x, str) else x.__name__[10:])
def test_a_number_beyond_its_range_is_one_line(command, flags, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run_command(command.main, flags.split()) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {flags.split()[-2]}")
    assert error.count("\n") == 1
    assert len(error) < 200
    assert list(tmp_path.iterdir()) == []  # nothing was rendered, made or read


PLACES = [
    *((throughput, flags) for flags in ("--results file/x", "--trace file/x", "--trace folder", "--name ../../x")),
    *((throughput, flags) for flags in ("--name /x", "--name ..", "--results file", "--name a\nb")),
    *((scenario, f"offline {flags}") for flags in ("--results file", "--trace folder", "--name ../x")),
    *((scenario, f"server {flags}") for flags in ("--results file", "--trace folder", "--name ../x")),
    *((regress, flags) for flags in ("--junit folder", "--markdown file/x", "--json folder")),
    *((parity, flags) for flags in ("engines --results file", "decoders --results file")),
    *((evaluate, flags) for flags in ("--checkpoint x --results file", "--checkpoint x --scores file/x")),
    *((ablate, flags) for flags in ("ordering --results file", "ordering --output file")),
    (demo, "--results file"),
]


@pytest.mark.parametrize(("command", "flags"), PLACES, ids=lambda x: x if isinstance(x, str) else x.__name__[10:])
def test_a_place_that_takes_no_file_is_one_line(command, flags, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    words = flags.split(" ")
    assert run_command(command.main, words) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {words[-2]} ")
    assert error.count("\n") == 1


def test_a_default_folder_that_takes_no_file_is_found_before_work(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").touch()
    for command, flags in ((throughput, []), (scenario, ["offline"])):
        assert run_command(command.main, flags) == 2
        assert capsys.readouterr().err.startswith("error: --results runs")


def test_limits_are_within_the_range_and_none_was_left_out():
    for value in (0, 10, 5.5):
        check_ranges(TimingFlags(seconds=value), seconds=(0, 10))
    check_ranges(TimingFlags(), interval=(0, 1))
    for value in (-1e-9, 10.1, math.nan, math.inf, -math.inf, 10**400):
        with pytest.raises(UserError, match=r"^--seconds .*: must be from 0 to 10$"):
            check_ranges(TimingFlags(seconds=value), seconds=(0, 10))
