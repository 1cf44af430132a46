"""Records: written whole, never overwritten, read back; and the page made of them."""

import errno
import json
import math
import multiprocessing
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace

import jsonschema
import numpy as np
import pytest
import torch
from support.paths import ROOT

from tdn_bench.cli.run import run_command
from tdn_bench.errors import UserError
from tdn_bench.records.environment import commit, describe_machine, versions
from tdn_bench.records.record import (
    SCHEMA_VERSION,
    STATUSES,
    Record,
    latest_records,
    make_record,
    read_record,
    write_record,
)
from tdn_bench.report import main as report_main
from tdn_bench.reporting import write_report


def no_links(*_):
    raise PermissionError(errno.EPERM, "Operation not permitted")


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
    monkeypatch.setattr("os.link", no_links)
    same = record()
    paths = {write_record(replace(same, figures={"n": i}), tmp_path) for i in range(3)}
    assert sorted(read_record(p).figures["n"] for p in paths) == [0, 1, 2]
    assert set(tmp_path.iterdir()) == paths


def test_a_folder_that_takes_no_file_is_one_line(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match=r"cannot hold records \(No space left on device\)"):
        write_record(record(), tmp_path)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file: cannot hold records \(File exists\)"):
        write_record(record(), tmp_path / "file")


def test_records_of_one_second_do_not_overwrite_each_other(tmp_path):
    same = record()
    paths = {write_record(replace(same, figures={"n": i}), tmp_path) for i in range(5)}
    assert len(paths) == 5
    (tmp_path / "any.json").touch()  # who may read any file may read a record
    assert {p.stat().st_mode for p in paths} == {(tmp_path / "any.json").stat().st_mode}
    assert sorted(read_record(p).figures["n"] for p in paths) == list(range(5))
    assert {p.suffix for p in tmp_path.iterdir()} == {".json"}


def write_many(folder, writer):
    """From a process of its own: five threads that write twenty records each, all of one name and second."""
    base = replace(record(), created_utc="2026-01-01T00:00:00Z")

    def write(thread):
        for i in range(20):
            number = 1000 * writer + 100 * thread + i
            # long enough that no single write() of the operating system holds it
            write_record(replace(base, figures={"n": number}, samples={"n": [number] * 5000}), folder)

    with ThreadPoolExecutor(5) as pool:
        list(pool.map(write, range(5)))


@pytest.mark.slow
@pytest.mark.parametrize("links", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_many_writers_lose_and_mix_nothing(tmp_path, monkeypatch, links):
    if not links:
        monkeypatch.setattr("os.link", no_links)
    monkeypatch.setattr("os.getpid", lambda: 7)  # as on several hosts, or in several containers
    context = multiprocessing.get_context("fork")  # so that the writers have what is patched
    writers = [context.Process(target=write_many, args=(tmp_path, i)) for i in range(4)]
    for writer in writers:
        writer.start()
    seen = 0
    while any(writer.is_alive() for writer in writers):
        for path in tmp_path.glob("*.json"):
            read = read_record(path)  # what has a record's name is whole at any time
            assert set(read.samples["n"]) == {read.figures["n"]}
            seen += 1
    assert seen
    assert [writer.exitcode for writer in writers] == [0] * 4
    found = [read_record(path) for path in tmp_path.iterdir()]  # and nothing is left that is no record
    expected = [1000 * w + 100 * t + i for w in range(4) for t in range(5) for i in range(20)]
    assert sorted(r.figures["n"] for r in found) == expected
    assert all(list(r.samples["n"]) == [r.figures["n"]] * 5000 for r in found)


def test_what_json_has_no_word_for(tmp_path):
    figures = {"top1_percent": math.nan, "psnr_db": math.inf, "ms": np.float32(0.5), "n": np.int64(3), "nan": "NaN"}
    # a file name that is no UTF-8, as Python has it
    written = replace(record(**figures), samples={"x": [1.0, -math.inf]}, details={"bad": "clip\udcff.mp4"})
    path = write_record(written, tmp_path)

    raw = json.loads(path.read_bytes().decode("utf-8"), parse_constant=pytest.fail)  # NaN is no JSON
    assert raw["figures"] == {"top1_percent": None, "psnr_db": None, "ms": 0.5, "n": 3, "nan": "NaN"}
    assert raw["samples"] == {"x": [1.0, None]}
    assert read_record(path).details == {"bad": "clip\udcff.mp4"}


def test_the_newest_of_each_name(tmp_path):
    for name, time, value in (("a", "2026-01-01", 1), ("a", "2026-01-02", 2), ("b", "2025-01-01", 3)):
        write_record(replace(record(name, v=value), created_utc=f"{time}T00:00:00Z"), tmp_path)
    assert [r.figures["v"] for r in latest_records(tmp_path)] == [3, 2]
    assert [r.figures["v"] for r in latest_records(tmp_path, since="2026")] == [2]


def test_machines_once_named_by_their_cores_have_today_s_name(tmp_path):
    described = record().machine | {"name": "cpu-2core", "cpu": "AMD EPYC 7B13 64-Core Processor", "cores": 2}
    path = write_record(replace(record(), machine=described), tmp_path)
    assert read_record(path).machine == described | {"name": "amd-epyc-7b13-2core"}
    assert json.loads(path.read_text())["machine"]["name"] == "cpu-2core"


def test_status_and_older_versions(tmp_path):
    raw = json.loads(write_record(record(), tmp_path).read_text())
    assert (raw["status"], raw["status_reasons"], raw["schema_version"]) == ("unwatched", [], 2)
    older = {k: v for k, v in raw.items() if not k.startswith("status")} | {"schema_version": 1}
    (tmp_path / "older.json").write_text(json.dumps(older))
    read = read_record(tmp_path / "older.json")
    assert (read.status, list(read.status_reasons), read.schema_version) == ("unwatched", [], 2)
    assert read.figures == older["figures"]
    with pytest.raises(AssertionError):
        make_record("k", "n", figures={}, samples={}, settings={}, device=torch.device("cpu"), status="fine")


@pytest.fixture(scope="module")
def schema():
    content = json.loads((ROOT / "tdn_bench" / "records" / "record.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(content)
    return jsonschema.Draft202012Validator(content)


def test_the_schema_has_every_field_and_describes_it(schema):
    described = schema.schema["properties"]
    assert set(schema.schema["required"]) == {f.name for f in fields(Record)}
    assert set(described) == set(schema.schema["required"]) | {"samples_file"}  # which reading a record resolves
    assert all("title" in field for field in described.values())
    assert schema.schema["$id"] == f"urn:tdn-bench:record:{described['schema_version']['const']}"
    assert described["schema_version"]["const"] == SCHEMA_VERSION
    assert described["status"]["enum"] == list(STATUSES)


def test_records_old_and_new_are_as_the_schema_says(schema, tmp_path):
    paths = list((ROOT / "results").rglob("*.json"))
    assert len(paths) > 60
    for path in paths:  # the older ones as they are once read
        schema.validate(json.loads(write_record(read_record(path), tmp_path).read_text()))
    fresh = replace(record(ms_per_video=1.5, top1_percent=math.nan, real_time=True), status="void")
    schema.validate(json.loads(write_record(replace(fresh, status_reasons=("drift",)), tmp_path).read_text()))


MUTILATED = {
    "a number as text": {"figures": {"ms_per_video": "1.5"}},
    "text in samples": {"samples": {"interval_s": [0.5, "0.25"]}},
    "samples that are no list": {"samples": {"interval_s": 0.5}},
    "an unknown status": {"status": "fine"},
    "one reason, no list": {"status_reasons": "drift"},
    "a short commit": {"commit": "5bb3dba"},
    "a machine without a name": {"machine": {"cpu": "x"}},
    "a field that is none": {"statsu": "stable"},
    **{f"no {f.name}": {f.name: None} for f in fields(Record) if f.name not in ("commit", "data")},
}


@pytest.mark.parametrize("change", MUTILATED.values(), ids=MUTILATED)
def test_what_the_schema_refuses(schema, tmp_path, change):
    raw = json.loads(write_record(record(ms_per_video=1.5), tmp_path).read_text())
    assert schema.is_valid(raw)
    assert not schema.is_valid(raw | change)
    assert not any(schema.is_valid({k: v for k, v in raw.items() if k != name}) for name in change if name in raw)


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


def test_the_page_shows_scenarios_and_what_was_disturbed(tmp_path):
    latency = {"queries": 500, "p50_latency_ms": 8.04, "p90_latency_ms": 9.96}
    bound = {"latency_bound_ms": 100.0, "queries_per_s": 62.0, "rejected_queries_per_s": 65.5}
    live = {"streams": None, "rejected_streams": 1}
    settings = {"percentile": 99, "fps": 25.0, "on_time": 0.99, "deadline_ms": 1000.0}
    runs = {"offline": {"videos_per_s": 177.04}, "single": latency, "server": latency | bound, "live": live}
    for name, figures in runs.items():
        status = ("void", ("frames fell from the sky",)) if name == "live" else ("stable", ())
        write_record(
            replace(record(name, "scenario", **figures), settings=settings, status=status[0], status_reasons=status[1]),
            tmp_path,
        )
    text = write_report(tmp_path).read_text()
    assert "| offline | 177.0 videos/s | – | – | – | stable |" in text
    assert "| single | 500 queries of 1 | 8.0 | 10.0 | – | stable |" in text
    assert "| server | 62 queries/s (65.5 refused), p99 within 100 ms | 8.0 | 10.0 | – | stable |" in text
    no = "no streams of 25 frames/s (1 refused), 99 % of labels within 1000 ms"
    assert f"| live | {no} | – | – | – | void |" in text
    assert text.split("## Disturbed")[1].split("\n- ")[1].startswith("live (scenario): void: frames fell from the sky")
    assert "single (" not in text


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
