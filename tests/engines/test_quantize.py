"""Quantisation: ranges, and the Q/DQ pairs of an exported graph."""

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from engines import EngineError, EngineSpec, create_engine
from engines.onnx_export import export_onnx
from engines.quantize import E4M3_MAX, Range, _best_clip, calibrate, quantisable, simulated

SHAPE = (2, 1, 16, 16, 3)


class Net(nn.Module):
    """Three convolutions: one too narrow to be quantised, one that reads what a ReLU left, one that reads any sign."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, padding=1)
        self.first = nn.Conv2d(32, 48, 3, padding=1)
        self.second = nn.Conv2d(48, 32, 1)
        self.head = nn.Linear(32, 5)

    def forward(self, frames: Tensor) -> Tensor:
        x = frames.to(self.head.weight.dtype).flatten(0, 2).permute(0, 3, 1, 2) / 255
        x = self.second(self.first(self.stem(x).relu()))
        return self.head(x.mean((2, 3))).unflatten(0, (frames.shape[0], -1)).mean(1).float()


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture(scope="module")
def frames() -> Tensor:
    return torch.randint(0, 256, (4, *SHAPE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def exported(network: nn.Module, frames: Tensor, tmp_path_factory) -> Callable[[str], Path]:
    """The file of `network` in int8 for an engine, exported once for all tests that want the same one."""

    @functools.cache
    def once(engine: str) -> Path:
        path = tmp_path_factory.mktemp("int8") / f"{engine}.onnx"
        spec = EngineSpec(SHAPE, 4, "int8")
        export_onnx(network, spec, path, engine=engine, floating="fp32", calibration=[frames])
        return path

    return once


def inputs_of(network: nn.Module, name: str, frames: Tensor) -> Tensor:
    kept = []
    with network.get_submodule(name).register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0])):
        network(frames)
    return kept[0]


@torch.inference_mode()
def test_ranges_are_of_what_the_layers_read(network: nn.Module, frames: Tensor) -> None:
    together, apart = (calibrate(network, c, unsigned=True) for c in ([frames], [frames[:1], frames[1:]]))
    assert together.keys() == {"first", "second"}  # the stem has three input channels, the head is no convolution
    for name, found in together.items():
        x = inputs_of(network, name, frames)
        assert found.signed == bool((x < 0).any())
        assert 0.3 * x.abs().max() < found.clip <= x.abs().max() * 1.0001
        assert apart[name].clip == pytest.approx(found.clip, rel=0.05)


@given(st.integers(0, 10**6), st.sampled_from([127, 255]), st.floats(1, 6))
@settings(max_examples=20)
def test_no_other_clip_has_a_smaller_error(seed: int, levels: int, power: float) -> None:
    """Against rounding and clipping the values themselves, for every clip on a coarse grid."""
    x = torch.rand(4000, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) ** power
    counts = torch.histc(x, 2048, 0, x.max().item())

    def error(clip: float) -> float:
        step = clip / levels
        return ((x.clamp(max=clip) / step).round() * step - x).square().mean().item()

    chosen = error(_best_clip(counts, x.max().item(), levels))
    assert chosen <= 1.1 * min(error(x.max().item() * share) for share in np.linspace(0.05, 1, 39))


def test_excluded_layers_are_left_out_and_unknown_ones_named(network: nn.Module) -> None:
    assert quantisable(network, exclude_layers=["first"]).keys() == {"second"}
    with pytest.raises(
        EngineError, match="--exclude-layers fist: no quantised layer has this name; an example is first"
    ):
        quantisable(network, exclude_layers=["fist"])


@pytest.mark.parametrize("engine", ["onnx", "openvino", "trt"])
def test_pairs_stand_before_both_inputs_of_each_layer(
    engine: str, network: nn.Module, exported: Callable[[str], Path]
) -> None:
    onnx = pytest.importorskip("onnx")
    graph = onnx.load(exported(engine)).graph
    made_by = {node.output[0]: node for node in graph.node}
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    read_from_pair = [c.input[0] in made_by and made_by[c.input[0]].op_type == "DequantizeLinear" for c in convolutions]
    assert read_from_pair == [False, True, True]
    for convolution, layer, signed in zip(
        convolutions[1:], (network.first, network.second), (False, True), strict=True
    ):
        activation, weight = (made_by[name] for name in convolution.input[:2])
        zero = types[made_by[activation.input[0]].input[2]]
        unsigned = not signed and engine != "trt"  # TensorRT has no uint8
        assert zero == (onnx.TensorProto.UINT8 if unsigned else onnx.TensorProto.INT8)
        assert weight.op_type == "DequantizeLinear"
        steps, scale = values[weight.input[0]], values[weight.input[1]]
        assert steps.dtype == np.int8
        assert np.abs(steps).max() == 127
        assert scale.shape == (len(steps),)
        back = torch.from_numpy(steps.astype(np.float32) * scale.reshape(-1, 1, 1, 1))
        assert (back - layer.weight).abs().max() <= scale.max() / 2 * 1.001
    assert not {"network.first.weight", "network.second.weight"} & types.keys()


def test_fp8_graph_holds_fp8(network: nn.Module, frames: Tensor, tmp_path) -> None:
    onnx = pytest.importorskip("onnx")
    spec = EngineSpec(SHAPE, 4, "fp8", "cuda")
    export_onnx(network, spec, tmp_path / "net.onnx", engine="trt", floating="fp16", calibration=[frames])
    graph = onnx.load(tmp_path / "net.onnx").graph
    eight = [t for t in graph.initializer if t.data_type == onnx.TensorProto.FLOAT8E4M3FN]
    (weight,) = [t for t in eight if list(t.dims) == [48, 32, 3, 3]]
    pair = next(node for node in graph.node if node.op_type == "DequantizeLinear" and node.input[0] == weight.name)
    scale = next(onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer if tensor.name == pair.input[1])
    raw = torch.frombuffer(bytearray(weight.raw_data), dtype=torch.uint8).view(torch.float8_e4m3fn)
    back = raw.float().reshape(48, 32, 3, 3) * torch.from_numpy(scale.astype(np.float32)).view(-1, 1, 1, 1)
    largest = network.first.weight.abs().amax((1, 2, 3), keepdim=True)
    assert ((back - network.first.weight).abs() <= largest * 2**-4).all()  # three bits of mantissa
    assert raw.float().abs().max() <= E4M3_MAX


@torch.inference_mode()
@pytest.mark.parametrize("unsigned", [True, False])
def test_the_simulation_is_what_the_engine_computes(
    unsigned: bool, network: nn.Module, frames: Tensor, exported: Callable[[str], Path]
) -> None:
    ort = pytest.importorskip("onnxruntime")
    path = exported("onnx" if unsigned else "trt")
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL  # Q and DQ as they are written
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"frames": frames.numpy()})
    exact = network(frames)
    with simulated(network, calibrate(network, [frames], unsigned=unsigned), "int8"):
        wanted = network(frames)
    assert torch.equal(network(frames), exact), "the weights are not what they were"
    assert (torch.from_numpy(found) - wanted).abs().max() < 0.05 * (wanted - exact).abs().max()


def test_a_layer_that_was_never_reached_by_a_value_is_harmless(network: nn.Module, tmp_path) -> None:
    pytest.importorskip("onnxruntime")
    black = torch.zeros(1, *SHAPE, dtype=torch.uint8)
    still = Net().eval()
    nn.init.zeros_(still.stem.weight)
    nn.init.zeros_(still.stem.bias)
    assert calibrate(still, [black], unsigned=True)["first"] == Range(1.0, False)
    with create_engine("onnx", still, EngineSpec(SHAPE, 1, "int8"), calibration=[black]) as engine:
        assert engine(black).isfinite().all()


def test_a_layer_called_twice_is_quantised_once(tmp_path, frames: Tensor) -> None:
    onnx = pytest.importorskip("onnx")

    class Twice(Net):
        def forward(self, frames: Tensor) -> Tensor:
            x = frames.to(self.head.weight.dtype).flatten(0, 2).permute(0, 3, 1, 2) / 255
            x = self.second(self.first(self.second(self.first(self.stem(x).relu())).relu()))
            return self.head(x.mean((2, 3))).unflatten(0, (frames.shape[0], -1)).mean(1).float()

    export_onnx(
        Twice().eval(),
        EngineSpec(SHAPE, 4, "int8"),
        tmp_path / "n.onnx",
        engine="onnx",
        floating="fp32",
        calibration=[frames],
    )
    graph = onnx.load(tmp_path / "n.onnx").graph
    assert sum(list(t.dims) == [48, 32, 3, 3] for t in graph.initializer) == 1
    assert sum(node.op_type == "QuantizeLinear" for node in graph.node) == 4


def test_eight_bits_without_clips_are_refused(network: nn.Module) -> None:
    with pytest.raises(EngineError, match="int8 needs clips to calibrate on: none were given"):
        create_engine("onnx", network, EngineSpec(SHAPE, 1, "int8"))
