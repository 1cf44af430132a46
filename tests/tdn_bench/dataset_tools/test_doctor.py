"""`tdn-bench doctor` on a data set: every fault put into a sound one is found, and what is measured makes sense."""

import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from support.videos import has_encoder, numbered_frames, write_video

from pipelines.annotations import VIDEO_FOLDER, read_lists, read_something_something
from pipelines.manifest import Manifest, Videos, as_video, build_manifest
from tdn_bench.cli.run import run_command
from tdn_bench.dataset_tools.audit import _duplicates, unlisted
from tdn_bench.dataset_tools.encoding import Encoding
from tdn_bench.dataset_tools.encoding_trials import Trial, try_encodings
from tdn_bench.dataset_tools.loading_advice import conclusions
from tdn_bench.dataset_tools.loading_cost import Advice, GroupAdvice, advise, sample_groups
from tdn_bench.doctor import main
from tdn_bench.prepare import main as prepare_main

Doctor = Callable[..., tuple[object, dict]]


@pytest.fixture
def doctor(tmp_path: Path) -> Doctor:
    """Runs the command: its exit status and its JSON page."""

    def run(*arguments: object) -> tuple[object, dict]:
        page = tmp_path / "page.json"
        page.unlink(missing_ok=True)
        status: object = None
        try:
            status = run_command(main, [*map(str, arguments), "--device", "cpu", "--json", str(page)])
        except SystemExit as stop:
            status = stop.code
        return status, json.loads(page.read_text()) if page.exists() else {}

    return run


@pytest.fixture
def scanned(data: Path, tmp_path: Path) -> Path:
    """The manifest of `data`."""
    return prepared(data, tmp_path / "scanned.arrow")


def prepared(data: Path, out: Path) -> Path:
    assert run_command(prepare_main, ["sthv2", "--root", str(data), "--out", str(out)]) == 0
    return out


def videos(data: Path) -> list[Path]:
    """16 training videos, then 8 of validation."""
    return sorted((data / VIDEO_FOLDER).glob("*.webm"), key=lambda path: int(path.stem))


def rewrite(path: Path, content: bytes, *, keep_time: bool = False) -> None:
    before = path.stat().st_mtime_ns
    path.write_bytes(content)
    os.utime(path, ns=(before, before) if keep_time else (before + 10**9, before + 10**9))


def flipped(path: Path) -> bytes:
    """A file's bytes with one bit changed, in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    return bytes(content)


def write_uneven(path: Path, size: tuple[int, int]) -> None:
    """A video whose second half shows each frame for twice as long."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libvpx-vp9", rate=12, options={"deadline": "realtime", "cpu-used": "8"})
        stream.width, stream.height, stream.pix_fmt, stream.time_base = *size, "yuv420p", Fraction(1, 1000)
        for i, picture in enumerate(numbered_frames(40, *size)):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = 80 * (i + max(0, i - 20)), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def kinds(page: dict) -> dict[str, list[str]]:
    """Which ids were found to have what."""
    found: dict[str, list[str]] = {}
    for finding in page["findings"]:
        found.setdefault(finding["kind"], []).append(finding["id"])
    return found


def test_every_fault_is_found_and_counted(data, doctor, capsys):
    gone, empty, cut, leaked, copied, copy, uneven, *_ = videos(data)
    held_out = videos(data)[16]
    gone.unlink()
    empty.write_bytes(b"")
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    shutil.copy(leaked, held_out)
    shutil.copy(copied, copy)
    write_uneven(uneven, (160, 128))
    shutil.copy(leaked, data / VIDEO_FOLDER / "999.webm")
    (data / VIDEO_FOLDER / "notes.txt").write_text("no video")
    status, page = doctor("sthv2", "--root", data, "--no-advice")
    assert status == 1
    assert kinds(page) == {
        "missing": [gone.stem],
        "empty": [empty.stem],
        "truncated": [cut.stem],
        "leak": [leaked.stem, held_out.stem],
        "two labels": [copy.stem],
        "variable rate": [uneven.stem],
    }
    assert page["counts"]["validation"] == {"leak": 1}
    assert page["unlisted"] == [str(data / VIDEO_FOLDER / "999.webm")]
    out = capsys.readouterr().out
    assert f"leak: {held_out}: the same bytes as {leaked} (train)" in out
    assert f"missing: {gone}: no such file" in out
    assert "1 video in no split: " in out
    # an uneven rate is told but is no fault
    assert "6 of 24 videos need attention" in out


def test_a_sound_set_is_well(data, scanned, doctor, capsys):
    entries = json.loads((data / "labels" / "train.json").read_text())
    same = [e["id"] for e in entries if e["template"] == entries[0]["template"]]
    shutil.copy(*(data / VIDEO_FOLDER / f"{id}.webm" for id in same[:2]))  # of one label: told, but no fault
    status, page = doctor("sthv2", "--root", data, "--checksums", "--no-advice")
    assert status == 0
    assert list(kinds(page)) == ["duplicate"]
    assert capsys.readouterr().out.endswith("\nno problems found\n")


def test_silent_bit_errors_are_found_by_checksums_alone(data, scanned, doctor):
    victim = videos(data)[7]
    rewrite(victim, flipped(victim), keep_time=True)
    for source in (["--manifest", scanned], ["sthv2", "--root", data]):
        status, page = doctor(*source, "--no-advice")
        assert (status, kinds(page)) == (0, {})
        status, page = doctor(*source, "--checksums", "--no-advice")
        assert (status, kinds(page)) == (1, {"changed": [victim.stem]})


def test_what_changed_since_the_scan(data, scanned, doctor):
    other, longer, touched, gone = videos(data)[:4]
    rewrite(other, flipped(other))
    rewrite(longer, longer.read_bytes() + b"\0")
    rewrite(touched, touched.read_bytes())  # another time, the same bytes: as a copy has
    gone.unlink()
    status, page = doctor("--manifest", scanned, "--no-advice")
    assert status == 1
    assert kinds(page) == {"changed": [other.stem, longer.stem], "missing": [gone.stem]}


def test_a_file_that_came_after_the_scan(data, doctor, tmp_path):
    late = videos(data)[0]
    content = late.read_bytes()
    late.unlink()
    manifest = prepared(data, tmp_path / "m.arrow")
    assert kinds(doctor("--manifest", manifest, "--no-advice")[1]) == {"missing": [late.stem]}
    late.write_bytes(content)
    assert kinds(doctor("--manifest", manifest, "--no-advice")[1]) == {"changed": [late.stem]}


def test_a_moved_set_and_another_copy(data, scanned, doctor, tmp_path):
    copy = Path(shutil.copytree(data, tmp_path / "copy", copy_function=shutil.copyfile))
    assert doctor("--manifest", scanned, "--root", copy, "--no-advice")[0] == 0
    odd = videos(copy)[9]
    odd.write_bytes(flipped(odd))
    labels = copy / "labels" / "validation.json"
    entries = json.loads(labels.read_text())
    labels.write_text(json.dumps(entries[1:]))
    other = prepared(copy, tmp_path / "copy.arrow")
    status, page = doctor("--manifest", other, "--reference", scanned, "--no-advice")
    assert status == 1
    assert kinds(page) == {"differs": [odd.stem]}
    assert page["only_in_reference"] == [entries[0]["id"]]
    status, page = doctor("--manifest", scanned, "--reference", other, "--no-advice")
    assert kinds(page) == {"differs": [odd.stem], "not in reference": [entries[0]["id"]]}


def test_folders_of_frames_that_no_annotation_names(tmp_path):
    listed, extra = tmp_path / "a", tmp_path / "deep" / "b"
    for folder in (listed, extra):
        folder.mkdir(parents=True)
        (folder / "00001.jpg").write_bytes(b"")
    (tmp_path / "thumbnail.jpg").write_bytes(b"")
    shutil.copy(listed / "00001.jpg", tmp_path / "c.MP4")
    lists = [tmp_path / f"{split}.txt" for split in ("train", "validation")]
    for path in lists:
        path.write_text("a 1 0\n")
    manifest = build_manifest(read_lists(*lists))
    assert unlisted(manifest) == [str(tmp_path / "c.MP4"), str(extra)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ucf101"], "ucf101: say where it lies by --root DIR"),
        (["sthv2", "--root", "/nowhere"], "/nowhere: no such folder"),
        (["sthv2", "--manifest", "m.arrow"], "exclude each other"),
        (["--manifest", "/nowhere/m.arrow"], "/nowhere/m.arrow: not a readable manifest"),
    ],
)
def test_errors_say_what_to_do(arguments, message, doctor, capsys):
    assert doctor(*arguments)[0] == 2
    assert message in capsys.readouterr().err


def test_without_a_data_set_it_describes_the_machine(doctor, capsys):
    assert doctor() == (0, {})
    assert "loader backends" in capsys.readouterr().out


def test_real_clips_of_a_set_that_is_mostly_missing(shared_data, doctor, capsys):
    root, labels = shared_data / "ucf101_clips", shared_data / "labels" / "ucf101"
    expected = {}
    for split, name in (("train", "trainlist01.txt"), ("validation", "testlist01.txt")):
        listed = [line.split()[0] for line in (labels / name).read_text().splitlines() if line.strip()]
        expected[split] = sum(not (root / path).exists() for path in listed)
    status, page = doctor("ucf101", "--root", root, "--labels", labels, "--no-advice")
    assert status == 1
    assert {split: page["counts"][split] for split in expected} == {s: {"missing": n} for s, n in expected.items()}
    out = capsys.readouterr().out
    assert out.count("\n") < 15
    assert f"{sum(expected.values())} of 13320 videos need attention" in out


def test_the_advice_is_measured(data, doctor, capsys):
    status, page = doctor("sthv2", "--root", data)
    assert status == 0
    advice = page["advice"]
    assert sum(group["videos"] for group in advice["groups"]) == advice["train_videos"] == 16
    for group in advice["groups"]:
        assert group["codec"] == "vp9"
        assert min(group["cpu_ms"]) > 0
        assert sum(group["stages_ms"].values()) == pytest.approx(np.median(group["cpu_ms"]))
        assert group["pyav_clips_per_s"] > 0
        (trial,) = group["trials"]  # 128 pixels high: all short sides come to the same
        assert trial["clips"] == min(3, group["videos"])
        assert trial["speedup"] > 0
        assert 25 < trial["psnr_db"] < 60
    assert advice["clips_per_s"] > 0
    assert advice["conclusions"][0].startswith("there is no GPU here to decode on")
    out = capsys.readouterr().out
    assert "an epoch of 16 training videos" in out
    assert all(sentence in out for sentence in advice["conclusions"])
    assert not list(data.rglob("*.mp4"))


def test_advice_without_trials_for_lists_of_frames(shared_data, doctor):
    root = shared_data / "ssv1_frames"
    status, page = doctor("sthv1", "--root", root)
    assert status == 0
    (group,) = page["advice"]["groups"]
    assert (group["codec"], group["trials"], group["trial_note"]) == (
        "jpeg",
        [],
        "only videos are re-encoded, not frames",
    )


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An H.264 video of 448 × 336, with a key frame in every twelve."""
    if not has_encoder("libx264"):
        pytest.skip("this FFmpeg has no encoder libx264")
    noise = np.random.default_rng(0).integers(0, 64, (8, 336, 448, 3), np.uint8)
    pictures = np.maximum(numbered_frames(40, 448, 336), noise[np.arange(40) % 8])
    return write_video(tmp_path_factory.mktemp("large") / "large.mp4", pictures, "libx264")


def set_of(video: Path) -> Manifest:
    """One video, for training and validation."""
    lists = [video.with_name(f"{split}.txt") for split in ("train", "validation")]
    for path in lists:
        path.write_text(f"{video.name} 30 0\n")
    return build_manifest(read_lists(*lists))


def test_smaller_pictures_decode_faster(large):
    trials, note = try_encodings([as_video(large)], time.monotonic() + 60)
    assert note == ""
    by_side = {trial.encoding.short_side: trial for trial in trials}
    assert set(by_side) == {256, 320, None}
    assert by_side[256].speedup > max(1, by_side[None].speedup)  # 1.7 times fewer pixels
    assert by_side[256].disk_ratio < by_side[320].disk_ratio < by_side[None].disk_ratio
    assert "same size" in by_side[None].name


def test_a_file_that_only_decoding_shows_to_be_damaged(large, tmp_path):
    content = bytearray(large.read_bytes())
    start = content.index(b"mdat") + len(content) * 13 // 25
    content[start : start + 4000] = bytes(4000)
    damaged = tmp_path / "damaged.mp4"
    damaged.write_bytes(content)
    manifest = set_of(damaged)
    assert manifest.split("train")[0].file.status == "ok"
    advice = advise(manifest, torch.device("cpu"), trial=False)
    assert list(advice.damaged) == [str(damaged)]
    assert advice.clips_per_s is None


def test_without_time_little_is_measured(motion_data):
    manifest = build_manifest(read_something_something(motion_data))
    for group in advise(manifest, torch.device("cpu"), trial=False, budget_s=0).groups:
        assert len(group.cpu_ms) == 1


def test_samples_follow_codec_height_and_spacing(motion_data):
    base = as_video(videos(motion_data)[0])
    made = []
    for codec, height, spacing, count in (("h264", 240, 250, 50), ("vp9", 256, 12, 30), ("h264", 1080, 1, 10)):
        file = replace(base.file, codec=codec, width=2 * height, height=height, keyframe_spacing=spacing)
        made += [replace(base, file=file)] * count
    made += [replace(base, file=replace(base.file, codec="av1"))]  # too rare
    made += [replace(base, file=replace(base.file, status="no such file"))] * 50
    groups = sample_groups(Videos.of(made))
    assert [(g.name, g.videos, len(clips)) for g, clips in groups] == [
        ("h264 240p, key frames > 64 apart", 50, 8),
        ("vp9 240p, key frames ≤ 16 apart", 30, 8),
        ("h264 1080p, only key frames", 10, 8),
    ]
    for group, clips in groups:
        assert Counter(v.file.codec for v in clips) == {group.codec: 8}


def test_a_file_in_two_lists_and_copies_under_two_labels(large, doctor, tmp_path):
    for name in ("a", "b", "c"):
        shutil.copy(large, tmp_path / f"{name}.mp4")
    (tmp_path / "c.mp4").write_bytes(large.read_bytes() + b"\0\0\0\x08free")
    train, validation = tmp_path / "train.txt", tmp_path / "validation.txt"
    train.write_text("a.mp4 20 0\nb.mp4 20 1\nc.mp4 20 0\n")
    validation.write_text("c.mp4 20 0\n")
    status, page = doctor("lists", "--train-list", train, "--val-list", validation, "--no-advice")
    assert status == 1
    assert [(f["kind"], f["id"], f["split"], f["reason"]) for f in page["findings"]] == [
        ("two labels", "b.mp4", "train", f"the same bytes as {tmp_path / 'a.mp4'} (train), under another label"),
        ("leak", "c.mp4", "train", "listed in validation too"),
        ("leak", "c.mp4", "validation", "listed in train too"),
    ]


def test_one_file_in_thousands_of_rows_takes_no_look_at_all_pairs_of_them():
    """A copy of Kinetics may hold one and the same error page in place of every video that its owner took back."""

    class Counted(list):
        looks = 0

        def __getitem__(self, row):
            self.looks += 1
            return super().__getitem__(row)

    count = 3000
    splits = Counted(["train"] * count + ["validation"])
    rows = count + 1
    column = {
        "sha256": np.full(rows, "same", object),
        "bytes": np.full(rows, 7),
        "split": splits,
        "path": np.array([f"{i}.mp4" for i in range(rows)], object),
        "label": np.zeros(rows, np.int64),
    }
    found = dict(_duplicates(column))
    assert {kind for kind, _ in found.values()} == {"leak"}
    assert found[1][1] == f"the same bytes as {count}.mp4 (validation)"
    assert found[count][1] == "the same bytes as 0.mp4 (train)"
    assert len(found) == rows
    assert splits.looks < 10 * rows


def test_conclusions_follow_from_the_figures():
    small = Trial("h264, short side 256", Encoding(256, 16), 3, speedup=2.9, disk_ratio=1.4, psnr_db=38, encode_s=7.2)
    same = replace(small, name="h264, same size", encoding=Encoding(None, 16), speedup=1.1, disk_ratio=2.0)
    group = GroupAdvice("vp9 240p", "vp9", 1000, (40.0, 60.0), {}, pyav_clips_per_s=20.0, trials=(small, same))
    advice = Advice(2, None, 1000, 1000, (group,), {})
    assert advice.clips_per_s == pytest.approx(2 / 0.050)
    no_gpu, sentence = conclusions(advice)
    assert "no GPU" in no_gpu
    assert "2.9× as fast to load for 1.4× the disk space at 38 dB, and 1.0 h of work once" in sentence
    assert "--short-side 256 --keyframe-spacing 16" in sentence
    assert "nothing to gain" in conclusions(replace(advice, groups=(replace(group, trials=(same,)),)))[1]
    for ratio, backend in ((3.0, "dali"), (0.5, "pyav")):
        with_gpu = replace(advice, gpu="GPU", groups=(replace(group, dali_ratio=ratio, trials=()),))
        (said,) = conclusions(with_gpu)
        assert f"{ratio:.2f}×" in said
        assert said.endswith(f"--backend {backend}")


def test_rates_of_groups_are_weighted_by_their_videos():
    # 300 videos at 10 ms and 100 at 50 ms are 8 s of work; on 4 cores 2 s.
    groups = (GroupAdvice("a", "a", 300, (10.0,)), GroupAdvice("b", "b", 100, (50.0,)))
    assert Advice(4, None, 400, 400, groups, {}).clips_per_s == pytest.approx(200)
