"""An exponential moving average of a network's weights, which often validates better than the weights themselves."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


class WeightAverage:
    """The average of a network over its steps (Polyak averaging): new = decay · old + (1 − decay) · weights.

    After n updates the decay is n / (n + 9), up to `decay`: the first weights, which are random, are soon forgotten.
    Batch norm's running statistics are averaged as the weights are: statistics of the last steps belong to the last
    weights, and not to their average. Whole numbers (batches seen) are taken over as they are.

    Args:
        network: What is averaged; here it is copied, and never changed.
        decay: The largest decay, from 0 to below 1.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay, self.updates = decay, 0
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        mine, others = (tuple(n.state_dict(keep_vars=True).values()) for n in (self.network, network))
        pairs = list(zip(mine, others, strict=True))
        self._averaged, self._followed = _columns([p for p in pairs if p[0].is_floating_point()])
        self._kept, self._copied = _columns([p for p in pairs if not p[0].is_floating_point()])

    @torch.no_grad()
    def update(self) -> None:
        """Take in the network's present weights; without a wait for the device."""
        decay = min(self.decay, self.updates / (self.updates + 9))
        torch._foreach_lerp_(self._averaged, self._followed, 1 - decay)
        if self._kept:
            torch._foreach_copy_(self._kept, self._copied)
        self.updates += 1

    def state_dict(self) -> dict[str, Any]:
        """What a later update needs of the earlier ones."""
        return {"network": self.network.state_dict(), "updates": self.updates}

    def load_state_dict(self, state: object) -> None:
        """Go on from what `state_dict` gave, on the CPU; all of it is looked at before any is taken. Raises ValueError,
        with what is wrong in words."""
        if not isinstance(state, dict) or state.keys() != {"network", "updates"} or type(state["updates"]) is not int:
            raise ValueError("its average of the weights is not whole")
        found = tensors_like("averaged weights", state["network"], self.network.state_dict())
        if state["updates"] < 0 or not all(t.isfinite().all() for t in found.values()):
            raise ValueError("its average of the weights is not finite")
        self.network.load_state_dict(found)
        self.updates = state["updates"]


def _columns(pairs: list[tuple[Tensor, Tensor]]) -> tuple[list[Tensor], list[Tensor]]:
    return [mine for mine, _ in pairs], [other for _, other in pairs]


def tensors_like(what: str, found: object, wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`found`, if it maps the names of `wanted` to tensors of the same shapes and types, on the CPU. Raises
    ValueError, in which `what` they are is said, with the first that is not so."""
    if not isinstance(found, dict) or found.keys() != wanted.keys():
        raise ValueError(f"its {what} are not those of this network")
    for name, tensor in found.items():
        like = wanted[name]
        alike = isinstance(tensor, Tensor) and (tensor.shape, tensor.dtype) == (like.shape, like.dtype)
        if not alike or tensor.layout != torch.strided or tensor.device.type != "cpu":
            raise ValueError(f"its {what} of {name} are not those of this network")
    return found
