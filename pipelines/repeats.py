"""Videos that are listed more than once: training may want them (oversampling), an evaluation counts each once."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pyarrow as pa

from pipelines.errors import DataError, printable
from pipelines.manifest import Manifest


def each_once(manifest: Manifest, splits: Iterable[str]) -> tuple[Manifest, int]:
    """The manifest with each video of these splits once, and how many repeated rows that leaves out.

    A video is a path: copies of equal content under other names are videos of their own, as benchmarks list them.
    Raises DataError for one that a split lists with two labels: no answer would be right for it.
    """
    videos = manifest.videos
    keep = np.ones(len(videos), bool)
    for split in splits:
        rows = np.flatnonzero(videos.where("split", split))
        paths = [os.path.normpath(path) for path in videos.values("path", rows)]
        if len(set(paths)) == len(paths):
            continue
        labels: dict[str, int] = {}
        for row, path, label in zip(rows.tolist(), paths, videos.values("label", rows), strict=True):
            keep[row] = path not in labels
            if labels.setdefault(path, label) != label:
                raise DataError(
                    f"{printable(videos.locate(path))}: the {split} split lists it with the labels {labels[path]} and "
                    f"{label}; correct the list"
                )
    if keep.all():
        return manifest, 0
    # without the notes, of which the digest of all rows is one
    table = manifest.table.filter(pa.array(keep)).replace_schema_metadata(None)
    return replace(manifest, table=table), int((~keep).sum())
