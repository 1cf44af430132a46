"""Flags that several commands share, a small dataclass each: which data, which loader, which network, which engine.

A command's dataclass is composed of them (`tdn_bench.cli.parse` leaves their names out of the flags). What is optional
on the command line is resolved once: `NetworkFlags.resolve` gives a `Network` in which nothing is left open.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from tyro.conf import arg

from engines import EngineSpec, default_cache_dir
from pipelines.annotations import DATASET_NAMES, Annotations, read_dataset, read_lists
from pipelines.clip import ClipSpec
from pipelines.errors import printable
from pipelines.limiting import limit_annotations, limit_manifest
from pipelines.loader import BadClipPolicy, ClipLoader, OnBadClip
from pipelines.manifest import Manifest, Videos, build_manifest, default_cache
from pipelines.processes import max_workers
from pipelines.reading import Level
from pipelines.repeats import each_once
from pipelines.video import SPLITS
from tdn_bench.checkpoint import known_classes, load_checkpoint, match_classes, read_metadata
from tdn_bench.cli.settings import check_range, flag
from tdn_bench.errors import UserError
from tdn_bench.hub import local_checkpoint
from tdn_bench.models import FrameClassifier, Variant, create_model, find_variant

# A type checker wants literals written out; what may be typed is what the readers of annotations list.
if TYPE_CHECKING:
    DatasetName = str
    Source = str
else:
    DatasetName = Literal[DATASET_NAMES]
    Source = Literal[(*DATASET_NAMES, "lists")]


MAX_SEGMENTS = 1024
SIZES = 64, 4096  # pixels
CROP_RATIOS = 0.1, 1.0
MAX_CALIBRATION_CLIPS = 100_000
MAX_LIMIT = 10**9


def check_memory(name: str, clips: int, spec: ClipSpec) -> None:
    """Raise UserError unless the flag's number of clips is at least 1 and their frames fit this machine's memory as
    float32, as a network reads them."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if clips < 1:
        raise UserError(f"{flag(name)} {clips}: must be at least 1")
    if (needed := 4 * clips * math.prod(spec.shape)) > memory:
        raise UserError(
            f"{flag(name)} {clips}: clips of {spec.num_segments} × {spec.frames_per_segment} frames of {spec.size}² "
            f"pixels would take {needed / 1e9:.3g} GB of {memory / 1e9:.3g}; use fewer, --num-segments or --size"
        )


@dataclass(frozen=True, kw_only=True)
class DataFlags:
    """Which videos."""

    dataset: DatasetName = "sthv2"
    """How --data is organised and annotated."""
    data: Path | None = None
    """The data set's folder, as it is distributed."""
    split: int = 1
    """Which official split: 1, 2 or 3 of UCF101 and HMDB51; of folders that say no split, which of three draws."""
    labels: Path | None = None
    """Folder of the annotation files, if they are not below --data."""
    manifest: Path | None = None
    """A manifest that `tdn-bench prepare` wrote, instead of annotations. Nothing is scanned. If the videos have moved,
    --data says where they are now."""
    train_list: Path | None = None
    """The authors' list of training videos or frame folders, instead of annotations: `path num_frames label` or `path
    label` on each line. Paths are relative to --data, or to the list."""
    val_list: Path | None = None
    """The list of validation videos, together with --train-list."""
    class_names: Path | None = None
    """With lists: a text file with one class name per line."""
    allow_outside: bool = False
    """Also take videos that absolute paths, `..` or links look for outside of the data set's folder."""
    workers: int | None = None
    """Decoding threads and scanning processes; default: one per core."""

    @property
    def named(self) -> bool:
        """Whether the flags name any videos at all."""
        return any(source is not None for source in (self.data, self.manifest, self.train_list))

    def check(self) -> None:
        """Raise UserError for a number that cannot be."""
        check_range("workers", self.workers, 1, max_workers())
        check_range("split", self.split, 1, 3)

    def open(self, progress: bool = True, limit: int | None = None) -> Manifest:
        """What `open_as_listed` gives, with each video of validation and test once; training may want repeats. With a
        `limit` at most so many videos of each split. Says on stderr how lists and folders were read, and what a limit
        leaves."""
        listed = self.open_as_listed(progress, say=lambda note: print(note, file=sys.stderr), limit=limit)
        manifest = counted_once(listed, SPLITS[1:])
        if manifest.whole:
            parts = [f"{len(manifest.split(name)):,} of {n:,} {name}" for name, n in manifest.whole.items()]
            print(f"--limit {limit}: only {', '.join(parts)} videos; all figures are of these alone", file=sys.stderr)
        return manifest

    def open_as_listed(
        self,
        progress: bool = True,
        say: Callable[[str], object] = str,
        level: Level = "sample",
        limit: int | None = None,
    ) -> Manifest:
        """Read the annotations and scan their videos (remembered across runs), or open a manifest. Raises UserError
        for flags that exclude each other, DataError for what is wrong with the files. `say` takes how lists were
        read."""
        self.check()
        if self.manifest is not None:
            if self.train_list is not None or self.val_list is not None:
                raise UserError("--manifest and lists exclude each other: a manifest holds all splits")
            opened = Manifest.open(self.manifest, self.data)
            return opened if limit is None else limit_manifest(opened, limit)
        annotations, whole = self.annotations(), dict[str, int]()
        if limit is not None:
            annotations, whole = limit_annotations(annotations, limit)
        for note in annotations.notes:
            say(printable(note))
        cache = default_cache(annotations.root)
        manifest = build_manifest(annotations, cache=cache, workers=self.workers, progress=progress, level=level)
        return replace(manifest, whole=whole)

    def annotations(self) -> Annotations:
        """What the annotation files say."""
        if self.train_list is not None and self.val_list is not None:
            return read_lists(
                self.train_list,
                self.val_list,
                root=self.data,
                classes=self.class_names,
                allow_outside=self.allow_outside,
            )
        if self.train_list is not None or self.val_list is not None:
            raise UserError("--train-list and --val-list go together")
        if self.data is None:
            raise UserError("no data set named; use --data DIR, --manifest FILE, or --train-list and --val-list")
        return read_dataset(
            self.dataset, self.data, split=self.split, labels=self.labels, allow_outside=self.allow_outside
        )


@dataclass(frozen=True, kw_only=True)
class LimitFlags:
    """How many of the videos."""

    limit: int | None = None
    """For a quick try: take at most so many videos of each split, spread evenly over it. All figures are then of these
    alone, as is said with them."""

    def check(self) -> None:
        """Raise UserError for a number that cannot be."""
        check_range("limit", self.limit, 1, MAX_LIMIT)


@dataclass(frozen=True, kw_only=True)
class SourceFlags:
    """Where a data set lies, and what annotates it."""

    root: Annotated[Path | None, arg(aliases=("--data",))] = None
    """The data set's folder, as it is distributed; of lists: the folder that their paths are relative to."""
    split: int = 1
    """Which official split: 1, 2 or 3 of UCF101 and HMDB51; of folders that say no split, which of three draws."""
    labels: Path | None = None
    """Folder of the annotation files, if they are not below --root."""
    train_list: Path | None = None
    """For lists: the authors' list of training videos or frame folders, `path num_frames label` or `path label` on
    each line."""
    val_list: Path | None = None
    """For lists: the list of validation videos."""
    class_names: Path | None = None
    """For lists: a text file with one class name per line."""
    allow_outside: bool = False
    """Also take videos that absolute paths, `..` or links look for outside of --root."""
    decode: Level = "sample"
    """How much of each video the scan decodes. sample: a few frames at its start and from its last key frame on, and
    all of a file where these are not what the container says. all: every frame, and once more from every key frame.
    It finds damage anywhere, and takes some ten times as long."""
    workers: int | None = None
    """Scanning processes; default: one per core."""

    def check(self) -> None:
        """Raise UserError for a number that cannot be."""
        check_range("workers", self.workers, 1, max_workers())
        check_range("split", self.split, 1, 3)

    def open(self, source: Source) -> Manifest:
        """Read the annotations, saying how, and scan their videos (remembered across runs)."""
        lists = self.train_list, self.val_list
        if source == "lists" and None in lists:
            raise UserError("lists: name both by --train-list FILE and --val-list FILE")
        if source != "lists" and lists != (None, None):
            raise UserError(
                f"{source} reads its own annotations; for --train-list and --val-list say lists in its place"
            )
        if source != "lists" and self.root is None:
            raise UserError(f"{source}: say where it lies by --root DIR")
        return DataFlags(
            dataset=source if source != "lists" else DATASET_NAMES[0],
            data=self.root,
            split=self.split,
            labels=self.labels,
            train_list=self.train_list,
            val_list=self.val_list,
            class_names=self.class_names,
            allow_outside=self.allow_outside,
            workers=self.workers,
        ).open_as_listed(say=print, level=self.decode)


@dataclass(frozen=True, kw_only=True)
class LoaderFlags:
    """What decodes the videos, and what a bad one does."""

    backend: Literal["auto", "pyav", "dali"] = "auto"
    """Video loader: DALI on a GPU, PyAV without one."""
    on_bad_clip: OnBadClip = "skip"
    """What to do with a video that cannot be used. error: end the run. skip: leave it out (training takes a replacement
    sample), count it and list it."""
    max_bad_share: float = 0.01
    """End the run if more than this share of a split's videos cannot be used."""
    verify_checksums: bool = False
    """Compare every file that is read with the checksum from its scan."""

    def check(self) -> None:
        """Raise UserError for a number that cannot be."""
        check_range("max_bad_share", self.max_bad_share, 0, 1)

    def policy(self, log: Path | None = None) -> BadClipPolicy:
        """The flags as the loader takes them; `log` lists the bad clips."""
        self.check()
        return BadClipPolicy(self.on_bad_clip, self.max_bad_share, self.verify_checksums, log)

    def open(
        self,
        videos: Videos,
        spec: ClipSpec,
        batch_size: int,
        *,
        device: torch.device,
        workers: int | None,
        policy: BadClipPolicy | None = None,
        **training: Any,
    ) -> ClipLoader:
        """The one way from flags to a loader. `training` are ClipLoader's arguments for seeds, ranks, labels and the
        ledger. Raises UserError for a batch that the memory does not hold."""
        check_range("workers", workers, 1, max_workers())
        check_memory("batch_size", batch_size, spec)
        return ClipLoader(
            videos,
            spec,
            batch_size,
            backend=self.backend,
            device=device,
            workers=workers,
            policy=policy or self.policy(),
            **training,
        )


@dataclass(frozen=True, kw_only=True)
class BuildFlags:
    """How engines are built."""

    dynamic_batch: Annotated[bool, arg(aliases=("--ranged",))] = False
    """Build for every batch size up to the largest, so that a smaller batch costs less."""
    rewrite: bool = True
    """Let the network rewrite itself for inference. Logits stay the same up to rounding."""
    exclude_layers: Annotated[tuple[str, ...], arg(aliases=("--keep",))] = ()
    """Layers to leave in floating point with int8 and fp8. `tdn-bench parity engines --per-layer` names those that
    matter."""
    calibration_clips: int = 64
    """Training clips used to calibrate int8 and fp8."""
    cache: bool = True
    """Reuse engines that were built before, and keep those that are built now."""
    cache_dir: Annotated[Path | None, arg(aliases=("--cache-folder",))] = None
    """Where built engines are kept; default: ~/.cache/tdn_bench/engines."""

    def check(self) -> None:
        """Raise UserError for a number that cannot be."""
        check_range("calibration_clips", self.calibration_clips, 1, MAX_CALIBRATION_CLIPS)

    @property
    def engine_cache(self) -> Path | None:
        """The folder of the engine cache, None for none."""
        return (self.cache_dir or default_cache_dir()) if self.cache else None

    def spec(self, clips: ClipSpec, max_batch: int, precision: str, device: torch.device) -> EngineSpec:
        """The flags as engines take them."""
        return EngineSpec(
            clips.shape,
            max_batch,
            precision,
            str(device),
            dynamic_batch=self.dynamic_batch,
            rewrite=self.rewrite,
            exclude_layers=self.exclude_layers,
        )


@dataclass(frozen=True)
class Network:
    """A network, its weights and its clips, all decided."""

    checkpoint: Path | None  # without one, weights are fresh (seed 0)
    model: str
    num_segments: int
    size: int
    crop_ratio: float

    def clip_spec(self) -> ClipSpec:
        """The clips that it reads."""
        frames = known_variant(self.model).frames_per_segment
        return ClipSpec(self.num_segments, frames, size=self.size, crop_ratio=self.crop_ratio)

    def build(self, classes: Sequence[str], device: torch.device) -> FrameClassifier:
        """The network on `device`, in eval mode, for a data set's classes in their order. A line on stderr says where
        the checkpoint's had to be matched to them. Raises UserError for a T that it does not take, CheckpointError for
        a checkpoint that is not its own or knows other classes."""
        torch.manual_seed(0)
        try:
            network = create_model(self.model, num_classes=len(classes), num_segments=self.num_segments)
        except ValueError as e:
            raise UserError(str(e)) from e
        if self.checkpoint is not None:
            report = load_checkpoint(network, local_checkpoint(self.checkpoint), classes)
            if report.class_note is not None:
                print(report.class_note, file=sys.stderr)
        return FrameClassifier(network).to(device).eval()

    def class_details(self, classes: Sequence[str]) -> dict[str, str]:
        """What a record says where the checkpoint's classes had to be matched to a data set's; else nothing. Raises
        CheckpointError as `build` does."""
        if self.checkpoint is None:
            return {}
        known = known_classes(read_metadata(local_checkpoint(self.checkpoint)), self.checkpoint)
        note = match_classes(known, classes, self.checkpoint.name).note
        return {} if note is None else {"class_match": note}


@dataclass(frozen=True, kw_only=True)
class NetworkFlags:
    """Which network, on which clips. What is left out comes from the checkpoint, else from the defaults."""

    checkpoint: Path | None = None
    """Trained weights: this project's (.safetensors) or the authors' (.pth.tar); hf-hub:user/repo and local-dir:PATH
    are those that `tdn-bench push` has shared."""
    model: str | None = None
    """Network; `tdn-bench list` names them. Default: the checkpoint's, else tdn_resnet50."""
    num_segments: int | None = None
    """T, segments in a clip. Default: the checkpoint's, else the network's own (8; I3D: 32)."""
    size: int | None = None
    """Height and width of the input, in pixels. Default: the checkpoint's, else 224."""
    crop_ratio: float | None = None
    """Share of the short side that the centre crop keeps. Default: the checkpoint's, else 224/256."""

    def check(self) -> None:
        """Raise UserError for a number that no network takes."""
        check_range("num_segments", self.num_segments, 1, MAX_SEGMENTS)
        check_range("size", self.size, *SIZES)
        check_range("crop_ratio", self.crop_ratio, *CROP_RATIOS)

    def resolve(self) -> Network:
        """Fill what was left open. Raises UserError for an unknown network, for a number that none takes, and for a
        checkpoint whose notes are not what they should be."""
        notes: dict[str, Any] = {}
        if self.checkpoint is not None:
            notes = read_metadata(local_checkpoint(self.checkpoint))

        def first(name: str, default: Any, *kinds: type) -> Any:
            if (given := getattr(self, name)) is not None:
                return given
            value = notes.get(name, default)
            if type(value) not in kinds:  # not isinstance: True is no number of segments
                raise UserError(f"{self.checkpoint}: gives {name} as {value!r}; set the right value with {flag(name)}")
            return value

        model = first("model", "tdn_resnet50", str)
        segments = first("num_segments", known_variant(model).num_segments, int)
        size, ratio = first("size", 224, int), float(first("crop_ratio", 224 / 256, int, float))
        check_range("num_segments", segments, 1, MAX_SEGMENTS)
        check_range("size", size, *SIZES)
        check_range("crop_ratio", ratio, *CROP_RATIOS)
        return Network(self.checkpoint, model, segments, size, ratio)


def counted_once(manifest: Manifest, splits: Sequence[str]) -> Manifest:
    """The manifest with each video of these splits once; a line on stderr says what that leaves out. Raises DataError
    for a video with two labels."""
    manifest, repeats = each_once(manifest, splits)
    if repeats:
        entries = "1 repeated entry" if repeats == 1 else f"{repeats} repeated entries"
        why = "so that each video counts once; `tdn-bench doctor` names them"
        print(f"{entries} of {' and '.join(splits)} left out, {why}", file=sys.stderr)
    return manifest


def known_variant(model: str) -> Variant:
    """What a --model is. Raises UserError for an unknown name."""
    try:
        return find_variant(model)
    except ValueError as e:
        raise UserError(f"--model: {e}") from e
