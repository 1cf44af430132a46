"""From flags to a finished export: what can be refused is refused before anything is written."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from tyro.conf import Positional

from engines import QUANTISED, EngineSpec, EngineUnavailable, quantisable
from pipelines.errors import printable
from pipelines.label_files import class_lines
from tdn_bench.cli import NetworkFlags, pick_device
from tdn_bench.cli.flags import MAX_CALIBRATION_CLIPS, MAX_SEGMENTS, SIZES, check_memory
from tdn_bench.cli.ranges import MAX_BATCH, check_ranges
from tdn_bench.cli.videos import named_videos
from tdn_bench.errors import UserError
from tdn_bench.exporting.clips import Clips, read_clips, synthetic_clips
from tdn_bench.exporting.formats import FORMATS, ExportFormat
from tdn_bench.exporting.job import (
    check_loaded,
    check_target,
    describe,
    description_file,
    input_of,
    notes_of,
    output_of,
    publish,
    staging,
)
from tdn_bench.exporting.triton import (
    Backend,
    Preprocessing,
    Repository,
    check_pipeline,
    clips_that_fit,
    why_not_there,
    write_repository,
)
from tdn_bench.recognizer import Trained, load_trained

DEFAULT_FOLDER = Path("runs/export")
TRITON_BATCH = 8
MAX_CHECK_CLIPS = 1000
_MODEL_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")


@dataclass(frozen=True, kw_only=True)
class Export:
    """Write a trained network to a file that other programs load, with a JSON beside it that says what goes in and
    what comes out. The written file is loaded anew by its own library and compared with the network in eager fp32. If
    it differs, the exit status is 1 and no file is left."""

    checkpoint: Positional[Path]
    """Trained weights, as `tdn-bench train` writes them (.safetensors)."""
    format: Literal["onnx", "openvino", "trt", "trt-rtx", "torch-export", "aoti", "triton"]
    """What to write. triton: a model repository for NVIDIA's Triton Inference Server."""
    precision: Literal["fp32", "tf32", "bf16", "fp16", "int8", "fp8"] = "fp32"
    """Precision of the network's arithmetic. int8 and fp8 need --calibrate-on."""
    batch_size: int | None = None
    """Clips that the file takes at a time, with --dynamic-batch at most. Default: 1, triton: 8."""
    dynamic_batch: bool = False
    """Let the file take every batch from 1 to --batch-size. triton always does."""
    output: Path | None = None
    """The file, or a folder for it; triton: the model repository. Default: below runs/export."""
    overwrite: bool = False
    """Replace what is there already."""
    check_on: tuple[str, ...] = ()
    """Videos to check the file on. Files, folders and quoted patterns, as predict takes them. Default: synthetic
    clips."""
    check_clips: int = 8
    """At most this many of them, spread over all."""
    calibrate_on: tuple[str, ...] = ()
    """For int8 and fp8. Videos of the kind that the network will see: files, folders and quoted patterns."""
    calibration_clips: int = 64
    """At most this many of them, spread over all."""
    exclude_layers: tuple[str, ...] = ()
    """Layers to leave in floating point with int8 and fp8."""
    device: str = "cpu"
    """What the file will run on: cpu, or cuda or cuda:1. It matters for aoti, torch-export and triton."""
    backend: Backend | None = None
    """triton: what runs the network there. Default: onnxruntime."""
    preprocessing: Preprocessing | None = None
    """triton: dali (default) decodes videos on the server, in an ensemble with the network. none is the network alone,
    which takes frames."""
    name: str | None = None
    """triton: the name that clients call. Default: the network's."""
    model: str | None = None
    """Network; `tdn-bench list` names them. Default: the checkpoint's, else tdn_resnet50."""
    num_segments: int | None = None
    """T, segments in a clip. Default: the checkpoint's, else the network's own."""
    size: int | None = None
    """Height and width of the input, in pixels. Default: the checkpoint's, else 224."""
    class_names: Path | None = None
    """File of class names, for a checkpoint that knows none (the authors'): one a line, in its order."""

    def check(self) -> None:
        """Raise UserError for a number that cannot be."""
        check_ranges(
            self,
            batch_size=(1, MAX_BATCH),
            check_clips=(1, MAX_CHECK_CLIPS),
            calibration_clips=(1, MAX_CALIBRATION_CLIPS),
            num_segments=(1, MAX_SEGMENTS),
            size=SIZES,
        )

    def load(self, device: torch.device) -> Trained:
        """The network of the checkpoint and of the flags that overrule it."""
        network = NetworkFlags(model=self.model, num_segments=self.num_segments, size=self.size)
        names = None if self.class_names is None else class_lines(self.class_names)
        return load_trained(self.checkpoint, network, device=device, classes=names)

    def plan(self) -> Plan:
        """Decide all that is open. Raises UserError, CheckpointError and EngineError for what cannot be."""
        self.check()
        is_triton = self.format == "triton"
        for flag in ("backend", "preprocessing", "name"):
            if getattr(self, flag) is not None and not is_triton:
                raise UserError(f"--{flag} goes with --format triton: leave it out")
        asked = pick_device(self.device)
        repository = Repository(
            self.name or "model", self.backend or "onnxruntime", self.preprocessing or "dali", asked
        )
        form = repository.format if is_triton else next(form for form in FORMATS if form.name == self.format)
        if self.precision not in form.precisions:
            what = f"--format {self.format}" + (f" --backend {repository.backend}" if is_triton else "")
            raise UserError(f"--precision {self.precision}: {what} has {', '.join(form.precisions)} only")
        device = form.device(asked)
        missing = form.why_unavailable(device) or (why_not_there(repository, self.precision) if is_triton else None)
        if missing is not None:
            raise EngineUnavailable(f"--format {self.format}: {missing}")
        dynamic = self.dynamic_batch or is_triton
        batch = self.batch_size or (TRITON_BATCH if is_triton else 1)
        if dynamic and batch < 2:
            raise UserError(f"--batch-size {batch}: with a dynamic batch it is the largest; give 2 or more")
        if self.exclude_layers and self.precision not in QUANTISED:
            raise UserError(f"--exclude-layers: {self.precision} quantises no layer; leave it out")
        if self.precision in QUANTISED and not self.calibrate_on:
            raise UserError(f"--precision {self.precision} is calibrated on clips: name some by --calibrate-on DIR")
        named_videos("--check-on", self.check_on)
        named_videos("--calibrate-on", self.calibrate_on)
        where = device if torch.cuda.is_available() else torch.device("cpu")  # TensorRT-RTX builds for absent GPUs
        trained = self.load(where)
        clip = trained.clip_spec()
        check_memory("batch_size", batch, clip)
        check_memory("check_clips", self.check_clips, clip)
        if self.precision in QUANTISED:
            check_memory("calibration_clips", self.calibration_clips, clip)
        spec = EngineSpec(
            clip.shape,
            batch,
            self.precision,
            str(device),
            dynamic_batch=dynamic,
            exclude_layers=self.exclude_layers,
        )
        quantisable(trained.classifier, self.exclude_layers)
        form.load_with(spec)  # or this machine has not the precision
        if is_triton:
            repository = Repository(
                self.name or trained.network.model, repository.backend, repository.preprocessing, asked
            )
        plan = Plan(self, form, spec, trained, repository if is_triton else None)
        check_target(plan.entries, self.overwrite)
        return plan


@dataclass(frozen=True)
class Plan:
    """An export with everything decided. `repository` is Triton's, None for a single file."""

    flags: Export
    form: ExportFormat
    spec: EngineSpec
    trained: Trained
    repository: Repository | None

    @cached_property
    def target(self) -> Path:
        """The file that is written; in a model repository the folder of the model that clients call. Raises UserError
        for a name that cannot be."""
        given = self.flags.output
        if self.repository is not None:
            name = self.repository.name
            if not _MODEL_NAME.fullmatch(name):
                raise UserError(f"--name {printable(name):.100}: use letters, digits, _, - and . only, at most 100")
            return (given or DEFAULT_FOLDER / "models") / name
        default = f"{self.trained.network.model}-{self.form.name}-{self.spec.precision}{self.form.suffix}"
        if given is None or given.is_dir():
            return (given or DEFAULT_FOLDER) / default
        if given.suffix != self.form.suffix:
            shown, form = printable(str(given)), self.form
            raise UserError(f"--output {shown}: {form.name} files end in {form.suffix}, and a folder must be there")
        return given

    @property
    def entries(self) -> list[Path]:
        """All files and folders that are written, the description last."""
        if self.repository is None:
            written = self.form.files(self.target)
        else:
            written = [self.target.parent / model for model in self.repository.models]
        return [*written, description_file(self.target)]

    def summary(self) -> str:
        """What was written, in a few words."""
        spec = self.spec
        batch = f"batch 1 to {spec.max_batch}" if spec.dynamic_batch else f"batch {spec.max_batch}"
        shape = " × ".join(map(str, spec.frames_shape))
        what: str = self.flags.format
        if self.repository is not None:
            what += f" ({', '.join(self.repository.models)})"
        return f"{what}, {spec.precision}, {batch} of uint8 frames {shape}, {len(self.trained.classes)} classes"

    def run(self) -> tuple[Path, list[str]]:
        """Write, check, describe and publish. Returns the description's file, and what was found in lines. Raises
        CheckFailed where the written file is not the network, and what the formats raise."""
        flags, spec, trained, repository = self.flags, self.spec, self.trained, self.repository
        with tempfile.TemporaryDirectory() as videos, staging(self.target) as folder:
            clips = self._check_clips(Path(videos))
            notes = notes_of(trained)
            if repository is None:
                file = folder / self.target.name
                added = self.form.write(trained.classifier, spec, self._calibration(), file, notes)
                written = {path.name: path for path in self.form.files(file)}
            else:
                file = repository.network_file(folder)
                added = write_repository(repository, trained, spec, self._calibration(), notes, folder)
                written = {str(p.relative_to(folder)): p for p in sorted(folder.rglob("*")) if p.is_file()}
            checked = check_loaded(self.form.load(file, spec), trained, spec, clips)
            lines = checked.lines()
            about: dict[str, Any] = {
                "format": flags.format,
                "inputs": [input_of(spec)],
                "outputs": [output_of(trained, spec)],
                "load_with": self.form.load_with(spec),
                **added,
            }
            if repository is not None:
                about |= repository.described(trained.clip_spec(), about["inputs"])
                if repository.is_ensemble:
                    fit = clips_that_fit(repository, clips) or self._synthetic(Path(videos))
                    lines.append(check_pipeline(repository, folder, fit, trained.clip_spec()))
                    about["pipeline_check"] = lines[-1]
            description = describe(trained, spec, about, written, checked)
            entries = [str(path.relative_to(self.target.parent)) for path in self.entries[:-1]]
            return publish(folder, entries, self.target, description), lines

    def _check_clips(self, folder: Path) -> Clips:
        flags, clip = self.flags, self.trained.clip_spec()
        if not flags.check_on:
            return self._synthetic(folder)
        return read_clips("--check-on", flags.check_on, clip, flags.check_clips)

    def _synthetic(self, folder: Path) -> Clips:
        return synthetic_clips(self.trained.clip_spec(), self.flags.check_clips, folder)

    def _calibration(self) -> Sequence[Tensor] | None:
        flags, clip = self.flags, self.trained.clip_spec()
        if self.spec.precision not in QUANTISED:
            return None
        return read_clips("--calibrate-on", flags.calibrate_on, clip, flags.calibration_clips).frames.split(8)
