"""Do all engines compute what the network computes, in every precision, and what does a precision cost in accuracy?

Each is compared with eager float32 on the same videos.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engines import (
    ENGINES,
    QUANTISED,
    EngineSpec,
    create_engine,
    exact_float32,
    quantisable,
    supported_precisions,
    why_unavailable,
)
from pipelines.clip import ClipBatch
from pipelines.manifest import Manifest
from pipelines.sampling import evenly_spaced
from tdn_bench.cli import BuildFlags, DataFlags, LoaderFlags, Network, NetworkFlags, calibration_clips, pick_device
from tdn_bench.cli.ranges import MAX_BATCH, check_ranges
from tdn_bench.correctness.engine_check import reference_spec
from tdn_bench.correctness.evaluation import score
from tdn_bench.correctness.layer_parity import LayerParity, per_layer
from tdn_bench.correctness.logits import LogitComparison, compare_logits
from tdn_bench.correctness.scores import Scores
from tdn_bench.errors import UserError
from tdn_bench.models import FrameClassifier

# Columns of the table after the engine's name, and their widths.
COLUMNS = {
    "precision": 10,
    "largest": 10,
    "same class": 12,
    "rank corr.": 12,
    "top-1 %": 9,
    "top-5 %": 9,
    "built in s": 12,
}
TABLE_HEAD = f"{'engine':10s}" + "".join(f"{title:>{width}s}" for title, width in COLUMNS.items())


@dataclass(frozen=True, kw_only=True)
class Engines:
    """Compare every engine and precision with eager float32: logits, class, and accuracy on labelled videos. The exit
    status is 1 if an engine does not compute what the network computes."""

    network: NetworkFlags = field(default_factory=NetworkFlags)
    data: DataFlags = field(default_factory=DataFlags)
    loader: LoaderFlags = field(default_factory=LoaderFlags)
    build: BuildFlags = field(default_factory=BuildFlags)
    engines: tuple[str, ...] = ()
    """Which engines; default: all that are ready here (`tdn-bench doctor`)."""
    precisions: tuple[str, ...] = ()
    """Which precisions; default: all that the engine has."""
    subset: str = "validation"
    """Which videos."""
    limit: int = 256
    """At most this many of them, spread over the split."""
    batch_size: int = 4
    """Clips that an engine takes at a time."""
    per_layer: bool = False
    """Also compare the output of every layer, on one batch; in int8 and fp8 also what each layer alone costs."""
    device: str = "auto"
    """cuda, cuda:1 or cpu. auto: a GPU if there is one."""
    results: Path | None = None
    """Also write a record to this folder."""

    def check(self) -> None:
        """Raise UserError for a number that cannot be."""
        check_ranges(self, batch_size=(1, MAX_BATCH), limit=(1, 1_000_000))


@dataclass(frozen=True)
class EngineResult:
    """One engine in one precision beside eager float32. `accuracy` is empty where weights are fresh."""

    engine: str
    precision: str
    comparison: LogitComparison
    accuracy: dict[str, float]
    build_s: float

    def figures(self) -> dict[str, Any]:
        """As records hold them."""
        return asdict(self.comparison) | self.accuracy | {"build_s": self.build_s}

    def row(self) -> str:
        """A line below TABLE_HEAD, with the fault where there is one."""
        c = self.comparison
        row = f"{self.engine:10s}{self.precision:>10s}{c.max_difference:10.1e}{c.top1_percent:10.1f} %"
        row += f"{c.rank_correlation:12.4f}"
        row += "".join([f"{value:9.2f}" for value in self.accuracy.values()] or [f"{'–':>9s}"] * 2)
        row += f"{self.build_s:12.1f}"
        fault = c.fault()
        return f"{row}  not the network: {fault}" if fault else row


@dataclass(frozen=True)
class EngineParity:
    """What engines are compared on: a network, batches of clips, and eager float32's scores of them."""

    config: Engines
    device: torch.device
    chosen: list[tuple[str, str]]  # engines and precisions
    network: Network
    classifier: FrameClassifier
    manifest: Manifest
    batches: list[ClipBatch]
    reference: Scores

    @property
    def accuracy(self) -> dict[str, float]:
        """Eager float32's."""
        return self._accuracy(self.reference)

    @cached_property
    def _calibration(self) -> list[Tensor] | None:
        config = self.config
        clips, workers = self.network.clip_spec(), config.data.workers
        return calibration_clips(QUANTISED[0], self.manifest, clips, config.build, config.loader, workers)

    def calibration(self, precision: str) -> list[Tensor] | None:
        """Batches of uint8 frames (B, T, L, H, W, C) for a precision that is calibrated. Raises UserError where there
        are none."""
        return self._calibration if precision in QUANTISED else None

    def compare(self, engine: str, precision: str) -> EngineResult:
        """Build an engine, and compare its logits. Raises what `create_engine` raises."""
        spec, calibration = self._spec(precision), self.calibration(precision)
        cache = self.config.build.engine_cache
        with create_engine(engine, self.classifier, spec, calibration=calibration, cache=cache) as built:
            found, build_s = score(built, self.batches), built.build_s
        comparison = compare_logits(found.logits[:, 0], self.reference.logits[:, 0], precision)
        return EngineResult(engine, precision, comparison, self._accuracy(found), build_s)

    def compare_layers(self, engine: str, precision: str) -> LayerParity:
        """Compare every layer's output, on the first batch. Raises what `create_engine` raises."""
        frames, calibration = self.batches[0].frames, self.calibration(precision)
        return per_layer(engine, self.classifier, self._spec(precision), frames, calibration)

    def _spec(self, precision: str) -> EngineSpec:
        return _engine_spec(self.config, self.network, precision, self.device)

    def _accuracy(self, scores: Scores) -> dict[str, float]:
        labelled = self.network.checkpoint is not None
        return {f"accuracy_top{k}_percent": scores.top(k) for k in (1, 5)} if labelled else {}

    def headline(self) -> str:
        """What is compared, and the reference's accuracy."""
        tops = ", ".join(f"top-{k} {self.reference.top(k):.2f} %" for k in (1, 5))
        accuracy = f", {tops}" if self.network.checkpoint is not None else " (fresh weights: no accuracy)"
        return f"{self.network.model} on {len(self.reference.ids)} videos, eager fp32{accuracy}"


def _engine_spec(config: Engines, network: Network, precision: str, device: torch.device) -> EngineSpec:
    build = config.build if precision in QUANTISED else replace(config.build, exclude_layers=())
    return build.spec(network.clip_spec(), config.batch_size, precision, device)


def open_engine_parity(config: Engines) -> EngineParity:
    """Decide what the flags leave open, read the videos and run the reference. Raises UserError for a flag that cannot
    be, DataError for what is wrong with the data set, CheckpointError, and EngineError for a layer that is none."""
    config.check()
    network, device = config.network.resolve(), pick_device(config.device)
    chosen = choose(config.engines, config.precisions, str(device))
    exact_float32()
    manifest = config.data.open()
    videos = manifest.split(config.subset)
    if not videos:
        raise UserError(f"--subset {config.subset}: {manifest.name} has no such videos")
    videos = evenly_spaced(videos, config.limit)
    classifier = network.build(manifest.classes, device)
    quantisable(
        classifier, config.build.exclude_layers
    )  # a name that is no layer's is a mistake, not an engine's failure
    clips, workers = network.clip_spec(), config.data.workers
    with config.loader.open(videos, clips, config.batch_size, device=device, workers=workers) as loader:
        batches = list(loader.epoch())
    spec = reference_spec(_engine_spec(config, network, "fp32", device))
    with create_engine("eager", classifier, spec) as eager:
        reference = score(eager, batches)
    return EngineParity(config, device, chosen, network, classifier, manifest, batches, reference)


def choose(engines: Sequence[str], precisions: Sequence[str], device: str) -> list[tuple[str, str]]:
    """The engines and precisions to compare on `device`; of none named, all that are ready there. Raises UserError for
    one that does not exist, or cannot be built here."""
    for name in engines:
        if (reason := why_unavailable(name, device)) is not None:
            raise UserError(f"--engines {name}: {reason}")
    names = engines or [name for name in ENGINES if why_unavailable(name, device) is None]
    pairs = [(name, p) for name in names for p in supported_precisions(name, device)]
    pairs = [(name, p) for name, p in pairs if not precisions or p in precisions]
    if not pairs:
        raise UserError(f"--precisions {' '.join(precisions)}: none of {', '.join(names)} has them on {device}")
    return pairs
