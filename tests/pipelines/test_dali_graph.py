"""The crop of the serialized pipeline is the plan's, for pictures of any size; which files it is not given."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.dali_graph import crop_box, float32_parts, why_not_served
from pipelines.plan import center_crop
from pipelines.video import Sample, Video, VideoFile

SOUND = VideoFile(codec="vp9", width=64, height=48, num_frames=10)


@pytest.mark.parametrize("ratio", [0.875, 0.9, 1.0, 0.1, 2 / 3, 224 / 256])
def test_crop_is_the_plans(ratio: float) -> None:
    """Ratios whose products end in a half, which Python rounds to the even number, are among them."""
    dali = pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    sizes = [(short, short + extra) for short in (*range(1, 80), 260, 252, 1080) for extra in (0, 1, 6, 37)]
    sizes += [(width, height) for height, width in sizes]
    pipeline = dali.Pipeline(batch_size=len(sizes), num_threads=1, device_id=None)
    with pipeline:
        pictures = dali.fn.external_source(name="pictures", ndim=4, dtype=dali.types.UINT8)
        pipeline.set_outputs(*crop_box(pictures, ratio))
    pipeline.build()
    pipeline.feed_input("pictures", [np.zeros((1, height, width, 1), np.uint8) for height, width in sizes])
    starts, ends = pipeline.run()
    for i, (height, width) in enumerate(sizes):
        x, y, w, h = center_crop(width, height, ratio)
        assert np.array(starts[i]).tolist() == [y, x], (height, width)
        assert np.array(ends[i]).tolist() == [y + h, x + w], (height, width)


@given(st.floats(0.1, 1.0))
def test_parts_add_up(number: float) -> None:
    total = 0.0
    for part in float32_parts(number):
        assert part == np.float32(part)
        total += part
    assert total == number


@pytest.mark.parametrize(
    ("file", "where", "reason"),
    [
        (SOUND, "cpu", None),
        (replace(SOUND, codec="h264"), "gpu", None),
        (replace(SOUND, codec="h264"), "cpu", "DALI cannot decode h264 on the cpu"),
        (replace(SOUND, rotation=90), "gpu", "turned"),
        (replace(SOUND, mirrored=True), "gpu", "turned"),
        (replace(SOUND, matrix="BT.709"), "gpu", "colours of BT.709"),
        (replace(SOUND, codec="jpeg"), "cpu", "folder of frames"),
        (replace(SOUND, status="empty file"), "cpu", "empty file"),
    ],
)
def test_files_that_would_come_out_wrong(file: VideoFile, where: str, reason: str | None) -> None:
    found = why_not_served(Video(Sample("a", "/a", 0, "test"), file), where)
    assert found == reason if reason is None else reason in str(found)
