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
    skipped_steps: int = 0  # that changed nothing, since their gradients were not finite
    top1: float | None = None  # percent, on the validation split
    top5: float | None = None


@dataclass(frozen=True)
class StepFigures:
    """What some steps in a row came to: means over them, or as it says. Times are of this process."""

    steps: int
    loss: float | None  # of all processes; None where none was finite
    lr: float  # of the last step
    gradient_norm: float | None
    clips_per_s: float  # of all processes
    step_ms: float
    parts_ms: dict[str, float]  # by PARTS; their sum is `step_ms`
    copy_ms: float  # into the batch and to the device, by the loader's threads: beside the steps, not a part of them
    peak_memory_bytes: int  # of this process so far: on a GPU PyTorch's, on a CPU the largest that was resident
    mfu: float | None  # model FLOP utilisation: 3 × the forward pass's FLOP, as a share of the GPUs' peak

    @property
    def wait_share(self) -> float:
        return self.parts_ms["wait"] / self.step_ms

    def row(self) -> dict[str, float | None]:
        """As the log has it."""
        found = {
            "steps": self.steps,
            "loss": self.loss,
            "lr": self.lr,
            "gradient_norm": self.gradient_norm,
            "clips_per_s": self.clips_per_s,
            "step_ms": self.step_ms,
            **{f"{part}_ms": ms for part, ms in self.parts_ms.items()},
            "copy_ms": self.copy_ms,
            "wait_share": self.wait_share,
            "peak_memory_mb": self.peak_memory_bytes / 1e6,
        }
        return found | ({} if self.mfu is None else {"mfu": self.mfu})

    def figures(self) -> dict[str, float]:
        """As a record has them."""
        parts = {f"step_{part}_ms": ms for part, ms in self.parts_ms.items()}
        found = {"step_ms": self.step_ms, **parts, "step_copy_ms": self.copy_ms}
        found["peak_memory_bytes"] = self.peak_memory_bytes
        return found | ({} if self.mfu is None else {"model_flops_utilization": self.mfu})


@dataclass(frozen=True)
class EpochHealth:
    """An epoch, or what was left of it: its steps, the time of each, and what disturbed the machine meanwhile."""

    steps: StepFigures
    step_ms: list[float]
    monitored: dict[str, float]
    disturbed: list[str]

    def figures(self) -> dict[str, float]:
        """As a record has them."""
        return self.steps.figures() | self.monitored


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
    health: EpochHealth | None = None  # of this process's last epoch; as `ledger`
    disturbed: Sequence[str] = ()  # why that epoch's times are not to be relied on
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
        "skipped_steps": sum(e.skipped_steps for e in result.epochs),
        **result.ledger,
    }
    samples = {
        "loss": [e.loss for e in result.epochs],
        "clips_per_s": [e.clips_per_s for e in result.epochs],
        "wait_share": [e.wait_share for e in result.epochs],
        "top1_percent": [e.top1 for e in result.epochs if e.top1 is not None],
        "top1_epoch": [float(e.epoch) for e in result.epochs if e.top1 is not None],
    }
    status = "unwatched"  # a resumption that only validated
    if result.health is not None:
        figures |= result.health.figures()
        samples["step_ms"] = result.health.step_ms
        # never void: what disturbs the machine changes a training's times, not its accuracy
        status = "unstable" if result.disturbed else "stable"
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
        status=status,
        status_reasons=[f"times of the last epoch: {reason}" for reason in result.disturbed],
    )
