"""`tdn-bench prepare`: what it counts, names, writes and refuses."""

import os
import shutil
import wave
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from support.videos import flat_frames, numbered_frames, write_video

from pipelines.annotations import VIDEO_FOLDER
from pipelines.manifest import Manifest, scan_file
from pipelines.video import Sample, Video, VideoFile
from tdn_bench.cli.run import run_command
from tdn_bench.dataset_tools.class_findings import class_findings
from tdn_bench.dataset_tools.summary import kind_of
from tdn_bench.doctor import main as doctor_main
from tdn_bench.prepare import main


def videos(data: Path) -> list[Path]:
    """16 training videos, then 8 of validation."""
    return sorted((data / VIDEO_FOLDER).iterdir(), key=lambda path: int(path.stem))


def prepare(*arguments: object) -> int:
    return run_command(main, [str(a) for a in arguments])


def write_jpegs(folder: Path, numbers: Sequence[int], size: int = 48) -> Path:
    import simplejpeg

    folder.mkdir()
    for n in numbers:
        (folder / f"{n:05d}.jpg").write_bytes(simplejpeg.encode_jpeg(flat_frames(1, 100, size)[0]))
    return folder


def test_the_report_and_the_manifest(data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    gone, empty = videos(data)[:2]
    gone.unlink()
    empty.write_bytes(b"")
    assert prepare("sthv2", "--root", data, "--workers", 1) == 0
    out = capsys.readouterr().out
    assert "set: 8 classes, digest " in out
    assert "train: 14 of 16 videos usable (14 vp9), " in out
    assert "validation: 8 of 8 videos usable (8 vp9), " in out
    assert "; 14 at 160×128; " in out
    assert f"  missing: {gone}: no such file" in out
    assert f"  empty: {empty}: empty file" in out
    assert "--manifest runs/sthv2.arrow" in out
    manifest = Manifest.open(Path("runs/sthv2.arrow"))
    assert len(manifest.videos) == 24
    assert [v.path for v in manifest.videos if v.file.status != "ok"] == [str(gone), str(empty)]
    assert manifest.digest()[:16] in out


def test_a_second_run_gives_the_same_manifest(data, tmp_path):
    for name in ("one", "two"):
        assert prepare("sthv2", "--root", data, "--out", tmp_path / name) == 0
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_few_of_a_kind_are_named_and_a_flood_hides_no_other(data, tmp_path, capsys):
    for path in videos(data)[:12]:
        path.unlink()
    empty = videos(data)[0]
    empty.write_bytes(b"")
    assert prepare("sthv2", "--root", data, "--out", tmp_path / "m.arrow") == 0
    out = capsys.readouterr().out
    assert out.count("no such file") == 5
    assert f"empty: {empty}" in out
    assert "… and 7 more; --all names them" in out
    assert prepare("sthv2", "--root", data, "--out", tmp_path / "m.arrow", "--all") == 0
    out = capsys.readouterr().out
    assert out.count("no such file") == 12
    assert "more; --all" not in out


def test_lists_come_back_as_they_were_written(data, tmp_path, capsys):
    videos(data)[3].unlink()
    lists = tmp_path / "lists"
    assert prepare("sthv2", "--root", data, "--out", tmp_path / "a.arrow", "--lists", lists) == 0
    assert "15 videos, 1 unusable left out" in capsys.readouterr().out
    first = (lists / "train.txt").read_text().splitlines()[0].split()
    assert first[0].startswith(f"{VIDEO_FOLDER}/")  # relative to --root, as `path num_frames label`
    assert int(first[1]) == scan_file(str(data / first[0])).num_frames
    flags = ("--train-list", lists / "train.txt", "--val-list", lists / "validation.txt")
    flags += ("--class-names", lists / "classes.txt", "--root", data)
    assert prepare("lists", *flags, "--out", tmp_path / "b.arrow") == 0
    one, other = (Manifest.open(tmp_path / name) for name in ("a.arrow", "b.arrow"))
    assert one.classes == other.classes
    usable = [v for v in one.videos if v.file.status == "ok"]
    assert [(v.path, v.sample.label, v.sample.split, v.file) for v in other.videos] == [
        (v.path, v.sample.label, v.sample.split, v.file) for v in usable
    ]


def test_a_split_without_a_usable_video_is_refused(data, tmp_path, capsys):
    for path in videos(data)[16:]:
        path.unlink()
    assert prepare("sthv2", "--root", data, "--out", tmp_path / "m.arrow") == 2
    done = capsys.readouterr()
    assert "validation: 0 of 8 videos usable (none)" in done.out
    assert done.err == f"error: {data}: no video of the validation split can be used; is this the right folder?\n"
    assert not (tmp_path / "m.arrow").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sthv2"], "--root DIR"),
        (["sthv2", "--root", "/nowhere"], "/nowhere: no such folder"),
        (["ucf101", "--root", ".", "--split", "4"], "--split 4: must be from 1 to 3"),
        (["lists", "--train-list", "train.txt"], "--val-list FILE"),
        (["sthv2", "--root", ".", "--val-list", "x.txt"], "sthv2 reads its own annotations"),
        (["sthv2", "--root", ".", "--workers", "0"], "--workers 0"),
    ],
)
def test_errors_say_what_to_do(arguments, message, capsys):
    assert prepare(*arguments) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert message in err


def test_every_kind_of_bad_file_is_told_apart(tmp_path):
    def of(path: Path) -> str:
        return kind_of(scan_file(str(path)).status)

    whole = write_video(tmp_path / "whole.webm", numbered_frames(48, 64, 48))
    data = whole.read_bytes()
    assert scan_file(str(whole)).status == "ok"
    (tmp_path / "empty.webm").write_bytes(b"")
    (tmp_path / "cut.webm").write_bytes(data[: len(data) // 2])
    (tmp_path / "text.webm").write_text("not found")
    with wave.open(str(tmp_path / "sound.wav"), "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", ""))
        sound.writeframes(bytes(16000))
    write_video(tmp_path / "short.webm", numbered_frames(4, 64, 48))
    write_jpegs(tmp_path / "gap", [1, 2, 3, 5, 6, 7])
    mixed = write_jpegs(tmp_path / "mixed", range(1, 7))
    shutil.copy(write_jpegs(tmp_path / "larger", [1], 64) / "00001.jpg", mixed / "00004.jpg")
    torn = write_jpegs(tmp_path / "torn", range(1, 7))
    os.truncate(torn / "00003.jpg", (torn / "00003.jpg").stat().st_size // 2)
    (torn / "00003.jpg").write_bytes((torn / "00003.jpg").read_bytes().replace(b"\xff\xd9", b""))
    (tmp_path / "void").mkdir()
    twice = write_jpegs(tmp_path / "twice", range(1, 7))
    shutil.copy(twice / "00003.jpg", twice / "3.jpg")
    expected = {
        "nothing": "missing",
        "empty.webm": "empty",
        "cut.webm": "truncated",
        "text.webm": "unreadable",
        "sound.wav": "no video",
        "short.webm": "too short",
        "gap": "frame missing",
        "mixed": "mixed sizes",
        "torn": "truncated",
        "void": "no video",
        "twice": "frame twice",
    }
    assert {name: of(tmp_path / name) for name in expected} == expected


def test_frame_folders_of_something_something_v1(shared_data, tmp_path, capsys):
    root = shared_data / "ssv1_frames"
    assert prepare("sthv1", "--root", root, "--out", tmp_path / "m.arrow") == 0
    folders = sum(path.is_dir() for path in (root / "20bn-something-something-v1").iterdir())
    manifest = Manifest.open(tmp_path / "m.arrow")
    assert len(manifest.videos) == folders
    for video in np.random.default_rng(0).choice(len(manifest.videos), 3, replace=False).tolist():
        row = manifest.videos[video]
        assert row.file.num_frames == len(list(Path(row.path).glob("*.jpg")))


def test_what_lists_have_wrong_is_said_by_prepare_and_doctor(tmp_path, capsys):
    (tmp_path / "classes.txt").write_text("up\ndown\nle\u202eft\nright\n", encoding="utf-8")
    for i in range(4):
        write_video(tmp_path / f"{i}.webm", numbered_frames(12, 64, 48, first=20 * i))
    (tmp_path / "t.txt").write_text("0.webm 12 1\n0.webm 12 1\n1.webm 12 2\n\x1b[31m.webm 12 1\n\x1b[31m.webm 12 1\n")
    (tmp_path / "v.txt").write_text("2.webm 12 3\n2.webm 12 3\n3.webm 12 1\n./3.webm 12 2\n1.webm 12 2\n")
    lists = ("--train-list", tmp_path / "t.txt", "--val-list", tmp_path / "v.txt")
    assert prepare("lists", *lists, "--class-names", tmp_path / "classes.txt", "--out", tmp_path / "m.arrow") == 0
    said = capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        doctor_main(["--manifest", str(tmp_path / "m.arrow"), "--no-advice", "--device", "cpu"])
    assert stop.value.code == 1
    for out in (said, diagnosed := capsys.readouterr().out):
        assert "\x1b" not in out
        assert "\u202e" not in out
        assert f"  listed twice: {tmp_path}/2.webm: listed in validation too" in out
        assert f"  listed twice: {tmp_path}/\\x1b[31m.webm: listed in train too" in out
        assert f"  two labels: {tmp_path}/3.webm: listed in validation too, under another label" in out
        assert out.count(f"  leak: {tmp_path}/1.webm: listed in ") == 2
        assert "classes: class 0 up has no video in any split; labels seem to count from 1" in out
        assert "classes: class 3 right without a training video" in out
    assert said.startswith(f"{tmp_path}/t.txt: read as 'path num_frames label', separated by spaces\n")
    # the video that is missing, the leak in two splits, and two rows of validation; not the repeats in train
    assert "5 of 10 videos need attention; classes: class 0" in diagnosed


@pytest.mark.parametrize(
    ("train", "validation", "expected"),
    [
        ([0, 1, 2], [0, 1, 2], []),
        ([1, 2], [1, 2], ["class 0 has no video in any split; labels seem to count from 1"]),
        ([0, 2], [0, 2], ["class 1 without a video in any split"]),
        ([0, 2], [0, 1], ["class 1 without a training video", "class 2 without a validation video"]),
        ([0], [0, 1, 2], ["2 classes (1, 2) without a training video"]),
        ([0, 1, 2], [], []),
        ([], [0, 1, 2], []),
    ],
)
def test_classes_that_lack_videos(train, validation, expected):
    rows = [("train", label) for label in train] + [("validation", label) for label in validation]
    videos = [Video(Sample(str(i), f"/{i}.mp4", label, split), VideoFile()) for i, (split, label) in enumerate(rows)]
    videos.append(Video(Sample("t", "/t.mp4", -1, "test"), VideoFile()))
    assert class_findings(Manifest.of("some", ("0", "1", "2"), videos)) == expected
