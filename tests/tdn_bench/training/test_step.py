"""One step: accumulation against one pass, steps that are left out, and the state that a later one goes on from."""

import os
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from tdn_bench.models import FrameClassifier, create_model
from tdn_bench.recipes import demo
from tdn_bench.training import TrainStep

CPU = torch.device("cpu")


class Poisoned(nn.Module):
    """A small classifier whose logits, and with them batch norm's statistics of the next layer, can be spoiled."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)
        self.factor = 1.0

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        return self.last(self.norm(self.first(frames.float() / 255) * self.factor))


def made(precision: str = "fp32", **changes: Any) -> tuple[TrainStep, Poisoned]:
    torch.manual_seed(0)
    network = Poisoned()
    optimization = replace(demo().optimization, lr=0.1, warmup_epochs=0, **changes)
    return TrainStep(network, optimization, precision, CPU), network


def batch(number: int, clips: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(number)
    frames = torch.randint(0, 256, (clips, 6), dtype=torch.uint8, generator=draw)
    return frames, torch.randint(0, 3, (clips,), generator=draw)


def everything(step: TrainStep, network: nn.Module) -> dict[str, torch.Tensor]:
    momentum = {f"momentum of {name}": tensor for name, tensor in step.state_dict()["momentum"].items()}
    counted = {name: t for name, t in network.state_dict().items() if not name.endswith("num_batches_tracked")}
    return {name: tensor.clone() for name, tensor in (counted | momentum).items()}


def assert_same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in found.items():
        assert torch.equal(tensor, wanted[name]), name


@pytest.mark.parametrize("at_once", [1, 2, 3, 5, 9])
def test_passes_add_up_to_one_step_of_all_clips(at_once: int) -> None:
    frames = torch.randint(0, 256, (5, 2, 5, 64, 64, 3), dtype=torch.uint8)
    labels = torch.tensor([0, 1, 2, 0, 1])
    outcomes, gradients = [], []
    for size in (None, at_once):
        torch.manual_seed(0)
        classifier = FrameClassifier(create_model("tsn_resnet_small", num_classes=3, num_segments=2, dropout=0)).eval()
        step = TrainStep(classifier, replace(demo().optimization, micro_batch_size=size), "fp32", CPU)
        outcomes.append(step(frames, labels, 1.0))
        gradients.append([p.grad for p in classifier.parameters()])
    torch.testing.assert_close(outcomes[1].loss, outcomes[0].loss, rtol=1e-6, atol=0)
    torch.testing.assert_close(outcomes[1].gradient_norm, outcomes[0].gradient_norm, rtol=1e-5, atol=0)
    largest = max(float(g.abs().max()) for g in gradients[0] if g is not None)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-6 * largest)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
@pytest.mark.parametrize("when", [0, 2])  # the first: SGD has no momentum of its own yet
def test_a_step_that_is_not_finite_leaves_no_trace(precision: str, bad: float, when: int) -> None:
    (step, network), (plain, other) = made(precision), made(precision)
    for number in range(4):
        if number == when:
            before = everything(step, network)
            network.factor = bad
            outcome = step(*batch(99), 0.0)
            network.factor = 1.0
            assert not outcome.gradient_norm.isfinite()
            assert_same(everything(step, network), before)
            if precision == "fp16":
                assert step.scaler.get_scale() == 0.5 * plain.scaler.get_scale()
                plain.scaler.load_state_dict(step.scaler.state_dict())
        ours, theirs = step(*batch(number), 0.0), plain(*batch(number), 0.0)
        assert torch.equal(ours.loss, theirs.loss)
    assert_same(everything(step, network), everything(plain, other))


def test_gradients_that_overflow_only_when_they_are_summed_are_left_out_too() -> None:
    step, network = made()
    before = everything(step, network)
    network.last.weight.register_hook(lambda gradient: torch.full_like(gradient, 3e38))  # finite, its norm is not
    assert not step(*batch(0), 0.0).gradient_norm.isfinite()
    assert_same(everything(step, network), before)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_step_goes_on_from_its_state_bit_for_bit(precision: str) -> None:
    (step, network), (other, theirs) = made(precision), made(precision)
    for number in range(2):
        step(*batch(number), 0.0)
    theirs.load_state_dict(network.state_dict())
    other.load_state_dict(step.state_dict())
    for number in range(2, 5):
        assert torch.equal(step(*batch(number), 0.0).loss, other(*batch(number), 0.0).loss)
    assert_same(everything(other, theirs), everything(step, network))


def test_momentum_begins_anew_where_there_was_none() -> None:
    without, _ = made(momentum=0.0)
    assert without.state_dict()["momentum"] == {}
    step, _ = made()
    step(*batch(0), 0.0)
    without.load_state_dict(step.state_dict())
    fresh, _ = made()
    fresh.load_state_dict(without.state_dict())
    assert not any(m.any() for m in fresh.state_dict()["momentum"].values())


def test_a_state_is_looked_at_before_any_of_it_is_taken() -> None:
    step, network = made("fp16")
    step(*batch(0), 0.0)
    before = everything(step, network)
    state = step.state_dict()
    spoiled = {name: torch.full_like(m, 2.0) for name, m in state["momentum"].items()}
    for damage in (
        {"momentum": spoiled | {"last.bias": torch.tensor([0.0, float("nan"), 0.0])}},
        {"momentum": spoiled | {"last.bias": torch.zeros(4)}},
        {"momentum": spoiled, "scaler": {}},
        {"momentum": spoiled, "scaler": state["scaler"] | {"scale": -1.0}},
    ):
        with pytest.raises(ValueError, match=r"^its "):
            step.load_state_dict(state | damage)
        assert_same(everything(step, network), before)


IN_PROCESSES = """
import sys
from dataclasses import replace
import torch, torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from tdn_bench.recipes import demo
from tdn_bench.training import TrainStep

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()

def net():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(6, 50), torch.nn.ReLU(), torch.nn.Linear(50, 3))

class Float(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = net()
    def forward(self, frames):
        return self.inner(frames.float() / 255)

optimization = replace(demo().optimization, lr=0.1, warmup_epochs=0)
one, mine = Float(), Float()
whole = TrainStep(one, optimization, "fp32", torch.device("cpu"))
step = TrainStep(mine, replace(optimization, micro_batch_size=2), "fp32", torch.device("cpu"))
step.adopt(DistributedDataParallel(mine, gradient_as_bucket_view=True, bucket_cap_mb=0.0005))
step.clock.start()
for number in range(4):
    draw = torch.Generator().manual_seed(number)
    frames = torch.randint(0, 256, (5 * world, 6), dtype=torch.uint8, generator=draw)
    labels = torch.randint(0, 3, (5 * world,), generator=draw)
    wanted = whole(frames, labels, 0.0)
    found = step(frames[rank::world], labels[rank::world], 0.0)
    torch.testing.assert_close(found.gradient_norm, wanted.gradient_norm, rtol=1e-5, atol=0)
    mean = found.loss / world
    dist.all_reduce(mean)
    torch.testing.assert_close(mean, wanted.loss, rtol=1e-5, atol=0)
    torch.testing.assert_close(mine.state_dict(), one.state_dict(), rtol=1e-5, atol=1e-7)
times = step.clock.take()
assert len(times) == 4 and all(t["all_reduce"] > 0 and t["backward"] > 0 for t in times), times
dist.destroy_process_group()
"""


def test_processes_that_accumulate_take_the_steps_of_one_that_does_not(tmp_path) -> None:
    script = tmp_path / "processes.py"
    script.write_text(IN_PROCESSES)
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert done.returncode == 0, done.stderr[-3000:]
