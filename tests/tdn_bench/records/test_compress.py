"""Samples that lie compressed beside their record: nothing is lost, and nothing else is taken for them."""

import hashlib
import json
import lzma
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from support.paths import ROOT

from tdn_bench.errors import UserError
from tdn_bench.records import latest_records, make_record, read_record, write_record
from tdn_bench.records.compress import compress_samples, main

SAMPLES = {"a_ms": [0.1 + i / 7 for i in range(1000)], "b_s": [1.0, None, 3.0], "none_s": [], "null_s": [None]}


@pytest.fixture
def path(tmp_path):
    record = make_record(
        "benchmark",
        "many",
        figures={"ms": 1.5},
        samples=SAMPLES,
        settings={},
        device=torch.device("cpu"),
        details={"file": "clip\udcff.mp4", "turns": [6, 12]},
    )
    return write_record(record, tmp_path)


def test_nothing_is_lost(path, capsys):
    before, raw = read_record(path), json.loads(path.read_text())
    assert main([str(path)]) == 0
    beside = path.with_name(f"{path.stem}.samples.json.xz")
    assert set(path.parent.iterdir()) == {path, beside}
    assert read_record(path) == before
    assert read_record(path).samples == SAMPLES
    assert latest_records(path.parent) == [before]

    small = json.loads(path.read_text())
    apart = small.pop("samples_file")
    assert small == raw | {"samples": {}}
    summary = apart["count_min_median_max"]
    assert summary["b_s"] == [3, 1.0, 2.0, 3.0]
    assert summary["none_s"] == [0, None, None, None]
    assert summary["null_s"] == [1, None, None, None]
    assert json.loads(lzma.decompress(beside.read_bytes())) == SAMPLES
    assert f"{path}: " in capsys.readouterr().out


def test_a_record_of_an_older_schema_stays_one(path):
    raw = {k: v for k, v in json.loads(path.read_text()).items() if not k.startswith("status")}
    path.write_text(json.dumps(raw | {"schema_version": 1}))
    before = read_record(path)
    compress_samples(path)
    assert json.loads(path.read_text())["schema_version"] == 1
    assert read_record(path) == before


def test_a_record_without_its_samples_is_refused(path):
    beside = compress_samples(path)
    kept = beside.read_bytes()
    beside.unlink()
    with pytest.raises(UserError, match=r"its samples cannot be read: .*\.xz \(No such file or directory\)"):
        read_record(path)
    beside.write_bytes(lzma.compress(b"{}"))
    with pytest.raises(UserError, match="not the samples that"):
        read_record(path)
    beside.write_bytes(kept)
    assert read_record(path).samples == SAMPLES


@pytest.mark.parametrize("said", [None, "x.xz", {}, {"name": "x.xz"}, {"name": 5, "sha256": "0"}])
def test_a_record_that_names_no_file_is_none(path, said):
    path.write_text(json.dumps(json.loads(path.read_text()) | {"samples_file": said}))
    with pytest.raises(UserError) as error:
        read_record(path)
    assert str(path) in str(error.value)


def test_samples_lie_beside_the_record_and_nowhere_else(path, tmp_path):
    beside = compress_samples(path)
    raw = json.loads(path.read_text())
    raw["samples_file"]["name"] = f"../{tmp_path.name}/{beside.name}"
    (tmp_path / "elsewhere").mkdir()
    moved = tmp_path / "elsewhere" / path.name
    moved.write_text(json.dumps(raw))
    with pytest.raises(UserError, match="cannot be read"):
        read_record(moved)


def test_what_cannot_be_compressed_stays_as_it_is(path, tmp_path, capsys, monkeypatch):
    compress_samples(path)
    assert main([str(path)]) == 2
    assert "compressed already" in capsys.readouterr().err
    (tmp_path / "x.json").write_text("{}")
    for names in ([str(tmp_path / "no.json")], [str(tmp_path / "x.json")], []):
        assert main(names) == 2
        assert capsys.readouterr().err.startswith("error: ")

    whole = write_record(replace(read_record(path), name="whole"), tmp_path)
    before = whole.read_bytes()

    def fails(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fails)
    with pytest.raises(UserError, match="cannot be rewritten"):
        compress_samples(whole)
    assert whole.read_bytes() == before
    assert not list(tmp_path.glob(".*"))


def test_it_runs_as_a_module(path):
    command = [sys.executable, "-W", "error::RuntimeWarning", "-m", "tdn_bench.records.compress", str(path)]
    subprocess.run(command, check=True, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, timeout=120)
    assert read_record(path).samples == SAMPLES


WHOLE = lzma.compress(json.dumps(SAMPLES).encode())


@pytest.mark.parametrize(
    "content",
    [b"no xz", WHOLE[:-20], lzma.compress(b"[1, 2]"), lzma.compress(b'{"a_ms": 3}'), lzma.compress(bytes(10**6))],
    ids=["no xz", "cut", "a list", "a number", "huge"],
)
def test_samples_that_fit_their_checksum_and_are_none_are_refused(path, monkeypatch, content):
    monkeypatch.setattr("tdn_bench.records.record.MAX_BYTES", 10**5)
    beside = compress_samples(path)
    beside.write_bytes(content)
    raw = json.loads(path.read_text())
    raw["samples_file"]["sha256"] = hashlib.sha256(content).hexdigest()
    path.write_text(json.dumps(raw))
    with pytest.raises(UserError, match="not a record") as caught:
        read_record(path)
    assert "\n" not in str(caught.value)
