"""Is the engine the network? Its logits against eager float32, before anything is timed. And the command that asks
whether all of a kind do the same: `tdn-bench parity decoders`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tdn_bench.cli import run_command
from tdn_bench.errors import UserError

# Largest difference of a logit, as a share of the logits' standard deviation. Float32 differs by the order of
# sums alone; 16-bit types by their 11 and 8 bits of mantissa over some 60 layers.
TOLERANCE = {"fp32": 1e-3, "fp16": 3e-2, "bf16": 1.5e-1}


class EngineMismatch(UserError):
    """An engine that does not compute what the network computes."""


@dataclass(frozen=True)
class Agreement:
    """How far an engine's logits are from eager float32's on the same clips."""

    clips: int
    max_difference: float  # as a share of the logits' standard deviation
    top1_percent: float  # clips on which both name the same class


def compare(logits: Tensor, reference: Tensor) -> Agreement:
    """Compare two (N, classes) tensors of logits."""
    spread = (reference - reference.mean(0)).std() if len(reference) > 1 else reference.std()
    # The deviation over clips, or over classes where clips hardly differ (a network with fresh weights).
    spread = torch.maximum(spread, reference.std())
    difference = (logits - reference).abs().max() / spread
    same = (logits.argmax(1) == reference.argmax(1)).double().mean()
    return Agreement(len(logits), difference.item(), 100 * same.item())


def check_engine(
    engine: Callable[[Tensor], Tensor], reference: Callable[[Tensor], Tensor], batches: list[Tensor], precision: str
) -> Agreement:
    """Run both on real clips, a list of uint8 (B, T, L, H, W, C); raise EngineMismatch beyond the tolerance.

    Every batch is also run reversed, and its first clip alone: an engine that mixes clips up, or that depends
    on the size of a batch, shows.
    """
    frames = [b for batch in batches for b in (batch, batch.flip(0), batch[:1])]
    found = torch.cat([engine(f).float().cpu() for f in frames])
    wanted = torch.cat([reference(f).float().cpu() for f in frames])
    if not found.isfinite().all():
        raise EngineMismatch(f"the engine returned {(~found.isfinite()).sum()} values that are not finite")
    agreement = compare(found, wanted)
    if agreement.max_difference > TOLERANCE[precision]:
        raise EngineMismatch(
            f"the engine is not the network: its logits differ from eager fp32 by {agreement.max_difference:.2g} "
            f"standard deviations ({precision} may differ by {TOLERANCE[precision]:g}); nothing was timed"
        )
    return agreement


def main(argv: Sequence[str] | None = None) -> None:
    """Compare all of a kind. Ends with SystemExit(1) where one does not what the others do."""
    import tyro

    from tdn_bench.decoder_parity import Decoders, run

    run(tyro.extras.subcommand_cli_from_dict({"decoders": Decoders}, args=argv, prog="tdn-bench parity"))


if __name__ == "__main__":
    raise SystemExit(run_command(main))
