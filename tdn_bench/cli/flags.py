"""Flags that several commands share: which data, which network, which device."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor

from engines import QUANTISED, EngineSpec
from engines.cache import default_folder
from pipelines.annotations import Annotations, read_dataset, read_lists
from pipelines.clip import ClipSpec
from pipelines.loader import BadClipPolicy, ClipLoader, OnBadClip
from pipelines.manifest import Manifest, build_manifest, default_cache
from tdn_bench.checkpoint import load_checkpoint, read_metadata
from tdn_bench.errors import UserError
from tdn_bench.models import FrameClassifier, Variant, create_model, find_variant


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


def known_variant(model: str) -> Variant:
    """What a --model is. Raises UserError for an unknown name."""
    try:
        return find_variant(model)
    except ValueError as e:
        raise UserError(f"--model: {e}") from e


DatasetName = Literal["sthv1", "sthv2", "kinetics400", "ucf101", "hmdb51"]


@dataclass(frozen=True, kw_only=True)
class DataFlags:
    """Which videos."""

    dataset: DatasetName = "sthv2"
    """How --data is laid out and annotated."""
    data: Path | None = None
    """The data set's folder, as it is distributed."""
    split: int = 1
    """Which official split: 1, 2 or 3 of UCF101 and HMDB51."""
    labels: Path | None = None
    """Folder of the annotation files, where they do not lie below --data."""
    manifest: Path | None = None
    """Instead of annotations: a manifest that `tdn-bench prepare` wrote; nothing is scanned, and --data says where
    the videos lie now, if they have moved."""
    train_list: Path | None = None
    """Instead of annotations: the authors' list of training videos or frame folders, `path num_frames label` a line
    (paths are relative to --data, or to the list)."""
    val_list: Path | None = None
    """Instead of annotations: the list of validation videos."""
    class_names: Path | None = None
    """With lists: a text file, one class name a line."""
    workers: int | None = None
    """Decoding threads and scanning processes; default: one a core."""

    def open(self, progress: bool = True) -> Manifest:
        """Read the annotations and scan their videos (remembered across runs), or open a manifest."""
        if self.workers is not None and self.workers < 1:
            raise UserError(f"--workers {self.workers}: must be at least 1")
        if self.manifest is not None:
            if self.train_list is not None or self.val_list is not None:
                raise UserError("--manifest and lists exclude each other: a manifest holds all splits")
            return Manifest.open(self.manifest, self.data)
        annotations = self.annotations()
        cache = default_cache(annotations.root)
        return build_manifest(annotations, cache=cache, workers=self.workers, progress=progress)

    def annotations(self) -> Annotations:
        """What the annotation files say."""
        if self.train_list is not None and self.val_list is not None:
            return read_lists(self.train_list, self.val_list, root=self.data, classes=self.class_names)
        if self.train_list is not None or self.val_list is not None:
            raise UserError("--train-list and --val-list go together")
        if self.data is None:
            raise UserError("no data set named; use --data DIR, --manifest FILE, or --train-list and --val-list")
        return read_dataset(self.dataset, self.data, split=self.split, labels=self.labels)


@dataclass(frozen=True, kw_only=True)
class LoaderFlags(DataFlags):
    """Which videos, what decodes them, and what a bad one does."""

    backend: Literal["auto", "pyav", "dali"] = "auto"
    """Video loader: DALI on a GPU, PyAV without one."""
    on_bad_clip: OnBadClip = "skip"
    """A video that cannot be used: error ends the run; skip leaves it out (training takes a stand-in), counts it and
    lists it."""
    max_bad_share: float = 0.01
    """The run ends when more than this share of a split's videos cannot be used."""
    verify_checksums: bool = False
    """Compare every file that is read with the checksum of its scan."""

    def bad_clip_policy(self, log: Path | None = None) -> BadClipPolicy:
        """The flags as the loader takes them."""
        if not 0 <= self.max_bad_share <= 1:
            raise UserError(f"--max-bad-share {self.max_bad_share}: must be from 0 to 1")
        return BadClipPolicy(self.on_bad_clip, self.max_bad_share, self.verify_checksums, log)


@dataclass(frozen=True, kw_only=True)
class EngineFlags:
    """How engines are built."""

    ranged: bool = False
    """Build for every batch size up to the largest, not for that one alone: a smaller batch then costs less."""
    rewrite: bool = True
    """Let the network rewrite itself for inference (the same logits to rounding)."""
    keep: tuple[str, ...] = ()
    """Layers that int8 and fp8 leave in floating point (`tdn-bench parity engines --per-layer` names those that
    matter)."""
    calibration_clips: int = 64
    """Training clips from which int8 and fp8 take the ranges of activations."""
    cache: bool = True
    """Use engines that were built before, and keep those that are built now."""
    cache_folder: Path | None = None
    """Where engines are kept; default: ~/.cache/tdn_bench/engines."""

    def kept_in(self) -> Path | None:
        """The folder of the engine cache, None for none."""
        return (self.cache_folder or default_folder()) if self.cache else None

    def engine_spec(
        self, frames_shape: tuple[int, int, int, int, int], max_batch: int, precision: str, device: str
    ) -> EngineSpec:
        """The flags as engines take them."""
        return EngineSpec(
            frames_shape, max_batch, precision, device, ranged=self.ranged, rewrite=self.rewrite, keep=self.keep
        )

    def calibration(
        self, precision: str, manifest: Manifest, spec: ClipSpec, flags: LoaderFlags
    ) -> list[Tensor] | None:
        """Batches of uint8 frames for a precision that needs them, from the middle of training videos spread over the
        whole split (the validation split where there is no training split)."""
        if precision not in QUANTISED:
            return None
        if self.calibration_clips < 1:
            raise UserError(f"--calibration-clips {self.calibration_clips}: must be at least 1")
        videos = manifest.split("train") or manifest.split("validation")
        if not videos:
            raise UserError(f"{precision} is calibrated on videos, of which {manifest.name} has none")
        chosen = videos[:: max(1, len(videos) // self.calibration_clips)][: self.calibration_clips]
        policy = replace(flags.bad_clip_policy(), max_share=0.5)  # of a few clips
        with ClipLoader(chosen, spec, 8, backend=flags.backend, workers=flags.workers, policy=policy) as loader:
            return [batch.frames for batch in loader.epoch()]


@dataclass(frozen=True, kw_only=True)
class NetworkFlags:
    """Which network on which clips. What is not given comes from the checkpoint's notes, else from the defaults."""

    checkpoint: Path | None = None
    """Trained weights: ours (.safetensors) or the authors' (.pth.tar)."""
    model: str | None = None
    """Network (`tdn-bench list`); default: the checkpoint's, else tdn_resnet50."""
    num_segments: int | None = None
    """T, segments in a clip; default: the checkpoint's, else the network's (8; 32 of I3D)."""
    size: int | None = None
    """Input height and width, pixels; default: the checkpoint's, else 224."""
    crop_ratio: float | None = None
    """Share of the short side in the centre crop; default: the checkpoint's, else 224/256."""

    def resolved(self) -> Self:
        """Fill what was left open, so that a record shows all of it."""
        notes: dict[str, Any] = read_metadata(self.checkpoint) if self.checkpoint is not None else {}
        model = self.model or str(notes.get("model", "tdn_resnet50"))
        segments = known_variant(model).num_segments
        defaults = {"model": model, "num_segments": segments, "size": 224, "crop_ratio": 224 / 256}
        return replace(self, **{k: notes.get(k, v) for k, v in defaults.items() if getattr(self, k) is None})

    def clip_spec(self) -> ClipSpec:
        """The clips of a resolved choice."""
        assert self.model is not None
        assert self.num_segments is not None
        assert self.size is not None
        assert self.crop_ratio is not None
        if self.size < 64 or not 0 < self.crop_ratio <= 1:
            raise UserError(f"--size {self.size} must be at least 64, --crop-ratio {self.crop_ratio} in (0, 1]")
        frames = known_variant(self.model).frames_per_segment
        return ClipSpec(self.num_segments, frames, size=self.size, crop_ratio=self.crop_ratio)

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


def as_flags(config: Any, leave_out: tuple[str, ...] = ()) -> list[list[str]]:
    """The command line that gives a dataclass of flags its values: those that are not the defaults, a flag with its
    values each."""
    found = []
    for f in fields(config):
        value = getattr(config, f.name)
        if f.name in leave_out or value == f.default:
            continue
        flag = f.name.replace("_", "-")
        if isinstance(value, bool):
            found.append([f"--{'' if value else 'no-'}{flag}"])
        elif isinstance(value, tuple):
            found.append([f"--{flag}", *map(str, value)])
        else:
            found.append([f"--{flag}", str(value)])
    return found
