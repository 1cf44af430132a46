"""What `check_engine` catches, by name, and what it lets pass; rank correlation against scipy's."""

from collections.abc import Callable

import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor

from tdn_bench.correctness.engine_check import EngineMismatch, check_engine
from tdn_bench.correctness.logits import TOLERANCE, compare_logits, rank_correlation

CLASSES = 12


def clips(count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 2, 5, 8, 8, 3), dtype=torch.uint8, generator=generator)


FRAMES = [clips(4, 0), clips(4, 1)]


def trained(frames: Tensor) -> Tensor:
    return frames.flatten(1).float()[:, :CLASSES] / 50


def fresh(frames: Tensor) -> Tensor:
    """Logits that differ more between classes than between clips, by the factor 3 that fresh weights show."""
    return 0.3 * trained(frames) + 2 * torch.arange(CLASSES).cos()


def rounded(network: Callable[[Tensor], Tensor], frames: Tensor, share: float) -> Tensor:
    """An honest engine of few bits: moved by a share of the deviation, the same for the same clip."""
    noise = torch.stack([torch.randn(CLASSES, generator=torch.Generator().manual_seed(int(f.sum()))) for f in frames])
    return network(frames) + share * network(frames).std() * noise


class Stale:
    """Returns what the call before it should have."""

    def __init__(self, network):
        self.network, self.before = network, None

    def __call__(self, frames):
        now = self.network(frames)
        before, self.before = self.before, now
        return now if before is None or len(before) < len(now) else before[: len(now)]


class Buffered:
    def __init__(self, network):
        self.network, self.buffer = network, torch.empty(8, CLASSES)

    def __call__(self, frames):
        self.buffer[: len(frames)] = self.network(frames)
        return self.buffer[: len(frames)]


class Unsteady:
    def __init__(self, network):
        self.network, self.calls = network, 0

    def __call__(self, frames):
        self.calls += 1
        return self.network(frames) + (self.calls % 2) * self.network(frames).std()


def mutating(network):
    def call(frames):
        logits = network(frames)
        frames[0] = 0
        return logits

    return call


def first_batch(network):
    """The right answer to the first batch, whatever it is asked."""
    answers = {}

    def call(frames):
        kept = answers.setdefault("first", network(FRAMES[0]))
        order = [next((i for i, f in enumerate(FRAMES[0]) if torch.equal(f, g)), None) for g in frames]
        return torch.stack([kept[i if i is not None else 3 - place] for place, i in enumerate(order)])

    return call


WRONG = {
    "constant": lambda n: lambda f: n(FRAMES[0])[:1].repeat(len(f), 1),
    "not finite": lambda n: lambda f: n(f).index_fill(1, torch.tensor([3]), float("nan")),
    "changes in a reversed batch": lambda n: lambda f: n(f).roll(1, 0) if len(f) > 1 else n(f),
    "repeats the answer of the call before": Stale,
    "changes in a second call": Unsteady,
    "overwrites the answer": Buffered,
    "writes to the frames": mutating,
    "changes alone": lambda n: lambda f: n(f) if len(f) > 1 else n(255 - f),
    "of another clip or batch": lambda n: lambda f: n(255 - f),  # its own clips apart, but not as the network has them
    "it returned (3, 12) for 4 clips": lambda n: lambda f: n(f)[: max(1, len(f) - 1)],
}


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("network", [trained, fresh])
@pytest.mark.parametrize("cause", WRONG)
def test_an_engine_that_cheats_is_caught_by_name(cause: str, network, precision: str) -> None:
    frames = [f.clone() for f in FRAMES]
    with pytest.raises(EngineMismatch, match="the engine is not the network") as caught:
        check_engine(WRONG[cause](network), network, frames, precision)
    assert cause in str(caught.value)
    assert "\n" not in str(caught.value)


def test_another_batchs_answer_is_caught() -> None:
    for network in (trained, fresh):
        with pytest.raises(EngineMismatch):
            check_engine(first_batch(network), network, FRAMES, "int8")


@pytest.mark.parametrize("network", [trained, fresh])
@pytest.mark.parametrize("precision", TOLERANCE)
def test_an_honest_engine_passes_and_is_recorded(network, precision: str) -> None:
    share = TOLERANCE[precision] / 8
    comparison = check_engine(lambda f: rounded(network, f, share), network, FRAMES, precision)
    assert (comparison.clips, comparison.precision, comparison.tolerance) == (8, precision, TOLERANCE[precision])
    assert comparison.clip_correlation is not None
    assert comparison.clip_correlation > 0.8
    assert comparison.clip_spread == pytest.approx(1, abs=0.4)


@pytest.mark.parametrize("frames", [[clips(1, 0)], [clips(1, 0).repeat(4, 1, 1, 1, 1, 1)]])
def test_clips_that_are_too_alike_tell_nothing_and_the_record_says_so(frames: list[Tensor]) -> None:
    comparison = check_engine(lambda f: trained(f).bfloat16(), trained, frames, "bf16")
    assert comparison.clip_correlation is None
    assert comparison.clip_spread is None


def test_rank_correlation_is_spearmans() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(20, 9, generator=generator), torch.randn(20, 9, generator=generator)
    a[3], b[3] = a[3].round(), b[3].round()  # ties
    slow = [spearmanr(x.numpy(), y.numpy()).statistic for x, y in zip(a, b, strict=True)]
    assert rank_correlation(a, b) == pytest.approx(sum(slow) / 20)
    assert rank_correlation(a, 7 * a.exp()) == pytest.approx(1)
    same, other = torch.ones(1, 9), torch.arange(9.0)[None]
    assert [rank_correlation(same, other), rank_correlation(other, same), rank_correlation(same, same)] == [0, 0, 1]
    assert compare_logits(a * float("nan"), a).rank_correlation == 0
    assert "not finite" in (compare_logits(a * float("nan"), a).fault() or "")
