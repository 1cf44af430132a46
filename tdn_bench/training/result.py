"""What training did, epoch by epoch, and as a record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from pipelines.manifest import Manifest
from tdn_bench.correctness.scores import Scores
from tdn_bench.recipes import Recipe
from tdn_bench.records import Record, make_record

MAX_REASONS = 100  # bad clips that a record names; the log in the output folder names all


@dataclass
class Stretch:
    """What a run did from its start, or a resumption, until its end or its last checkpoint before another one."""

    begun: str  # when, in UTC
    start: tuple[int, int]  # epochs, and steps of the next, that were done before
    processes: int
    train_s: float = 0.0  # validation left out
    bad_clips: int = 0  # that were not known before
    changed: dict[str, list[Any]] = field(default_factory=dict)  # {setting: [before, from here on]}


@dataclass(frozen=True)
class Epoch:
    """What one epoch of training did."""

    epoch: int
    loss: float
    clips_per_s: float
    wait_share: float  # of the epoch's time, spent waiting for data
    train_s: float  # its wall time, validation left out
    stand_ins: int  # times that another video took a bad one's place, over all processes
    top1: float | None = None  # percent, on the validation split
    top5: float | None = None


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What a run of all epochs came to."""

    checkpoint: Path  # of the last epoch, which `scores` belong to
    epochs: tuple[Epoch, ...]
    scores: Scores
    bad_clips: int  # of the training split; these three are counted over all processes
    validation_bad_clips: int
    bad_clip_reasons: Mapping[str, str]  # by path, of both splits, the first MAX_REASONS
    manifest: Manifest
    precision: str
    device: torch.device
    ledger: Mapping[str, object]  # figures of this process's last epoch; none where a resumed run had nothing to do
    threads: Sequence[Mapping[str, Any]]  # what each of its threads booked then
    stretches: Sequence[Stretch] = ()  # from start or resumption to the end or the last checkpoint
    changes: Sequence[Mapping[str, Any]] = ()  # settings that a resumption changed: after_epoch, {name: [old, new]}


def train_record(recipe: Recipe, result: TrainResult) -> Record:
    """The run as a record: accuracy of the last epoch, and what every epoch did."""
    last = result.epochs[-1]
    figures = {
        "top1_percent": result.scores.top(1),
        "top5_percent": result.scores.top(5),
        "best_top1_percent": max(e.top1 for e in result.epochs if e.top1 is not None),
        "loss": last.loss,
        "train_s": sum(e.train_s for e in result.epochs),
        "clips_per_s": sum(e.clips_per_s for e in result.epochs) / len(result.epochs),
        "wait_share": sum(e.wait_share for e in result.epochs) / len(result.epochs),
        "bad_clips": result.bad_clips,
        "stand_ins": sum(e.stand_ins for e in result.epochs),
        "validation_bad_clips": result.validation_bad_clips,
        **result.ledger,
    }
    samples = {
        "loss": [e.loss for e in result.epochs],
        "clips_per_s": [e.clips_per_s for e in result.epochs],
        "wait_share": [e.wait_share for e in result.epochs],
        "top1_percent": [e.top1 for e in result.epochs if e.top1 is not None],
        "top1_epoch": [float(e.epoch) for e in result.epochs if e.top1 is not None],
    }
    details = {
        "precision": result.precision,
        "confusion": result.scores.confusion().tolist(),
        "classes": list(result.manifest.classes),
        "bad_clips": result.bad_clip_reasons,
        "ledger": result.threads,
    }
    if len(result.stretches) > 1:
        details["stretches"] = [asdict(stretch) for stretch in result.stretches]
    if result.changes:  # the settings are the last epochs' only
        details["changed_settings"] = result.changes
    return make_record(
        "train",
        recipe.name,
        figures=figures,
        samples=samples,
        settings=recipe.settings(),
        device=result.device,
        manifest=result.manifest,
        details=details,
    )
