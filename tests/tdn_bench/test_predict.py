"""The command: files, folders and patterns in; a table, JSON lines or CSV out."""

import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from support.reference import CASES, released_state_dict

from pipelines.errors import BadClip
from tdn_bench import load_recognizer
from tdn_bench.checkpoint import read_tensors, write_tensors
from tdn_bench.cli import run_command
from tdn_bench.predict import main
from tdn_bench.prediction import FORMATS, Writer
from tdn_bench.recognizer import Prediction

ODD = 'a "quoted", <b>class</b>; ünï 中文'


@pytest.fixture(scope="module")
def checkpoint(small_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("predict") / "best.safetensors"
    tensors, notes = read_tensors(small_checkpoint)
    classes = [ODD, *(f"class no. {i}" for i in range(1, 8))]
    write_tensors(path, tensors, {k: v for k, v in notes.items() if k != "format"} | {"classes": classes})
    return path


@pytest.fixture
def videos(motion_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of three videos below the current folder, the second with all that a name may hold."""
    monkeypatch.chdir(tmp_path)
    names = ["v/clip 2.webm", 'v/clip 3 "x", \n\x1b[31m<script>.webm', "v/deep/clip 10.webm"]
    for name, source in zip(names, sorted((motion_data / "20bn-something-something-v2").iterdir()), strict=False):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, name)
    Path("v/notes.txt").write_text("no video")
    Path("v/broken.mp4").write_text("no video either")
    return names


def run(checkpoint: Path, *arguments: object) -> int:
    flags = ["--checkpoint", checkpoint, "--device", "cpu", "--workers", "2"]
    try:
        return run_command(main, [str(a) for a in (*arguments, *flags)])
    except SystemExit as stop:  # some videos are bad
        return int(stop.code or 0)


def test_json_lines_hold_every_video_in_order(checkpoint, videos, capsys):
    assert run(checkpoint, "v", "v/deep", "gone.mp4", "--format", "json", "--top", "3") == 1
    said = capsys.readouterr()
    rows = [json.loads(line) for line in said.out.splitlines()]
    assert [row["video"] for row in rows] == ["v/broken.mp4", *videos, "gone.mp4"]
    assert rows[4] == {"video": "gone.mp4", "error": "no such file"}
    with load_recognizer(checkpoint, device="cpu") as recognize:
        expected = {name: recognize(name) for name in videos}
    for row in rows[1:4]:
        top = expected[row["video"]].top(3)
        assert [found["class"] for found in row["top"]] == [name for name, _ in top]
        assert [found["probability"] for found in row["top"]] == pytest.approx([p for _, p in top], abs=1e-6)
        assert all(expected[row["video"]].classes[found["class_index"]] == found["class"] for found in row["top"])
    assert "v/broken.mp4: not a readable video" in said.err
    assert "gone.mp4: no such file" in said.err
    assert "passed over as no videos: 1 .txt" in said.err
    assert "2 of 5 videos could not be used" in said.err
    assert "\x1b" not in said.err


def test_csv_is_read_back_whole(checkpoint, videos, capsys):
    assert run(checkpoint, *videos, "v/broken.mp4", "--format", "csv", "--top", "99") == 1
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out, newline="")))
    assert [row["video"] for row in rows] == [name for name in videos for _ in range(8)] + ["v/broken.mp4"]
    assert [row["rank"] for row in rows[:8]] == [str(i) for i in range(1, 9)]
    assert {row["class"] for row in rows[:8]} >= {ODD}
    assert sum(float(row["probability"]) for row in rows[:8]) == pytest.approx(1)
    assert rows[-1]["error"].startswith("not a readable video")
    assert rows[-1]["rank"] == rows[-1]["class"] == ""


def test_a_table_for_people_is_plain_where_it_is_no_terminal(checkpoint, videos, capsys):
    assert run(checkpoint, "v/*.webm", "--limit", "2", "--top", "8") == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert out.count("\n") == 2 * (1 + 8)
    assert 'clip 3 "x", \\x0a\\x1b[31m<script>.webm' in out
    assert f"%  {ODD}\n" in out
    percents = [float(line.split("%")[0]) for line in out.splitlines()[1:9]]
    assert percents == sorted(percents, reverse=True)
    assert sum(percents) == pytest.approx(100, abs=0.5)


def test_output_is_whole_or_not_there(checkpoint, videos, tmp_path, capsys):
    assert run(checkpoint, videos[0], "--format", "json", "--output", "new/said.jsonl") == 0
    assert json.loads(Path("new/said.jsonl").read_text())["video"] == videos[0]
    assert capsys.readouterr().out == "json: new/said.jsonl\n"
    before = Path(videos[0]).read_bytes()
    assert run(checkpoint, videos[0], "--output", videos[0]) == 2
    assert "is read, too; name another file" in capsys.readouterr().err
    assert run(checkpoint, videos[0], "--output", checkpoint) == 2
    assert Path(videos[0]).read_bytes() == before
    assert run(checkpoint, videos[0], "--output", tmp_path) == 2
    assert run(tmp_path / "none.safetensors", videos[0], "--output", "other/said.txt") == 2
    assert not Path("other").exists()


def test_ctrl_c_leaves_no_cut_file(checkpoint, videos):
    Path("many").mkdir()
    for i in range(3000):
        os.link(videos[0], f"many/{i}.webm")
    command = [sys.executable, "-m", "tdn_bench.predict", "many", "--checkpoint", str(checkpoint), "--device", "cpu"]
    process = subprocess.Popen(
        [*command, "--format", "csv", "--output", "new/said.csv"],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    for _ in range(600):  # until it writes
        if any(path.stat().st_size for path in Path("new").glob(".saving-*")) or process.poll() is not None:
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert err.strip().endswith("interrupted")
    assert not Path("new").exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["x.mp4", "--top", "0"], "--top 0: must be from 1"),
        (["x.mp4", "--limit", "0"], "--limit 0"),
        (["x.mp4", "--batch-size", "0"], "--batch-size 0"),
        (["x.mp4", "--precision", "int8", "--engine", "onnx"], "--precision int8 is calibrated on videos"),
        (["x.mp4", "--calibrate-on", "v"], "--calibrate-on is for --precision int8 and fp8"),
        (
            ["x.mp4", "--precision", "int8", "--engine", "onnx", "--calibrate-on", "v", "no*"],
            "--calibrate-on no*: no such file or folder",
        ),
        (["x.mp4", "--precision", "tf32"], "has no tf32 on cpu"),
        (["x.mp4", "--engine", "none"], "--engine none: predicts nothing"),
        (["x.mp4", "--engine", "trt"], "trt"),
        (["x.mp4", "--class-names", "none.txt"], "none.txt: cannot be read"),
        ([], "no videos named"),
        ([""], "no videos named"),
        (["x.mp4"], "no video could be used, of 1"),
        (["nothing*.mp4"], "no video could be used"),
        (["empty"], "no video could be used"),
    ],
)
def test_what_cannot_be_is_one_line(checkpoint, videos, flags, said, capsys):
    Path("empty").mkdir()
    assert run(checkpoint, *flags) == 2
    assert said in capsys.readouterr().err


def test_a_checkpoint_is_needed(videos, capsys):
    assert run_command(main, [videos[0]]) == 2
    assert "--checkpoint is missing" in capsys.readouterr().err


def test_what_is_assumed_of_a_released_file_is_said(videos, tmp_path, capsys):
    case = next(c for c in CASES if c["arch"] == "resnet50" and c["num_classes"] == 10 and c["num_segments"] == 8)
    torch.save({"state_dict": released_state_dict(case)}, tmp_path / "TDN.pth.tar")
    Path("names.txt").write_text("".join(f"name {i}\n" for i in range(10)))
    flags = ["--class-names", "names.txt", "--size", "64", "--format", "json"]
    assert run(tmp_path / "TDN.pth.tar", videos[0], *flags) == 0
    said = capsys.readouterr()
    assert "does not say its network: taken for tdn_resnet50 with 8 segments of 64 pixels" in said.err
    assert {row["class"] for row in json.loads(said.out)["top"]} <= {f"name {i}" for i in range(10)}


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["openvino", "onnx"])
def test_int8_is_calibrated_on_videos_that_are_named(checkpoint, videos, engine, capsys):
    pytest.importorskip({"onnx": "onnxruntime"}.get(engine, engine))
    flags = ["--engine", engine, "--precision", "int8", "--calibrate-on", "v/clip*", "v/deep", "--format", "json"]
    assert run(checkpoint, videos[0], *flags) == 0
    answer = json.loads(capsys.readouterr().out)["top"]
    with load_recognizer(checkpoint, device="cpu") as recognize:
        exact = dict(recognize(videos[0]).top(8))
    assert all(abs(exact[row["class"]] - row["probability"]) < 0.2 for row in answer)
    assert run(checkpoint, videos[0], *flags[:5], "v/broken.mp4") == 2
    assert "v/broken.mp4: not a readable video" in capsys.readouterr().err


@pytest.mark.parametrize("format", FORMATS)
def test_names_that_are_not_utf8(format, tmp_path):
    name = os.fsdecode(b"clip \xff.mp4")
    said = Prediction(name, ("x",), torch.ones(1, dtype=torch.float64))
    with (tmp_path / "said").open("w+", encoding="utf-8", errors="backslashreplace") as file:
        writer = Writer(file, format, 5)
        writer.write(name, said)
        writer.write(name, BadClip(name, name, "no \udcff use"))
        file.seek(0)
        text = file.read()
    if format == "json":
        assert [json.loads(line)["video"] for line in text.splitlines()] == [name, name]
    else:
        assert text.count("ff.mp4") == {"table": 1, "csv": 2}[format]
