"""What a person sees of training: a line an epoch, TensorBoard's scalars, those of another tracker, a log of steps.

A log that cannot be written, as on a full disk, is said once; the training goes on.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.files import write_whole
from tdn_bench.errors import log
from tdn_bench.measurement.time_breakdown import TimeBreakdown
from tdn_bench.recipes import Recipe
from tdn_bench.records import Record, to_json
from tdn_bench.training.result import Epoch, StepFigures
from tdn_bench.training.step import learning_rate
from tdn_bench.training.trackers import Tracking

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


STEPS = "steps.jsonl"


class _Lenient:
    """Writes a log where that can be done."""

    def __init__(self, what: Path) -> None:
        self._what, self._said = what, False

    def __call__(self, write: Callable[[], object]) -> None:
        try:
            write()
        except OSError as e:
            if not self._said:
                log.warning("%s: cannot be written (%s); the training goes on", self._what, e.strerror or e)
            self._said = True


class StepLog:
    """OUTPUT/steps.jsonl, a JSON object a line, and the same as TensorBoard's scalars in OUTPUT/steps.

    `epoch` is counted from 1, `step` is how many of its steps were done; the other keys end in their unit. Lines of
    after `position`, (epochs, steps of the next) that were done, are of a run that went on differently: they go.
    """

    def __init__(self, folder: Path, position: tuple[int, int], steps: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._path, self._steps = folder / STEPS, steps
        self._write, self._cut = _Lenient(self._path), False
        self._write(lambda: write_whole(self._path, self._kept(position)))
        self._writer = SummaryWriter(str(folder / "steps"), purge_step=position[0] * steps + position[1] + 1)

    def _kept(self, position: tuple[int, int]) -> bytes:
        kept = []
        with suppress(FileNotFoundError):
            for line in self._path.read_bytes().splitlines():
                with suppress(ValueError, TypeError, KeyError, RecursionError):  # cut by a full disk
                    row = json.loads(line)
                    if (row["epoch"] - 1, row["step"]) <= position:
                        kept.append(line + b"\n")
        return b"".join(kept)

    def write(self, epoch: int, step: int, row: Mapping[str, float | None]) -> None:
        """Log the steps up to `step` of an epoch that is counted from 0."""
        rounded = {name: float(f"{v:.6g}") if isinstance(v, float) else v for name, v in row.items()}
        text = json.dumps({"epoch": epoch + 1, "step": step, **rounded})
        self._write(lambda: self._append(text))
        self._write(lambda: _add_scalars(self._writer, "steps/", row, epoch * self._steps + step))

    def _append(self, text: str) -> None:
        start, self._cut = "\n" if self._cut else "", True  # what a full disk cut stays a line by itself
        with self._path.open("a") as file:
            file.write(f"{start}{text}\n")
        self._cut = False

    def close(self) -> None:
        self._write(self._writer.close)


def _add_scalars(writer: SummaryWriter, prefix: str, values: Mapping[str, float | None], step: int) -> None:
    """Raises OSError."""
    for name, value in values.items():
        if value is not None:
            writer.add_scalar(prefix + name, value, step)
    writer.flush()


class Progress:
    """The line of every epoch on the screen, and its scalars in the output folder and in the recipe's tracker, by the
    first process only."""

    def __init__(self, recipe: Recipe, is_first: bool, history: Sequence[Epoch]) -> None:
        """`history`: what was trained before; what the folder's scalars say of later epochs no longer counts."""
        self._recipe, self._writer = recipe, self._open(recipe, len(history)) if is_first else None
        self._write = _Lenient(recipe.output)
        self._tracking = Tracking(recipe.track if is_first else None, recipe.name, recipe.settings(), recipe.output)
        for epoch in history:
            self._tracking.log(scalars(recipe, epoch), epoch.epoch)

    @staticmethod
    def _open(recipe: Recipe, done: int) -> SummaryWriter:
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(str(recipe.output), purge_step=done + 1)

    def report(self, epoch: Epoch, breakdown: TimeBreakdown | None, steps: StepFigures | None = None) -> None:
        """Say what the epoch did; where the time went and `steps` are of what this process trained of it."""
        if self._writer is None:
            return
        recipe = self._recipe
        accuracy = "" if epoch.top1 is None else f", top-1 {epoch.top1:.2f} %, top-5 {epoch.top5:.2f} %"
        skipped = f", {epoch.skipped_steps} steps skipped" if epoch.skipped_steps else ""
        bound = ""
        if breakdown is not None:
            bound = f", bottleneck {breakdown.bottleneck} (busy {breakdown.overlap_efficiency:.0%})"
        print(
            f"{recipe.name}: epoch {epoch.epoch}/{recipe.optimization.epochs}: loss {epoch.loss:.4f}, "
            f"{epoch.clips_per_s:.1f} clips/s, {epoch.wait_share:.0%} waiting for data{bound}"
            f"{'' if steps is None else told(steps)}{skipped}{accuracy}",
            flush=True,
        )
        values = scalars(recipe, epoch)
        if steps is not None:
            values |= {f"steps/{name}": value for name, value in steps.row().items() if value is not None}
        writer = self._writer
        self._write(lambda: _add_scalars(writer, "", values, epoch.epoch))
        self._tracking.log(values, epoch.epoch)

    def finish(self, record: Record) -> None:
        """Give the tracker the record of the whole training."""
        self._tracking.finish(record.figures, json.loads(to_json(record)))

    def close(self) -> None:
        if self._writer is not None:
            self._write(self._writer.close)
        self._tracking.close()


def told(steps: StepFigures) -> str:
    """Steps in words, for the line of their epoch."""
    parts = ", ".join(f"{part.replace('_', '-')} {ms:.3g}" for part, ms in steps.parts_ms.items() if ms >= 0.05)
    norm = "" if steps.gradient_norm is None else f", gradient norm {steps.gradient_norm:.3g}"
    mfu = "" if steps.mfu is None else f", {steps.mfu:.0%} MFU"
    memory = f"{steps.peak_memory_bytes / 1e9:.2g} GB"
    return f", lr {steps.lr:.3g}{norm}, {steps.step_ms:.4g} ms/step ({parts}), {memory}{mfu}"


def scalars(recipe: Recipe, epoch: Epoch) -> dict[str, float]:
    """The numbers of an epoch, as TensorBoard names them."""
    found = {
        "train/loss": epoch.loss,
        "train/lr": learning_rate(recipe.optimization, epoch.epoch - 1),
        "train/clips_per_s": epoch.clips_per_s,
        "train/wait_share": epoch.wait_share,
    }
    if epoch.top1 is not None and epoch.top5 is not None:
        found |= {"validation/top1": epoch.top1, "validation/top5": epoch.top5}
    return found
