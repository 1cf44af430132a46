"""Is the engine the network? Its logits against eager float32, before anything is timed. And the command that asks
whether all of a kind do the same: `tdn-bench parity decoders`, `tdn-bench parity engines`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from scipy.stats import rankdata
from torch import Tensor

from engines import EngineSpec
from tdn_bench.cli.run import run_command
from tdn_bench.errors import UserError

# Largest difference of a logit, as a share of the logits' standard deviation. Float32 differs by the order of
# sums alone; 16-bit types by their 11 and 8 bits of mantissa over some 60 layers. Eight bits are judged by accuracy:
# their bound only tells a rounded network from a wrong one.
TOLERANCE = {"fp32": 1e-3, "tf32": 2e-2, "fp16": 3e-2, "bf16": 1.5e-1, "int8": 0.8, "fp8": 0.8}
ROUNDING = 1 / 8  # of that, what rounding moves logits by on the whole (root mean square), at most


class EngineMismatch(UserError):
    """An engine that does not compute what the network computes."""


def mismatch(fault: str) -> EngineMismatch:
    return EngineMismatch(f"the engine is not the network: {fault}; nothing was timed")


@dataclass(frozen=True)
class Agreement:
    """How far an engine's logits are from eager float32's on the same clips."""

    clips: int
    max_difference: float  # as a share of the logits' standard deviation
    top1_percent: float  # clips on which both name the same class
    rank_correlation: float  # Spearman's, over the classes of a clip; mean over clips
    clip_spread: float | None  # how much the answers differ from clip to clip, as a share of the reference's
    clip_correlation: float | None  # of what sets a clip's answer apart from the mean; None: too alike to tell
    precision: str
    tolerance: float  # of max_difference

    def fault(self) -> str | None:
        """Why this is not the network, None where it is."""
        if not math.isfinite(self.max_difference):
            return "some of its values are not finite"
        if self.clip_spread is not None and self.clip_spread < 0.25:
            return f"its answers are constant: they vary over clips by {self.clip_spread:.2g} of what eager fp32's do"
        if self.clip_correlation is not None and self.clip_correlation < 0.5:
            return (
                "it gives the answers of another clip or batch: what sets a clip apart correlates with eager fp32's "
                f"by {self.clip_correlation:.2g} only"
            )
        if self.max_difference > self.tolerance:
            return (
                f"its logits differ from eager fp32 by {self.max_difference:.2g} standard deviations "
                f"({self.precision} may differ by {self.tolerance:g})"
            )
        return None


def compare(logits: Tensor, reference: Tensor, precision: str = "fp32") -> Agreement:
    """Compare two (N, classes) tensors of logits, the first computed in `precision`."""
    difference, spread = (logits - reference).abs().max().item(), max(deviation(reference), 1e-30)
    same = (logits.argmax(1) == reference.argmax(1)).double().mean().item()
    apart, wanted = (x.double() - x.double().mean(0) for x in (logits, reference))
    share = correlation = None
    # Clips that differ by no more than rounding may move logits tell nothing: noise, or fresh weights.
    if wanted.square().mean().sqrt().item() > ROUNDING * TOLERANCE[precision] * spread:
        share = (apart.norm() / wanted.norm()).item()
        correlation = ((apart * wanted).sum() / (apart.norm() * wanted.norm()).clamp(min=1e-30)).item()
    return Agreement(
        len(logits), difference / spread, 100 * same, rank_correlation(logits, reference), share, correlation,
        precision, TOLERANCE[precision],
    )  # fmt: skip


def deviation(logits: Tensor) -> float:
    """The unit of differences: the deviation over clips, or over classes where clips hardly differ (a network with
    fresh weights)."""
    over_clips = (logits - logits.mean(0)).std().item() if len(logits) > 1 else 0.0
    return max(over_clips, logits.std().item())


def rank_correlation(logits: Tensor, reference: Tensor) -> float:
    """Spearman's of two orders of the classes, mean over clips; ties share their ranks. A clip of which one of the two
    says the same for all classes counts as 0, as 1 if both do."""
    a, b = (torch.from_numpy(rankdata(x.cpu().double().numpy(), axis=1)) for x in (logits, reference))
    a, b = (x - x.mean(1, keepdim=True) for x in (a, b))
    found = (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1)).clamp(min=1e-30)
    found[((a == 0) & (b == 0)).all(1)] = 1
    return found.nan_to_num(0).mean().item()  # ranks of NaN are NaN


def plain(spec: EngineSpec) -> EngineSpec:
    """What the engines of `spec` are compared with: float32, as the network is written."""
    return replace(spec, precision="fp32", rewrite=False, keep=())


def check_engine(
    engine: Callable[[Tensor], Tensor], reference: Callable[[Tensor], Tensor], batches: list[Tensor], precision: str
) -> Agreement:
    """Run both on real clips, a list of uint8 (B, T, L, H, W, C); raise EngineMismatch where the engine is another.

    It runs every batch twice, then reversed, then its first clip alone: an engine that repeats itself, mixes clips up,
    or depends on the size of a batch shows, and one that writes to its input or to an earlier answer.
    """
    found, wanted = [], []
    for batch in batches:
        before, right = batch.clone(), reference(batch).float().cpu()
        answers, copies = [], []
        for frames in (batch, batch, batch.flip(0), batch[:1]):
            answers.append(engine(frames))
            copies.append(answers[-1].to("cpu", torch.float32, copy=True))
            if copies[-1].shape != (len(frames), *right.shape[1:]):
                raise mismatch(f"it returned {tuple(copies[-1].shape)} for {len(frames)} clips")
            if bad := (~copies[-1].isfinite()).sum().item():
                raise mismatch(f"{bad} of the values that it returned are not finite")
        if not torch.equal(batch, before):
            raise mismatch("it writes to the frames that it is given")
        if not all(torch.equal(answer.float().cpu(), copy) for answer, copy in zip(answers, copies, strict=True)):
            raise mismatch("a later call overwrites the answer of an earlier one")
        first, again, back, alone = copies
        # Weights and rounding are the same in all of them, only sums may take another order: half the tolerance.
        bound = TOLERANCE[precision] * deviation(right) / 2
        for how, answer in (("in a second call", again), ("in a reversed batch", back.flip(0)), ("alone", alone)):
            if (change := (answer - first[: len(answer)]).abs().max().item()) > bound:
                if len(batch) > 1 and torch.equal(back, again):
                    raise mismatch("it repeats the answer of the call before")
                raise mismatch(f"a clip's answer changes {how} by {change:.2g} (at most {bound:.2g} is rounding)")
        found += copies
        wanted += [right, right, right.flip(0), right[:1]]
    agreement = compare(torch.cat(found), torch.cat(wanted), precision)
    if (fault := agreement.fault()) is not None:
        raise mismatch(fault)
    return replace(agreement, clips=sum(map(len, batches)))


def main(argv: Sequence[str] | None = None) -> None:
    """Compare all of a kind. Ends with SystemExit(1) where one does not what the others do."""
    import tyro

    from tdn_bench.correctness import decoder_parity, engine_parity

    kinds: dict[str, Callable[..., Any]] = {"decoders": decoder_parity.Decoders, "engines": engine_parity.Engines}
    config = tyro.extras.subcommand_cli_from_dict(kinds, args=argv, prog="tdn-bench parity")
    if isinstance(config, engine_parity.Engines):
        engine_parity.run(config)
    else:
        decoder_parity.run(config)


if __name__ == "__main__":
    raise SystemExit(run_command(main))
