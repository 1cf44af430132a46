"""Top-1 and top-5 accuracy of a network on a split, every video counted exactly once, in one view or in thirty."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, Self

import torch
from torch import Tensor

from pipelines.clip import ClipBatch, ClipSpec
from pipelines.loader import ClipLoader
from pipelines.manifest import Manifest
from tdn_bench.cli.flags import LoaderFlags, NetworkFlags, pick_device
from tdn_bench.cli.run import run_command
from tdn_bench.correctness.scores import Scores, check_target, print_per_class
from tdn_bench.errors import UserError
from tdn_bench.records.record import Record, check_folder, make_record, write_record

# The paper's: clips, crops, size in pixels (None: the checkpoint's).
PROTOCOLS: dict[str, tuple[int, Literal[1, 3], int | None]] = {"one-clip": (1, 1, None), "thirty-view": (10, 3, 256)}


def score(
    classify: Callable[[Tensor], Tensor], batches: Iterable[ClipBatch], views: int = 1, batch_size: int | None = None
) -> Scores:
    """Run `classify` (uint8 frames (B, T, L, H, W, C) → logits) over all batches, on at most `batch_size` views at a
    time; `views` is how many of them each video has."""
    ids: list[str] = []
    logits, labels = [], []
    for batch in batches:
        logits += [classify(frames).float().cpu() for frames in batch.frames.split(batch_size or len(batch))]
        labels.append(batch.labels[::views].cpu())
        ids += batch.ids[::views]
    if not ids:
        raise UserError("no video of the split could be decoded; `tdn-bench prepare` names the reasons")
    return Scores(tuple(ids), torch.cat(logits).unflatten(0, (-1, views)), torch.cat(labels))


@dataclass(frozen=True, kw_only=True)
class Evaluate(NetworkFlags, LoaderFlags):
    """Top-1 and top-5 accuracy of a checkpoint by the paper's protocols. A video that cannot be used is left out and
    counted; no other takes its place."""

    subset: Literal["train", "validation", "test"] = "validation"
    """Which videos."""
    protocol: Literal["one-clip", "thirty-view"] = "one-clip"
    """one-clip: 1 clip, centre crop (the paper's Something-Something). thirty-view: 10 clips × 3 crops of 256 pixels,
    softmax scores averaged (the paper's Kinetics). --clips, --crops and --size change a part of it."""
    clips: int | None = None
    """Clips of a video; default: the protocol's. One is centred; several are drawn at random, the same in every run."""
    crops: Literal[1, 3] | None = None
    """Crops of a clip: the centre, or 3 that span the short side (without --crop-ratio); default: the protocol's."""
    batch_size: int = 16
    """Views that the network takes at a time."""
    device: str = "auto"
    """cuda, cuda:1, cpu; auto takes a GPU where there is one."""
    per_class: bool = False
    """Also print the accuracy of every class, worst first."""
    scores: Path | None = None
    """Also write the raw scores of every video and view to this file, for `tdn-bench scores`."""
    results: Path | None = None
    """Also write a record to this folder."""

    def resolved(self) -> Self:
        """Fill what was left open: the protocol's part, then the checkpoint's."""
        clips, crops, size = PROTOCOLS[self.protocol]
        filled = replace(
            self,
            clips=clips if self.clips is None else self.clips,
            crops=crops if self.crops is None else self.crops,
            size=size if self.size is None else self.size,
        )
        return super(Evaluate, filled).resolved()

    def clip_spec(self) -> ClipSpec:
        """The clips of a resolved choice, in all views."""
        assert self.clips is not None
        assert self.crops is not None
        if self.clips < 1 or self.batch_size < 1:
            raise UserError(f"--clips {self.clips} and --batch-size {self.batch_size} must be at least 1")
        return replace(super().clip_spec(), num_clips=self.clips, num_crops=self.crops)


def main(argv: Sequence[str] | None = None) -> None:
    """Print the accuracy of a checkpoint on a split."""
    import tyro

    config = tyro.cli(Evaluate, args=argv, prog="tdn-bench evaluate")
    checkpoint = config.checkpoint
    if checkpoint is None:
        raise UserError("--checkpoint is missing: name the weights to evaluate")
    if config.scores is not None:
        check_target(config.scores)
    if config.results is not None:
        check_folder("--results", config.results)
    config = config.resolved()
    device, spec = pick_device(config.device), config.clip_spec()
    manifest = config.open()
    videos = manifest.split(config.subset)
    if not videos:
        raise UserError(f"--subset {config.subset}: {manifest.name} has no such videos")
    classifier = config.build(len(manifest.classes), device)
    with (
        torch.inference_mode(),
        ClipLoader(
            videos, spec, max(1, config.batch_size // spec.num_views), backend=config.backend, device=device,
            workers=config.workers, policy=config.bad_clip_policy(),
        ) as loader,
    ):  # fmt: skip
        scores = score(classifier, loader.epoch(), spec.num_views, config.batch_size)
    # written before anything is said: a closed pipe must not cost the run
    written = []
    if config.scores is not None:
        notes = {"model": config.model, "checkpoint": checkpoint.name, "protocol": _protocol(spec)}
        notes |= {"data": manifest.name, "digest": manifest.digest(), "subset": config.subset}
        scores.save(config.scores, notes | {"classes": manifest.classes, "backend": loader.decoder.name})
        written.append(f"scores: {config.scores}")
    if config.results is not None:
        written.append(f"record: {write_record(_record(config, manifest, loader, scores), config.results)}")
    bad_clips = loader.bad_clips.reasons
    left_out = f" ({len(bad_clips)} of {len(videos)} could not be used)" if bad_clips else ""
    views = f", {spec.num_views} views each" if spec.num_views > 1 else ""
    print(f"{config.model} on {manifest.name}/{config.subset}: {len(scores.ids)} videos{left_out}{views}, {scores}")
    for path, reason in bad_clips.items():
        print(f"  not used: {path}: {reason}")
    if config.per_class:
        print_per_class(scores, manifest.classes)
    print(*written, sep="\n", end="\n" if written else "")


def _protocol(spec: ClipSpec) -> dict[str, object]:
    """What accuracies must have in common to be compared."""
    return {
        "clips": spec.num_clips, "crops": spec.num_crops, "segments": spec.num_segments, "size": spec.size,
        "crop_ratio": spec.crop_ratio if spec.num_crops == 1 else None,
    }  # fmt: skip


def _record(config: Evaluate, manifest: Manifest, loader: ClipLoader, scores: Scores) -> Record:
    """The run as a record: accuracies, what each class was taken for, and the videos left out."""
    spec, bad_clips = loader.spec, loader.bad_clips.reasons
    parts = (config.model, f"{spec.num_segments}f", manifest.name, config.subset, f"{spec.num_views}-view")
    rows = zip(manifest.classes, *(column.tolist() for column in scores.per_class()), strict=True)
    return make_record(
        "evaluate",
        "-".join(map(str, parts)),
        figures=scores.figures() | {"bad_clips": len(bad_clips)},
        samples={},
        settings=asdict(config) | {"backend": loader.decoder.name},
        device=loader.device,
        manifest=manifest,
        details={
            "protocol": _protocol(spec),
            "confusion": scores.confusion().tolist(),
            "classes": list(manifest.classes),
            "per_class": {name: {"videos": n, "top1_percent": percent} for name, n, percent in rows if n},
            "bad_clips": bad_clips,
        },
    )


if __name__ == "__main__":
    raise SystemExit(run_command(main))
