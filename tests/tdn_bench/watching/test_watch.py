"""`tdn-bench watch` on files: the frames and labels of an evaluation; kept features; its outputs and its ends."""

import json
import os
import pty
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from support.networks import make
from support.streams import SPEC, Numbers, make_watch, slow_down
from support.videos import numbered_frames, read_numbers, write_video

from pipelines.loader import create_decoder
from pipelines.odd_clips import CASES, skipped_cases
from pipelines.plan import plan_evaluation
from pipelines.scan import as_video
from tdn_bench.checkpoint import save_checkpoint
from tdn_bench.cli import run_command
from tdn_bench.errors import UserError
from tdn_bench.recognizer import load_recognizer
from tdn_bench.records import read_record
from tdn_bench.watch import main
from tdn_bench.watching.flags import WatchFlags
from tdn_bench.watching.overlay import Overlay
from tdn_bench.watching.session import Session

CLASSES = ["one", "two <b>", "three\u202e\u200b", "four", "five", "six", "seven"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, and a clip of 60 frames at 12 a second."""
    folder = tmp_path_factory.mktemp("watch")
    notes = {"model": "tdn_resnet_small", "num_segments": 4, "size": 64, "crop_ratio": 0.875, "classes": CLASSES}
    save_checkpoint(make("tdn").network, folder / "c.safetensors", notes)
    write_video(folder / "a clip's.webm", numbered_frames(60, 128, 96))
    write_video(folder / "short.webm", numbered_frames(36, 128, 96))
    return folder


def session_of(folder: Path, source: str = "a clip's.webm", **flags) -> Session:
    flags = {"realtime": False} | flags
    network = replace(WatchFlags(source="0").network, checkpoint=folder / "c.safetensors")
    return Session(WatchFlags(source=str(folder / source), network=network, **flags))


def labels_of(session: Session) -> list:
    labels = [label for label in session.labels() if label is not None]
    session.close()
    return labels


@pytest.mark.parametrize("name", sorted(CASES.keys() - skipped_cases().keys()))
def test_a_window_over_a_whole_file_sees_what_an_evaluation_sees(name, tmp_path):
    """Every odd file: B-frames, edit lists, rotation, mirrors, fields, odd colours … The same frames, to the bit."""
    clip = CASES[name](tmp_path)
    watch = make_watch(str(clip.path), len(clip.numbers), grid=False, realtime=False)
    labeller = Numbers()
    pictures = []
    read = labeller.read
    labeller.read = lambda frames, from_ring: (read(frames, from_ring), pictures.append(from_ring(frames)))[0]
    labels = list(watch.every_label(labeller))
    if name.endswith("size_change"):  # the window begins anew there; an evaluation scales the later frames
        assert watch.tally.size_changes == 1
        assert [frame for seen in labeller.seen for frame in seen.ravel()] == [
            clip.numbers[frame] for frames in labeller.asked for frame in frames.ravel()
        ]
        return
    assert watch.ring.count == len(clip.numbers)
    assert len(labels) == 1
    video = as_video(clip.path)
    [wanted] = create_decoder("pyav", SPEC, torch.device("cpu"), 1)([plan_evaluation(video, SPEC)])
    assert torch.equal(pictures[0], wanted)
    assert (labeller.seen[0] == np.array(clip.numbers)[labeller.asked[0]]).all()


@pytest.mark.parametrize("flags", [{"reuse": False, "window_frames": 60}, {"reuse": False}, {"reuse": True}])
def test_a_window_over_a_whole_file_says_what_predict_says(folder, flags):
    """By whole clips the same bits; from kept features, segment by segment, float32's rounding apart."""
    flags = {"window_frames": 1000} | flags
    session = session_of(folder, top=7, **flags)
    [label] = labels_of(session)
    with load_recognizer(folder / "c.safetensors") as recognize:
        wanted = recognize(folder / "a clip's.webm").top(7)
    assert [name for name, _ in label.top] == [name for name, _ in wanted]
    got, expected = ([p for _, p in top] for top in (label.top, wanted))
    assert got == pytest.approx(expected, rel=1e-6)  # watch folds the batch norms, predict does not
    assert label.frames == (0, 59)
    assert label.whole == (flags["window_frames"] == 60)


@pytest.mark.parametrize(
    ("engine", "model"),
    [("eager", "tdn"), ("eager", "tsn"), ("eager", "tsm"), pytest.param("compile", "tdn", marks=pytest.mark.slow)],
)
def test_kept_features_give_the_labels_of_whole_windows(engine, model, tmp_path, folder):
    notes = {"model": f"{model}_resnet_small", "num_segments": 4, "size": 64, "crop_ratio": 0.875, "classes": CLASSES}
    save_checkpoint(make(model).network, tmp_path / "c.safetensors", notes)
    (tmp_path / "clip.webm").write_bytes((folder / "a clip's.webm").read_bytes())
    flags = {"window_frames": 24, "top": 7, "engine": engine}
    kept = session_of(tmp_path, "clip.webm", **flags)
    length, hop = 24, 5 if model == "tdn" else 6  # 24 = 4·5 + 5 − 1 = 4·6 + 1 − 1
    whole = session_of(tmp_path, "clip.webm", **flags | {"reuse": False, "every_ms": hop / 12 * 1000})
    by_kept, by_whole = labels_of(kept), labels_of(whole)
    assert kept.not_kept is None
    assert whole.not_kept == "--no-reuse"
    assert [label.frames for label in by_kept] == [(i, i + length - 1) for i in range(0, 60 - length + 1, hop)]
    assert [label.segments for label in by_kept] == [label.segments for label in by_whole]
    for one, other in zip(by_kept, by_whole, strict=True):
        assert dict(one.top) == pytest.approx(dict(other.top), rel=1e-4 if engine == "compile" else 1e-5)
    assert [label.kept_segments for label in by_kept] == [0] + [3] * (len(by_kept) - 1)


def test_other_engines_take_whole_windows_of_the_same_frames(folder):
    pytest.importorskip("onnxruntime")
    whole, kept = (session_of(folder, window_frames=24, engine=engine, top=7) for engine in ("onnx", "eager"))
    by_whole, by_kept = labels_of(whole), labels_of(kept)
    assert whole.not_kept == "the engine onnx takes whole clips"
    assert [label.segments for label in by_whole] == [label.segments for label in by_kept]
    for one, other in zip(by_whole, by_kept, strict=True):
        assert dict(one.top) == pytest.approx(dict(other.top), abs=1e-4)


def test_a_file_is_played_at_its_own_rate(folder):
    session = session_of(folder, "short.webm", window_frames=24, realtime=True)
    start = time.monotonic()
    labels = labels_of(session)
    assert time.monotonic() - start > 35 / 12 - 0.1
    assert labels[-1].frames[1] == 33
    tally = session.watch.tally
    assert tally.windows + tally.windows_skipped == 3
    # An interval of frames is an interval of time.
    times = {label.frames[1]: label.position_s for label in labels}
    assert all(position == pytest.approx(end / 12, abs=0.002) for end, position in times.items())


@pytest.mark.slow
def test_a_decoder_that_cannot_keep_up_goes_on_at_a_key_frame(folder):
    """Each picture takes almost twice the time until the next."""
    watch, numbers = make_watch(str(folder / "a clip's.webm"), 12), Numbers()
    slow_down(watch, 0.16)
    watch.start(20)
    labels = [label for label in watch.labels(numbers) if label is not None]
    watch.close()
    assert "behind" in [kind for _, kind, _ in watch.happened]
    assert watch.reader.dropped > 0
    assert watch.reader.dropped + watch.ring.count == 60
    offsets = [set((seen - asked).ravel().tolist()) for asked, seen in zip(numbers.asked, numbers.seen, strict=True)]
    assert all(len(found) == 1 for found in offsets)  # no window spans what was dropped
    assert offsets[0] == {0}
    assert labels


def test_what_it_prints_and_writes(folder, tmp_path, capsys):
    command = [str(folder / "a clip's.webm"), "--checkpoint", str(folder / "c.safetensors"), "--no-realtime"]
    files = ["--json", f"{tmp_path}/l.jsonl", "--overlay", f"{tmp_path}/o.mp4", "--results", f"{tmp_path}/r"]
    assert run_command(main, [*command, "--window-frames", "24", "--top", "3", *files]) == 0
    out = capsys.readouterr().out.splitlines()
    assert "a window of 24 frames (2.00 s), a label every 5 (0.42 s)" in out[0]
    assert sum(line.endswith(" ms)") for line in out) == 8
    assert "\x1b" not in "".join(out)
    events = [json.loads(line) for line in (tmp_path / "l.jsonl").read_text().splitlines()]
    assert [e["event"] for e in events] == ["start", *["window"] * 8, "end", "summary"]
    assert events[1]["frames"] == [0, 23]
    assert events[1]["segments"] == [2, 7, 12, 17]
    assert len(events[1]["top"]) == 3
    with av.open(str(tmp_path / "o.mp4")) as overlay:
        pictures = [frame.to_ndarray(format="rgb24") for frame in overlay.decode(video=0)]
    assert read_numbers(np.stack(pictures[:20])) == list(range(20))  # before the first label
    assert len(pictures) == 60
    [path] = (tmp_path / "r").iterdir()
    record = read_record(path)
    assert record.kind == "watch"
    assert len(record.samples["latency_ms"]) == record.figures["windows"] == 8
    assert record.figures["real_time"] is None
    assert record.settings["source"].endswith("clip's.webm")


def run(*arguments: str, **options) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-m", "tdn_bench", "watch", *arguments], **options)


def test_ctrl_c_ends_it_with_a_summary_and_a_whole_overlay(folder, tmp_path):
    command = [str(folder / "a clip's.webm"), "--checkpoint", str(folder / "c.safetensors"), "--window-frames", "12"]
    process = run(*command, "--overlay", f"{tmp_path}/o.mkv", stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    lines = [process.stdout.readline() for _ in range(3)]
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err == "interrupted\n"
    assert "latency from frame to label" in out
    assert lines[1].endswith(" ms)\n")
    with av.open(str(tmp_path / "o.mkv")) as overlay:
        assert 12 <= sum(1 for _ in overlay.decode(video=0)) < 60
    assert [p.name for p in tmp_path.iterdir()] == ["o.mkv"]


def test_at_a_terminal_a_table_changes_and_no_color_takes_its_colours(folder):
    for colours in (True, False):
        ours, its = pty.openpty()
        environment = {k: v for k, v in os.environ.items() if k != "NO_COLOR"} | {"TERM": "xterm", "COLUMNS": "100"}
        process = run(
            str(folder / "a clip's.webm"), "--checkpoint", str(folder / "c.safetensors"), "--window-frames", "24",
            "--no-realtime", stdout=its, stderr=its, env=environment if colours else environment | {"NO_COLOR": "1"},
        )  # fmt: off
        os.close(its)
        out = b""
        try:
            while data := os.read(ours, 65536):
                out += data
        except OSError:  # how a terminal says that the other side is closed
            pass
        os.close(ours)
        assert process.wait(60) == 0
        assert "\u202e".encode() not in out  # a label's own
        assert b"three\\u202e" in out
        assert "█".encode() in out or "▏".encode() in out
        assert (b"\x1b[1;32m" in out) == colours


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        ({"window_frames": 0}, "--window-frames 0: must be from 1"),
        ({"window_s": float("nan")}, "--window-s nan: must be"),
        ({"top": 0}, "--top 0"),
        ({"overlay": Path("o.txt")}, "--overlay o.txt: give a name that ends in"),
        ({"overlay": Path("/proc/o.mp4")}, "cannot be written"),
        ({"json": Path("/proc/o")}, "cannot be written"),
        ({"json": Path("clip.mp4")}, "--json clip.mp4: would overwrite what is read"),
        ({"overlay": Path("./clip.mp4")}, "would overwrite what is read"),
        ({"overlay": Path("o.mp4"), "json": Path("./o.mp4")}, "--json o.mp4: is the --overlay, too"),
        ({"source": "udp://127.0.0.1:9", "realtime": False}, "--no-realtime udp://127.0.0.1:9: only a file waits"),
        ({"source": "nothing.mp4"}, "no such file"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_loaded(flags, why, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("clip.mp4").write_bytes(b"x")
    network = replace(WatchFlags(source="0").network, checkpoint=Path("none"))
    with pytest.raises(UserError) as e:
        Session(WatchFlags(**{"source": "clip.mp4", "network": network} | flags))
    assert why in str(e.value)
    assert os.listdir() == ["clip.mp4"]


def test_text_is_no_video_and_logits_that_are_no_numbers_are_no_label(folder, tmp_path):
    (tmp_path / "text.mp4").write_text("no video\n" * 100)
    (tmp_path / "c.safetensors").write_bytes((folder / "c.safetensors").read_bytes())
    with pytest.raises(UserError, match=r"text\.mp4: "):
        session_of(tmp_path, "text.mp4")
    session = session_of(folder, window_frames=24)
    with torch.no_grad():
        session.trained.classifier.network.classifier.bias.fill_(float("nan"))
    with pytest.raises(UserError, match="no numbers"):
        labels_of(session)


def test_a_slow_overlay_drops_frames_and_a_lossless_one_waits(tmp_path, monkeypatch):
    frame = av.VideoFrame.from_ndarray(numbered_frames(1, 64, 48)[0], format="rgb24")
    captioned = sys.modules[Overlay.__module__]._captioned
    monkeypatch.setattr(Overlay.__module__ + "._captioned", lambda *a: (time.sleep(0.01), captioned(*a))[1])
    for lossless in (True, False):
        overlay = Overlay(tmp_path / "o.mp4", 25, lossless=lossless)
        for i in range(50):
            overlay.put(frame, 0, False, i / 25)
        overlay.close()
        assert overlay.written + overlay.dropped == 50
        assert (overlay.dropped == 0) == lossless
        with av.open(str(tmp_path / "o.mp4")) as container:
            assert sum(1 for _ in container.decode(video=0)) == overlay.written
