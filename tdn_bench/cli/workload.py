"""A workload: one network, by one engine, on the videos of one split. What is measured, compared and served."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from engines import (
    ENGINES,
    QUANTISED,
    EngineSpec,
    EngineUnavailable,
    default_precision,
    supported_precisions,
    why_unavailable,
)
from pipelines.clip import ClipSpec
from pipelines.ledger import OFF, Ledger
from pipelines.loader import ClipLoader
from pipelines.manifest import Manifest, Videos
from pipelines.sampling import evenly_spaced
from tdn_bench.cli.device import pick_device
from tdn_bench.cli.flags import BuildFlags, DataFlags, LimitFlags, LoaderFlags, Network, NetworkFlags, check_memory
from tdn_bench.cli.ranges import MAX_BATCH, check_ranges
from tdn_bench.errors import UserError

# A type checker wants literals written out; what may be typed is what the registry of engines lists.
if TYPE_CHECKING:
    EngineName = str
else:
    EngineName = Literal[(*ENGINES, "none")]
Precision = Literal["auto", "fp32", "tf32", "bf16", "fp16", "int8", "fp8"]
SYNTHETIC_DATA = Path("runs/synthetic")
CALIBRATION_BATCH = 8


@dataclass(frozen=True, kw_only=True)
class WorkloadFlags:
    """One network, run by one engine, on the videos of one split. Without --data, a small synthetic set is rendered
    once. Without --checkpoint, weights are random and no accuracy is stated."""

    engine: EngineName = "eager"
    """What runs the network; `none` measures the loader alone. `tdn-bench doctor` says which engines are ready."""
    precision: Precision = "auto"
    """Precision of the network's arithmetic. auto: fp32 on a CPU, fp16 on a GPU."""
    subset: Literal["train", "validation"] = "validation"
    """Which videos of the data set."""
    batch_size: int = 16
    """Videos in a batch (16 in the paper's Table 5)."""
    device: str = "auto"
    """cuda, cuda:1 or cpu. auto: a GPU if there is one."""
    network: NetworkFlags = field(default_factory=NetworkFlags)
    data: DataFlags = field(default_factory=DataFlags)
    part: LimitFlags = field(default_factory=LimitFlags)
    loader: LoaderFlags = field(default_factory=LoaderFlags)
    build: BuildFlags = field(default_factory=BuildFlags)

    def check(self) -> None:
        """Raise UserError for a number that cannot be."""
        check_ranges(self, batch_size=(1, MAX_BATCH))

    def resolve(self) -> Workload:
        """Decide all that depends on the checkpoint, the machine or missing data. Raises UserError for a flag that
        cannot be, EngineUnavailable for an engine that is not ready here: before any video is rendered or read."""
        for flags in (self, self.data, self.part, self.build, self.loader):
            flags.check()
        if self.engine not in (*ENGINES, "none"):
            raise UserError(f"unknown engine {self.engine!r}; choose one of {', '.join(ENGINES)}, none")
        device, precision = self._device(), self.precision
        if self.engine != "none" and (reason := why_unavailable(self.engine, str(device))) is not None:
            raise EngineUnavailable(f"engine {self.engine!r} on {device}: {reason}")
        if precision == "auto":
            precision = "fp32" if self.engine == "none" else default_precision(self.engine, str(device))  # type: ignore[assignment]
        elif self.engine != "none" and precision not in (known := supported_precisions(self.engine, str(device))):
            what = f"engine {self.engine!r} has no {precision} on {device}"
            raise EngineUnavailable(f"{what}; choose one of {', '.join(known)} by --precision")
        network = self.network.resolve()
        check_memory("batch_size", self.batch_size, network.clip_spec())
        data = self.data
        if not data.named:
            from pipelines.synthetic import make_dataset

            print(f"no --data: measuring on synthetic videos in {SYNTHETIC_DATA}", file=sys.stderr)
            data = replace(data, data=make_dataset(SYNTHETIC_DATA, train=8, validation=64, workers=data.workers))
        return Workload(
            engine=self.engine,
            precision=precision,
            subset=self.subset,
            batch_size=self.batch_size,
            device=device,
            network=network,
            data=data,
            part=self.part,
            loader=self.loader,
            build=self.build,
        )

    def _device(self) -> torch.device:
        if self.device == "auto" and self.engine == "openvino":
            return torch.device("cpu")  # OpenVINO does not run on NVIDIA's GPUs
        return pick_device(self.device)


@dataclass(frozen=True, kw_only=True)
class Workload:
    """`WorkloadFlags` with everything decided."""

    engine: str
    precision: str
    subset: str
    batch_size: int
    device: torch.device
    network: Network
    data: DataFlags
    part: LimitFlags
    loader: LoaderFlags
    build: BuildFlags

    def clip_spec(self) -> ClipSpec:
        """The clips that the network reads."""
        return self.network.clip_spec()

    def open_data(self, progress: bool = True) -> Manifest:
        """The videos."""
        return self.data.open(progress, self.part.limit)

    def engine_spec(self) -> EngineSpec:
        """What the engine is built for."""
        return self.build.spec(self.clip_spec(), self.batch_size, self.precision, self.device)

    def open_loader(self, videos: Videos, ledger: Ledger = OFF, **options: Any) -> ClipLoader:
        """A loader of `videos` as the flags say; `options` are `LoaderFlags.open`'s."""
        return self.loader.open(
            videos,
            self.clip_spec(),
            self.batch_size,
            device=self.device,
            workers=self.data.workers,
            ledger=ledger,
            **options,
        )

    def calibration(self, manifest: Manifest) -> Sequence[Tensor] | None:
        """Batches of uint8 frames (B, T, L, H, W, C) for a precision that is calibrated, else None."""
        return calibration_clips(self.precision, manifest, self.clip_spec(), self.build, self.loader, self.data.workers)


def calibration_clips(
    precision: str, manifest: Manifest, spec: ClipSpec, build: BuildFlags, loader: LoaderFlags, workers: int | None
) -> list[Tensor] | None:
    """Batches of uint8 frames (B, T, L, H, W, C) for a precision that needs them, from the middle of training videos
    spread over the whole split (the validation split where there is no training split). Raises UserError where there
    are none."""
    if precision not in QUANTISED:
        return None
    build.check()
    check_memory("calibration_clips", build.calibration_clips, spec)
    videos = manifest.split("train") or manifest.split("validation")
    if not videos:
        raise UserError(f"{precision} is calibrated on videos, of which {manifest.name} has none")
    chosen = evenly_spaced(videos, build.calibration_clips)
    policy = replace(loader.policy(), max_share=0.5)  # of a few clips
    with loader.open(
        chosen, spec, CALIBRATION_BATCH, device=torch.device("cpu"), workers=workers, policy=policy
    ) as clips:
        return [batch.frames for batch in clips.epoch()]
