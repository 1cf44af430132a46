"""The decoder step: its numbered clips, and whether it finds a decoder that is wrong."""

from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from pipelines.errors import BadClip
from pipelines.odd_clips import read_numbers, stretched_frames
from pipelines.plan import ClipPlan
from tdn_bench.gpu_checks import Run, decoders, dry, full
from tdn_bench.gpu_checks.decoders import CODECS, write_numbered, wrong_frames


def squares(pictures: np.ndarray) -> np.ndarray:
    """(N, H, W, 3) pictures as a decoder returns the whole of each: (N, 64, 64, 3)."""
    rows = torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float()
    small = torch.nn.functional.interpolate(rows, (64, 64), mode="bilinear", antialias=True)
    return small.round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("size", sorted({(64, 48), (48, 64), *full().clip_sizes, *dry().clip_sizes}))
def test_numbers_survive_the_way_to_a_square(size: tuple[int, int]) -> None:
    pictures = squares(stretched_frames(256, *size))
    assert read_numbers(pictures) == list(range(256))
    clip = pictures.reshape(4, 64, 64, 64, 3)
    plan = ClipPlan(None, np.arange(256).reshape(4, 64), (0, 0, *size), False, 0)
    turned = replace(plan, flip=True)
    assert wrong_frames(clip, plan) == wrong_frames(clip[..., ::-1, :], turned) == 0
    assert wrong_frames(clip[::-1], plan) == 256
    assert wrong_frames(clip, turned) == 256 - 16  # of which 16 read the same from both sides


@pytest.mark.parametrize("codec", CODECS)
def test_numbers_survive_encoding(codec: str, tmp_path: Path) -> None:
    path = tmp_path / f"numbered.{CODECS[codec][1]}"
    try:
        write_numbered(path, codec, 30, 160, 120)
    except (av.error.FFmpegError, ValueError) as e:
        pytest.skip(f"no encoder: {e}")
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    pictures = np.stack([frame.to_ndarray(format="rgb24") for frame in frames])
    assert read_numbers(squares(pictures)) == list(range(30))
    assert any(frame.pict_type == av.video.frame.PictureType.B for frame in frames) == (codec != "vp9")


def test_decoder_step_passes(run: Run) -> None:
    found = decoders.decoder(run)
    assert found.failures == []
    assert found.figures["files_checked"] == 3 - len(found.details)
    assert found.figures["rgb_difference_mean"] < 10


class OffByOne:
    """A decoder with the mistakes that the step is there to find: it returns the frame after, and refuses nothing."""

    def __init__(self, segments: int) -> None:
        self.segments = segments

    def __call__(self, plans: list) -> list[torch.Tensor | BadClip]:
        pictures = torch.from_numpy(stretched_frames(256, 64, 64))
        return [pictures[torch.from_numpy(plan.frames + 1)] for plan in plans]

    def close(self) -> None:
        pass


def test_decoder_step_finds_a_wrong_decoder(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    real = decoders.create_decoder
    wrong = OffByOne(run.sizes.num_segments)
    monkeypatch.setattr(decoders, "create_decoder", lambda name, *a: wrong if name == "dali" else real(name, *a))
    failures = "\n".join(decoders.decoder(run).failures)
    for expected in (
        "dali returned",
        "a cut file was not refused",
        "a file of garbage was not refused",
        "an index past the end was not refused",
        "was lost or changed",
        "did not refuse h264 by name",
    ):
        assert expected in failures
    assert "pyav returned" not in failures
