"""What a classifier says of every video of a loader, and an evaluation as a record."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pipelines.clip import ClipBatch, ClipSpec
from pipelines.loader import ClipLoader
from pipelines.manifest import Manifest
from tdn_bench.correctness.scores import Scores
from tdn_bench.errors import UserError
from tdn_bench.records import Record, make_record


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


def protocol_of(spec: ClipSpec) -> dict[str, Any]:
    """What accuracies must have in common to be compared."""
    return {
        "clips": spec.num_clips,
        "crops": spec.num_crops,
        "segments": spec.num_segments,
        "size": spec.size,
        "crop_ratio": spec.crop_ratio if spec.num_crops == 1 else None,
    }


def evaluation_record(
    settings: Mapping[str, Any],
    manifest: Manifest,
    subset: str,
    loader: ClipLoader,
    scores: Scores,
    notes: Mapping[str, Any],
) -> Record:
    """The run as a record: accuracies, what each class was taken for, the videos left out, and `notes`."""
    spec, bad_clips = loader.spec, loader.bad_clips.by_path()
    parts = (settings["model"], f"{spec.num_segments}f", manifest.name, subset, f"{spec.num_views}-view")
    rows = zip(manifest.classes, *(column.tolist() for column in scores.per_class()), strict=True)
    return make_record(
        "evaluate",
        "-".join(map(str, parts)),
        figures=scores.figures() | {"bad_clips": len(bad_clips)},
        samples={},
        settings={**settings, "backend": loader.decoder.name},
        device=loader.device,
        manifest=manifest,
        details={
            "protocol": protocol_of(spec),
            "confusion": scores.confusion().tolist(),
            "classes": list(manifest.classes),
            "per_class": {name: {"videos": n, "top1_percent": percent} for name, n, percent in rows if n},
            "bad_clips": bad_clips,
            **notes,
        },
    )
