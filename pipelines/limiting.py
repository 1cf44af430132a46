"""A part of a data set for a quick try: so many videos of each split, spread evenly over it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa

from pipelines.annotations import Annotations
from pipelines.manifest import Manifest
from pipelines.sampling import spread


def limit_annotations(annotations: Annotations, most: int) -> tuple[Annotations, dict[str, int]]:
    """At most `most` samples of each split, in their order, before any is scanned; and of how many in each split, where
    that leaves any out, else nothing."""
    rows, whole = _rows([sample.split for sample in annotations.samples], most)
    return replace(annotations, samples=tuple(annotations.samples[row] for row in rows)), whole


def limit_manifest(manifest: Manifest, most: int) -> Manifest:
    """At most `most` videos of each split, in their order."""
    rows, whole = _rows(manifest.videos.column("split").tolist(), most)
    if not whole:
        return manifest
    # without the notes, of which the digest of all rows is one
    table = manifest.table.take(pa.array(rows)).replace_schema_metadata(None)
    return replace(manifest, table=table, whole=whole)


def _rows(splits: Sequence[str], most: int) -> tuple[np.ndarray, dict[str, int]]:
    names, kept, whole = np.array(splits, dtype=object), [], {}
    for split in dict.fromkeys(splits):
        rows = np.flatnonzero(names == split)
        kept.append(rows[spread(len(rows), most)])
        whole[split] = len(rows)
    chosen = np.sort(np.concatenate(kept)) if kept else np.empty(0, np.int64)
    return chosen, whole if len(chosen) < len(names) else {}
