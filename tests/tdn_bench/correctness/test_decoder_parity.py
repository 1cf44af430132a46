"""Every decoder returns the frames of the odd clips that it is asked for; the command catches one that does not."""

import json
import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch
from support.videos import whole_decode

from pipelines.cpu import decode_video
from pipelines.errors import BadClip
from pipelines.ledger import Lane
from pipelines.loader import Decoder, create_decoder
from pipelines.manifest import OK, Video, as_video
from pipelines.odd_clips import CASES, OddClip, skipped_cases
from pipelines.plan import ClipPlan
from tdn_bench.cli import run_command
from tdn_bench.correctness import decoder_parity
from tdn_bench.correctness.decoder_checks import SPEC, Returned, check_video, numbered_plans, psnr_db
from tdn_bench.correctness.decoder_parity import open_decoders
from tdn_bench.parity import main

CPU = torch.device("cpu")
REFUSED = {  # by DALI on a CPU, which would get them wrong; and what it says
    "vp9_bt709": "colours of BT.709",
    "vp9_bt2020": "colours of BT.2020",
    "vp9_size_change": "pictures of several sizes",
    "vp8_size_change": "pictures of several sizes",
    "two_streams": "2 video streams",
    "cover_first": "2 video streams",
    "cover_last": "2 video streams",
}


class Clips(dict[str, OddClip]):
    """The odd clips by name, each made when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __missing__(self, name: str) -> OddClip:
        self[name] = CASES[name](self._folder)
        return self[name]


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Clips:
    return Clips(tmp_path_factory.mktemp("odd"))


@pytest.fixture(scope="module")
def decoders() -> Iterator[dict[str, Decoder]]:
    found = open_decoders(SPEC, CPU, 1)
    yield found
    for decoder in found.values():
        decoder.close()


def known(name: str) -> str:
    if name in skipped_cases():
        pytest.skip(skipped_cases()[name])
    return name


@pytest.mark.parametrize("name", CASES)
def test_odd_clip(clips: Clips, decoders: dict[str, Decoder], name: str) -> None:
    """PyAV returns every frame; DALI too, or it says that it cannot. The scan is right, and so are the pixels."""
    clip = clips[known(name)]
    case = check_video(as_video(clip.path, name), decoders, 0, clip)
    assert case.scan == []
    assert str(case.returned["pyav"]) == "exact"
    assert case.returned["pyav"].right == (10 + 4) * 20  # plans of 20 frames
    assert case.false_pictures == []
    if "dali-cpu" in case.returned:
        decodable = name.startswith(("vp9", "mjpeg")) and name not in REFUSED
        assert case.returned["dali-cpu"].verdict == ("exact" if decodable else "refused")
        assert name not in REFUSED or REFUSED[name] in str(case.returned["dali-cpu"])


def all_frames(path: Path) -> list[bytes]:
    return [planes(frame) for frame in whole_decode(path)]


def planes(frame: av.VideoFrame) -> bytes:
    """What was decoded, without the padding of its rows."""
    wide = 1 + (frame.format.components[0].bits > 8)
    rows = (np.frombuffer(p, np.uint8).reshape(p.height, p.line_size)[:, : p.width * wide] for p in frame.planes)
    return b"".join(plane.tobytes() for plane in rows)


@pytest.mark.parametrize("name", CASES)
def test_skipping_changes_no_bit(clips: Clips, name: str) -> None:
    """What is decoded of a few frames, and what of all."""
    clip = clips[known(name)]
    video, whole = as_video(clip.path, name), all_frames(clip.path)
    rng = np.random.default_rng(0)
    for count in (1, 1, 2, 3, 7):
        wanted = rng.integers(len(whole), size=(1, count))
        found: dict[int, bytes] = {}
        plan = ClipPlan(video, wanted, (0, 0, clip.width, clip.height), False, 0)
        decode_video(plan, lambda n, frame, found=found: found.__setitem__(n, planes(frame)), Lane())
        assert found == {n: whole[n] for n in wanted.ravel().tolist()}


def copy_streams(source: Path, target: Path) -> Path:
    """The video's packets as they are, in another container; times that an AVI lacks become those of decoding."""
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(old.streams.video[0]):
            if packet.dts is not None and packet.size:
                packet.pts = packet.dts if packet.pts is None else packet.pts
                packet.stream = stream
                new.mux(packet)
    return target


def test_a_file_copied_from_avi_keeps_the_decoders_order(
    clips: Clips, decoders: dict[str, Decoder], tmp_path: Path
) -> None:
    """Its times ascend in the file's order, and would swap B-frames with their neighbours."""
    clip = clips[known("mpeg4_packed")]
    video = as_video(copy_streams(clip.path, tmp_path / "a.mkv"), "copy")
    assert str(check_video(video, decoders, 0, clip).returned["pyav"]) == "exact"


def test_rotation_is_found_in_matroska(clips: Clips, decoders: dict[str, Decoder], tmp_path: Path) -> None:
    clip = clips[known("h264_rotated_90")]
    case = check_video(as_video(copy_streams(clip.path, tmp_path / "a.mkv"), "mkv"), decoders, 0, clip)
    assert case.scan == []
    assert (str(case.returned["pyav"]), case.false_pictures) == ("exact", [])


@pytest.mark.parametrize("degrees", [None, 1, 45])
def test_a_turn_that_is_no_quarter_is_left_alone(
    clips: Clips, decoders: dict[str, Decoder], tmp_path: Path, degrees: float | None
) -> None:
    """A matrix of zeros (None), and slight or slanted turns."""
    clip = clips[known("vp9_plain")]
    data = clip.path.read_bytes()
    at = data.index(b"tkhd") + 44
    angle = math.radians(degrees or 0)
    cos, sin = round(65536 * math.cos(angle)), round(65536 * math.sin(angle))
    matrix = (cos, -sin, 0, sin, cos, 0, 0, 0, 1 << 30) if degrees is not None else (0,) * 9
    path = tmp_path / "a.mp4"
    path.write_bytes(data[:at] + struct.pack(">9i", *matrix) + data[at + 36 :])
    video = as_video(path, "turned")
    if video.file.status == OK:
        assert video.file.rotation in (0, 90, 180, 270)
        verdicts = {r.verdict for r in check_video(video, decoders, 0, clip).returned.values()}
        assert verdicts == {"exact"}


# ---- the command


@pytest.fixture
def one_clip(clips: Clips, monkeypatch: pytest.MonkeyPatch) -> OddClip:
    clip = clips[known("vp9_uneven_rate")]
    monkeypatch.setattr(decoder_parity, "make_odd_clips", lambda folder: [clip])
    return clip


class Wrong:
    """PyAV, but not quite."""

    name, device = "wrong", CPU

    def __init__(self, fault: str) -> None:
        self.right, self.fault = create_decoder("pyav", SPEC, CPU, 1), fault

    def __call__(self, plans: Sequence[ClipPlan]) -> list[torch.Tensor | BadClip]:
        if self.fault == "next frame":
            plans = [replace(p, frames=np.minimum(p.frames + 1, p.video.file.num_frames - 1)) for p in plans]
        clips = self.right(plans)
        if self.fault == "BGR":
            clips = [c.flip(-1) if isinstance(c, torch.Tensor) else c for c in clips]
        if self.fault == "refuses":
            clips = [BadClip(p.video.id, p.video.path, "too tired") for p in plans]
        return clips

    def close(self) -> None:
        self.right.close()


@pytest.mark.parametrize(
    ("fault", "status", "said"),
    [
        ("next frame", 1, "wrong: wrong: wanted 5, got 6 ("),
        ("BGR", 1, "wrong: false pictures: "),
        ("refuses", 0, "wrong: refused: too tired: vp9_uneven_rate"),
        ("none", 0, "wrong: 1 exact, 0 refused, 0 wrong of 1"),
    ],
)
def test_command_catches_a_wrong_backend(
    one_clip: OddClip,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    fault: str,
    status: int,
    said: str,
) -> None:
    right = create_decoder("pyav", SPEC, CPU, 1)
    monkeypatch.setattr(decoder_parity, "open_decoders", lambda *_: {"pyav": right, "wrong": Wrong(fault)})
    arguments = ["decoders", "--device", "cpu", "--results", str(tmp_path)]
    if status:
        with pytest.raises(SystemExit) as stop:
            run_command(main, arguments)
        assert stop.value.code == status
    else:
        assert run_command(main, arguments) == status
    assert said in capsys.readouterr().out
    (path,) = tmp_path.glob("parity-decoders-*.json")
    record = json.loads(path.read_text())
    assert record["figures"]["cases"] == 1
    assert record["figures"]["pyav"] == {"exact": 1, "refused": 0, "wrong": 0, "false_pictures": 0}
    assert record["figures"]["wrong"]["wrong"] == (fault == "next frame")
    assert record["figures"]["wrong"]["false_pictures"] == (fault in ("next frame", "BGR"))
    assert record["details"]["cases"][0]["returned"]["wrong"]["verdict"] in ("wrong", "exact", "refused")


def test_real_videos_are_judged_by_their_looks(clips: Clips) -> None:
    """Without numbers: a frame that looks like its neighbour in time is wrong."""
    clip = clips[known("vp9_plain")]
    case = check_video(as_video(clip.path, "a"), {"wrong": Wrong("next frame"), "right": Wrong("none")}, 0)
    assert case.returned["right"] == Returned(right=80)
    assert len(case.returned["wrong"].wrong) > 70  # not the last frame, which has no next
    assert all(got == wanted + 1 for wanted, got in case.returned["wrong"].wrong)


def test_scores_by_every_decoder(
    motion_data: Path, small_checkpoint: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    arguments = ["decoders", "--no-odd-clips", "--device", "cpu", "--data", str(motion_data), "--limit", "3"]
    arguments += ["--checkpoint", str(small_checkpoint), "--workers", "1", "--results", str(tmp_path)]
    assert run_command(main, arguments) == 0
    assert "pyav: 3 exact, 0 refused, 0 wrong of 3" in capsys.readouterr().out
    (path,) = tmp_path.glob("*.json")
    figures = json.loads(path.read_text())["figures"]["pyav–dali-cpu"]
    assert figures["videos"] == 3
    assert figures["psnr_min_db"] > 30
    assert 0 < figures["max_score_difference"] < 0.5
    assert abs(figures["top1_change_percent"]) <= 100


def test_plans_stay_inside_the_video() -> None:
    for count in (5, 6, 19, 20, 21, 300):
        video = Video(SimpleNamespace(id="a", label=0), SimpleNamespace(num_frames=count, width=161, height=131))
        plans = numbered_plans(video, 0)
        assert {plan.frames.shape for plan in plans} == {(4, 5)}
        assert all(0 <= plan.frames.min() <= plan.frames.max() < count for plan in plans)
        assert {plan.flip for plan in plans} == {False, True}


def test_psnr() -> None:
    black = np.zeros((4, 4, 3), np.uint8)
    assert psnr_db(black, black) == 99
    assert psnr_db(black, black + 255) == 0
    assert psnr_db(black, black + 51) == pytest.approx(10 * math.log10(25))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--no-odd-clips"], "nothing to compare"),
        (["--videos", "nowhere.mp4"], "--videos nowhere.mp4: no such file"),
        (["--checkpoint", "a.safetensors"], "--checkpoint needs labelled videos"),
        (["--limit", "0"], "--limit 0: must be from 1"),
        (["--device", "tpu"], "--device tpu"),
    ],
)
def test_user_errors(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(main, ["decoders", *arguments]) == 2
    assert said in capsys.readouterr().err
