"""How the steps of a run do: losses, gradients, where the time goes, and what to do where they are not finite.

What steps come to stays on the device, and is read every LOOK_EVERY steps.
"""

from __future__ import annotations

import os
import resource
import socket
import statistics
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from math import isfinite
from pathlib import Path

import torch

from pipelines.errors import DataError, printable
from pipelines.loader import ClipLoader
from tdn_bench.checkpoint import write_tensors
from tdn_bench.errors import UserError
from tdn_bench.measurement.gpu_monitor import GpuMonitor
from tdn_bench.measurement.interference import Watch
from tdn_bench.measurement.peak_flops import device_peak
from tdn_bench.measurement.throughput import MIN_BATCHES, MIN_SECONDS
from tdn_bench.models.complexity import measure
from tdn_bench.recipes import Recipe
from tdn_bench.training.clock import PARTS
from tdn_bench.training.distributed import Ranks, gather, mean_over
from tdn_bench.training.progress import StepLog
from tdn_bench.training.result import EpochHealth, StepFigures
from tdn_bench.training.run_state import WAY_OUT, Partial
from tdn_bench.training.step import StepOutcome, TrainStep

LOOK_EVERY = 20  # steps: reading what they came to waits for the device
NAMED_VIDEOS = 8  # in a message; the file names all


class NonFiniteSteps(Exception):
    """Too many steps came to nothing; `step` of its epoch, counted from 0, is the last of them."""

    def __init__(self, step: int, why: str) -> None:
        super().__init__(why)
        self.step = step


def note_steps(
    partial: Partial, losses: Sequence[float], norms: Sequence[float], *, scaled: bool, steps: int, most: int
) -> Partial:
    """`partial` with the losses and gradient norms of the steps that follow.

    Raises NonFiniteSteps at the step with which `most` in a row, or all `steps` of the epoch, had a loss or gradients
    that are not finite; and with which as many had in the epoch. Gradients that a scaler made too large, in fp16
    (`scaled`), count in a row only: it tries how far it can go.
    """
    noted, skipped, in_row = list(partial.losses), partial.skipped, partial.in_row
    lost = noted.count(None)
    for loss, norm in zip(losses, norms, strict=True):
        noted.append(loss if isfinite(loss) else None)
        lost += not isfinite(loss)
        skipped += not isfinite(norm)
        in_row = 0 if isfinite(loss) and isfinite(norm) else in_row + 1
        what = "a loss or gradients that are not finite"
        if in_row >= min(most, steps):
            raise NonFiniteSteps(len(noted) - 1, f"{in_row} steps in a row had {what}")
        if (bad := lost if scaled else max(lost, skipped)) >= most:
            raise NonFiniteSteps(len(noted) - 1, f"{bad} steps had {what}")
    return replace(partial, losses=noted, skipped=skipped, in_row=in_row)


def explain(error: NonFiniteSteps, loader: ClipLoader, epoch: int, folder: Path) -> UserError:
    """What to tell the user: where the clips of the last such step are kept, and whose they are. `epoch` is counted
    from 0. A batch is a pure function of its position: it is decoded again, so that none need be held."""
    rank = f"-rank-{loader.rank}" if loader.world_size > 1 else ""
    file = folder / f"nonfinite-epoch-{epoch + 1:04}-step-{error.step:06}{rank}.safetensors"
    try:
        with closing(loader.epoch(epoch, first_batch=error.step)) as batches:
            batch = next(batches)
        notes = {"ids": batch.ids, "epoch": epoch + 1, "step": error.step, "rank": loader.rank}
        write_tensors(file, {"frames": batch.frames, "labels": batch.labels}, notes)
    except (DataError, UserError) as e:
        kept = f"the clips of the last one, step {error.step}, could not be kept ({e})"
    else:
        more = len(batch.ids) - NAMED_VIDEOS
        names = ", ".join(map(printable, batch.ids[:NAMED_VIDEOS])) + (f" and {more} more" if more > 0 else "")
        kept = f"the clips of the last one are in {file}: videos {names}"
    return UserError(f"epoch {epoch + 1}: {error}, which changed no weights; {kept}; {WAY_OUT}")


class Health:
    """Follows a run's steps on this process; the first one also logs them. All processes make one at the same time.

    Args:
        recipe: The run's.
        step: What takes the steps; its clock is started here.
        loader: What hands over the batches.
        ranks: This process among the others.
        position: (epochs, steps of the next) that were done before: what the log says of later ones is dropped.
        logs: Whether the first process writes a log.
    """

    def __init__(
        self,
        recipe: Recipe,
        step: TrainStep,
        loader: ClipLoader,
        ranks: Ranks,
        position: tuple[int, int],
        *,
        logs: bool = True,
    ) -> None:
        self._recipe, self._step, self._loader, self._ranks = recipe, step, loader, ranks
        self._log = StepLog(recipe.output, position, len(loader)) if logs and ranks.is_first else None
        here = socket.gethostname()
        self._pids = [pid for host, pid in gather((here, os.getpid()), ranks) if host == here and pid != os.getpid()]
        self._peak, self._flop = device_peak(step.device, step.precision), 0
        self._epoch = 0
        self._seen: list[dict[str, float]] = []  # times of the epoch's steps
        self._seen_norms: list[float] = []
        self._seen_losses: list[float] = []
        self._copied_s = 0.0
        self.last: EpochHealth | None = None  # the last epoch that was followed to its end

    @contextmanager
    def follow(self, epoch: int) -> Iterator[None]:
        """Within it the steps of an epoch, counted from 0, are taken. The ledger has been started."""
        self._epoch, self._copied_s = epoch, 0.0
        if self._peak is not None:
            t, size = self._loader.spec.num_segments, self._loader.spec.size  # which may grow from epoch to epoch
            self._flop = 2 * 3 * measure(self._recipe.model, num_segments=t, size=size).total.macs
        self._losses = torch.zeros(len(self._loader), device=self._step.device)
        self._norms = torch.zeros_like(self._losses)
        self._seen, self._seen_norms, self._seen_losses = [], [], []
        self._step.clock.start()
        watched = self._step.device if self._ranks.is_first else torch.device("cpu")
        with GpuMonitor(watched) as monitor, Watch(self._pids) as watch:
            yield
        times = [sum(step.values()) for step in self._seen]
        _, disturbed = watch.verdict([sum(s.values()) - s["other"] for s in self._seen], monitor.samples)
        if sum(times) < 1000 * MIN_SECONDS or len(times) < MIN_BATCHES:
            disturbed.append(f"measured for less than {MIN_SECONDS:g} s or {MIN_BATCHES} steps")
        copied_ms = 1000 * self._copied_s
        figures = self._figures(self._seen, self._seen_losses, self._seen_norms, copied_ms)
        self.last = EpochHealth(figures, times, watch.figures | monitor.figures(), disturbed)

    def after(self, outcome: StepOutcome, done: int) -> None:
        """Note what the epoch's step number `done`, counted from 0, came to; nobody waits for it."""
        self._losses[done], self._norms[done] = outcome.loss, outcome.gradient_norm

    def look(self, done: int, partial: Partial) -> Partial:
        """Read and log what the epoch's first `done` steps came to, but those that `partial` has; return it with them.
        Waits for the device; all processes call it at the same step. Raises NonFiniteSteps."""
        known = slice(partial.step, done)
        means = mean_over(torch.stack((self._losses[known], self._norms[known])), self._ranks)
        losses, norms = means.tolist()
        times = self._step.clock.take()
        most, scaled = self._recipe.optimization.max_nonfinite_steps, self._step.scaler.is_enabled()
        copied_s = self._copied_so_far_s()
        figures = self._figures(times, losses, norms, 1000 * (copied_s - self._copied_s))
        self._copied_s = copied_s
        self._seen += times
        self._seen_losses += losses
        self._seen_norms += norms
        noted = note_steps(partial, losses, norms, scaled=scaled, steps=len(self._loader), most=most)
        if self._log is not None:
            self._log.write(self._epoch, done, figures.row() | {"skipped": noted.skipped})
        return noted

    def _copied_so_far_s(self) -> float:
        """What the loader's threads, or the GPU by its own clock, took to copy since the ledger's start."""
        ledger = self._loader.ledger
        lanes = [lane for lane in ledger.device_lanes if lane.seconds["copy"]] or ledger.lanes
        return sum(lane.seconds["copy"] for lane in lanes)

    def _figures(
        self, times: Sequence[dict[str, float]], losses: Sequence[float], norms: Sequence[float], copied_ms: float
    ) -> StepFigures:
        parts_ms = {part: statistics.fmean(step[part] for step in times) for part in PARTS}
        step_ms = sum(parts_ms.values())
        clips_per_s = 1000 * self._recipe.optimization.batch_size / step_ms
        device = self._step.device
        if device.type == "cuda":
            peak_bytes = torch.cuda.max_memory_allocated(device)
        else:
            peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return StepFigures(
            steps=len(times),
            loss=_mean_of_finite(losses),
            lr=self._step.learning_rate,
            gradient_norm=_mean_of_finite(norms),
            clips_per_s=clips_per_s,
            step_ms=step_ms,
            parts_ms=parts_ms,
            copy_ms=copied_ms / len(times),
            peak_memory_bytes=peak_bytes,
            mfu=clips_per_s * self._flop / (self._peak * self._ranks.world_size) if self._peak else None,
        )

    def close(self) -> None:
        if self._log is not None:
            self._log.close()


def _mean_of_finite(values: Sequence[float]) -> float | None:
    finite = [v for v in values if isfinite(v)]
    return statistics.fmean(finite) if finite else None
