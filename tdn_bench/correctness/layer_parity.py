"""Which layer makes an engine's logits differ? The output of every layer in the engine, beside eager float32's.

For eight bits also what each layer costs alone, and which layers to leave in floating point (--exclude-layers).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from engines import Calibration, EngineSpec, calibrate, copy_network, create_engine, simulated
from tdn_bench.models import FrameClassifier
from tdn_bench.models.resnet import Bottleneck, ConvBN
from tdn_bench.models.temporal_difference import LongTermDifference, TemporalConv

SAMPLES = 4096  # values of a layer's output that are compared, a clip
COSTLY = 4  # a layer that makes so many times its even share of the squared error is named to be excluded


@dataclass(frozen=True)
class LayerParity:
    """Every layer's output in one engine, beside eager float32's.

    rows: a layer each, as records hold them. `relative` is ‖difference‖ ÷ ‖output‖, of all that went before and of the
    layer itself. For eight bits `alone` is the root mean square difference of the logits, as a share of their
    deviation, when this layer alone is quantised (simulated), and `share` its part of the sum of their squares. There
    are no rows where the engine does not show its layers.
    costly: the layers that make more than COSTLY times an even share of that sum, as --exclude-layers takes them.
    """

    rows: list[dict[str, Any]]
    costly: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """A line a layer, and the layers to exclude, if any."""
        if not self.rows:
            return ["  (torch.compile does not show its layers; aoti compiles the same network and does)"]
        lines = []
        for row in self.rows:
            lines.append(f"    {row['layer']:42s}{row['relative']:10.1e}")
            if "alone" in row:
                lines[-1] += (
                    f"   alone {row['alone']:.1e} of the logits' deviation, {row['share']:4.0%} of the squared error"
                )
        if self.costly:
            layers = " ".join(self.costly)
            lines.append(f"  more than {COSTLY} times an even share of the error: --exclude-layers {layers}")
        return lines


class Probe(nn.Module):
    """A network that returns its layers' outputs in place of logits: for each of `names` up to SAMPLES values a clip,
    float32 (B, sum of them). Any engine runs it, and so shows what it computes inside."""

    def __init__(self, network: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.network, self.names = network, tuple(names)

    def for_inference(self, engine: str) -> Probe:
        """The network within, rewritten."""
        self.network = self.network.for_inference(engine)  # type: ignore[operator]
        return self

    def forward(self, frames: Tensor) -> Tensor:
        return torch.cat(self.outputs(frames), 1)

    def outputs(self, frames: Tensor) -> list[Tensor]:
        """What `forward` joins, by layer."""
        taken: dict[str, Tensor] = {}

        def take(name: str, module: nn.Module, inputs: Any, output: Tensor) -> None:
            values = output.reshape(frames.shape[0], -1)
            values = values[:, :: -(-values.shape[1] // SAMPLES)]
            taken[name] = values.float() + 0  # a copy: the output may be changed in place

        layers = {name: self.network.get_submodule(name) for name in self.names}
        handles = [layer.register_forward_hook(partial(take, name)) for name, layer in layers.items()]
        self.network(frames)
        for handle in handles:
            handle.remove()
        return [taken[name] for name in self.names]


def layer_names(network: nn.Module) -> list[str]:
    """The layers that stay themselves when a network is rewritten, in the order in which they are called."""
    inside = [n for n, m in network.named_modules() if isinstance(m, LongTermDifference)]
    return [
        name
        for name, module in network.named_modules()
        if isinstance(module, (ConvBN, TemporalConv, LongTermDifference, Bottleneck, nn.Linear))
        and not any(name.startswith(f"{long_term}.") for long_term in inside)
    ]


def per_layer(
    name: str, network: FrameClassifier, spec: EngineSpec, frames: Tensor, calibration: Calibration
) -> LayerParity:
    """Compare every layer's output in engine `name` of `network` with eager float32's, on one batch of uint8 frames
    (B, T, L, H, W, C). `calibration`, batches like it, is for int8 and fp8. Raises what `create_engine` raises."""
    if name == "compile":
        return LayerParity([])
    spec = replace(spec, max_batch=len(frames), dynamic_batch=False)
    names = layer_names(network)
    alone = _alone(network, name, spec, frames, calibration) if calibration is not None else {}
    total = sum(value**2 for value in alone.values()) or 1.0
    with torch.inference_mode():
        wanted = [output.cpu() for output in Probe(network, names).outputs(frames)]
    probe_spec = replace(spec, exclude_layers=tuple(f"network.{layer}" for layer in spec.exclude_layers))
    with create_engine(name, Probe(network, names), probe_spec, calibration=calibration) as engine:
        found = engine(frames).cpu().split([w.shape[1] for w in wanted], 1)
    rows = []
    for layer, a, b in zip(names, found, wanted, strict=True):
        row: dict[str, Any] = {"layer": layer, "relative": ((a - b).norm() / b.norm().clamp(min=1e-30)).item()}
        if (value := alone.get(f"{layer}.conv")) is not None:
            row |= {"alone": value, "share": value**2 / total}
        rows.append(row)
    costly = tuple(f"{row['layer']}.conv" for row in rows if row.get("share", 0) > COSTLY / max(1, len(alone)))
    return LayerParity(rows, costly)


@torch.inference_mode()
def _alone(
    network: nn.Module, name: str, spec: EngineSpec, frames: Tensor, calibration: Calibration
) -> dict[str, float]:
    """The root mean square difference of logits when one layer alone is quantised, by layer, as a share of their
    deviation."""
    exact = copy_network(network, spec, name, "fp32")
    logits = exact(frames)
    alone = {}
    for layer, found in calibrate(exact, calibration, spec.exclude_layers, unsigned=name != "trt").items():
        with simulated(exact, {layer: found}, spec.precision):
            alone[layer] = ((exact(frames) - logits).square().mean().sqrt() / logits.std()).item()
    return alone
