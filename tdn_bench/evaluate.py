"""Top-1 and top-5 accuracy of a network or an engine on a split, every video counted exactly once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pipelines.clip import ClipBatch


@dataclass(frozen=True)
class Scores:
    """What a classifier said of a list of videos. logits: float32 (N, classes); labels: int64 (N,); both on the CPU."""

    ids: tuple[str, ...]
    logits: Tensor
    labels: Tensor

    def top(self, k: int) -> float:
        """Top-k accuracy in percent. A label counts as found when fewer than k classes score higher."""
        own = self.logits.gather(1, self.labels[:, None])
        rank = (self.logits > own).sum(1) + (self.logits == own).sum(1) - 1  # ties count against
        return 100 * (rank < k).double().mean().item()

    def confusion(self) -> Tensor:
        """int64 (classes, classes): rows are true classes, columns predictions."""
        classes = self.logits.shape[1]
        pairs = self.labels * classes + self.logits.argmax(1)
        return torch.bincount(pairs, minlength=classes * classes).view(classes, classes)


def score(classify: Callable[[Tensor], Tensor], batches: Iterable[ClipBatch]) -> Scores:
    """Run `classify` (uint8 frames (B, T, L, H, W, C) → logits) over all batches."""
    ids: list[str] = []
    logits, labels = [], []
    for batch in batches:
        logits.append(classify(batch.frames).float().cpu())
        labels.append(batch.labels.cpu())
        ids += batch.ids
    return Scores(tuple(ids), torch.cat(logits), torch.cat(labels))
