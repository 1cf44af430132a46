"""What a classifier says of every video of a loader."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from pipelines.clip import ClipBatch, ClipSpec
from tdn_bench.correctness.scores import Scores
from tdn_bench.errors import UserError


def score(
    classify: Callable[[Tensor], Tensor], batches: Iterable[ClipBatch], views: int = 1, batch_size: int | None = None
) -> Scores:
    """Run `classify` (uint8 frames (B, T, L, H, W, C) → logits (B, classes)) over all batches, on at most `batch_size`
    views at a time (default: a whole batch); `views` is how many each video has, one after the other. Raises UserError
    where there is no video."""
    ids: list[str] = []
    logits, labels = [], []
    for batch in batches:
        logits += [classify(frames).float().cpu() for frames in batch.frames.split(batch_size or len(batch))]
        labels.append(batch.labels[::views].cpu())
        ids += batch.ids[::views]
    if not ids:
        raise UserError("no video of the split could be decoded; `tdn-bench prepare` names the reasons")
    return Scores(tuple(ids), torch.cat(logits).unflatten(0, (-1, views)), torch.cat(labels))


def protocol_of(spec: ClipSpec) -> dict[str, Any]:
    """What accuracies must have in common to be compared."""
    return {
        "clips": spec.num_clips,
        "crops": spec.num_crops,
        "segments": spec.num_segments,
        "size": spec.size,
        "crop_ratio": spec.crop_ratio if spec.num_crops == 1 else None,
    }
