"""What a person sees of training: a line an epoch, TensorBoard's scalars, and those of another tracker."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tdn_bench.measurement.time_breakdown import TimeBreakdown
from tdn_bench.recipes import Recipe
from tdn_bench.records import Record, to_json
from tdn_bench.training.result import Epoch
from tdn_bench.training.step import learning_rate
from tdn_bench.training.trackers import Tracking

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class Progress:
    """The line of every epoch on the screen, and its scalars in the output folder and in the recipe's tracker, by the
    first process only."""

    def __init__(self, recipe: Recipe, is_first: bool, history: Sequence[Epoch]) -> None:
        """`history`: what was trained before; what the folder's scalars say of later epochs no longer counts."""
        self._recipe, self._writer = recipe, self._open(recipe, len(history)) if is_first else None
        self._tracking = Tracking(recipe.track if is_first else None, recipe.name, recipe.settings(), recipe.output)
        for epoch in history:
            self._tracking.log(scalars(recipe, epoch), epoch.epoch)

    @staticmethod
    def _open(recipe: Recipe, done: int) -> SummaryWriter:
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(str(recipe.output), purge_step=done + 1)

    def report(self, epoch: Epoch, breakdown: TimeBreakdown | None) -> None:
        """Say what the epoch did."""
        if self._writer is None:
            return
        recipe = self._recipe
        accuracy = "" if epoch.top1 is None else f", top-1 {epoch.top1:.2f} %, top-5 {epoch.top5:.2f} %"
        bound = ""
        if breakdown is not None:
            bound = f", bottleneck {breakdown.bottleneck} (busy {breakdown.overlap_efficiency:.0%})"
        print(
            f"{recipe.name}: epoch {epoch.epoch}/{recipe.optimization.epochs}: loss {epoch.loss:.4f}, "
            f"{epoch.clips_per_s:.1f} clips/s, {epoch.wait_share:.0%} waiting for data{bound}{accuracy}",
            flush=True,
        )
        values = scalars(recipe, epoch)
        for tag, value in values.items():
            self._writer.add_scalar(tag, value, epoch.epoch)
        self._writer.flush()
        self._tracking.log(values, epoch.epoch)

    def finish(self, record: Record) -> None:
        """Give the tracker the record of the whole training."""
        self._tracking.finish(record.figures, json.loads(to_json(record)))

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._tracking.close()


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
