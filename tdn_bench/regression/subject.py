"""What a worker times, of this checkout's code. The worker may be another checkout's: it relies on `Subject`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any

from torch import Tensor

from engines import Engine
from pipelines.ledger import Ledger
from pipelines.loader import ClipLoader
from pipelines.sampling import evenly_spaced
from tdn_bench.cli import WorkloadFlags, parse
from tdn_bench.correctness.engine_check import checked_engine
from tdn_bench.recipes import Optimization
from tdn_bench.training.step import TrainStep, resolve_precision


class Subject:
    """The workload that flags name, with a loader of at most `videos` videos, spread over the split."""

    def __init__(self, flags: Sequence[str], videos: int) -> None:
        self._workload = workload = parse(WorkloadFlags, list(flags), "throughput").resolve()
        self._manifest = workload.open_data(progress=False)
        self._split = self._manifest.split(workload.subset)
        self._open = ExitStack()  # what stays open until the process ends
        self.device, self.has_engine = workload.device, workload.engine != "none"
        self.ledger = Ledger(self.device)
        self.loader = workload.open_loader(evenly_spaced(self._split, videos), self.ledger)
        self.data_digest = self._manifest.digest()
        self.facts = workload.network.class_details(self._manifest.classes) if self.has_engine else {}

    def whole(self) -> ClipLoader:
        """A loader of the whole split."""
        return self._workload.open_loader(self._split, self.ledger)

    def engine(self, clips: list[Tensor]) -> tuple[Engine, dict[str, Any]]:
        """The engine, and how far it is from eager float32 on `clips`, batches of uint8 (B, T, L, H, W, C)."""
        workload = self._workload
        engine, comparison = self._open.enter_context(
            checked_engine(
                workload.engine,
                workload.network.build(self._manifest.classes, self.device),
                workload.engine_spec(),
                clips,
                calibration=workload.calibration(self._manifest),
                cache=workload.build.engine_cache,
            )
        )
        return engine, asdict(comparison)

    def train_step(self) -> Callable[[Tensor, Tensor], object]:
        """One optimisation step, of uint8 frames (B, T, L, H, W, C) and labels (B,)."""
        classifier = self._workload.network.build(self._manifest.classes, self.device).train()
        precision = resolve_precision("auto", self.device)
        step = TrainStep(classifier, Optimization(lr=1e-6), precision, self.device)
        return lambda frames, labels: step(frames, labels, 0.0)
