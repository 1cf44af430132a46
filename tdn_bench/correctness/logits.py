"""How far logits are from a reference's on the same clips: the difference, the top class, the order of the classes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

# Largest difference of a logit, as a share of the logits' standard deviation. Float32 differs by the order of
# sums alone; 16-bit types by their 11 and 8 bits of mantissa over some 60 layers. Eight bits are judged by accuracy:
# their bound only tells a rounded network from a wrong one.
TOLERANCE = {"fp32": 1e-3, "tf32": 2e-2, "fp16": 3e-2, "bf16": 1.5e-1, "int8": 0.8, "fp8": 0.8}
ROUNDING = 1 / 8  # of that, what rounding moves logits by on the whole (root mean square), at most


@dataclass(frozen=True)
class LogitComparison:
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


def compare_logits(logits: Tensor, reference: Tensor, precision: str = "fp32") -> LogitComparison:
    """Compare two float tensors of logits (N, classes) on one device, for N clips: `logits` computed in `precision`
    (a key of TOLERANCE), `reference` by eager float32."""
    difference, spread = (logits - reference).abs().max().item(), max(deviation(reference), 1e-30)
    same = (logits.argmax(1) == reference.argmax(1)).double().mean().item()
    apart, wanted = (x.double() - x.double().mean(0) for x in (logits, reference))
    share = correlation = None
    # Clips that differ by no more than rounding may move logits tell nothing: noise, or fresh weights.
    if wanted.square().mean().sqrt().item() > ROUNDING * TOLERANCE[precision] * spread:
        share = (apart.norm() / wanted.norm()).item()
        correlation = ((apart * wanted).sum() / (apart.norm() * wanted.norm()).clamp(min=1e-30)).item()
    return LogitComparison(
        clips=len(logits),
        max_difference=difference / spread,
        top1_percent=100 * same,
        rank_correlation=rank_correlation(logits, reference),
        clip_spread=share,
        clip_correlation=correlation,
        precision=precision,
        tolerance=TOLERANCE[precision],
    )


def deviation(logits: Tensor) -> float:
    """The unit of differences: the standard deviation of (N, classes) logits over clips, or over classes where clips
    hardly differ (a network with fresh weights)."""
    over_clips = (logits - logits.mean(0)).std().item() if len(logits) > 1 else 0.0
    return max(over_clips, logits.std().item())


def rank_correlation(logits: Tensor, reference: Tensor) -> float:
    """Spearman's of two orders of the classes, (N, classes) each, mean over clips; ties share their ranks. A clip of
    which one of the two says the same for all classes counts as 0, as 1 if both do."""
    from scipy.stats import rankdata  # here: it takes a second, and most users of this room rank nothing

    a, b = (torch.from_numpy(rankdata(x.cpu().double().numpy(), axis=1)) for x in (logits, reference))
    a, b = (x - x.mean(1, keepdim=True) for x in (a, b))
    found = (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1)).clamp(min=1e-30)
    found[((a == 0) & (b == 0)).all(1)] = 1
    return found.nan_to_num(0).mean().item()  # ranks of NaN are NaN
