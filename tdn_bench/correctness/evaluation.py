"""What a classifier says of every video of a loader."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from pipelines.clip import ClipBatch
from tdn_bench.correctness.scores import Scores
from tdn_bench.errors import UserError


def score(
    classify: Callable[[Tensor], Tensor],
    batches: Iterable[ClipBatch],
    views: int = 1,
    batch_size: int | None = None,
    *,
    before: Sequence[Scores] = (),
    done: Callable[[ClipBatch, Scores], object] = lambda batch, part: None,
) -> Scores:
    """Run `classify` (uint8 frames (B, T, L, H, W, C) → logits (B, classes)) over all batches, on at most `batch_size`
    views at a time (default: a whole batch); `views` is how many each video has, one after the other. `before` are the
    scores of batches that came before these; `done` gets every batch with its scores. Raises UserError where there is
    no video."""
    parts = list(before)
    for batch in batches:
        logits = [classify(frames).float().cpu() for frames in batch.frames.split(batch_size or len(batch))]
        logits_of_views = torch.cat(logits).unflatten(0, (-1, views))
        parts.append(Scores(tuple(batch.ids[::views]), logits_of_views, batch.labels[::views].cpu()))
        done(batch, parts[-1])
    if not parts:
        raise UserError("no video of the split could be decoded; `tdn-bench prepare` names the reasons")
    ids = tuple(video for part in parts for video in part.ids)
    return Scores(ids, torch.cat([p.logits for p in parts]), torch.cat([p.labels for p in parts]))
