"""Records: written whole, never overwritten, read back; and the page made of them."""

import errno
import json
from dataclasses import replace

import pytest
import torch

from tdn_bench.cli import run_command
from tdn_bench.environment import commit, describe_machine, versions
from tdn_bench.errors import UserError
from tdn_bench.record import SCHEMA_VERSION, latest_records, make_record, read_record, write_record
from tdn_bench.report import main as report_main
from tdn_bench.report import write_report


def record(name="a", kind="throughput", **figures):
    samples, settings = {"interval_s": [0.5, 0.25]}, {"batch_size": 16}
    return make_record(kind, name, figures=figures, samples=samples, settings=settings, device=torch.device("cpu"))


def test_round_trip_and_what_it_was_run_on(tmp_path):
    written = record(ms_per_video=1.5)
    read = read_record(write_record(written, tmp_path))
    assert read.figures == {"ms_per_video": 1.5}
    assert read.samples == {"interval_s": [0.5, 0.25]}
    assert read.schema_version == SCHEMA_VERSION
    assert read.versions["torch"] == versions()["torch"]
    assert read.machine["cores"] >= 1
    assert read.machine["name"] == describe_machine(torch.device("cpu"))["name"]
    assert read.commit == commit()
    assert read.command


def test_file_systems_without_links_hold_records_too(tmp_path, monkeypatch):
    def no_links(*_):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr("os.link", no_links)
    same = record()
    paths = {write_record(replace(same, figures={"n": i}), tmp_path) for i in range(3)}
    assert sorted(read_record(p).figures["n"] for p in paths) == [0, 1, 2]
    assert set(tmp_path.iterdir()) == paths


def test_a_folder_that_takes_no_file_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr("pathlib.Path.write_text", lambda *_, **__: (tmp_path / "no" / "such").touch())
    with pytest.raises(UserError, match=r"cannot hold records \(No such file or directory\)"):
        write_record(record(), tmp_path)


def test_records_of_one_second_do_not_overwrite_each_other(tmp_path):
    same = record()
    paths = {write_record(replace(same, figures={"n": i}), tmp_path) for i in range(5)}
    assert len(paths) == 5
    assert sorted(read_record(p).figures["n"] for p in paths) == list(range(5))
    assert {p.suffix for p in tmp_path.iterdir()} == {".json"}


def test_the_newest_of_each_name(tmp_path):
    for name, time, value in (("a", "2026-01-01", 1), ("a", "2026-01-02", 2), ("b", "2025-01-01", 3)):
        write_record(replace(record(name, v=value), created_utc=f"{time}T00:00:00Z"), tmp_path)
    assert [r.figures["v"] for r in latest_records(tmp_path)] == [3, 2]
    assert [r.figures["v"] for r in latest_records(tmp_path, since="2026")] == [2]


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"schema_version": 99}', '{"schema_version": 1}'])
def test_what_is_no_record(tmp_path, content):
    path = tmp_path / "x.json"
    path.write_text(content)
    with pytest.raises(UserError) as error:
        read_record(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def full_throughput(name, ms):
    stages = {f"ledger_{s}_ms": 1.0 for s in ("read", "decode", "augment", "copy", "infer", "idle")}
    figures = {"ms_per_video": ms, "p50_ms_per_video": ms, "p90_ms_per_video": ms, "p99_ms_per_video": ms, "batches": 3}
    figures |= {
        "clips_per_s": 1.0,
        "frames_per_s": 40.0,
        "real_time": True,
        "build_s": 0.1,
        "peak_host_memory_bytes": 1,
    }
    details = {"agreement_with_eager_fp32": {"clips": 2, "max_difference": 1e-6, "top1_percent": 100.0}}
    return replace(record(name, **figures, **stages), details=details)


def test_the_page_holds_measured_and_published_apart(tmp_path, capsys):
    write_record(full_throughput("eager-fp32-pyav", 12.345), tmp_path)
    write_record(full_throughput("onnx-fp32-pyav", 6.789), tmp_path)
    path = write_report(tmp_path, missing=["engine trt: no GPU"])
    text = path.read_text()
    measured, published = text.split("## Published")
    assert measured.index("6.79") < measured.index("12.35")  # the fastest first
    assert "engine trt: no GPU" in measured
    assert "22.1" in published
    assert "22.1" not in measured
    assert (tmp_path / "ledger.png").stat().st_size > 1000
    assert run_command(report_main, [str(tmp_path)]) == 0
    assert str(path) in capsys.readouterr().out


def test_records_of_fewer_stages_stand_beside_newer_ones(tmp_path):
    """In those that were written before stages were told apart, read is open, read and demux."""
    old = {"clips_per_s": 2.0, "ms_per_video": 500.0, "ledger_read_ms": 7.25, "ledger_decode_ms": 3.0}
    new = {**old, "clips_per_s": 1.0, "ledger_read_ms": 0.5, "ledger_open_ms": 4.5, "ledger_demux_ms": 2.25}
    write_record(replace(record("old", **old), kind="loader"), tmp_path)
    assert "| loader | clips/s | ms/video | read ms | decode ms |" in write_report(tmp_path).read_text()
    write_record(replace(record("new", **new), kind="loader"), tmp_path)
    text = write_report(tmp_path).read_text()
    assert "| loader | clips/s | ms/video | open ms | read ms | demux ms | decode ms |" in text
    assert "| old | 2.0 | 500.00 | – | 7.25 | – | 3.00 |" in text
    assert "| new | 1.0 | 500.00 | 4.50 | 0.50 | 2.25 | 3.00 |" in text


def test_a_folder_without_records(tmp_path, capsys):
    assert run_command(report_main, [str(tmp_path)]) == 2
    assert "holds no records" in capsys.readouterr().err
    assert run_command(report_main, [str(tmp_path / "no")]) == 2


def test_records_are_json_that_anything_reads(tmp_path):
    raw = json.loads(write_record(record(top1_percent=50.0), tmp_path).read_text())
    assert raw["figures"]["top1_percent"] == 50.0
