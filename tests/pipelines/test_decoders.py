"""Both backends return exactly the frames asked for, cropped, resized and flipped alike, or say why not."""

import dataclasses
import wave
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from support.videos import numbered_frames, read_numbers, stretched_frames, write_video

from pipelines.annotations import read_something_something
from pipelines.clip import ClipSpec
from pipelines.errors import BadClip
from pipelines.ledger import Ledger
from pipelines.loader import Decoder, create_decoder
from pipelines.manifest import build_manifest
from pipelines.plan import ClipPlan, plan_evaluation
from pipelines.scan import as_video
from pipelines.video import Video

COUNT = 40
SPEC = ClipSpec(num_segments=4, size=64)
FIRST_FRAMES = np.minimum(np.arange(20).reshape(4, 5), 11)


@pytest.fixture
def decode(backend: str) -> Iterator[Callable[..., np.ndarray | BadClip]]:
    """Decode one plan with the backend under test: uint8 (T, L, H, W, C), or the BadClip that it answers with."""
    with_backend = create_decoder(backend, SPEC, torch.device("cpu"), 2)
    yield lambda plan: decode_one(with_backend, plan)
    with_backend.close()


def decode_one(decoder: Decoder, plan: ClipPlan) -> np.ndarray | BadClip:
    (clip,) = decoder([plan])
    if isinstance(clip, BadClip):
        return clip
    assert clip.dtype == torch.uint8
    assert clip.shape == SPEC.shape
    return clip.numpy()


def make_plan(
    video: Video, frames: np.ndarray = FIRST_FRAMES, crop: tuple[int, int, int, int] | None = None, flip: bool = False
) -> ClipPlan:
    whole = (0, 0, video.file.width, video.file.height)
    return ClipPlan(video, frames, crop or whole, flip, 0)


def index_lists() -> list[np.ndarray]:
    """All of the video, its ends, one frame again and again, neighbours that overlap, anything in any order."""
    rng = np.random.default_rng(0)
    return [
        np.arange(20).reshape(4, 5),
        np.arange(20, 40).reshape(4, 5),
        np.full((4, 5), 17),
        np.array([[0, 1, 2, 3, 4]] * 2 + [[2, 3, 4, 5, 6], [38, 39, 39, 39, 39]]),
        rng.integers(COUNT, size=(4, 5)),
        np.sort(rng.integers(COUNT, size=20)).reshape(4, 5),
    ]


@pytest.mark.parametrize(("width", "height"), [(160, 120), (161, 123), (66, 99)])
def test_exactly_the_frames_asked_for(
    decode: Callable[..., np.ndarray], tmp_path: Path, width: int, height: int
) -> None:
    video = as_video(write_video(tmp_path / "a.webm", stretched_frames(COUNT, width, height, first=100)))
    for frames in index_lists():
        assert read_numbers(decode(make_plan(video, frames))) == (100 + frames).ravel().tolist()


@pytest.mark.parametrize(("name", "encoder"), [("a.mp4", "libx264"), ("a.avi", "mpeg4"), ("a.avi", "mjpeg")])
def test_pyav_returns_the_frames_of_codecs_that_reorder_them(tmp_path: Path, name: str, encoder: str) -> None:
    video = as_video(write_video(tmp_path / name, stretched_frames(COUNT, 160, 120), encoder))
    decoder = create_decoder("pyav", SPEC, torch.device("cpu"), 1)
    for frames in index_lists():
        clip = decode_one(decoder, make_plan(video, frames))
        assert isinstance(clip, np.ndarray)
        assert read_numbers(clip) == frames.ravel().tolist()
    decoder.close()


def test_a_batch_keeps_its_order_and_loses_only_its_bad_clips(backend: str, tmp_path: Path) -> None:
    """Clips of one batch may differ in size, length and soundness."""
    sizes = [(160, 120), (64, 64), (123, 161), (96, 64), (80, 60)]
    videos = [
        as_video(write_video(tmp_path / f"{i}.webm", stretched_frames(12 + i, *size, first=40 * i)))
        for i, size in enumerate(sizes)
    ]
    (tmp_path / "1.webm").unlink()
    (tmp_path / "3.webm").write_bytes(b"no video")
    ledger = Ledger()
    decoder = create_decoder(backend, SPEC, torch.device("cpu"), 2, ledger=ledger)
    clips = decoder([make_plan(video) for video in videos])
    decoder.close()
    for i, clip in enumerate(clips):
        if i in (1, 3):
            assert isinstance(clip, BadClip)
            assert clip.video_id == str(i)
        else:
            assert isinstance(clip, torch.Tensor)
            assert read_numbers(clip.numpy()) == (40 * i + FIRST_FRAMES).ravel().tolist()
    assert all(sum(lane.seconds[s] for lane in ledger.lanes) > 0 for s in ("read", "decode", "augment"))


QUADRANTS = {(0, 0): (200, 40, 40), (0, 1): (40, 200, 40), (1, 0): (40, 40, 200), (1, 1): (200, 200, 200)}


def quadrant_frames(width: int, height: int) -> np.ndarray:
    picture = np.zeros((height, width, 3), np.uint8)
    for (row, column), colour in QUADRANTS.items():
        picture[row * height // 2 : (row + 1) * height // 2, column * width // 2 : (column + 1) * width // 2] = colour
    return np.stack([picture] * 12)


def test_crop_takes_the_box_and_flip_mirrors_it(decode: Callable[..., np.ndarray], tmp_path: Path) -> None:
    video = as_video(write_video(tmp_path / "a.webm", quadrant_frames(160, 120)))
    for (row, column), colour in QUADRANTS.items():
        inside = (80 * column + 8, 60 * row + 8, 64, 44)
        for flip in (False, True):
            clip = decode(make_plan(video, crop=inside, flip=flip)).astype(int)
            assert np.abs(clip - colour).max() <= 12  # what the encoder and YUV do to a flat colour
    plain, mirrored = (decode(make_plan(video, crop=(20, 10, 100, 90), flip=flip)) for flip in (False, True))
    assert np.abs(plain[..., ::-1, :].astype(int) - mirrored).max() <= 1
    left, right = plain[0, 0, 4, 4], plain[0, 0, 4, -4]
    assert np.abs(left.astype(int) - QUADRANTS[0, 0]).max() <= 12
    assert np.abs(right.astype(int) - QUADRANTS[0, 1]).max() <= 12


def textured_frames(width: int, height: int) -> np.ndarray:
    """Grey waves, fine enough that a resize without antialiasing is far off; grey, as backends differ in colour."""
    y, x = np.mgrid[:height, :width]
    waves = 128 + 40 * np.sin(x / 1.5 + y / 9) + 40 * np.sin(y / 2 - x / 30) + 40 * np.cos((x + y) / 12)
    return np.stack([np.stack([waves.astype(np.uint8)] * 3, axis=2)] * 12)


@pytest.mark.parametrize("crop", [(0, 0, 240, 180), (13, 7, 201, 119), (100, 50, 40, 30)])
def test_resize_is_pillows_antialiased_bilinear(
    decode: Callable[..., np.ndarray], backend: str, tmp_path: Path, crop: tuple[int, int, int, int]
) -> None:
    image = pytest.importorskip("PIL.Image")
    video = as_video(write_video(tmp_path / "a.webm", textured_frames(240, 180)))
    with av.open(video.path) as container:
        picture = next(iter(container.decode(video=0))).to_ndarray(format="rgb24")
    x, y, w, h = crop
    expected = np.asarray(image.fromarray(picture[y : y + h, x : x + w]).resize((64, 64), image.Resampling.BILINEAR))
    found = decode(make_plan(video, crop=crop))[0, 0]
    difference = np.abs(found.astype(int) - expected)
    if backend == "dali":  # pixels beyond the crop take part at its edge
        difference = difference[2:-2, 2:-2]
    # FFmpeg resizes 8-bit luma of 219 levels, and converts to 256 after; without antialiasing it would be 60 off
    assert difference.max() <= (3 if backend == "dali" else 8)


def test_backends_agree_on_synthetic_clips(motion_data: Path) -> None:
    pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    videos = build_manifest(read_something_something(motion_data)).videos[::3]
    plans = [plan_evaluation(video, SPEC) for video in videos]
    plans += [dataclasses.replace(plan, flip=True, crop=(31, 3, 79, 105)) for plan in plans]
    both = []
    for backend in ("pyav", "dali"):
        decoder = create_decoder(backend, SPEC, torch.device("cpu"), 2)
        both.append([decode_one(decoder, plan) for plan in plans])
        decoder.close()
    for one, other in zip(*both, strict=True):
        assert isinstance(one, np.ndarray)
        assert isinstance(other, np.ndarray)
        assert np.abs(one.astype(int) - other).mean() < 4


def test_dali_on_the_cpu_refuses_h264_and_says_what_to_use(tmp_path: Path) -> None:
    pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    video = as_video(write_video(tmp_path / "a.mp4", numbered_frames(12, 64, 64), "libx264"))
    bad = decode_one(create_decoder("dali", SPEC, torch.device("cpu"), 1), make_plan(video))
    assert isinstance(bad, BadClip)
    assert bad.reason == "DALI cannot decode h264 on the cpu; use --backend pyav, or DALI on a GPU"


def test_an_index_past_the_end_is_refused(decode: Callable[..., np.ndarray | BadClip], tmp_path: Path) -> None:
    video = as_video(write_video(tmp_path / "a.webm", numbered_frames(12, 64, 64)))
    for last in (12, 13, 500):
        bad = decode(make_plan(video, np.sort(np.append(FIRST_FRAMES.ravel()[1:], last)).reshape(4, 5)))
        assert isinstance(bad, BadClip)
        assert (bad.video_id, bad.path) == ("a", video.path)


def change_size(path: Path) -> None:
    """Two encodings of different picture size in one stream: 6 frames of 64 × 64, then 6 of 32 × 32."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libvpx-vp9", rate=12)
        stream.width = stream.height = 64
        for start, size in ((0, 64), (6, 32)):
            encoder = av.CodecContext.create("libvpx-vp9", "w")
            encoder.width = encoder.height = size
            encoder.pix_fmt, encoder.time_base = "yuv420p", Fraction(1, 12)
            encoder.options = {"deadline": "realtime", "cpu-used": "8"}
            frames = [av.VideoFrame.from_ndarray(f, format="rgb24") for f in numbered_frames(6, size, size, start)]
            for at, frame in enumerate([*frames, None]):
                if frame is not None:
                    frame.pts, frame.time_base = start + at, Fraction(1, 12)
                for packet in encoder.encode(frame):
                    packet.stream = stream
                    container.mux(packet)


REPLACED: dict[str, tuple[Callable[[Path], object], str]] = {
    "deleted": (lambda path: path.unlink(), "o such file"),
    "cut": (lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]), ""),
    "emptied": (lambda path: path.write_bytes(b""), "cannot be"),
    "garbage": (lambda path: path.write_bytes(np.random.default_rng(0).bytes(3000)), "cannot be decoded"),
    "shorter": (lambda path: write_video(path, numbered_frames(6, 64, 64)), ""),
    "other size": (lambda path: write_video(path, numbered_frames(12, 96, 48)), "96×48, not 64×64"),
}


def without_size(video: Video) -> Video:
    """A row that does not know the file's content, so that the decoder itself must notice."""
    return dataclasses.replace(video, file=dataclasses.replace(video.file, sha256=""))


@pytest.mark.parametrize("what", REPLACED)
def test_a_file_that_changed_after_the_scan_is_a_bad_clip(
    decode: Callable[..., np.ndarray | BadClip], tmp_path: Path, what: str
) -> None:
    path = write_video(tmp_path / "a.webm", numbered_frames(12, 64, 64))
    video = as_video(path)
    change, reason = REPLACED[what]
    change(path)
    for row, expected in (
        (video, "" if what == "deleted" else "changed since the scan"),
        (without_size(video), reason),
    ):
        bad = decode(make_plan(row))
        assert isinstance(bad, BadClip)
        assert str(bad) == f"{path}: {bad.reason}"
        assert expected in bad.reason
        assert bad.reason
        assert "\n" not in bad.reason


def test_a_changed_byte_is_found_by_the_checksum(backend: str, tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.webm", numbered_frames(12, 64, 64))
    plan = make_plan(as_video(path))
    path.write_bytes(path.read_bytes().replace(b"Lavf", b"lavf"))  # the muxer's name: decodes as before
    careless, careful = (create_decoder(backend, SPEC, torch.device("cpu"), 1, verify) for verify in (False, True))
    assert isinstance(decode_one(careless, plan), np.ndarray)
    bad = decode_one(careful, plan)
    assert isinstance(bad, BadClip)
    assert bad.reason == "changed since the scan: another sha256"


def test_a_picture_that_changes_its_size_is_scaled_to_the_first_size(tmp_path: Path) -> None:
    """As players show it; DALI would hand out tiled pictures, and must refuse."""
    change_size(tmp_path / "a.webm")
    video = as_video(tmp_path / "a.webm")
    assert (video.file.num_frames, video.file.width, video.file.oddity) == (12, 64, "pictures of several sizes")
    plan = make_plan(video)
    clip = decode_one(create_decoder("pyav", SPEC, torch.device("cpu"), 1), plan)
    assert isinstance(clip, np.ndarray)
    assert read_numbers(clip.reshape(-1, *clip.shape[-3:])) == plan.frames.ravel().tolist()
    bad = decode_one(create_decoder("dali", SPEC, torch.device("cpu"), 1), plan)
    assert isinstance(bad, BadClip)
    assert bad.reason == "DALI would get it wrong (pictures of several sizes); use --backend pyav"


def test_pyav_refuses_damaged_frames(tmp_path: Path) -> None:
    """Half a frame at the end of a cut file decodes to half a picture; it must not pass for a whole one."""
    path = write_video(tmp_path / "a.avi", textured_frames(160, 120), "mjpeg")
    video = without_size(as_video(path))
    with av.open(str(path)) as container:
        start, size = [(packet.pos or 0, packet.size) for packet in container.demux(video=0)][7]
    path.write_bytes(path.read_bytes()[: start + size // 2])
    video = dataclasses.replace(video, file=dataclasses.replace(video.file, num_frames=8))
    plan = make_plan(video, np.minimum(FIRST_FRAMES, 7))
    bad = decode_one(create_decoder("pyav", SPEC, torch.device("cpu"), 1), plan)
    assert isinstance(bad, BadClip)
    assert "damaged" in bad.reason or "cannot be decoded" in bad.reason


def test_pyav_refuses_files_without_a_known_video_stream(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.avi", numbered_frames(12, 64, 64), "mpeg4")
    path.write_bytes(path.read_bytes().replace(b"FMP4", b"ZZZZ"))
    sound = tmp_path / "a.wav"
    with wave.open(str(sound), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(bytes(16000))
    decoder = create_decoder("pyav", SPEC, torch.device("cpu"), 1)
    row = as_video(write_video(tmp_path / "b.avi", numbered_frames(12, 64, 64), "mpeg4")).file
    row = dataclasses.replace(row, sha256="")
    for now, reason in ((path, "not a readable video: unknown codec"), (sound, "audio only")):
        bad = decode_one(decoder, make_plan(dataclasses.replace(as_video(now), file=row)))
        assert isinstance(bad, BadClip)
        assert bad.reason == reason
    decoder.close()


@pytest.mark.parametrize(("width", "height"), [(1, 1), (2, 40), (3, 2)])
def test_pictures_smaller_than_a_crop_are_stretched(tmp_path: Path, width: int, height: int) -> None:
    frames = np.full((12, height, width, 3), 120, np.uint8)
    video = as_video(write_video(tmp_path / "a.avi", frames, "mjpeg"))
    clip = decode_one(create_decoder("pyav", SPEC, torch.device("cpu"), 1), plan_evaluation(video, SPEC))
    assert isinstance(clip, np.ndarray)
    assert np.abs(clip.astype(int) - 120).max() <= 4


def write_frames(folder: Path, frames: np.ndarray, template: str = "{:05d}.jpg") -> Path:
    """A folder of JPEG frames, numbered from 1 as Something-Something V1's."""
    simplejpeg = pytest.importorskip("simplejpeg")
    folder.mkdir(parents=True)
    for number, frame in enumerate(frames, 1):
        data = simplejpeg.encode_jpeg(np.ascontiguousarray(frame), quality=95)
        (folder / template.format(number)).write_bytes(data)
    return folder


@pytest.mark.parametrize("template", ["{:05d}.jpg", "img_{:d}.JPEG"])
def test_a_folder_of_frames_is_a_video(decode: Callable[..., np.ndarray], tmp_path: Path, template: str) -> None:
    video = as_video(write_frames(tmp_path / "7", stretched_frames(COUNT, 131, 100), template))
    assert (video.file.codec, video.file.num_frames) == ("jpeg", COUNT)
    for frames in index_lists():
        assert read_numbers(decode(make_plan(video, frames))) == frames.ravel().tolist()


def test_folders_and_files_of_one_batch_keep_their_places(backend: str, tmp_path: Path) -> None:
    frames = stretched_frames(4 * COUNT, 160, 128).reshape(4, COUNT, 128, 160, 3)
    paths = [
        write_frames(tmp_path / "0", frames[0]),
        write_video(tmp_path / "1.webm", frames[1]),
        write_frames(tmp_path / "2", frames[2]),
        write_video(tmp_path / "3.webm", frames[3]),
    ]
    plans = [make_plan(as_video(path)) for path in paths]
    (paths[2] / "00003.jpg").unlink()
    decoder = create_decoder(backend, SPEC, torch.device("cpu"), 2)
    clips = decoder(plans)
    decoder.close()
    for i, clip in enumerate(clips):
        if i == 2:
            assert isinstance(clip, BadClip)
            assert clip.reason == "holds 39 frames, 40 at the scan"
        else:
            assert isinstance(clip, torch.Tensor)
            assert read_numbers(clip.numpy()) == (COUNT * i + FIRST_FRAMES).ravel().tolist()


FRAME_DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "another kind": lambda data: b"GIF89a" + data,
    "without tables": lambda data: data.replace(b"\xff\xdb", b"\xff\xfe"),
}


@pytest.mark.parametrize("what", FRAME_DAMAGE)
def test_a_damaged_frame_makes_a_bad_clip(
    decode: Callable[..., np.ndarray | BadClip], tmp_path: Path, what: str
) -> None:
    folder = write_frames(tmp_path / "7", numbered_frames(12, 131, 100))
    plan = make_plan(as_video(folder))
    frame = folder / "00004.jpg"
    frame.write_bytes(FRAME_DAMAGE[what](frame.read_bytes()))
    bad = decode(plan)
    assert isinstance(bad, BadClip)
    assert bad.path == str(folder)
    assert "\n" not in bad.reason


def test_views_are_the_clips_and_crops_that_the_plan_names(backend: str, tmp_path: Path) -> None:
    """Each view against a crop of its own of the wholly decoded, once resized frames."""
    spec = ClipSpec(num_segments=4, size=64, num_clips=3, num_crops=3)
    decoder = create_decoder(backend, spec, torch.device("cpu"), 1)
    for width, height in ((240, 128), (128, 200)):
        gradient = np.zeros((30, height, width, 3), np.uint8)
        gradient[..., 0] = np.linspace(0, 255, width).astype(np.uint8)
        gradient[..., 1] = np.linspace(0, 255, height).astype(np.uint8)[:, None]
        gradient[..., 2] = np.arange(0, 240, 8, dtype=np.uint8)[:, None, None]
        video = as_video(write_video(tmp_path / f"{width}.webm", gradient))
        plan = plan_evaluation(video, spec)
        assert plan.frames.shape == (12, 5)
        (clip,) = decoder([plan])
        assert isinstance(clip, torch.Tensor)
        assert clip.shape == (3 * 3 * 4, 5, 64, 64, 3)
        views = clip.unflatten(0, (3, 3, 4)).float()
        long, short = max(width, height), min(width, height)
        anchors = [k * ((int(64 * long / short) - 64) // 4) for k in (0, 2, 4)]
        for clips in range(3):
            for crop in range(3):
                x, y = (anchors[crop], 0) if width > height else (0, anchors[crop])
                found = views[clips, crop]
                scale = short / 64
                red = (x + 31.5 + 0.5) * scale * 255 / width
                green = (y + 31.5 + 0.5) * scale * 255 / height
                blue = 8 * torch.from_numpy(plan.frames[4 * clips : 4 * clips + 4]).float()
                assert (found[..., 31:33, 31:33, 0].mean() - red).abs() < 5
                assert (found[..., 31:33, 31:33, 1].mean() - green).abs() < 5
                assert (found[..., 2].mean((2, 3)) - blue).abs().max() < 8
    decoder.close()


def test_frames_that_refer_to_a_damaged_one_are_refused(tmp_path: Path) -> None:
    """The damaged frame itself is not asked for, and FFmpeg marks no other: the one asked for would be patched."""
    path = write_video(tmp_path / "a.mp4", textured_frames(160, 120), "libx264")
    video = without_size(as_video(path))
    plan = make_plan(video, np.full((4, 5), 11))
    decoder = create_decoder("pyav", SPEC, torch.device("cpu"), 1)
    sound = decode_one(decoder, plan)
    with av.open(str(path)) as container:
        key = next(packet for packet in container.demux(video=0) if packet.is_keyframe)
        start, size = key.pos or 0, key.size
    data = bytearray(path.read_bytes())
    data[start + size // 2 : start + size] = np.random.default_rng(0).bytes(size - size // 2)
    path.write_bytes(data)
    assert isinstance(sound, np.ndarray)
    assert isinstance(decode_one(decoder, plan), BadClip)
    decoder.close()
