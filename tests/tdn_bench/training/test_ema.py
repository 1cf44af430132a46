"""The average of the weights: against the recursion written out, and what a state may hold."""

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from tdn_bench.training.ema import WeightAverage


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))


def walk(net: nn.Module, steps: int) -> Iterator[dict[str, torch.Tensor]]:
    """Change the weights, the statistics and the count of batches at random; yield them after each step."""
    draw = torch.Generator().manual_seed(1)
    for _ in range(steps):
        with torch.no_grad():
            for tensor in net.state_dict().values():
                if tensor.is_floating_point():
                    tensor.copy_(torch.rand(tensor.shape, generator=draw))
                else:
                    tensor.add_(1)
        yield {name: t.double().clone() for name, t in net.state_dict().items()}


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.99])
def test_the_average_is_the_recursion_of_weights_and_statistics(decay: float) -> None:
    net = network()
    average = WeightAverage(net, decay)
    wanted: dict[str, torch.Tensor] = {}
    for n, weights in enumerate(walk(net, 30)):
        average.update()
        d = min(decay, n / (n + 9))
        wanted = {k: d * wanted[k] + (1 - d) * w if n else w for k, w in weights.items()}
    for name, tensor in average.network.state_dict().items():
        if name.endswith("num_batches_tracked"):
            assert tensor == net.state_dict()[name] == 30
        else:
            torch.testing.assert_close(tensor.double(), wanted[name], rtol=1e-5, atol=1e-6)


def test_the_network_is_left_alone_and_the_average_never_trains() -> None:
    net = network()
    average = WeightAverage(net, 0.9)
    before = copy.deepcopy(net.state_dict())
    average.update()
    assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items())
    assert net.training
    assert not average.network.training
    assert not any(p.requires_grad for p in average.network.parameters())


def test_an_average_goes_on_from_its_state_bit_for_bit() -> None:
    net, other = network(), network()
    average, resumed = WeightAverage(net, 0.99), WeightAverage(other, 0.99)
    for number, weights in enumerate(walk(net, 20)):
        average.update()
        if number == 8:
            resumed.load_state_dict(copy.deepcopy(average.state_dict()))
        if number > 8:
            other.load_state_dict({k: w.to(net.state_dict()[k].dtype) for k, w in weights.items()})
            resumed.update()
    assert resumed.updates == average.updates == 20
    for name, tensor in average.network.state_dict().items():
        assert torch.equal(tensor, resumed.network.state_dict()[name]), name


@pytest.mark.parametrize(
    "spoil",
    [
        lambda s: s | {"updates": -1},
        lambda s: s | {"updates": 1.0},
        lambda s: {"network": s["network"]},
        lambda s: s | {"network": {}},
        lambda s: s | {"network": s["network"] | {"0.weight": torch.zeros(3, 5)}},
        lambda s: s | {"network": s["network"] | {"1.running_var": torch.full((3,), float("nan"))}},
        lambda s: None,
    ],
)
def test_what_is_no_state_is_refused_and_changes_nothing(spoil) -> None:
    average = WeightAverage(network(), 0.9)
    average.update()
    before = copy.deepcopy(average.state_dict())
    with pytest.raises(ValueError, match="average"):
        average.load_state_dict(spoil(copy.deepcopy(before)))
    assert average.updates == before["updates"]
    assert all(torch.equal(t, before["network"][name]) for name, t in average.network.state_dict().items())
