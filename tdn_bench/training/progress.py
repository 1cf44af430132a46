"""What a person sees of training: a line an epoch, and TensorBoard's scalars."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tdn_bench.measurement.time_breakdown import TimeBreakdown
from tdn_bench.recipes import Recipe
from tdn_bench.training.result import Epoch
from tdn_bench.training.step import learning_rate

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class Progress:
    """The line of every epoch on the screen, and its scalars in the output folder, by the first process only."""

    def __init__(self, recipe: Recipe, is_first: bool, done: int) -> None:
        """`done`: epochs that were trained before; what the folder's scalars say of later ones no longer counts."""
        self._recipe, self._writer = recipe, self._open(recipe, done) if is_first else None

    @staticmethod
    def _open(recipe: Recipe, done: int) -> SummaryWriter:
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(str(recipe.output), purge_step=done + 1)

    def report(self, epoch: Epoch, breakdown: TimeBreakdown) -> None:
        """Say what the epoch did."""
        if self._writer is None:
            return
        recipe = self._recipe
        accuracy = "" if epoch.top1 is None else f", top-1 {epoch.top1:.2f} %, top-5 {epoch.top5:.2f} %"
        print(
            f"{recipe.name}: epoch {epoch.epoch}/{recipe.optimization.epochs}: loss {epoch.loss:.4f}, "
            f"{epoch.clips_per_s:.1f} clips/s, {epoch.wait_share:.0%} waiting for data, bottleneck "
            f"{breakdown.bottleneck} (busy {breakdown.overlap_efficiency:.0%}){accuracy}",
            flush=True,
        )
        scalars = {
            "train/loss": epoch.loss,
            "train/lr": learning_rate(recipe.optimization, epoch.epoch - 1),
            "train/clips_per_s": epoch.clips_per_s,
            "train/wait_share": epoch.wait_share,
        }
        if epoch.top1 is not None and epoch.top5 is not None:
            scalars |= {"validation/top1": epoch.top1, "validation/top5": epoch.top5}
        for tag, value in scalars.items():
            self._writer.add_scalar(tag, value, epoch.epoch)
        self._writer.flush()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
