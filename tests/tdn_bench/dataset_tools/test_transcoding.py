"""Transcoded videos hold the same pictures, in number, order, time, colour and direction; failures leave nothing."""

import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.videos import flat_frames, has_encoder, numbered_frames, read_numbers, write_video

from pipelines.annotations import read_something_something
from pipelines.errors import DataError
from pipelines.manifest import OK, scan_file
from tdn_bench.dataset_tools import transcode_folder
from tdn_bench.dataset_tools.encoding import Encoding
from tdn_bench.dataset_tools.transcode_folder import STAMP
from tdn_bench.dataset_tools.transcoding import transcode_file
from tdn_bench.errors import UserError
from tdn_bench.transcode import main

CODECS = ("h264", "vp9")
SIDES = st.integers(16, 5000)


@pytest.fixture(params=CODECS)
def codec(request: pytest.FixtureRequest) -> str:
    encoder = {"h264": "libx264", "vp9": "libvpx-vp9"}[request.param]
    if not has_encoder(encoder):
        pytest.skip(f"this FFmpeg has no encoder {encoder}")
    return request.param


def decode(path: Path) -> list[av.VideoFrame]:
    with av.open(str(path), metadata_errors="replace") as container:
        return list(container.decode(video=0))


def rgb(path: Path) -> np.ndarray:
    return np.stack([frame.to_ndarray(format="rgb24") for frame in decode(path)])


def times(path: Path) -> list[Fraction]:
    return [frame.pts * frame.time_base for frame in decode(path)]


def encode(
    path: Path,
    frames: Sequence[av.VideoFrame],
    ticks: Sequence[int] | None = None,
    time_base: Fraction = Fraction(1, 12),
    setup: Callable[[av.VideoStream], object] = lambda stream: None,
) -> Path:
    """H.264 in the container of the suffix, at given times; `setup` may change the stream."""
    if not has_encoder("libx264"):
        pytest.skip("this FFmpeg has no encoder libx264")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=12, options={"bf": "2", "crf": "10", "preset": "veryfast"})
        stream.width, stream.height = frames[0].width, frames[0].height
        stream.codec_context.time_base = time_base
        setup(stream)
        for tick, frame in zip(ticks or range(len(frames)), frames, strict=True):
            frame.pts, frame.time_base = tick, time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize(
    ("name", "encoder"), [("a.mp4", "libx264"), ("a.webm", "libvpx-vp9"), ("a.avi", "mpeg4"), ("a.avi", "mjpeg")]
)
def test_every_frame_keeps_its_index_its_time_and_nothing_is_cut(
    tmp_path: Path, codec: str, name: str, encoder: str
) -> None:
    source = write_video(tmp_path / name, numbered_frames(50, 162, 98, first=100), encoder)
    result = transcode_file(str(source), tmp_path / "out" / name, Encoding(short_side=64, codec=codec))
    assert read_numbers(rgb(tmp_path / "out" / name)) == list(range(100, 150))
    assert (result.num_frames, result.width, result.height) == (50, 106, 64)
    assert result.input_bytes == source.stat().st_size
    assert result.output_bytes == (tmp_path / "out" / name).stat().st_size
    first = times(source)[0]  # AVI has no more than a constant rate
    expected = [first + Fraction(i, 12) for i in range(50)]
    for found, wanted in zip(times(tmp_path / "out" / name), expected, strict=True):
        assert abs(found - wanted) <= (0 if codec == "h264" and name != "a.webm" else Fraction(1, 1000))


@pytest.mark.parametrize("spacing", [1, 7, 16])
def test_key_frames_are_where_asked_for_and_nowhere_else(tmp_path: Path, codec: str, spacing: int) -> None:
    """Even where every picture is a new scene, and where the source has other key frames."""
    frames = np.random.default_rng(0).integers(0, 255, (40, 64, 64, 3)).astype(np.uint8)
    frames[20:] //= 8
    source = write_video(tmp_path / "a.webm", frames)
    encoding = Encoding(short_side=None, keyframe_spacing=spacing, codec=codec)
    transcode_file(str(source), tmp_path / "b", encoding)
    with av.open(str(tmp_path / "b")) as container:
        keys = [packet.is_keyframe for packet in container.demux(video=0) if packet.size]
        assert container.format.name.split(",")[-1] in ("mj2", "webm")
    assert keys == [i % spacing == 0 for i in range(40)]


@settings(max_examples=25)
@given(steps_ms=st.lists(st.integers(60, 500), min_size=20, max_size=30), start_ms=st.integers(0, 90_000))
def test_variable_frame_rate_survives(
    steps_ms: list[int], start_ms: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("uneven")
    uneven = (start_ms + np.cumsum(steps_ms)).tolist()
    frames = [av.VideoFrame.from_ndarray(f, format="rgb24") for f in numbered_frames(len(uneven), 64, 64)]
    source = encode(folder / "a.mp4", frames, [t * 90 for t in uneven], Fraction(1, 90_000))  # whole milliseconds
    assert times(source) == [Fraction(t, 1000) for t in uneven]
    for codec in CODECS:
        transcode_file(str(source), folder / codec, Encoding(codec=codec, crf=35), psnr=False)
        assert times(folder / codec) == [Fraction(t, 1000) for t in uneven]
    assert scan_file(str(folder / "h264")).status == OK


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_pictures_are_upright_and_carry_no_display_matrix(tmp_path: Path, degrees: int, mirrored: bool) -> None:
    """The matrix turns the stored picture counterclockwise and then mirrors it; numbers read upright only."""
    shown = numbered_frames(12, 132, 66, first=77)
    shown[:, :33, :, 2] = 0  # no blue in the upper half
    stored = np.rot90(shown[:, :, ::-1] if mirrored else shown, -degrees // 90, axes=(1, 2))
    frames = [av.VideoFrame.from_ndarray(np.ascontiguousarray(f), format="rgb24") for f in stored]
    source = encode(
        tmp_path / "a.mp4", frames, setup=lambda stream: stream.set_display_rotation(degrees, hflip=mirrored)
    )
    result = transcode_file(str(source), tmp_path / "b", Encoding(short_side=34))
    assert (result.width, result.height) == (68, 34)
    assert read_numbers(rgb(tmp_path / "b")) == list(range(77, 89))
    blue = rgb(tmp_path / "b")[..., 2]
    assert blue[:, :15].mean() < 40 < 80 < blue[:, 19:].mean()
    assert all("DISPLAYMATRIX" not in frame.side_data for frame in decode(tmp_path / "b"))
    assert result.psnr_db > 30


COLOURS = np.array([(220, 30, 30), (30, 200, 40), (40, 60, 220), (235, 235, 235), (16, 16, 16), (128, 128, 128)])


@pytest.mark.parametrize("matrix", ["ITU709", "ITU601"])
@pytest.mark.parametrize("full", [False, True])
def test_colours_do_not_shift(tmp_path: Path, codec: str, matrix: str, full: bool) -> None:
    """Whatever the matrix and the range of the source: RGB is what was painted."""
    picture = np.repeat(np.repeat(COLOURS.reshape(2, 3, 3), 64, axis=0), 64, axis=1).astype(np.uint8)
    wanted = av.video.reformatter.Colorspace[matrix]
    frames = [
        av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(
            format="yuvj420p" if full else "yuv420p",
            dst_colorspace=wanted,
            dst_color_range=2 if full else 1,
        )
        for _ in range(6)
    ]

    def tag(stream: av.VideoStream) -> None:
        stream.pix_fmt = "yuvj420p" if full else "yuv420p"
        stream.codec_context.colorspace = {"ITU709": 1, "ITU601": 6}[matrix]
        stream.codec_context.color_range = 2 if full else 1

    source = encode(tmp_path / "a.mp4", frames, setup=tag)
    transcode_file(str(source), tmp_path / "b", Encoding(short_side=64, codec=codec, crf=4))
    out = decode(tmp_path / "b")[3]
    assert out.format.name == "yuv420p"
    assert out.color_range == 1
    for path, size in ((source, 64), (tmp_path / "b", 32)):
        middles = rgb(path)[3, size // 2 :: size, size // 2 :: size].reshape(-1, 3)
        assert np.abs(middles.astype(int) - COLOURS).max() <= 5


def test_mjpegs_full_range_becomes_limited(tmp_path: Path) -> None:
    source = write_video(tmp_path / "a.avi", flat_frames(8, 250, 64), "mjpeg")
    transcode_file(str(source), tmp_path / "b", Encoding())
    assert decode(source)[0].format.name == "yuvj420p"
    assert np.abs(rgb(tmp_path / "b").astype(int) - 250).max() <= 2
    assert decode(tmp_path / "b")[0].to_ndarray()[:64].max() <= 235


@given(width=SIDES, height=SIDES, short=st.one_of(st.none(), st.integers(8, 300).map(lambda n: 2 * n)))
def test_sizes_are_even_never_larger_and_keep_the_shape(width: int, height: int, short: int | None) -> None:
    out = Encoding(short_side=short).size(width, height)
    small = min(width, height) if short is None else min(width, height, short)
    assert [side % 2 for side in out] == [0, 0]
    assert out[0] <= width
    assert out[1] <= height
    assert min(out) == small - small % 2
    for side, new in zip((width, height), out, strict=True):
        assert abs(side * small / min(width, height) - new) <= 1


def test_odd_sizes_lose_one(tmp_path: Path, codec: str) -> None:
    source = write_video(tmp_path / "a.webm", numbered_frames(10, 161, 123))
    result = transcode_file(str(source), tmp_path / "b", Encoding(codec=codec))
    assert (result.width, result.height) == (160, 122)
    assert read_numbers(rgb(tmp_path / "b")) == list(range(10))


def test_psnr_is_that_of_the_definition(tmp_path: Path, codec: str) -> None:
    y, x = np.mgrid[:96, :128]
    waves = [128 + 60 * np.sin((x + 3 * i) / 5) + 50 * np.cos((y - i) / 3) for i in range(20)]
    source = write_video(tmp_path / "a.webm", np.repeat(np.stack(waves)[..., None], 3, axis=3).astype(np.uint8))
    found = transcode_file(str(source), tmp_path / "b", Encoding(short_side=64, codec=codec, crf=40)).psnr_db
    errors = []
    for one, other in zip(decode(source), decode(tmp_path / "b"), strict=True):
        scaled = one.reformat(other.width, other.height, "yuv420p", interpolation="BICUBIC")
        lumas = [f.to_ndarray()[: other.height].astype(float) for f in (scaled, other)]
        errors.append(((lumas[0] - lumas[1]) ** 2).mean())
    assert found == pytest.approx(10 * math.log10(255**2 / np.mean(errors)), abs=1e-6)
    assert 20 < found < 45


def test_equal_pictures_have_infinite_psnr_and_nothing_is_measured_unasked(tmp_path: Path) -> None:
    source = write_video(tmp_path / "a.avi", flat_frames(8, 128), "mpeg4")
    assert transcode_file(str(source), tmp_path / "b", Encoding(crf=1)).psnr_db == math.inf
    assert math.isnan(transcode_file(str(source), tmp_path / "b", Encoding(), psnr=False).psnr_db)


def test_the_same_input_gives_the_same_bytes(tmp_path: Path, codec: str) -> None:
    source = write_video(tmp_path / "a.webm", numbered_frames(10, 64, 64))
    for name in "bc":
        transcode_file(str(source), tmp_path / name, Encoding(codec=codec))
    assert (tmp_path / "b").read_bytes() == (tmp_path / "c").read_bytes()


def cut(path: Path, share: float) -> Path:
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    return path


def two_sizes(path: Path) -> Path:
    """12 frames of 64 × 64 pixels, then 12 of 32 × 32, in one stream."""
    parts = [write_video(path.with_suffix(f".{n}.webm"), flat_frames(12, 100, n)) for n in (64, 32)]
    with av.open(str(path), "w") as output:
        stream = None
        for start, part in zip((0, 12), parts, strict=True):
            with av.open(str(part)) as container:
                stream = stream or output.add_stream_from_template(container.streams.video[0])
                for at, packet in enumerate(p for p in container.demux(video=0) if p.size):
                    packet.stream = stream
                    packet.pts = packet.dts = round((start + at) / 12 / packet.time_base)
                    output.mux(packet)
    return path


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda d: cut(write_video(d / "a.avi", numbered_frames(40, 64, 64), "mpeg4"), 0.8), "truncated|ends after"),
        (lambda d: cut(write_video(d / "a.webm", numbered_frames(40, 64, 64)), 0.6), "truncated|ends after"),
        (lambda d: cut(write_video(d / "a.mp4", numbered_frames(40, 64, 64), "libx264"), 0.6), "not a readable"),
        (lambda d: d / "a.webm", "no such file"),
    ],
)
def test_a_bad_source_is_refused_by_name_and_leaves_nothing(
    tmp_path: Path, make: Callable[[Path], Path], reason: str
) -> None:
    source = make(tmp_path)
    target = tmp_path / "out" / source.name
    with pytest.raises(DataError, match=f"{source}: .*({reason})"):
        transcode_file(str(source), target, Encoding())
    assert not target.parent.exists() or not list(target.parent.iterdir())


def test_a_source_that_breaks_midway_leaves_nothing(tmp_path: Path) -> None:
    """The container is sound, one packet holds rubbish."""
    source = write_video(tmp_path / "a.webm", numbered_frames(40, 64, 64))
    with av.open(str(source)) as container:
        packet = bytes([p for p in container.demux(video=0) if p.size][20])
    source.write_bytes(source.read_bytes().replace(packet, bytes(len(packet))))
    with pytest.raises(DataError, match=f"{source}: "):
        transcode_file(str(source), tmp_path / "out" / "a.webm", Encoding())
    assert not list((tmp_path / "out").iterdir())


def test_a_target_that_cannot_be_written_is_no_fault_of_the_source(tmp_path: Path) -> None:
    source = write_video(tmp_path / "a.webm", numbered_frames(10, 64, 64))
    with pytest.raises(UserError, match="b: cannot be written"):
        transcode_file(str(source), source / "b", Encoding())


@pytest.mark.parametrize(
    "wrong",
    [{"short_side": 15}, {"short_side": 255}, {"keyframe_spacing": 0}, {"crf": 0}, {"crf": 52}, {"codec": "mpeg2"}],
)
def test_wrong_settings_are_refused_by_value(wrong: dict) -> None:
    with pytest.raises(DataError, match=str(next(iter(wrong.values())))):
        Encoding(**wrong)


@pytest.fixture(scope="module")
def two_videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of two videos, a label file and another file."""
    root = tmp_path_factory.mktemp("two") / "in"
    write_video(root / "videos/one/1.webm", numbered_frames(12, 64, 48, first=10))
    write_video(root / "videos/two/2.AVI", numbered_frames(13, 64, 48, first=20), "mpeg4")
    (root / "labels").mkdir()
    (root / "labels/list.txt").write_text("one/1.webm 12 0\n")
    (root / "notes.md").write_text("no label file")
    return root


@pytest.fixture
def root(two_videos: Path, tmp_path: Path) -> Path:
    """A copy that a test may change, as `in` in its own folder."""
    return Path(shutil.copytree(two_videos, tmp_path / "in"))


def test_the_command_mirrors_a_folder_resumes_and_lists_failures(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    bad = root / "videos" / "bad.mp4"
    bad.write_bytes(b"rubbish")
    flags = ["--data-root", str(root), "--out", str(out), "--short-side", "32", "--workers", "1"]
    with pytest.raises(UserError, match="1 of 3 videos"):
        main(flags)
    printed = capsys.readouterr().out
    assert f"failed: {bad}: not a readable video" in printed
    assert "2 videos of 25 frames" in printed
    assert sorted(str(f.relative_to(out)) for f in out.rglob("*") if f.is_file()) == [
        "labels/list.txt",
        STAMP,
        "videos/one/1.webm",
        "videos/two/2.AVI",
    ]
    assert read_numbers(rgb(out / "videos/one/1.webm")) == list(range(10, 22))
    assert read_numbers(rgb(out / "videos/two/2.AVI")) == list(range(20, 33))

    bad.unlink()
    written = (out / "videos/one/1.webm").stat().st_mtime_ns
    main(flags)
    assert "2 videos, 2 of them done before" in capsys.readouterr().out
    assert (out / "videos/one/1.webm").stat().st_mtime_ns == written
    os.utime(root / "videos/one/1.webm", ns=(written + 10**9, written + 10**9))
    main(flags)
    assert "2 videos, 1 of them done before" in capsys.readouterr().out
    assert (out / "videos/one/1.webm").stat().st_mtime_ns > written
    with pytest.raises(UserError, match="other settings"):
        main([*flags, "--crf", "30"])


def test_the_command_can_rename_and_limit(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    main(["--data-root", str(root), "--out", str(out), "--no-keep-names", "--limit", "1", "--workers", "1"])
    assert [f.name for f in (out / "videos").rglob("*") if f.is_file()] == ["1.mp4"]


def test_links_lead_to_every_folder_once(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    (root / "videos/up").symlink_to(tmp_path, target_is_directory=True)
    (root / "all").symlink_to(root / "videos", target_is_directory=True)
    elsewhere = write_video(tmp_path / "disk2" / "3.webm", numbered_frames(8, 64, 48))
    (root / "videos/three").symlink_to(elsewhere.parent, target_is_directory=True)
    (root / "labels/gone.txt").symlink_to(tmp_path / "gone.txt")
    main(["--data-root", str(root), "--out", str(out), "--workers", "1"])
    assert "3 videos, 0 of them done before; 1 label file\n" in capsys.readouterr().out
    assert sorted(str(f.relative_to(out)) for f in out.rglob("*") if f.is_file()) == [
        "labels/list.txt",
        STAMP,
        "videos/one/1.webm",
        "videos/three/3.webm",
        "videos/two/2.AVI",
    ]


def test_no_file_from_elsewhere_is_copied_as_a_label_file(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, private = tmp_path / "out", tmp_path / "private"
    private.mkdir()
    (private / "keys.txt").write_text("secret")
    (root / "labels/keys.txt").symlink_to(private / "keys.txt")
    (root / "labels/more").symlink_to(private)
    (root / "labels/again.txt").symlink_to("list.txt")
    os.mkfifo(root / "labels/pipe.json")
    os.mkfifo(root / "videos/pipe.mp4")
    with pytest.raises(UserError, match="1 of 3 videos could not be"):
        main(["--data-root", str(root), "--out", str(out), "--workers", "1"])
    printed = capsys.readouterr().out
    assert "; 2 label files\nnot copied, as links out of --data-root or no regular files: " in printed
    assert all(f"labels/{name}" in printed for name in ("keys.txt", "more/keys.txt", "pipe.json"))
    assert f"failed: {root / 'videos/pipe.mp4'}: not a regular file" in printed
    assert sorted(f.name for f in out.rglob("*.txt")) == ["again.txt", "list.txt"]
    assert not list(out.rglob("*pipe*"))


def test_an_encoding_process_that_dies_is_one_line(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def dies(work: Callable[[object], object], jobs: Sequence[object], workers: int) -> Iterator[object]:
        yield work(jobs[0])
        raise BrokenProcessPool

    out = tmp_path / "out"
    monkeypatch.setattr(transcode_folder, "map_in_processes", dies)
    with pytest.raises(UserError, match=r"2\.AVI: an encoding process died at this video or one of the 2 after it"):
        main(["--data-root", str(root), "--out", str(out), "--workers", "2"])
    assert [f.name for f in (out / "videos").rglob("*") if f.is_file()] == ["1.webm"]


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--data-root", "no/such", "--out", "out"], "--data-root no/such: no such folder"),
        (["--data-root", "in", "--out", "in/out"], "--out in/out: must lie outside"),
        (["--data-root", "in/videos", "--out", "in"], "--out in: must lie outside"),
        (["--data-root", "in", "--out", "full"], "--out full: holds other files"),
        (["--data-root", "in/labels", "--out", "out"], "holds no videos"),
        (["--data-root", "in", "--out", "out", "--workers", "0"], "--workers 0"),
        (["--data-root", "in", "--out", "out", "--limit", "0"], "--limit 0"),
        (["--data-root", "in", "--out", "out", "--short-side", "31"], "31: must be even"),
    ],
)
def test_wrong_flags_are_one_line(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: list[str], reason: str
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.doc").write_text("mine")
    monkeypatch.chdir(tmp_path)
    with pytest.raises((UserError, DataError), match=reason):
        main(flags)


def test_a_transcoded_set_is_still_that_set(motion_data: Path, tmp_path: Path) -> None:
    """In several processes; labels, splits and frame counts are the old ones."""
    main(["--data-root", str(motion_data), "--out", str(tmp_path), "--short-side", "64", "--workers", "2"])
    old, new = (read_something_something(root).samples for root in (motion_data, tmp_path))
    assert [(s.id, s.label, s.split) for s in new] == [(s.id, s.label, s.split) for s in old]
    for one, other in zip(old, new, strict=True):
        file = scan_file(other.path)
        assert (file.codec, file.width, file.height, file.status) == ("h264", 80, 64, OK)
        assert file.num_frames == scan_file(one.path).num_frames
    assert json.loads((tmp_path / STAMP).read_text())["short_side"] == 64


@pytest.mark.parametrize(
    "name",
    [
        "mixed_clips/something-something-v2_1.webm",
        "mixed_clips/mmaction2/part_0.mp4",
        "mixed_clips/torchvision/TrumanShow_wave_f_nm_np1_fr_med_26.avi",  # packed B-frames, dropped frames
        "ucf101_clips/WallPushups/v_WallPushups_g08_c05.avi",
    ],
)
def test_real_clips(shared_data: Path, tmp_path: Path, name: str) -> None:
    """Picture i of the output is picture i of the input, and not one of its neighbours."""
    result = transcode_file(str(shared_data / name), tmp_path / "b", Encoding(short_side=120))
    assert result.psnr_db > 36
    assert min(result.width, result.height) == 120
    before = [f.reformat(result.width, 120, "yuv420p", interpolation="BICUBIC") for f in decode(shared_data / name)]
    old, new = (np.stack([f.to_ndarray()[:120] for f in fs]).astype(float) for fs in (before, decode(tmp_path / "b")))
    assert len(old) == len(new) == result.num_frames
    same, ahead, behind = (
        ((a - b) ** 2).mean((1, 2)) for a, b in ((old, new), (old[1:], new[:-1]), (old[:-1], new[1:]))
    )
    moving = ((old[1:] - old[:-1]) ** 2).mean((1, 2)) > 4 * same.min()
    assert moving.sum() >= 10
    assert (same[:-1] < ahead)[moving].all()
    assert (same[1:] < behind)[moving].all()


def test_damage_that_ffmpeg_hides_is_refused_not_baked_in(tmp_path: Path) -> None:
    """Bytes replaced in one picture after the other: plain decoding always gives 30 frames, some of them patched from
    their neighbours. What the decoder notices must end the transcoding."""
    rng = np.random.default_rng(0)
    path = write_video(tmp_path / "a.mp4", rng.integers(0, 255, (30, 64, 96, 3), dtype=np.uint8), "libx264")
    with av.open(str(path)) as container:
        places = [(packet.pos or 0, packet.size) for packet in container.demux(video=0) if packet.size]
    whole, hidden, refused = path.read_bytes(), 0, 0
    for start, size in places:
        data = bytearray(whole)
        data[start + size // 2 : start + size // 2 + 60] = rng.bytes(60)
        path.write_bytes(data)
        with av.open(str(path)) as container:
            hidden += sum(1 for _ in container.decode(video=0)) == 30
        try:
            transcode_file(str(path), tmp_path / "out" / "a.mp4", Encoding(), psnr=False)
        except DataError:
            refused += 1
    assert hidden == len(places)
    assert refused > len(places) // 2
