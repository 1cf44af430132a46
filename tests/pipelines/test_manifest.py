"""The scan: true frame counts of sound files, one clear line for bad ones, and nothing looked at twice."""

import dataclasses
import os
import re
import shutil
import wave
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.videos import numbered_frames, write_video

from pipelines import manifest as module
from pipelines import processes
from pipelines.annotations import Annotations, read_something_something
from pipelines.errors import DataError
from pipelines.manifest import Manifest, build_manifest, default_cache
from pipelines.scan import scan_file
from pipelines.video import Sample, Video

COUNT = 30
FRAMES = numbered_frames(COUNT, 96, 64)


def annotate(paths: list[Path]) -> Annotations:
    samples = tuple(Sample(p.stem, str(p), i % 2, "train") for i, p in enumerate(paths))
    return Annotations("files", Path("/"), ("a", "b"), samples)


@pytest.fixture
def scanned(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that get scanned, as they are."""
    names: list[str] = []

    def spy(path: str, level: str = "sample") -> module.VideoFile:
        names.append(Path(path).name)
        return scan_file(path)

    monkeypatch.setattr(module, "scan_file", spy)
    return names


@pytest.mark.parametrize(
    ("name", "encoder", "codec"),
    [
        ("a.webm", "libvpx-vp9", "vp9"),
        ("b frames.mp4", "libx264", "h264"),
        ("b frames.avi", "mpeg4", "mpeg4"),
        ("é.avi", "mjpeg", "mjpeg"),
    ],
)
def test_sound_files(tmp_path: Path, name: str, encoder: str, codec: str) -> None:
    path = write_video(tmp_path / name, FRAMES, encoder)
    found = scan_file(str(path))
    assert (found.status, found.codec, found.num_frames) == ("ok", codec, COUNT)
    assert (found.width, found.height, found.fps) == (96, 64, 12.0)
    assert (found.bytes, found.mtime_ns) == (path.stat().st_size, path.stat().st_mtime_ns)


def audio_file(path: Path) -> None:
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(bytes(16000))


def cut(path: Path, encoder: str, **options: str) -> None:
    large = numbered_frames(COUNT, 320, 240)  # so that headers do not make up half of the file
    content = write_video(path, large, encoder, **options).read_bytes()
    path.write_bytes(content[: len(content) // 2])


def unknown_codec(path: Path) -> None:
    content = write_video(path, FRAMES, "mpeg4").read_bytes()
    path.write_bytes(content.replace(b"FMP4", b"ZZZZ"))


UNREADABLE = "not a readable video: Invalid data found when processing input"
BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing.webm": (lambda path: None, "no such file"),
    "folder.webm": (lambda path: path.mkdir(), "holds no video and no frame (*.jpg)"),
    "empty.webm": (lambda path: path.touch(), "empty file"),
    "garbage.webm": (lambda path: path.write_bytes(np.random.default_rng(0).bytes(5000)), UNREADABLE),
    "text.mp4": (lambda path: path.write_text("not a video\n" * 99), UNREADABLE),
    "sound.wav": (audio_file, "audio only"),
    "short.webm": (lambda path: write_video(path, FRAMES[:3]), "3 frames, fewer than a segment's 5"),
    "unknown.avi": (unknown_codec, "not a readable video: unknown codec"),
    "cut.webm": (lambda path: cut(path, "libvpx-vp9"), "truncated: "),
    "cut.avi": (lambda path: cut(path, "mpeg4"), "truncated: "),
    "cut mjpeg.avi": (lambda path: cut(path, "mjpeg"), "truncated: "),
    "no moov.mp4": (lambda path: cut(path, "libx264"), UNREADABLE),
    "faststart.mp4": (lambda path: cut(path, "libx264", movflags="faststart"), "truncated: "),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_say_why_in_one_line(tmp_path: Path, name: str) -> None:
    make, status = BAD[name]
    make(tmp_path / name)
    found = scan_file(str(tmp_path / name))
    assert found.status.startswith(status)
    assert "\n" not in found.status
    if status == "truncated: ":
        there, announced = (float(word) for word in found.status.split() if word[0].isdigit())
        assert there < announced
        assert announced == pytest.approx(COUNT / 12, abs=0.1)
        assert found.num_frames < COUNT


CUTS: dict[str, tuple[str, dict[str, str]]] = {
    "cut.webm": ("libvpx-vp9", {}),
    "cut.avi": ("mpeg4", {}),
    "faststart.mp4": ("libx264", {"movflags": "faststart"}),
}


@pytest.mark.parametrize("name", CUTS)
def test_a_file_without_its_last_frames_end_is_cut_short(tmp_path: Path, name: str) -> None:
    """Nine tenths of its time are there, so only the container tells: the loader would refuse it, or never know."""
    encoder, options = CUTS[name]
    path = write_video(tmp_path / name, numbered_frames(COUNT, 320, 240), encoder, **options)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        last = max((p for p in container.demux(stream) if p.size), key=lambda p: p.pos)
    path.write_bytes(path.read_bytes()[: last.pos + last.size // 2])
    found = scan_file(str(path))
    assert found.status.startswith("truncated: ")
    assert found.num_frames >= 0.9 * COUNT


def test_a_damaged_packet_is_told_by_the_scan_not_first_by_the_loader(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.ts", numbered_frames(COUNT, 320, 240), "libx264")
    content = path.read_bytes()
    middle = len(content) // 2 // 188 * 188  # a transport stream is of packets of 188 bytes; one of them got lost
    path.write_bytes(content[:middle] + content[middle + 188 :])
    assert re.fullmatch(r"packet \d+ is damaged", scan_file(str(path)).status)


@pytest.mark.parametrize("share", [0.02, 0.1])
def test_a_cut_that_leaves_no_frame_is_a_cut(tmp_path: Path, share: float) -> None:
    path = write_video(tmp_path / "a.webm", numbered_frames(COUNT, 320, 240))
    content = path.read_bytes()
    with av.open(str(path)) as container:
        first = next(p for p in container.demux(container.streams.video[0]) if p.size)
    path.write_bytes(content[: first.pos + int(share * first.size)])
    found = scan_file(str(path))
    assert (found.num_frames, found.status[:11]) == (0, "truncated: ")


def test_dropped_frames_of_divx_are_not_counted(tmp_path: Path) -> None:
    source, target = write_video(tmp_path / "a.avi", FRAMES, "mpeg4"), tmp_path / "b.avi"
    with av.open(str(source)) as read, av.open(str(target), "w") as written:
        stream = written.add_stream_from_template(read.streams.video[0])
        for packet in read.demux(video=0):
            if packet.dts is None:
                continue
            at = packet.dts + (packet.dts > 0)  # the second place is left for the filler
            packet.pts = packet.dts = at
            packet.stream = stream
            written.mux(packet)
            if at == 0:
                filler = av.Packet(b"\x7f")
                filler.pts = filler.dts = 1
                filler.time_base, filler.stream = packet.time_base, stream
                written.mux(filler)
    with av.open(str(target)) as container:
        sizes = [packet.size for packet in container.demux(video=0) if packet.size]
    assert (len(sizes), min(sizes)) == (COUNT + 1, 1)
    assert scan_file(str(target)).num_frames == COUNT


def test_frames_before_an_edit_list_are_not_counted(tmp_path: Path) -> None:
    """A trimmed MP4 keeps the frames back to the key frame, and tells players to skip them."""
    path = tmp_path / "trimmed.mp4"
    with av.open(str(path), "w", options={"avoid_negative_ts": "disabled"}) as container:
        stream = container.add_stream("mpeg4", rate=12)
        stream.width, stream.height = 96, 64
        for number, picture in enumerate(FRAMES):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = number - 7
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    assert scan_file(str(path)).num_frames == decoded_frames(path) == COUNT - 7


def test_second_run_scans_nothing_but_what_changed(tmp_path: Path, scanned: list[str]) -> None:
    paths = [write_video(tmp_path / f"{i}.webm", FRAMES[: 8 + i]) for i in range(3)] + [tmp_path / "gone.webm"]
    cache = tmp_path / "cache" / "files.jsonl"
    first = build_manifest(annotate(paths), cache=cache)
    assert scanned == ["0.webm", "1.webm", "2.webm", "gone.webm"]
    assert [v.file.num_frames for v in first.videos] == [8, 9, 10, 0]
    scanned.clear()
    assert build_manifest(annotate(paths), cache=cache) == first
    assert scanned == ["gone.webm"]  # it might have come back
    write_video(paths[1], FRAMES[:20])
    os.utime(paths[2], ns=(1, 1))
    scanned.clear()
    second = build_manifest(annotate(paths), cache=cache)
    assert scanned == ["1.webm", "2.webm", "gone.webm"]
    assert [v.file.num_frames for v in second.videos] == [8, 20, 10, 0]


def test_a_video_that_is_listed_twice_is_scanned_once(tmp_path: Path, scanned: list[str]) -> None:
    path = write_video(tmp_path / "a.webm", FRAMES)
    assert [v.file.num_frames for v in build_manifest(annotate([path, path])).videos] == [COUNT, COUNT]
    assert scanned == ["a.webm"]


@pytest.mark.parametrize("damage", ["cut", "binary", "not rows", "other keys", "old version", "empty"])
def test_damaged_cache_is_as_good_as_none(tmp_path: Path, scanned: list[str], damage: str) -> None:
    path, cache = write_video(tmp_path / "a.webm", FRAMES), tmp_path / "files.jsonl"
    expected = build_manifest(annotate([path]), cache=cache)
    content = cache.read_bytes()
    header = content.splitlines(keepends=True)[0]
    cache.write_bytes(
        {
            "cut": content[:-20],
            "binary": np.random.default_rng(0).bytes(400),
            "not rows": header + b"1\n[]\n",
            "other keys": header + b'{"path": "a", "colour": 1}\n',
            "old version": content.replace(header, b'{"manifest_version": 0}\n'),
            "empty": b"",
        }[damage]
    )
    scanned.clear()
    assert build_manifest(annotate([path]), cache=cache) == expected
    assert scanned == ["a.webm"]
    assert cache.read_bytes() == content


def test_default_cache_lies_in_the_users_cache_folder(tmp_path: Path) -> None:
    one, other = default_cache(tmp_path / "a" / "set"), default_cache(tmp_path / "b" / "set")
    assert one != other
    assert one.is_relative_to(os.environ["XDG_CACHE_HOME"])
    assert one == default_cache(tmp_path / "a" / "." / "set")


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(DataError, match=r"file/files\.jsonl: the scan cannot be saved .*XDG_CACHE_HOME"):
        build_manifest(annotate([write_video(tmp_path / "a.webm", FRAMES)]), cache=tmp_path / "file" / "files.jsonl")


def test_whoever_has_no_home_folder_is_asked_for_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(DataError, match="XDG_CACHE_HOME"):
        default_cache(tmp_path)


def test_a_name_that_is_not_utf8_is_told_before_the_scan(tmp_path: Path, scanned: list[str]) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    assert default_cache(folder).parent == default_cache(tmp_path).parent
    with pytest.raises(DataError, match=r"caf\\xe9/a\.webm': not UTF-8; rename"):
        build_manifest(annotate([folder / "a.webm"]))
    assert not scanned
    with pytest.raises(DataError, match="cannot be written"):
        Manifest.of("a", ("x",), []).write(folder / "a.arrow")
    with pytest.raises(DataError, match="not a readable manifest"):
        Manifest.open(folder / "a.arrow")


def test_digest_follows_the_data(tmp_path: Path) -> None:
    paths = [write_video(tmp_path / "here" / f"{i}.webm", FRAMES[: 8 + i]) for i in range(2)]
    original = build_manifest(annotate(paths))

    def remade(videos: list[Video]) -> Manifest:
        return Manifest.of(original.name, original.classes, videos, original.root)

    def changed(**changes: object) -> Manifest:
        first = original.videos[0]
        sample = dataclasses.replace(first.sample, **changes)
        return remade([dataclasses.replace(first, sample=sample), original.videos[1]])

    shutil.copytree(tmp_path / "here", tmp_path / "there")
    moved = [tmp_path / "there" / path.name for path in paths]
    assert build_manifest(annotate(moved)).digest() == original.digest()  # where the files lie does not matter
    first, second = original.videos
    unusable = dataclasses.replace(first, file=dataclasses.replace(first.file, status="truncated"))
    digests = [original, changed(id="x"), changed(label=1), changed(split="validation")]
    digests.append(remade([unusable, second]))
    content = bytearray(paths[0].read_bytes())
    content[-1] ^= 1
    paths[0].write_bytes(content)
    digests.append(build_manifest(annotate(paths)))
    assert len({m.digest() for m in digests}) == 6


def test_processes_find_what_one_process_finds(tmp_path: Path) -> None:
    """From 64 files on the scan runs in several processes."""
    paths = [write_video(tmp_path / f"{i}.webm", FRAMES[: 5 + i]) for i in range(6)]
    paths += [tmp_path / "gone.webm", tmp_path / "text.webm"]
    paths[-1].write_text("no video")
    many = []
    for i in range(64):
        many.append(tmp_path / f"link{i}.webm")
        many[-1].symlink_to(paths[i % len(paths)])
    found = build_manifest(annotate(many), workers=2).videos
    assert [v.file for v in found] == [scan_file(str(path)) for path in many]
    assert [v.path for v in found] == [str(path) for path in many]


def test_synthetic_data_is_sound(motion_data: Path) -> None:
    found = build_manifest(read_something_something(motion_data))
    assert {v.file.status for v in found.videos} == {"ok"}
    assert (len(found.split("train")), len(found.split("validation"))) == (16, 8)


def decoded_frames(path: Path) -> int:
    with av.open(str(path), metadata_errors="replace") as container:
        return sum(1 for _ in container.decode(video=0))


def test_real_files_hold_as_many_frames_as_a_full_decode_gives(shared_data: Path) -> None:
    clips = [path for path in sorted((shared_data / "mixed_clips").rglob("*.*")) if path.is_file()]
    clips += sorted((shared_data / "ucf101_clips").rglob("*.avi"))[::12]
    clips += sorted((shared_data / "ucf10").rglob("*.webm"))[::60]
    assert len(clips) > 20
    for path in clips:
        found = scan_file(str(path))
        assert (path.name, found.status, found.num_frames) == (path.name, "ok", decoded_frames(path))


def test_an_interrupted_scan_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [write_video(tmp_path / f"{i}.webm", FRAMES[: 8 + i]) for i in range(4)]
    cache, names = tmp_path / "files.jsonl", []

    def stops(path: str, level: str = "sample") -> module.VideoFile:
        if len(names) == 2:
            raise KeyboardInterrupt
        names.append(Path(path).name)
        return scan_file(path)

    monkeypatch.setattr(module, "scan_file", stops)
    with pytest.raises(KeyboardInterrupt):
        build_manifest(annotate(paths), cache=cache)
    with cache.open("a") as f:
        f.write('{"path": "half a li')  # what a killed process leaves
    monkeypatch.setattr(module, "scan_file", lambda path, level: names.append(Path(path).name) or scan_file(path))
    whole = build_manifest(annotate(paths), cache=cache)
    assert names == ["0.webm", "1.webm", "2.webm", "3.webm"]
    assert [v.file.num_frames for v in whole.videos] == [8, 9, 10, 11]


def frames_folder(folder: Path, names: list[str], size: tuple[int, int] = (64, 48)) -> Path:
    simplejpeg = pytest.importorskip("simplejpeg")
    folder.mkdir()
    for i, name in enumerate(names):
        picture = np.full((size[1], size[0], 3), 10 * i, np.uint8)
        (folder / name).write_bytes(simplejpeg.encode_jpeg(picture))
    return folder


def test_a_folder_of_frames_is_one_row(tmp_path: Path) -> None:
    folder = frames_folder(tmp_path / "1", [f"img_{i}.jpg" for i in range(1, 13)])  # 10 sorts after 9
    (folder / "notes.txt").write_text("no frame")
    found = scan_file(str(folder))
    assert (found.status, found.codec, found.num_frames) == ("ok", "jpeg", 12)
    assert (found.width, found.height, found.keyframe_spacing) == (64, 48, 1)
    assert found.bytes == sum(p.stat().st_size for p in folder.iterdir())
    before = found.sha256
    frame = folder / "img_7.jpg"
    times, content = frame.stat(), bytearray(frame.read_bytes())
    content[-10] ^= 1
    frame.write_bytes(content)
    os.utime(frame, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert scan_file(str(folder)).sha256 != before


FOLDER_FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "gap": (lambda f: (f / "00004.jpg").unlink(), "frame 4 is missing"),
    "no first": (lambda f: (f / "00001.jpg").unlink(), "frame 1 is missing"),
    "cut": (lambda f: (f / "00003.jpg").write_bytes((f / "00003.jpg").read_bytes()[:-40]), "00003.jpg is cut short"),
    "empty": (lambda f: (f / "00003.jpg").write_bytes(b""), "00003.jpg is not a JPEG file"),
    "few": (lambda f: [p.unlink() for p in sorted(f.iterdir())[4:]], "4 frames, fewer than a segment's 5"),
}


@pytest.mark.parametrize("what", FOLDER_FAULTS)
def test_faulty_folders_say_why(tmp_path: Path, what: str) -> None:
    folder = frames_folder(tmp_path / "1", [f"{i:05d}.jpg" for i in range(1, 9)])
    fault, status = FOLDER_FAULTS[what]
    fault(folder)
    assert scan_file(str(folder)).status == status


def test_frames_of_two_sizes_are_refused(tmp_path: Path) -> None:
    folder = frames_folder(tmp_path / "1", [f"{i:05d}.jpg" for i in range(1, 9)])
    other = frames_folder(tmp_path / "2", ["00001.jpg"], (32, 40))
    shutil.copy(other / "00001.jpg", folder / "00005.jpg")
    assert scan_file(str(folder)).status == "00005.jpg is 32×40, not 64×48"


@pytest.mark.parametrize("spacing", [1, 7, 30])
def test_key_frame_spacing(tmp_path: Path, spacing: int) -> None:
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        options = {"g": str(spacing), "keyint_min": str(spacing), "sc_threshold": "0", "bf": "0"}
        stream = container.add_stream("libx264", rate=12, options=options)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for picture in FRAMES:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    found = scan_file(str(path))
    assert found.keyframe_spacing == spacing
    assert not found.variable_rate


PLACES = [(-1, "test"), *((label, split) for label in (0, 1) for split in ("train", "validation", "test"))]
rows = st.lists(
    st.builds(
        Video,
        st.builds(
            lambda id, path, place: Sample(id, path, *place),
            st.text(min_size=1, max_size=8),
            st.sampled_from(["/set/a/b.mp4", "/set/ü c.webm", "/other/d.avi"]),
            st.sampled_from(PLACES),
        ),
        st.builds(
            module.VideoFile,
            st.integers(0, 2**40),
            st.integers(0, 2**62),
            st.text("0123456789abcdef", max_size=64),
            st.sampled_from(["vp9", "h264", ""]),
            st.integers(0, 9999),
            st.integers(0, 9999),
            st.sampled_from([0, 90, 180, 270]),
            st.booleans(),
            st.sampled_from(["", "BT.709"]),
            st.floats(0, 120),
            st.integers(0, 10**6),
            st.integers(0, 999),
            st.booleans(),
            st.sampled_from(["", "c$"]),
            st.sampled_from(["", "2 video streams"]),
            st.sampled_from(["", "sample", "all"]),
            st.sampled_from(["ok", "empty file", "truncated: ½"]),
        ),
    ),
    max_size=12,
)


@given(rows)
def test_what_is_written_is_read_back(tmp_path_factory: pytest.TempPathFactory, videos: list[Video]) -> None:
    path = tmp_path_factory.getbasetemp() / "round.arrow"
    manifest = Manifest.of("näme", ("a", "b, c"), videos, Path("/set"))
    manifest.write(path)
    found = Manifest.open(path)
    assert (found.name, found.classes, found.root) == ("näme", ("a", "b, c"), Path("/set"))
    assert list(found.videos) == videos
    assert found.digest() == manifest.digest()
    for split in ("train", "validation", "test"):
        part = found.split(split)
        assert list(part) == [v for v in videos if v.sample.split == split]
        assert part.where("status", "ok").tolist() == [v.file.status == "ok" for v in part]
        assert part.column("status").tolist() == [v.file.status for v in part]
        assert part.column("num_frames").tolist() == [v.file.num_frames for v in part]
    moved = Manifest.open(path, Path("/elsewhere"))
    paths = [v.path.replace("/set/", "/elsewhere/") for v in videos]
    assert [v.path for v in moved.videos] == paths


@pytest.mark.parametrize("content", [b"", b"ARROW1 but not really", None])
def test_what_is_no_manifest_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "m.arrow"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match="not a readable manifest"):
        Manifest.open(path)
    Manifest.of("x", ("a",), []).write(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="not a readable manifest"):
        Manifest.open(path)
    path.write_bytes(whole.replace(b"keyframe_spacing", b"keyframe_distanc"))
    with pytest.raises(DataError, match="its checksum does not fit"):
        Manifest.open(path)


class DyingPool:
    """A pool whose process dies at the fourth file."""

    def __init__(self, *_: object, **__: object) -> None: ...

    def __enter__(self) -> "DyingPool":
        return self

    def __exit__(self, *_: object) -> None: ...

    def shutdown(self, **_: object) -> None: ...

    def map(self, scan: Callable[[str], module.VideoFile], paths: list[str], chunksize: int) -> Iterator[object]:
        yield from map(scan, paths[:3])
        raise BrokenProcessPool


def test_a_scanning_process_that_dies_is_one_line_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [tmp_path / f"{i}.webm" for i in range(64)]
    for path in paths[:4]:
        path.write_bytes(b"no video")
    monkeypatch.setattr(processes, "ProcessPoolExecutor", DyingPool)
    with pytest.raises(DataError, match=r"3\.webm: a scanning process died at this file or one of the 32 after it"):
        build_manifest(annotate(paths), cache=tmp_path / "files.jsonl", workers=2)
    assert len((tmp_path / "files.jsonl").read_text().splitlines()) == 1 + 3
