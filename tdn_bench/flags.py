"""Flags that several commands share: which data, which network, which device."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch

from pipelines.annotations import read_lists, read_something_something
from pipelines.clip import ClipSpec
from pipelines.manifest import Manifest, build_manifest, default_cache
from tdn_bench.checkpoint import load_checkpoint, read_metadata
from tdn_bench.errors import UserError
from tdn_bench.models import FrameClassifier, create_model


def pick_device(name: str) -> torch.device:
    """`auto` is the GPU where there is one. Raises UserError for a GPU that is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as e:
        raise UserError(f"--device {name}: not a device; use cpu, cuda or cuda:N") from e
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device {name}: only cpu and cuda are supported")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"--device {name}: this machine has {torch.cuda.device_count()} CUDA GPUs; use --device cpu")
    return device


@dataclass(frozen=True, kw_only=True)
class DataFlags:
    """Which videos."""

    data: Path | None = None
    """Folder in Something-Something V2's layout."""
    train_list: Path | None = None
    """Instead of the layout: the authors' list of training videos, `path num_frames label` a line (paths are
    relative to --data, or to the list)."""
    val_list: Path | None = None
    """Instead of the layout: the list of validation videos."""
    class_names: Path | None = None
    """With lists: a text file, one class name a line."""
    workers: int | None = None
    """Decoding threads and scanning processes; default: one a core."""

    def open(self, progress: bool = True) -> Manifest:
        """Read the annotations and scan their videos (remembered across runs)."""
        if self.workers is not None and self.workers < 1:
            raise UserError(f"--workers {self.workers}: must be at least 1")
        if self.train_list is not None and self.val_list is not None:
            annotations = read_lists(self.train_list, self.val_list, root=self.data, classes=self.class_names)
            root = self.data or self.train_list.parent
        elif self.train_list is not None or self.val_list is not None:
            raise UserError("--train-list and --val-list go together")
        elif self.data is not None:
            annotations, root = read_something_something(self.data), self.data
        else:
            raise UserError("no data set named; use --data DIR, or --train-list and --val-list")
        return build_manifest(annotations, cache=default_cache(root), workers=self.workers, progress=progress)


@dataclass(frozen=True, kw_only=True)
class NetworkFlags:
    """Which network on which clips. What is not given comes from the checkpoint's notes, else from the defaults."""

    checkpoint: Path | None = None
    """Trained weights: ours (.safetensors) or the authors' (.pth.tar)."""
    model: str | None = None
    """Network (`tdn-bench list`); default: the checkpoint's, else tdn_resnet50."""
    num_segments: int | None = None
    """T, segments in a clip; default: the checkpoint's, else 8."""
    size: int | None = None
    """Input height and width, pixels; default: the checkpoint's, else 224."""
    crop_ratio: float | None = None
    """Share of the short side in the centre crop; default: the checkpoint's, else 224/256."""

    def resolved(self) -> Self:
        """Fill what was left open, so that a record shows all of it."""
        notes: dict[str, Any] = read_metadata(self.checkpoint) if self.checkpoint is not None else {}
        defaults = {"model": "tdn_resnet50", "num_segments": 8, "size": 224, "crop_ratio": 224 / 256}
        return replace(self, **{k: notes.get(k, v) for k, v in defaults.items() if getattr(self, k) is None})

    def clip_spec(self) -> ClipSpec:
        """The clips of a resolved choice."""
        assert self.num_segments is not None
        assert self.size is not None
        assert self.crop_ratio is not None
        if self.size < 64 or not 0 < self.crop_ratio <= 1:
            raise UserError(f"--size {self.size} must be at least 64, --crop-ratio {self.crop_ratio} in (0, 1]")
        return ClipSpec(self.num_segments, size=self.size, crop_ratio=self.crop_ratio)

    def build(self, num_classes: int, device: torch.device) -> FrameClassifier:
        """The network of a resolved choice, in eval mode; without a checkpoint its weights are fresh (seed 0)."""
        assert self.model is not None
        assert self.num_segments is not None
        torch.manual_seed(0)
        try:
            network = create_model(self.model, num_classes=num_classes, num_segments=self.num_segments)
        except ValueError as e:
            raise UserError(str(e)) from e
        if self.checkpoint is not None:
            load_checkpoint(network, self.checkpoint)
        return FrameClassifier(network).to(device).eval()
