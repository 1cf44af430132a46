"""--limit: a part of each split, spread over all of it, the same whether it is taken before the scan or after."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.annotations import Annotations, Sample
from pipelines.limiting import limit_annotations, limit_manifest
from pipelines.manifest import Manifest
from pipelines.sampling import spread
from pipelines.video import Video, VideoFile


@given(st.integers(0, 500), st.integers(1, 600))
def test_spread(count, most):
    found = spread(count, most)
    assert len(found) == min(count, most)
    if len(found) > 1:
        gaps = np.diff([*found, count])
        assert found[0] == 0
        assert gaps.max() - gaps.min() <= 1  # the end of the list is as near as everything else
        assert gaps.min() >= 1


@pytest.fixture
def samples():
    splits = ["train"] * 7 + ["validation"] * 300 + ["train"] * 3
    return tuple(Sample(str(i), f"/set/{i}.webm", i % 2, split) for i, split in enumerate(splits))


@pytest.mark.parametrize("most", [1, 4, 200, 299, 300, 1000])
def test_each_split_keeps_its_order_and_its_whole_range(samples, tmp_path, most):
    part, whole = limit_annotations(Annotations("set", tmp_path, ("a", "b"), samples), most)
    ids = {split: [int(s.id) for s in part.samples if s.split == split] for split in ("train", "validation")}
    train, validation = [*range(7), 307, 308, 309], [*range(7, 307)]
    assert ids["train"] == [train[i * 10 // most] for i in range(most)] if most < 10 else train
    assert ids["validation"] == ([validation[i * 300 // most] for i in range(most)] if most < 300 else validation)
    assert [int(s.id) for s in part.samples] == sorted(ids["train"] + ids["validation"])
    assert whole == ({"train": 10, "validation": 300} if most < 300 else {})

    file = VideoFile(status="ok", sha256="0" * 64)
    manifest = Manifest.of("set", ("a", "b"), [Video(s, file) for s in samples])
    limited = limit_manifest(manifest, most)
    assert limited.videos.column("id").tolist() == [s.id for s in part.samples]
    assert limited.whole == whole
    assert (limited.digest() == manifest.digest()) == (most >= 300)
