"""What a training would cost: two real steps of it, and nothing written."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice

import torch

from engines.pytorch import keep_freed_memory
from pipelines.clip import ClipBatch
from pipelines.progress import duration
from tdn_bench.cli import pick_device
from tdn_bench.cli.config_file import to_toml
from tdn_bench.models.complexity import measure
from tdn_bench.recipes import Recipe
from tdn_bench.training.checks import check, resolve
from tdn_bench.training.distributed import Ranks, distributed, gather
from tdn_bench.training.loop import Run, set_up
from tdn_bench.training.step import autocast
from tdn_bench.training.store import check_free

STEPS = 2  # that are timed, after one that warms up


@dataclass(frozen=True)
class Estimate:
    """What a run is expected to take. Times are of the slowest process."""

    epochs: int
    steps: int
    """In an epoch."""
    step_s: float
    validations: int
    """In the whole run."""
    validation_s: float
    """One of them."""
    processes: int
    kept_bytes: int
    """On the disk at the end: checkpoints, last and best weights."""

    @property
    def epoch_s(self) -> float:
        """Seconds of an epoch's training."""
        return self.steps * self.step_s

    @property
    def run_s(self) -> float:
        """Seconds of all epochs and validations."""
        return self.epochs * self.epoch_s + self.validations * self.validation_s

    @property
    def device_hours(self) -> float:
        """Hours of all processes together, each on a GPU of its own where there are GPUs."""
        return self.run_s / 3600 * self.processes


def dry_run(name: str, recipe: Recipe) -> Estimate:
    """Print the recipe `name` as it is resolved and what it would cost, from a few real steps on the real data. No
    folder is made and no file written but the cache of what was read of the data set. Under torchrun every process
    takes its part of the steps, and the first prints. Raises UserError where a real run would."""
    check(recipe)
    check_free(recipe.output, resume=False, overwrite=recipe.overwrite)
    device = pick_device(recipe.device)
    if device.type == "cpu":
        keep_freed_memory()
    with ExitStack() as stack:
        ranks, device = stack.enter_context(distributed(device, recipe.processes.rank_timeout_s))
        run = stack.enter_context(set_up(recipe, device, ranks, None, progress=ranks.is_first))
        step_s, wait_share = _time_steps(run)
        validation_s = _time_validation(run)
        memory_bytes = max(gather(_peak_memory_bytes(device), ranks))
        estimate = Estimate(
            epochs=recipe.optimization.epochs,
            steps=len(run.training),
            step_s=step_s,
            validations=count_validations(recipe.optimization.epochs, recipe.evaluate_every),
            validation_s=validation_s,
            processes=ranks.world_size,
            kept_bytes=_kept_bytes(run),
        )
        if ranks.is_first:
            print(to_toml(f"train {name}", resolve(recipe)))
            print(*_report(run, ranks, estimate, wait_share, memory_bytes), sep="\n", flush=True)
    return estimate


def count_validations(epochs: int, every: int) -> int:
    """Validations of a run: after every so many epochs, and after the last."""
    return epochs // every + (epochs % every > 0)


def _time_steps(run: Run) -> tuple[float, float]:
    """Seconds of a step, waiting for data included, and the share of the waiting; where the epoch has a single step,
    that of the one which also warms up. All processes call it together."""
    times: list[float] = []
    waits: list[float] = []
    waited_s = run.training.wait_s
    run.step.classifier.train()
    for batch in _timed(islice(run.training.epoch(0), STEPS + 1), run.step.device, times):
        run.step(batch.frames, batch.labels, 0.0)
        waits.append(run.training.wait_s - waited_s)
        waited_s = run.training.wait_s
    warm = min(1, len(times) - 1)
    total_s = sum(times[warm:])
    step_s = max(gather(total_s / len(times[warm:]), run.ranks))
    return step_s, sum(waits[warm:]) / total_s


def _time_validation(run: Run) -> float:
    """Seconds of a validation, by its second batch (the only one, where there is one). All processes call it."""
    loader = run.validation
    times: list[float] = []
    run.classifier.eval()
    with torch.inference_mode(), autocast(run.step.precision, loader.device):
        # with more processes than videos some have none
        for batch in _timed(islice(loader.epoch(), 2) if len(loader) else iter(()), loader.device, times):
            run.classifier(batch.frames)
    return max(gather(times[-1] * len(loader) if times else 0.0, run.ranks))


def _timed(batches: Iterator[ClipBatch], device: torch.device, times: list[float]) -> Iterator[ClipBatch]:
    """The batches. `times` gets the seconds of each, from the end of the work on the one before."""
    since = time.perf_counter()
    for batch in batches:
        yield batch
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        now = time.perf_counter()
        times.append(now - since)
        since = now


def _peak_memory_bytes(device: torch.device) -> int:
    """Of the GPU, PyTorch's; without one, the process's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _kept_bytes(run: Run) -> int:
    """A checkpoint holds the network and a momentum for every parameter."""
    network = sum(t.numel() * t.element_size() for t in run.network.state_dict().values())
    momentum = sum(p.numel() * p.element_size() for p in run.network.parameters())
    return run.recipe.saving.keep_checkpoints * (network + momentum) + 2 * network


def _report(run: Run, ranks: Ranks, e: Estimate, wait_share: float, memory_bytes: int) -> list[str]:
    recipe, spec = run.recipe, run.recipe.clip_spec()
    one = measure(
        recipe.model, num_classes=len(run.manifest.classes), num_segments=spec.num_segments, size=spec.size
    ).total
    gpu = run.step.device.type == "cuda"
    each = f", {run.training.batch_size} on each of {ranks.world_size} processes" if ranks.world_size > 1 else ""
    end = datetime.now(UTC) + timedelta(seconds=e.run_s)
    return [
        f"clips:      {len(run.training.videos)} to train on, {len(run.validation.videos)} to validate",
        f"steps:      {e.steps} an epoch of {recipe.optimization.batch_size} clips{each}; {e.epochs} epochs",
        f"network:    {one.parameters / 1e6:.2f} M parameters, {one.macs / 1e9:.3f} G multiply-adds a clip, forward",
        f"memory:     {memory_bytes / 2**30:.2f} GiB at most {'on a GPU' if gpu else 'in a process'}",
        f"step:       {1000 * e.step_s:.0f} ms, {wait_share:.0%} of it waiting for data",
        f"epoch:      {duration(e.epoch_s)}; {e.epoch_s / 3600 * e.processes:.2g} {'GPU-' if gpu else 'process-'}hours",
        f"validation: {duration(e.validation_s)}, {e.validations} times",
        f"run:        {duration(e.run_s)}; {e.device_hours:.2g} {'GPU-' if gpu else 'process-'}hours",
        f"disk:       {e.kept_bytes / 2**20:.0f} MiB of checkpoints and weights",
        f"end:        {end:%Y-%m-%d %H:%M} UTC, if it began now",
        "Nothing was written. Times are of two steps on this machine as it is now.",
    ]
