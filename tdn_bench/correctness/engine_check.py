"""Is the engine the network? Its logits against eager float32's, before anything is timed or served."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from engines import Calibration, Engine, EngineSpec, create_engine, exact_float32
from tdn_bench.correctness.logits import TOLERANCE, LogitComparison, compare_logits, deviation
from tdn_bench.errors import UserError


class EngineMismatch(UserError):
    """An engine that does not compute what the network computes: `fault` says in what."""

    def __init__(self, fault: str) -> None:
        super().__init__(f"the engine is not the network: {fault}; nothing was timed")
        self.fault = fault


def reference_spec(spec: EngineSpec) -> EngineSpec:
    """What eager is built for when engines of `spec` are compared with it: float32, the network as it is written."""
    return replace(spec, precision="fp32", rewrite=False, exclude_layers=())


def check_engine(
    engine: Callable[[Tensor], Tensor], reference: Callable[[Tensor], Tensor], batches: Sequence[Tensor], precision: str
) -> LogitComparison:
    """Run both on real clips, `batches` of uint8 (B, T, L, H, W, C); both return logits (B, classes), the engine's in
    `precision`. Raises EngineMismatch where the engine is not the network.

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
                raise EngineMismatch(f"it returned {tuple(copies[-1].shape)} for {len(frames)} clips")
            if bad := (~copies[-1].isfinite()).sum().item():
                raise EngineMismatch(f"{bad} of the values that it returned are not finite")
        if not torch.equal(batch, before):
            raise EngineMismatch("it writes to the frames that it is given")
        if not all(torch.equal(answer.float().cpu(), copy) for answer, copy in zip(answers, copies, strict=True)):
            raise EngineMismatch("a later call overwrites the answer of an earlier one")
        first, again, back, alone = copies
        # Weights and rounding are the same in all of them, only sums may take another order: half the tolerance.
        bound = TOLERANCE[precision] * deviation(right) / 2
        for how, answer in (("in a second call", again), ("in a reversed batch", back.flip(0)), ("alone", alone)):
            if (change := (answer - first[: len(answer)]).abs().max().item()) > bound:
                if len(batch) > 1 and torch.equal(back, again):
                    raise EngineMismatch("it repeats the answer of the call before")
                raise EngineMismatch(f"a clip's answer changes {how} by {change:.2g} (at most {bound:.2g} is rounding)")
        found += copies
        wanted += [right, right, right.flip(0), right[:1]]
    comparison = compare_logits(torch.cat(found), torch.cat(wanted), precision)
    if (fault := comparison.fault()) is not None:
        raise EngineMismatch(fault)
    return replace(comparison, clips=sum(map(len, batches)))


@contextmanager
def checked_engine(
    name: str,
    network: nn.Module,
    spec: EngineSpec,
    clips: Sequence[Tensor],
    *,
    calibration: Calibration = None,
    cache: Path | None = None,
    reference: nn.Module | None = None,
) -> Iterator[tuple[Engine, LogitComparison]]:
    """Engine `name` of `network`, built and held against eager float32 of `reference` (default: the same network) on
    `clips`, batches of uint8 (B, T, L, H, W, C); and how far it is from that.

    Raises EngineMismatch where it is another network, and what `create_engine` raises."""
    exact_float32()  # or float32 would not agree with itself
    with create_engine(name, network, spec, calibration=calibration, cache=cache) as engine:
        with create_engine("eager", reference or network, reference_spec(spec)) as eager:
            comparison = check_engine(engine, eager, clips, spec.precision)
        del network, reference, eager, clips, calibration  # memory that the measurement need not share
        yield engine, comparison
