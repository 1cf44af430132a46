"""The odd clips are what they claim to be: plain PyAV, frame after frame, reads the numbers that they promise."""

from pathlib import Path

import av
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.videos import whole_decode

from pipelines.errors import DataError
from pipelines.odd_clips import (
    CASES,
    Case,
    OddClip,
    draw_number,
    make_odd_clips,
    numbered_frames,
    read_numbers,
    skipped_cases,
)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, OddClip]:
    return {clip.name: clip for clip in make_odd_clips(tmp_path_factory.mktemp("odd"))}


def take(clips: dict[str, OddClip], name: str) -> OddClip:
    if name in skipped_cases():
        pytest.skip(skipped_cases()[name])
    return clips[name]


def packets_of(path: Path) -> list[av.Packet]:
    """All packets of the best video stream but the last, empty one that flushes the decoder."""
    with av.open(str(path)) as container:
        return [p for p in container.demux(container.streams.best("video")) if p.dts is not None]


@pytest.mark.parametrize("name", CASES)
def test_every_frame_carries_its_number(clips: dict[str, OddClip], name: str) -> None:
    clip = take(clips, name)
    frames = whole_decode(clip.path)
    stored = (f.to_ndarray(format="rgb24", width=frames[0].width, height=frames[0].height) for f in frames)
    turned = (np.rot90(p[:, ::-1] if clip.mirrored else p, clip.rotation // 90) for p in stored)
    pictures = np.stack(list(turned))
    assert pictures.shape == (len(clip.numbers), clip.height, clip.width, 3)
    assert read_numbers(pictures) == list(clip.numbers)
    drawn = np.stack([draw_number(n, clip.width, clip.height) for n in clip.numbers])
    error = ((pictures.astype(float) - drawn) ** 2).mean((1, 2, 3)).max()
    # A wrong colour matrix or range costs more; smaller pictures and H.263's coarse steps cost most of it.
    least_db = 20 if "size_change" in name else 30 if name == "h263_all_sync" else 32
    assert 10 * np.log10(255**2 / error) > least_db


def test_all_cases_are_made_or_excused(clips: dict[str, OddClip]) -> None:
    assert sorted(clips) == sorted(CASES.keys() - skipped_cases().keys())
    assert all(name == clip.path.stem and clip.notes and clip.path.is_file() for name, clip in clips.items())
    assert all(min(clip.width, clip.height) >= 128 and len(clip.numbers) >= 36 for clip in clips.values())


def test_an_encoder_that_is_missing_is_an_excuse_and_one_line(tmp_path: Path) -> None:
    case = Case("a.mp4", "libnothing", {}, "")
    assert case.missing() == "this FFmpeg has no encoder libnothing"
    with pytest.raises(DataError, match="libnothing"):
        case(tmp_path)
    assert "gray16" in (Case("a.mp4", "mpeg4", {}, "", pix_fmt="gray16").missing() or "")


# What makes each clip odd, read from its packets and frames.


def test_b_frames_that_others_refer_to(clips: dict[str, OddClip]) -> None:
    clip = take(clips, "h264_b_pyramid")
    kinds = {f.pts: f.pict_type for f in whole_decode(clip.path)}
    packets = [p for p in packets_of(clip.path) if kinds[p.pts] == av.video.frame.PictureType.B]
    referred = [bytes(p)[4] >> 5 & 3 for p in packets]  # nal_ref_idc, behind the length
    assert min(referred) == 0 < max(referred)


@pytest.mark.parametrize("name", ["h264_open_gop", "hevc_b_frames"])
def test_frames_shown_before_their_key_frame(clips: dict[str, OddClip], name: str) -> None:
    packets = packets_of(take(clips, name).path)
    keys = [i for i, p in enumerate(packets) if p.is_keyframe]
    assert len(keys) > 2
    assert all(packets[i + 1].pts < packets[i].pts for i in keys[1:])


def test_edit_list_marks_what_it_cuts(clips: dict[str, OddClip]) -> None:
    packets = packets_of(take(clips, "h264_edit_list").path)
    assert [p.is_discard for p in packets] == [p.pts < 0 for p in packets]
    assert sum(p.is_discard for p in packets) == 5
    kept = [p.is_discard for p in packets]
    assert kept != sorted(kept, reverse=True)  # a cut frame stands behind one that is shown


def test_times(clips: dict[str, OddClip]) -> None:
    for name in ("h264_uneven_rate", "vp9_uneven_rate"):
        times = [frame.time for frame in whole_decode(take(clips, name).path)]
        gaps = np.diff(times)
        assert gaps.min() == pytest.approx(1 / 30, abs=1e-3)
        assert gaps.max() == pytest.approx(0.5 + 1 / 30, abs=1e-3)
    assert whole_decode(take(clips, "h264_late_start").path)[0].time == pytest.approx(0.5)
    packets = packets_of(take(clips, "mpeg4_gaps").path)
    assert [p.dts for p in packets if p.size] == [i + 3 * (i > 10) for i in range(48)]


def test_hidden_frames_of_vp9(clips: dict[str, OddClip]) -> None:
    """A packet that ends with a superframe's marker holds several frames; one is shown."""
    assert any(bytes(p)[-1] >> 5 == 0b110 for p in packets_of(take(clips, "vp9_alt_ref").path))


def test_divx(clips: dict[str, OddClip]) -> None:
    dropped = packets_of(take(clips, "mpeg4_dropped").path)
    assert sum(p.size == 1 for p in dropped) == 12 == len(dropped) - len(clips["mpeg4_dropped"].numbers)
    packed = packets_of(take(clips, "mpeg4_packed").path)
    starts = [bytes(p).count(b"\0\0\1\xb6") for p in packed]
    assert starts.count(2) > 15
    assert all(packed[i + 1].size == 6 for i, n in enumerate(starts) if n == 2)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("h264_odd_size", ("yuv444p", 161, 131)),
        ("vp9_odd_size", ("yuv420p", 161, 131)),
        ("h264_rotated_90", ("yuv420p", 176, 128)),
        ("h264_10_bit", ("yuv420p10le", 160, 128)),
        ("hevc_10_bit", ("yuv420p10le", 160, 128)),
        ("vp9_10_bit", ("yuv420p10le", 160, 128)),
        ("h264_full_range", ("yuvj420p", 160, 128)),
    ],
)
def test_stored_format_and_size(clips: dict[str, OddClip], name: str, expected: tuple[str, int, int]) -> None:
    frame = whole_decode(take(clips, name).path)[0]
    assert (frame.format.name, frame.width, frame.height) == expected


def test_other_claims(clips: dict[str, OddClip]) -> None:
    assert whole_decode(take(clips, "h264_bt709").path)[0].colorspace == 1
    assert [i for i, p in enumerate(packets_of(take(clips, "h264_long_gop").path)) if p.is_keyframe] == [0, 250]
    assert b"moof" in take(clips, "h264_fragmented").path.read_bytes()
    with av.open(str(take(clips, "h264_sound_first").path)) as container:
        assert [stream.type for stream in container.streams] == ["audio", "video"]


@pytest.mark.parametrize(
    ("name", "matrix", "colour_range"),
    [("vp9_bt709", 1, 1), ("vp9_bt2020", 9, 1), ("h264_bt2020", 9, 1), ("vp9_full_range", 2, 2)],
)
def test_colours(clips: dict[str, OddClip], name: str, matrix: int, colour_range: int) -> None:
    frame = whole_decode(take(clips, name).path)[0]
    assert (frame.colorspace, frame.color_range) == (matrix, colour_range)


@pytest.mark.parametrize("name", ["vp8_size_change", "vp9_size_change", "h264_size_change"])
def test_sizes(clips: dict[str, OddClip], name: str) -> None:
    sizes = [(frame.width, frame.height) for frame in whole_decode(take(clips, name).path)]
    assert sizes == [(160, 128)] * 18 + [(120, 96)] * 18


@pytest.mark.parametrize(
    ("name", "codecs", "covers"),
    [
        ("two_streams", ["vp8", "vp9"], [False, False]),
        ("cover_first", ["mjpeg", "vp9"], [True, False]),
        ("cover_last", ["vp9", "mjpeg"], [False, True]),
    ],
)
def test_streams(clips: dict[str, OddClip], name: str, codecs: list[str], covers: list[bool]) -> None:
    disposition = av.stream.Disposition
    with av.open(str(take(clips, name).path)) as container:
        videos = container.streams.video
        assert [stream.codec_context.name for stream in videos] == codecs
        assert [bool(stream.disposition & disposition.attached_pic) for stream in videos] == covers
        if name == "two_streams":
            assert [bool(stream.disposition & disposition.default) for stream in videos] == [False, True]


def test_flags_and_packets(clips: dict[str, OddClip]) -> None:
    for name in ("mpeg4_all_sync", "flv1_all_sync", "wmv2_all_sync", "h263_all_sync"):
        clip = take(clips, name)
        assert all(packet.is_keyframe for packet in packets_of(clip.path))
        assert [frame.key_frame for frame in whole_decode(clip.path)] == [i % 12 == 0 for i in range(36)]
    for name in ("h264_mid_group", "mpeg4_mid_group"):
        assert [p.is_keyframe for p in packets_of(take(clips, name).path)].index(True) == 7
    fields = take(clips, "h264_fields")
    assert len(packets_of(fields.path)) == 2 * len(fields.numbers)
    assert all(frame.interlaced_frame for frame in whole_decode(fields.path))
    assert [p.size for p in packets_of(take(clips, "mpeg4_no_vops").path)].count(6) == 12
    assert all(p.is_keyframe for p in packets_of(take(clips, "mjpeg_long").path))


@given(
    st.integers(0, 255),
    st.integers(64, 400),
    st.integers(64, 400),
    st.sampled_from([0.875, 1.0]),
    st.integers(64, 224),
)
def test_numbers_survive_crop_resize_and_noise(number: int, width: int, height: int, share: float, size: int) -> None:
    picture = torch.from_numpy(draw_number(number, width, height)).permute(2, 0, 1)[None]
    side = round(share * min(width, height))
    x, y = (width - side) // 2, (height - side) // 2
    crop = picture[..., y : y + side, x : x + side].float()
    small = torch.nn.functional.interpolate(crop, (size, size), mode="bilinear", antialias=True)
    noise = np.random.default_rng(number).normal(0, 25, (1, size, size, 3))
    pictures = (small.permute(0, 2, 3, 1).numpy() + noise).clip(0, 255).astype(np.uint8)
    assert read_numbers(pictures) == [number]


def test_numbered_frames() -> None:
    frames = numbered_frames(258, 160, 128, first=3)
    assert frames.shape == (258, 128, 160, 3)
    assert frames.dtype == np.uint8
    assert read_numbers(frames) == [n % 256 for n in range(3, 261)]
    assert np.array_equal(frames[0], draw_number(3, 160, 128))
    outside = (np.abs(np.diff(frames[:12, :32].astype(int), axis=0)) > 8).mean((1, 2, 3))
    assert outside.min() > 0.5  # neighbours differ beside the number, too
