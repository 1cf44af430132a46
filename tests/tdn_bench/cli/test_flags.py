"""What a checkpoint notes of itself is looked at before it is believed; a flag always outweighs it."""

import json
import math
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support.flags import configure

from tdn_bench.cli import DataFlags, LimitFlags, NetworkFlags, WorkloadFlags, parse
from tdn_bench.errors import UserError
from tdn_bench.recipes import demo
from tdn_bench.training.checks import check


def with_notes(checkpoint: Path, path: Path, **notes: object) -> Path:
    """The same weights with other notes."""
    with safe_open(checkpoint, "pt") as file:
        kept = file.metadata()
    save_file(load_file(checkpoint), path, kept | {name: json.dumps(value) for name, value in notes.items()})
    return path


def test_notes_fill_what_no_flag_says(small_checkpoint: Path) -> None:
    network = NetworkFlags(checkpoint=small_checkpoint).resolve()
    assert (network.model, network.num_segments, network.size, network.crop_ratio) == ("tdn_resnet_small", 4, 64, 1.0)
    network = NetworkFlags(checkpoint=small_checkpoint, size=96, crop_ratio=0.5).resolve()
    assert (network.num_segments, network.size, network.crop_ratio) == (4, 96, 0.5)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_segments", "eight"),
        ("num_segments", 4.0),
        ("num_segments", True),
        ("num_segments", -4),
        ("size", math.nan),
        ("size", 10**12),
        ("size", None),
        ("crop_ratio", math.nan),
        ("crop_ratio", "1"),
        ("model", 7),
    ],
)
def test_notes_that_cannot_be_are_named(small_checkpoint: Path, tmp_path: Path, name: str, value: object) -> None:
    path = with_notes(small_checkpoint, tmp_path / "odd.safetensors", **{name: value})
    with pytest.raises(UserError, match=f"--{name.replace('_', '-')}") as caught:
        NetworkFlags(checkpoint=path).resolve()
    assert "\n" not in str(caught.value)
    right = {"num_segments": 4, "size": 64, "crop_ratio": 1.0, "model": "tdn_resnet_small"}[name]
    assert getattr(NetworkFlags(checkpoint=path, **{name: right}).resolve(), name) == right


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--num-segments 1000000", "--num-segments 1000000: must be from 1 to 1024"),
        ("--size 100000", "--size 100000: must be from 64 to 4096"),
        ("--crop-ratio nan", "--crop-ratio nan: must be a finite number"),
        ("--crop-ratio 1e-300", "--crop-ratio 1e-300: must be from 0.1"),
        ("--workers 0", "--workers 0: must be from 1 to"),
        ("--workers 1000000", "--workers 1000000: must be from 1 to"),
        ("--split 4", "--split 4: must be from 1 to 3"),
        ("--max-bad-share nan", "--max-bad-share nan: must be a finite number"),
        ("--max-bad-share inf", "--max-bad-share inf: must be a finite number"),
        ("--calibration-clips 0", "--calibration-clips 0: must be from 1"),
        ("--calibration-clips 1000000000", "--calibration-clips 1000000000: must be from 1"),
        ("--batch-size 1000000", "--batch-size 1000000: must be from 1 to 1024"),
        ("--batch-size 0", "--batch-size 0: must be from 1 to 1024"),
        ("--device cuda:99999999999999999999", "--device cuda:99999999999999999999"),
        ("--device cpu:x", "--device cpu:x"),
    ],
)
def test_numbers_out_of_range_are_named_before_any_video_is_rendered(flags: str, said: str, monkeypatch) -> None:
    monkeypatch.setattr("pipelines.synthetic.make_dataset", lambda *_, **__: pytest.fail("rendered"))
    with pytest.raises(UserError) as caught:
        parse(WorkloadFlags, flags.split(), "test").resolve()
    assert str(caught.value).startswith(said)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("limit", [0, -3, 10**12])
def test_a_limit_that_cannot_be_is_refused_before_any_work(limit: int, tmp_path: Path) -> None:
    part = LimitFlags(limit=limit)
    with pytest.raises(UserError, match=f"--limit {limit}: must be from 1"):
        WorkloadFlags(part=part, data=DataFlags(data=tmp_path / "nowhere")).resolve()
    with pytest.raises(UserError, match=f"--limit {limit}: must be from 1"):
        check(configure(demo(), limit=limit, output=tmp_path / "run"))
    assert not list(tmp_path.iterdir())
