"""Is the engine the network? Its logits against eager float32, before anything is timed. And the command that asks
whether all of a kind do the same: `tdn-bench parity decoders`, `tdn-bench parity engines`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from engines import EngineSpec
from tdn_bench.cli import run_command
from tdn_bench.errors import UserError

# Largest difference of a logit, as a share of the logits' standard deviation. Float32 differs by the order of
# sums alone; 16-bit types by their 11 and 8 bits of mantissa over some 60 layers. Eight bits are judged by accuracy:
# their bound only tells a rounded network from a wrong one.
TOLERANCE = {"fp32": 1e-3, "tf32": 2e-2, "fp16": 3e-2, "bf16": 1.5e-1, "int8": 0.8, "fp8": 0.8}


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


def plain(spec: EngineSpec) -> EngineSpec:
    """What the engines of `spec` are compared with: float32, as the network is written."""
    return replace(spec, precision="fp32", rewrite=False, keep=())


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

    from tdn_bench import decoder_parity, engine_parity

    kinds: dict[str, Callable[..., Any]] = {"decoders": decoder_parity.Decoders, "engines": engine_parity.Engines}
    config = tyro.extras.subcommand_cli_from_dict(kinds, args=argv, prog="tdn-bench parity")
    if isinstance(config, engine_parity.Engines):
        engine_parity.run(config)
    else:
        decoder_parity.run(config)


if __name__ == "__main__":
    raise SystemExit(run_command(main))
