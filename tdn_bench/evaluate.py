"""Top-1 and top-5 accuracy of a network or an engine on a split, every video counted exactly once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from pipelines.clip import ClipBatch
from pipelines.loader import BadClips, ClipLoader
from tdn_bench.cli import run_command
from tdn_bench.errors import UserError
from tdn_bench.flags import DataFlags, NetworkFlags, pick_device
from tdn_bench.record import make_record, write_record


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
    if not ids:
        raise UserError("no video of the split could be decoded; `tdn-bench prepare` names the reasons")
    return Scores(tuple(ids), torch.cat(logits), torch.cat(labels))


@dataclass(frozen=True, kw_only=True)
class Evaluate(NetworkFlags, DataFlags):
    """Top-1 and top-5 accuracy of a checkpoint: one clip, centre crop."""

    split: Literal["train", "validation"] = "validation"
    """Which videos."""
    batch_size: int = 16
    """Clips in a batch."""
    device: str = "auto"
    """cuda, cuda:1, cpu; auto takes a GPU where there is one."""
    backend: Literal["auto", "pyav", "dali"] = "auto"
    """Video loader: DALI on a GPU, PyAV without one."""
    results: Path | None = None
    """Also write a record to this folder."""


def main(argv: Sequence[str] | None = None) -> None:
    """Print the accuracy of a checkpoint on a split."""
    import tyro

    config = tyro.cli(Evaluate, args=argv, prog="tdn-bench evaluate")
    if config.checkpoint is None:
        raise UserError("--checkpoint is missing: name the weights to evaluate")
    config = config.resolved()
    device = pick_device(config.device)
    manifest = config.open()
    classifier = config.build(len(manifest.classes), device)
    bad_clips = BadClips()
    with (
        torch.inference_mode(),
        ClipLoader(
            manifest.split(config.split), config.clip_spec(), config.batch_size, backend=config.backend,
            device=device, workers=config.workers, bad_clips=bad_clips,
        ) as loader,
    ):  # fmt: skip
        scores = score(classifier, loader.epoch())
    print(f"{config.model} on {manifest.name}/{config.split}: {len(scores.ids)} videos, "
          f"top-1 {scores.top(1):.2f} %, top-5 {scores.top(5):.2f} %")  # fmt: skip
    for path, reason in bad_clips.reasons.items():
        print(f"  not used: {path}: {reason}")
    if config.results is not None:
        record = make_record(
            "evaluate", f"{config.model}-{manifest.name}",
            figures={"videos": len(scores.ids), "top1_percent": scores.top(1), "top5_percent": scores.top(5),
                     "bad_clips": len(bad_clips)},
            samples={}, settings=asdict(config), device=device, manifest=manifest,
            details={"confusion": scores.confusion().tolist(), "classes": list(manifest.classes)},
        )  # fmt: skip
        print(f"record: {write_record(record, config.results)}")


if __name__ == "__main__":
    raise SystemExit(run_command(main))
