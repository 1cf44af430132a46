"""The steps `train-step` and `train-data`: one optimisation step alone, then training fed by the loader."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from engines import prepare_compiler
from tdn_bench.cli import DataFlags, LoaderFlags
from tdn_bench.gpu_checks.run import NUM_CLASSES, Outcome, Row, Run, count_flops, first_line, time_calls
from tdn_bench.gpu_checks.sizes import Sizes
from tdn_bench.recipes import Optimization, Precision, Recipe
from tdn_bench.training.loop import train
from tdn_bench.training.step import TrainStep

LOSS_TOLERANCE = 0.05  # between precisions, after three steps; a share of the loss


class LossMismatch(RuntimeError):
    """A case whose losses are not those of fp32."""


@dataclass(frozen=True)
class Case:
    """One way to train. `layout` is of the weights: channels_last or contiguous."""

    precision: str
    layout: str
    compiled: bool

    @property
    def label(self) -> str:
        """The start of the case's keys in the record."""
        return f"{self.precision}_{self.layout}_{'compiled' if self.compiled else 'eager'}"


def train_step(run: Run) -> Outcome:
    """One optimisation step with the data on the device, by precision, layout of the weights, and compiler.

    The activations are in channels-last either way: the network makes them so.
    """
    sizes = run.sizes
    found = Outcome()
    frames = run.frames(sizes.train_batch)
    labels = torch.arange(sizes.train_batch, device=run.device) % NUM_CLASSES
    flops = count_flops(run.network().train(), frames, backward=True)
    expected = None
    for case in _cases(sizes):
        step = _open_step(run, case)
        try:
            if case.compiled:
                prepare_compiler()
                step.classifier = torch.compile(step.classifier, backend=sizes.train_compiler)  # type: ignore[assignment]
            losses = [step(frames, labels, 0).loss.item() for _ in range(3)]
            expected = expected or losses[-1]  # the first case: fp32, eager
            if not abs(losses[-1] - expected) <= LOSS_TOLERANCE * expected:  # so written that NaN fails
                raise LossMismatch(f"losses {losses} do not end near fp32's {expected:.4f}; not timed")
            samples = time_calls(partial(step, frames, labels, 0), run.device, sizes.timing_s)
        except RuntimeError as e:  # or out of memory, or the compiler's: the other cases still count
            found.failures.append(f"{case.label}: {first_line(e)}")
            continue
        finally:
            torch._dynamo.reset()
        found.samples |= {f"{case.label}_ms": samples, f"{case.label}_loss": losses}
        _note_speed(run, case, samples, flops, found)
    return found


def _cases(sizes: Sizes) -> list[Case]:
    cases = [Case(p, layout, False) for p in sizes.train_precisions for layout in ("channels_last", "contiguous")]
    return cases + [Case(p, "channels_last", True) for p in sizes.train_compiled]


def _open_step(run: Run, case: Case) -> TrainStep:
    """The optimisation step of a fresh network; from here on the device's peak of memory counts."""
    classifier = run.network().train()
    classifier.network.dropout.p = 0  # type: ignore[union-attr]  # so that precisions can be compared
    memory_format = torch.channels_last if case.layout == "channels_last" else torch.contiguous_format
    classifier.to(memory_format=memory_format)  # type: ignore[call-overload]
    step = TrainStep(classifier, Optimization(), case.precision, run.device)
    if run.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(run.device)
    return step


def _note_speed(run: Run, case: Case, samples: Sequence[float], flops: int, found: Outcome) -> None:
    """`samples` are ms of each step, `flops` its floating-point operations."""
    ms = statistics.median(samples)
    clips_per_s = 1000 * run.sizes.train_batch / ms
    found.figures |= {
        f"{case.label}_ms_per_step": ms,
        f"{case.label}_clips_per_s": clips_per_s,
        f"{case.label}_tflop_per_s": flops / ms / 1e9,
    }
    value = f"{ms:.1f} ms/step, {clips_per_s:.1f} clips/s"
    if run.device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(run.device)
        found.figures[f"{case.label}_peak_torch_memory_bytes"] = peak
        value += f", {peak / 2**30:.1f} GiB"
    title = case.label.replace("channels_last", "channels-last").replace("_", ", ")
    found.rows.append(Row(title, value, flops / ms / 1e9))


def train_data(run: Run) -> Outcome:
    """Training fed by the DALI loader: how much of the time goes into waiting for data."""
    sizes = run.sizes
    precision: Precision = "bf16" if "bf16" in sizes.train_precisions else "fp32"
    with tempfile.TemporaryDirectory() as output:
        recipe = Recipe(
            name="gpu-suite",
            model=sizes.model,
            num_segments=sizes.num_segments,
            size=sizes.size,
            optimization=Optimization(batch_size=sizes.train_batch, epochs=sizes.train_epochs, lr=1e-4),
            data=DataFlags(data=run.dataset()),
            loader=LoaderFlags(backend="dali"),
            precision=precision,
            device=str(run.device),
            evaluate_every=sizes.train_epochs,
            output=Path(output),
        )
        result = train(recipe, progress=False)
    last = result.epochs[-1]  # the first epochs warm up
    found = Outcome()
    found.expect(result.bad_clips == 0, f"{result.bad_clips} clips could not be used")
    found.figures = {"clips_per_s": last.clips_per_s, "wait_share": last.wait_share, "loss": last.loss, **result.ledger}
    found.samples = {"clips_per_s": [e.clips_per_s for e in result.epochs]}
    title = f"training, {precision}, eager, DALI"
    found.rows = [Row(title, f"{last.clips_per_s:.1f} clips/s, {last.wait_share:.0%} waiting for data")]
    return found
