"""The scan knows which frames a file holds, and every one that the loader returns is the one that a plain decode of the
whole gives: whatever the container says of its packets. Or the file, or the clip, is refused in one line."""

import os
import socket
import struct
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from support.videos import has_encoder, read_numbers, whole_decode

from pipelines.clip import ClipSpec
from pipelines.container import UnreadableVideo
from pipelines.decoding import decode_frames
from pipelines.field_coded import field_packets
from pipelines.frame_index import FrameIndex
from pipelines.loader import create_decoder
from pipelines.odd_clips import CASES, draw_number
from pipelines.plan import ClipPlan
from pipelines.scan import as_video, scan_file
from pipelines.video import OK, VideoFile

COUNT, SIZE, GROUP = 24, (96, 80), 8
Packets = list[av.Packet]

OPTIONS = {
    "libx264": {"preset": "ultrafast", "g": str(GROUP), "x264-params": "scenecut=0"},
    "libvpx": {"deadline": "realtime", "cpu-used": "8", "g": str(GROUP), "b": "400k"},
    "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8", "g": str(GROUP), "b": "400k"},
}


def write(
    path: Path,
    encoder: str,
    change: Callable[[Packets], Packets] = lambda packets: packets,
    *,
    size: tuple[int, int] = SIZE,
    first: int = 0,
    count: int = COUNT,
    muxer: dict[str, str] | None = None,
    transfer: int | None = None,
    matrix: int | None = None,
    **options: str,
) -> Path:
    """Numbered pictures; `change` may change, add and drop packets before they are written."""
    if not has_encoder(encoder):
        pytest.skip(f"this FFmpeg has no encoder {encoder}")
    with av.open(str(path), "w", options=muxer or {}) as container:
        stream = container.add_stream(encoder, rate=12, options=OPTIONS.get(encoder, {"g": str(GROUP)}) | options)
        codec = stream.codec_context
        codec.width, codec.height = size
        codec.pix_fmt = "yuvj420p" if encoder == "mjpeg" else "yuv420p"
        codec.thread_count = 1
        if transfer is not None:
            codec.color_trc = transfer
        if matrix is not None:
            codec.colorspace = matrix
        packets: Packets = []
        for i in range(first, first + count):
            frame = av.VideoFrame.from_ndarray(draw_number(i, *size), format="rgb24").reformat(format=codec.pix_fmt)
            frame.pts, frame.time_base = i - first, Fraction(1, 12)
            packets += stream.encode(frame)
        for packet in change([*packets, *stream.encode(None)]):
            container.mux(packet)
    return path


def copy(packet: av.Packet, data: bytes, stream: av.VideoStream | None = None) -> av.Packet:
    """A packet of other content."""
    new = av.Packet(data)
    new.stream, new.time_base, new.is_keyframe = stream or packet.stream, packet.time_base, packet.is_keyframe
    new.pts, new.dts, new.duration = packet.pts, packet.dts, packet.duration
    return new


def all_keys(packets: Packets) -> Packets:
    for packet in packets:
        packet.is_keyframe = True
    return packets


def no_keys(packets: Packets) -> Packets:
    for packet in packets:
        packet.is_keyframe = False
    return packets


def one_lie(packets: Packets) -> Packets:
    """A false key frame between the true ones, where the scan's sample does not look."""
    packets[GROUP + 3].is_keyframe = True
    return packets


def some_lies(packets: Packets) -> Packets:
    for i in np.random.default_rng(0).integers(1, len(packets), 8):
        packets[i].is_keyframe = True
    return packets


def planes(frame: av.VideoFrame) -> bytes:
    """What was decoded, without the padding of its rows; the size with it."""
    rows = [np.frombuffer(p, np.uint8).reshape(p.height, p.line_size)[:, : p.width] for p in frame.planes]
    return b"".join([f"{frame.width}x{frame.height}".encode(), *(plane.tobytes() for plane in rows)])


def decoded(path: Path, file: VideoFile, wanted: list[int]) -> dict[int, bytes]:
    """The planes of the wanted frames by the loader's own reader; nothing where it refuses them."""
    index = FrameIndex.unpack(file.index)
    try:
        return {number: planes(frame) for number, frame in decode_frames(str(path), index, np.array(wanted))}
    except (UnreadableVideo, av.error.FFmpegError):
        return {}


def check(path: Path, *, levels: tuple[str, ...] = ("sample", "all")) -> VideoFile:
    """Each frame alone, and some sets of them, are those of a plain whole decode. Returns what the scan found."""
    whole = [planes(frame) for frame in whole_decode(path)]
    files = [scan_file(str(path), level) for level in levels]
    for file in dict.fromkeys(files):  # mostly the levels find the same
        assert (file.status, file.num_frames) == (OK, len(whole))
        rng = np.random.default_rng(0)
        sets = [sorted(set(rng.integers(len(whole), size=count).tolist())) for count in (2, 3, 5, 9)]
        for wanted in [*([n] for n in range(len(whole))), *sets]:
            assert decoded(path, file, wanted) == {n: whole[n] for n in wanted}
    return files[0]


# ---- containers and codecs as they are


@pytest.mark.parametrize(
    ("name", "encoder", "options"),
    [
        ("a.mkv", "libx264", {"bf": "2"}),
        ("a.mp4", "libx264", {"bf": "3", "x264-params": "open-gop=1:scenecut=0"}),
        ("a.ts", "libx264", {"bf": "3", "x264-params": "open-gop=1:scenecut=0"}),
        ("a.flv", "libx264", {"bf": "2"}),
        ("a.avi", "libx264", {"bf": "2"}),
        ("a.mkv", "libx264", {"x264-params": "intra-refresh=1:scenecut=0"}),
        ("a.wmv", "wmv2", {}),
        ("a.wmv", "msmpeg4", {}),
        ("a.mpg", "mpeg2video", {"bf": "2"}),
        ("a.mkv", "mpeg2video", {"bf": "2"}),
        ("a.avi", "mpeg4", {"bf": "2"}),
        ("a.avi", "mpeg4", {}),
        ("a.mp4", "mpeg4", {"bf": "2"}),
        ("a.ts", "mpeg4", {"bf": "1"}),
        ("a.ogg", "libvpx", {}),
        ("a.webm", "libvpx-vp9", {"auto-alt-ref": "1", "lag-in-frames": "8"}),
        ("a.ivf", "libvpx-vp9", {}),
    ],
)
def test_every_frame_is_that_of_a_whole_decode(
    tmp_path: Path, name: str, encoder: str, options: dict[str, str]
) -> None:
    check(write(tmp_path / name, encoder, **options))


@pytest.mark.parametrize(("encoder", "options"), [("mjpeg", {}), ("mpeg4", {})])
def test_an_avi_without_b_frames_is_sought(tmp_path: Path, encoder: str, options: dict[str, str]) -> None:
    """One frame costs its group, not all that is before it."""
    path = write(tmp_path / "a.avi", encoder, count=120, **options)
    laps: list[str] = []
    index = FrameIndex.unpack(scan_file(str(path)).index)
    numbers = [n for n, _ in decode_frames(str(path), index, np.array([118]), laps.append)]
    assert numbers == [118]
    assert laps.count("demux") <= (1 if encoder == "mjpeg" else GROUP)


# ---- flags and times that lie


@pytest.mark.parametrize("lie", [all_keys, one_lie, some_lies, no_keys])
@pytest.mark.parametrize(
    ("name", "encoder"),
    [
        ("a.mp4", "mpeg4"),
        ("a.avi", "mpeg4"),
        ("a.flv", "flv"),
        ("a.wmv", "wmv2"),
        ("a.3gp", "h263"),
        ("a.mkv", "libx264"),
        ("a.webm", "libvpx-vp9"),
    ],
)
def test_key_flags_are_not_believed(tmp_path: Path, name: str, encoder: str, lie: Callable[[Packets], Packets]) -> None:
    size = (128, 96) if encoder == "h263" else SIZE
    path = write(tmp_path / name, encoder, lie, size=size)
    try:
        whole_decode(path)
    except StopIteration:  # no key frame at all: it starts with one, nevertheless
        assert lie is no_keys
        file = scan_file(str(path))
        assert (file.status, file.num_frames) == (OK, COUNT)
        return
    check(path)


def lost(packets: Packets) -> Packets:
    return packets[:11] + packets[12:]


def lost_key(packets: Packets) -> Packets:
    at = next(i for i, packet in enumerate(packets) if i and packet.is_keyframe)
    return packets[:at] + packets[at + 1 :]


def a_jump(packets: Packets) -> Packets:
    """From here on all times are later, in the file's order: B-frames get behind the frame that they precede."""
    for packet in packets[10:]:
        packet.pts, packet.dts = packet.pts + 1000, packet.dts + 1000
    return packets


def times_of_decoding(packets: Packets) -> Packets:
    for packet in packets:
        packet.pts = packet.dts
    return packets


def a_day_later(packets: Packets) -> Packets:
    for packet in packets:
        packet.pts, packet.dts = packet.pts + 12 * 86400, packet.dts + 12 * 86400
    return packets


def negative(packets: Packets) -> Packets:
    for packet in packets:
        packet.pts, packet.dts = packet.pts - 5, packet.dts - 5
    return packets


def one_time_twice(packets: Packets) -> Packets:
    packets[11].pts = packets[10].pts
    return packets


@pytest.mark.parametrize("change", [lost, lost_key, a_jump, times_of_decoding, negative, one_time_twice])
@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts", "a.flv"])
def test_lost_packets_and_odd_times(tmp_path: Path, name: str, change: Callable[[Packets], Packets]) -> None:
    check(write(tmp_path / name, "libx264", change, bf="2"))


def test_times_that_start_again(tmp_path: Path) -> None:
    """A clock that runs over (Ogg's for VP8 has 32 bits), and a Matroska file whose later clusters are set back."""
    check(write(tmp_path / "a.ogg", "libvpx", negative))
    late = {"cluster_time_limit": "1000"}
    path = write(tmp_path / "a.mkv", "libx264", a_day_later, muxer=late, bf="2")
    mark = b"\x1f\x43\xb6\x75"
    head, first, *later = path.read_bytes().split(mark)
    assert later
    assert all(cluster.count(b"\xe7\x84") for cluster in later)  # a time of four bytes
    at = [cluster.index(b"\xe7\x84") + 2 for cluster in later]
    back = [cluster[:i] + b"\0" + cluster[i + 1 :] for cluster, i in zip(later, at, strict=True)]
    path.write_bytes(mark.join([head, first, *back]))
    check(path)


@pytest.mark.parametrize(("name", "encoder"), [("a.mkv", "mjpeg"), ("a.mp4", "libvpx-vp9")])
def test_times_out_of_order_where_nothing_is_reordered(tmp_path: Path, name: str, encoder: str) -> None:
    def shuffle(packets: Packets) -> Packets:
        times = [packet.pts for packet in packets[9:]]
        np.random.default_rng(0).shuffle(times)
        for packet, time in zip(packets[9:], sorted(times[:4]) + times[4:], strict=True):
            packet.pts = max(time, packet.dts)
        return packets

    path = write(tmp_path / name, encoder, shuffle)
    assert check(path).oddity == "times that do not tell the order of frames"


def test_two_times_that_are_swapped_are_found_by_decoding_all(tmp_path: Path) -> None:
    """The sample looks elsewhere; then the reader finds it where it passes both, and refuses."""

    def swap(packets: Packets) -> Packets:
        packets[20].pts, packets[21].pts = packets[21].pts, packets[20].pts
        return packets

    path = write(tmp_path / "a.mkv", "libx264", swap, bf="2", count=40)
    file = check(path, levels=("all",))
    assert file.oddity == "times that do not tell the order of frames"
    assert decoded(path, scan_file(str(path)), list(range(16, 24))) == {}


def started_late(packets: Packets) -> Packets:
    """Without the first three packets, from time 0 on."""
    for packet in packets:
        packet.pts, packet.dts = packet.pts - 3, packet.dts - 3
    return packets[3:]


@pytest.mark.parametrize(("name", "encoder"), [("a.mp4", "mpeg4"), ("a.wmv", "wmv2"), ("a.flv", "flv")])
def test_a_start_in_the_middle_of_a_group_behind_false_flags_is_refused(
    tmp_path: Path, name: str, encoder: str
) -> None:
    """Decoders make grey pictures of its first frames."""
    path = write(tmp_path / name, encoder, lambda packets: all_keys(started_late(packets)))
    assert scan_file(str(path)).status.startswith("starts in the middle of a group of pictures")
    right = write(tmp_path / name, encoder, started_late)
    assert scan_file(str(right)).num_frames == COUNT - GROUP


# ---- packets that are no frames


def fields(path: Path, paired: int, count: int = 16) -> Path:
    """Field-coded H.264: the first `paired` frames have a packet each, of the others each field has one."""
    pictures = [av.VideoFrame.from_ndarray(draw_number(i, 64, 64), format="rgb24") for i in range(count)]
    split = [
        [np.frombuffer(p, np.uint8).reshape(p.height, p.line_size)[:, : p.width] for p in frame.planes]
        for frame in (picture.reformat(format="yuv420p") for picture in pictures)
    ]
    data = list(field_packets(split))
    pieces = [(2 * i, 2, data[2 * i] + data[2 * i + 1]) for i in range(paired)]
    pieces += [(i, 1, data[i]) for i in range(2 * paired, 2 * count)]
    raw = path.with_suffix(".h264")
    raw.write_bytes(b"".join(data))
    with av.open(str(raw)) as source, av.open(str(path), "w") as container:
        stream = container.add_stream_from_template(source.streams.video[0])
        for at, duration, content in pieces:
            packet = av.Packet(content)
            packet.stream, packet.time_base, packet.is_keyframe = stream, Fraction(1, 24), at == 0
            packet.pts, packet.dts, packet.duration = at, at, duration
            container.mux(packet)
    return path


@pytest.mark.parametrize("paired", [0, 8, 16])
@pytest.mark.parametrize("name", ["a.ts", "a.mkv", "a.mp4"])
def test_fields_are_no_frames(tmp_path: Path, name: str, paired: int) -> None:
    path = fields(tmp_path / name, paired)
    file = check(path)
    assert file.num_frames == 16
    assert file.fps == pytest.approx(12, rel=0.05)


@pytest.mark.parametrize("name", ["h264_mid_group", "mpeg4_mid_group", "mpeg4_no_vops", "h264_edit_list"])
def test_frames_that_are_not_there_are_not_counted(tmp_path: Path, name: str) -> None:
    clip = CASES[name](tmp_path)
    assert check(clip.path, levels=("sample",)).num_frames == len(clip.numbers)


@pytest.mark.parametrize(("name", "encoder"), [("a.mp4", "libx264"), ("a.avi", "mpeg4")])
def test_damage_in_the_middle(tmp_path: Path, name: str, encoder: str) -> None:
    """Decoding all finds what a decoder finds. The sample does not look there: a clip is then right, or refused."""
    sound = write(tmp_path / name, encoder)
    with av.open(str(sound)) as container:
        packet = [p for p in container.demux(video=0) if p.size][GROUP + 5]
    found = set()
    for seed in range(4):
        path = tmp_path / f"{seed}-{name}"
        data = bytearray(sound.read_bytes())
        start, end = packet.pos + packet.size // 3, packet.pos + packet.size
        data[start:end] = np.random.default_rng(seed).bytes(end - start)
        path.write_bytes(data)
        files = [scan_file(str(path), level) for level in ("sample", "all")]
        found.add(tuple(file.status == OK for file in files))
        if files[1].status == OK:  # noise that means something, too: the decoder's word is all there is
            check(path)
        elif files[0].status == OK:
            whole = [planes(frame) for frame in whole_decode(sound)]
            alone = [decoded(path, files[0], [n]) for n in range(COUNT)]
            assert all(pictures in ({}, {n: whole[n]}) for n, pictures in enumerate(alone))
            assert {} in alone
    assert (True, False) in found


# ---- which stream, which way up, which colours and sizes


@pytest.mark.parametrize("name", ["two_streams", "cover_first", "cover_last"])
def test_the_best_stream_that_is_no_cover(tmp_path: Path, name: str) -> None:
    clip = CASES[name](tmp_path)
    file = scan_file(str(clip.path))
    assert (file.status, file.codec, file.num_frames, file.oddity) == (OK, "vp9", 36, "2 video streams")
    [(_, frame)] = decode_frames(str(clip.path), FrameIndex.unpack(file.index), np.array([20]))
    assert read_numbers(frame.to_ndarray(format="rgb24")) == [20]


TURNS = [(a, b, c, d) for a, b, c, d in np.ndindex(3, 3, 3, 3) if abs((a - 1) * (d - 1) - (b - 1) * (c - 1)) == 1]
TURNS = [(a - 1, b - 1, c - 1, d - 1) for a, b, c, d in TURNS if (a, d) == (1, 1) or (b, c) == (1, 1)]


@pytest.fixture(scope="module")
def corners(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video of 64 × 48 with a colour in each corner, in an MP4 file."""
    picture = np.zeros((48, 64, 3), np.uint8)
    for row, column, colour in ((0, 0, 250), (0, 1, 180), (1, 0, 110), (1, 1, 40)):
        picture[24 * row : 24 * row + 24, 32 * column : 32 * column + 32] = colour
    path = tmp_path_factory.mktemp("corners") / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libvpx-vp9", rate=12, options=OPTIONS["libvpx-vp9"])
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(6):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def with_matrix(source: Path, target: Path, matrix: tuple[float, ...]) -> Path:
    """An MP4 file whose track header holds the matrix (a, b, c, d): (x, y) is shown at (ax + cy, bx + dy)."""
    data = source.read_bytes()
    at = data.index(b"tkhd") + 44
    a, b, c, d = (round(65536 * value) for value in matrix)
    target.write_bytes(data[:at] + struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30) + data[at + 36 :])
    return target


def shown(matrix: tuple[int, ...]) -> np.ndarray:
    """The grey of the corners as the matrix shows them, (2, 2): each pixel at its place."""
    a, b, c, d = matrix
    places = {
        (a * x + c * y, b * x + d * y): grey for x, y, grey in ((0, 0, 250), (1, 0, 180), (0, 1, 110), (1, 1, 40))
    }
    left, top = min(x for x, _ in places), min(y for _, y in places)
    out = np.zeros((2, 2))
    for (x, y), grey in places.items():
        out[y - top, x - left] = grey
    return out


@pytest.mark.parametrize("matrix", TURNS)
def test_the_whole_display_matrix(corners: Path, backend: str, tmp_path: Path, matrix: tuple[int, ...]) -> None:
    video = as_video(with_matrix(corners, tmp_path / "a.mp4", matrix))
    assert (video.file.width, video.file.height) == ((48, 64) if matrix[1] else (64, 48))
    spec = ClipSpec(1, 5, 32)
    decoder = create_decoder(backend, spec, torch.device("cpu"), 1)
    whole = (0, 0, video.file.width, video.file.height)
    clip, corner = decoder([ClipPlan(video, np.arange(5)[None], box, False, 0) for box in (whole, (2, 4, 16, 16))])
    decoder.close()
    assert isinstance(clip, torch.Tensor)
    assert isinstance(corner, torch.Tensor)
    found = clip[0, 0, 8::16, 8::16, 0].numpy().astype(float)
    assert np.abs(found - shown(matrix)).max() < 6
    assert abs(float(corner[0, 0].float().mean()) - shown(matrix)[0, 0]) < 6


@pytest.mark.parametrize("matrix", [(0, 0, 0, 0), (0.7071, 0.7071, -0.7071, 0.7071), (1, 0.01, -0.01, 1), (1, 0, 0, 0)])
def test_what_is_no_turn_is_left_as_it_is(corners: Path, tmp_path: Path, matrix: tuple[float, ...]) -> None:
    file = scan_file(str(with_matrix(corners, tmp_path / "a.mp4", matrix)))
    assert (file.status, file.rotation, file.mirrored, file.width) == (OK, 0, False, 64)


def test_there_are_eight_turns() -> None:
    assert len(TURNS) == len(set(TURNS)) == 8


def joined(path: Path, parts: list[Path]) -> Path:
    """The packets of several files of one codec, one after the other, in a stream as the first says."""
    with av.open(str(path), "w") as container:
        with av.open(str(parts[0])) as source:
            stream = container.add_stream_from_template(source.streams.video[0])
        start = 0
        for part in parts:
            with av.open(str(part)) as source:
                for packet in source.demux(video=0):
                    if packet.size:
                        new = copy(packet, bytes(packet), stream)
                        new.time_base = Fraction(1, 12)
                        new.pts = new.dts = start
                        new.duration = 1
                        container.mux(new)
                        start += 1
    return path


@pytest.mark.parametrize(("encoder", "name"), [("libvpx", "webm"), ("libvpx-vp9", "mkv"), ("mjpeg", "avi")])
def test_a_size_that_is_another_in_the_middle_alone(tmp_path: Path, encoder: str, name: str) -> None:
    """At neither end, where the sample looks: only the packets tell."""
    large = write(tmp_path / f"large.{name}", encoder)
    small = write(tmp_path / f"small.{name}", encoder, size=(64, 48))
    path = joined(tmp_path / f"a.{name}", [large, small, large])
    assert check(path, levels=("sample",)).oddity == "pictures of several sizes"
    assert scan_file(str(large)).oddity == ""


def test_colours_that_are_others_in_the_middle_alone(tmp_path: Path) -> None:
    parts = [write(tmp_path / f"{m}.webm", "libvpx-vp9", matrix=m) for m in (5, 1)]
    path = joined(tmp_path / "a.webm", [*parts, parts[0]])
    file = check(path, levels=("sample",))
    assert file.oddity == "pictures of several colours"
    bad = create_decoder("pyav", ClipSpec(1, 5, 32), torch.device("cpu"), 1)
    video = as_video(path)
    (clip,) = bad([ClipPlan(video, np.arange(30, 35)[None], (0, 0, *SIZE), False, 0)])
    bad.close()
    assert isinstance(clip, torch.Tensor)
    exact = [frame.to_ndarray(format="rgb24") for frame in whole_decode(path)[30:35]]
    near = torch.nn.functional.interpolate(
        torch.from_numpy(np.stack(exact)).permute(0, 3, 1, 2).float(), (32, 32), mode="bilinear", antialias=True
    )
    assert (clip[0].permute(0, 3, 1, 2).float() - near).abs().mean() < 3


def test_colours_that_cannot_be_made_rgb_are_found_by_the_scan(tmp_path: Path) -> None:
    logarithmic = write(tmp_path / "a.mp4", "libx264", transfer=9)
    status = "its colours cannot be made RGB (matrix 2, transfer 9 of H.273)"
    assert scan_file(str(logarithmic)).status == status


# ---- what is no video file


def playlist(folder: Path) -> str:
    video = write(folder / "real.mp4", "mpeg4")
    return video.name


NOT_A_CONTAINER = "not a video container"


@pytest.mark.parametrize(
    "text",
    [
        "ffconcat version 1.0\nfile real.mp4\nfile real.mp4\n",
        "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\nreal.mp4\n#EXT-X-ENDLIST\n",
        '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"></MPD>',
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=a\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n",
    ],
    ids=["ffconcat", "m3u8", "dash", "sdp"],
)
@pytest.mark.parametrize("name", ["a.mp4", "a.avi"])
def test_playlists_are_not_followed(tmp_path: Path, name: str, text: str) -> None:
    playlist(tmp_path)
    (tmp_path / name).write_text(text)
    status = scan_file(str(tmp_path / name)).status
    assert status.startswith(("not a video container", "not a readable video"))
    assert "\n" not in status


def test_names_are_no_patterns_and_no_protocols(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = write(tmp_path / "real.mp4", "mpeg4")
    monkeypatch.chdir(tmp_path)
    for name in ("a%03d.mp4", "concat:real.mp4|real.mp4", "file:real.mp4", "subfile,,start,0,end,9,,:real.mp4"):
        assert scan_file(name).status == "no such file"
        Path(name).write_bytes(real.read_bytes())
        assert as_video(Path(name)).file.num_frames == COUNT
    (tmp_path / "a001.mp4").write_bytes(b"")
    assert as_video(tmp_path / "a%03d.mp4").file.num_frames == COUNT


def test_a_track_in_another_file_is_not_opened(tmp_path: Path) -> None:
    """QuickTime's data references: by a URL, and by an alias."""
    write(tmp_path / "real.mp4", "mpeg4")
    data = (tmp_path / "real.mp4").read_bytes()
    at = data.index(b"url ")
    assert data[at : at + 8] == b"url \0\0\0\1"  # in the file itself
    for kind in (b"url ", b"alis"):
        path = tmp_path / "a.mov"
        path.write_bytes(data[:at] + kind + bytes(4) + data[at + 8 :])
        file = scan_file(str(path))
        assert "\n" not in file.status
        if file.status == OK:  # a reference without a name: FFmpeg stays in the file
            assert check(path).num_frames == COUNT


def test_what_is_no_regular_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "zero.mp4").symlink_to("/dev/zero")
    (tmp_path / "folder.mp4").mkdir()
    listening = socket.socket(socket.AF_UNIX)
    os.chdir(tmp_path)
    listening.bind("socket.mp4")
    for name in ("pipe.mp4", "zero.mp4", "socket.mp4"):
        assert scan_file(str(tmp_path / name)).status == "not a regular file"
    listening.close()
    assert scan_file(str(tmp_path / "folder.mp4")).status == "holds no video and no frame (*.jpg)"
