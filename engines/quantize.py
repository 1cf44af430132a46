"""Post-training quantisation, explicit: ranges from real clips, Quantize/DequantizeLinear pairs in the ONNX graph.

One scheme for every engine: activations by tensor, weights by output channel, both symmetric around zero, biases not
quantised. In fp8 weights, too, have one scale a tensor: a float needs no finer one, and TensorRT-RTX then has the
convolution write half precision; with a scale a channel it writes float32, which a second kernel reads and scales.
Activations that are never negative (after a ReLU) may be uint8, which ONNX Runtime and OpenVINO take and
TensorRT does not. An activation's range is clipped where its mean squared error, of rounding and of clipping, is least
(as in Sung et al., arXiv 1511.06488).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from engines.spec import Calibration, EngineError

BINS = 2048
MIN_CHANNELS = 32  # a convolution with fewer channels on either side gains nothing from eight bits
E4M3_MAX = 448  # the largest number of fp8 (E4M3)


@dataclass(frozen=True)
class Range:
    """What a layer reads: values beyond ±`clip` are clipped; in int8 if `signed`, else in uint8."""

    clip: float
    signed: bool


def quantisable(network: nn.Module, exclude_layers: Iterable[str] = ()) -> dict[str, nn.Conv2d]:
    """The layers of `network` that quantisation is for, by name, without `exclude_layers` and what lies below them.

    Raises EngineError for a name in `exclude_layers` that stands for no such layer.
    """
    layers = {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d)
        and module.groups == 1
        and min(module.in_channels, module.out_channels) >= MIN_CHANNELS
    }
    for excluded in exclude_layers:
        found = [name for name in layers if name == excluded or name.startswith(f"{excluded}.")]
        if not found:
            example = next(iter(layers), "(this network has none)")
            raise EngineError(f"--exclude-layers {excluded}: no quantised layer has this name; an example is {example}")
        for name in found:
            del layers[name]
    return layers


@torch.inference_mode()
def calibrate(
    network: nn.Module, calibration: Calibration, exclude_layers: Iterable[str] = (), *, unsigned: bool
) -> dict[str, Range]:
    """The range of what each quantisable layer reads, by the layer's name; `network` is in eval mode.

    `calibration` are batches of uint8 frames (B, T, L, H, W, C), at least one. `unsigned` allows uint8 for what is
    never negative. Raises EngineError as `quantisable` does.
    """
    assert calibration
    layers = quantisable(network, exclude_layers)
    device = next(network.parameters()).device
    lows, highs = dict.fromkeys(layers, 0.0), dict.fromkeys(layers, 0.0)
    counts = {name: torch.zeros(BINS, dtype=torch.float64) for name in layers}

    def extremes(name: str, x: Tensor) -> None:
        low, high = torch.aminmax(x)
        lows[name], highs[name] = min(lows[name], low.item()), max(highs[name], high.item())

    def histogram(name: str, x: Tensor) -> None:
        largest = max(highs[name], -lows[name])
        if largest > 0:
            counts[name] += torch.histc(x.float().abs(), BINS, 0, largest).double().cpu()

    for observe in (extremes, histogram):
        with _watching(layers, observe):
            for frames in calibration:
                network(frames.to(device))
    ranges = {}
    for name, high in highs.items():
        signed = lows[name] < 0 or not unsigned
        ranges[name] = Range(_best_clip(counts[name], max(high, -lows[name]), 127 if signed else 255), signed)
    return ranges


@contextmanager
def _watching(layers: Mapping[str, nn.Module], observe: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Calls observe(name, input) whenever one of the layers runs."""
    handles = [
        layer.register_forward_pre_hook(lambda _, inputs, name=name: observe(name, inputs[0]))
        for name, layer in layers.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _best_clip(counts: Tensor, largest: float, levels: int) -> float:
    """Where to clip |x| ≤ `largest`, given its histogram, so that the squared error of `levels` steps is least."""
    if largest == 0:
        return 1.0  # nothing ever came: any range will do
    centres = (torch.arange(BINS, dtype=torch.float64) + 0.5) * (largest / BINS)
    clips = largest * torch.linspace(0.05, 1, 96, dtype=torch.float64)
    clipping = (counts * (centres - clips[:, None]).clamp(min=0).square()).sum(1)
    rounding = counts.sum() * (clips / levels).square() / 12
    return clips[(clipping + rounding).argmin()].item()


@contextmanager
def simulated(network: nn.Module, ranges: Mapping[str, Range], precision: str) -> Iterator[None]:
    """Within, the named layers of `network` compute as they will when quantised, in floating point."""
    handles, weights = [], {}
    for name, found in ranges.items():
        layer = network.get_submodule(name)
        assert isinstance(layer, nn.Conv2d)
        weights[name] = layer.weight.data
        top, every = (E4M3_MAX, (0, 1, 2, 3)) if precision == "fp8" else (127, (1, 2, 3))
        scale = (layer.weight.data.abs().amax(every, keepdim=True) / top).clamp(min=1e-30)
        layer.weight.data = _rounded(layer.weight.data / scale, top, precision) * scale
        if precision == "int8" and not found.signed:
            top = 255  # of what is never negative

        def round_input(_: nn.Module, inputs: tuple[Tensor], top: int = top, step: float = found.clip / top) -> Tensor:
            return _rounded(inputs[0] / step, top, precision) * step

        handles.append(layer.register_forward_pre_hook(round_input))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for name, weight in weights.items():
            network.get_submodule(name).weight.data = weight


def _rounded(steps: Tensor, top: int, precision: str) -> Tensor:
    """Steps as an eight-bit type holds them, clipped to ±top."""
    steps = steps.clamp(-top, top)
    return steps.to(torch.float8_e4m3fn).to(steps.dtype) if precision == "fp8" else steps.round()


def quantise_onnx(path: Path, ranges: Mapping[str, Range], precision: str) -> None:
    """Put Q/DQ pairs before both inputs of the named layers' convolutions in the exported `path`, in place.

    `ranges` are by the names of the exported network's weights, without their ".weight"; `precision` is int8 or fp8.
    """
    import onnx

    model = onnx.load(path)
    _PairWriter(model.graph, ranges, precision).write()
    onnx.save(model, path)


class _PairWriter:
    """Writes Q/DQ pairs into an ONNX graph; what was quantised once serves all that read it."""

    def __init__(self, graph: Any, ranges: Mapping[str, Range], precision: str) -> None:
        from onnx import TensorProto

        self.graph, self.ranges, self.precision = graph, ranges, precision
        weights = (tensor for tensor in graph.initializer if tensor.name.removesuffix(".weight") in ranges)
        self.weights = {tensor.name: tensor for tensor in weights}
        self.nodes: list[Any] = []
        self.done: dict[object, str] = {}  # what was quantised, and the name of its DequantizeLinear's output
        fp8 = TensorProto.FLOAT8E4M3FN, E4M3_MAX
        self.eight = {  # signed or not: the type and its largest number
            True: fp8 if precision == "fp8" else (TensorProto.INT8, 127),
            False: fp8 if precision == "fp8" else (TensorProto.UINT8, 255),
        }

    def write(self) -> None:
        """Replace the graph's nodes, and drop the initializers that none of them reads any more."""
        for node in self.graph.node:
            if node.op_type == "Conv" and node.input[1] in self.weights:
                self._quantise(node)
            self.nodes.append(node)
        lost = sorted(
            self.ranges.keys() - {name.removesuffix(".weight") for name in self.done if isinstance(name, str)}
        )
        assert not lost, f"the exporter renamed the weights of {lost}"
        used = {name for node in self.nodes for name in node.input}
        kept = [tensor for tensor in self.graph.initializer if tensor.name in used]
        del self.graph.node[:], self.graph.initializer[:]
        self.graph.node.extend(self.nodes)
        self.graph.initializer.extend(kept)

    def _quantise(self, convolution: Any) -> None:
        """Let the convolution read both its inputs through pairs."""
        from onnx import numpy_helper

        source, weight = convolution.input[0], self.weights[convolution.input[1]]
        found = self.ranges[weight.name.removesuffix(".weight")]
        kind, top = self.eight[found.signed]
        if (key := (source, found.clip)) not in self.done:
            self.done[key] = self._pair(source, _scale(found.clip / top, weight.data_type), kind, weight.data_type)
        if weight.name not in self.done:
            kind, top = self.eight[True]
            values = np.abs(numpy_helper.to_array(weight).astype(np.float32))
            largest = values.max() if self.precision == "fp8" else values.reshape(weight.dims[0], -1).max(1)
            scale = _scale(largest / top, weight.data_type)
            self.done[weight.name] = self._pair(weight.name, scale, kind, weight.data_type)
        convolution.input[0], convolution.input[1] = self.done[key], self.done[weight.name]

    def _pair(self, source: str, scale: np.ndarray, kind: int, floating: int) -> str:
        """Quantise `source`, at once if it is a weight; the name of what its readers read."""
        from onnx import helper, numpy_helper

        number = len(self.done)
        names = [self._constant(f"{source}/scale{number}", scale, floating)]
        names.append(self._constant(f"{source}/zero{number}", np.zeros(scale.shape, np.float32), kind))
        eighth, back = f"{source}/eight{number}", f"{source}/back{number}"
        if source in self.weights:
            values = numpy_helper.to_array(self.weights[source]).astype(np.float32)
            steps = values / scale.reshape(-1, *[1] * (values.ndim - 1)) if scale.ndim else values / scale
            self._constant(eighth, steps if self.precision == "fp8" else np.rint(steps), kind)
        else:
            self.nodes.append(helper.make_node("QuantizeLinear", [source, *names], [eighth], f"{eighth}/q"))
        self.nodes.append(helper.make_node("DequantizeLinear", [eighth, *names], [back], f"{eighth}/dq", axis=0))
        return back

    def _constant(self, name: str, values: np.ndarray, kind: int) -> str:
        from onnx import TensorProto, helper, numpy_helper

        if kind == TensorProto.FLOAT8E4M3FN:  # numpy has no such type
            raw = torch.from_numpy(np.array(values, np.float32)).to(torch.float8_e4m3fn).view(torch.uint8)
            tensor = helper.make_tensor(name, kind, values.shape, raw.numpy().tobytes(), raw=True)
        else:
            tensor = numpy_helper.from_array(np.array(values).astype(helper.tensor_dtype_to_np_dtype(kind)), name)
        self.graph.initializer.append(tensor)
        return name


def _scale(value: np.ndarray | float, kind: int) -> np.ndarray:
    """A scale as the graph can hold it: rounded to the weights' type, never zero."""
    from onnx import helper

    dtype = helper.tensor_dtype_to_np_dtype(kind)
    smallest = 2.0**-14 if dtype == np.float16 else 1e-30  # normal numbers only: those below lose their digits
    return np.maximum(np.asarray(value, np.float32), smallest).astype(dtype).astype(np.float32)
