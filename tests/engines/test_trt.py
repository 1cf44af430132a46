import ctypes
import math
import re
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from support.engines import SPEC, TDN_SHAPE, Motion, small_tdn, tdn_frames
from torch import Tensor

import engines
from engines import QUANTISED, EngineError, EngineSpec, EngineUnavailable, create_engine
from engines.base import copy_network
from engines.onnx_export import export_onnx
from engines.quantize import quantisable
from engines.trt import TrtEngine, create_context, load_engine, memory_bytes
from engines.trt_build import (
    LayerTypes,
    build_engine,
    cause,
    engine_layers,
    layer_report,
    load_tensorrt,
    load_timing_cache,
    new_config,
    new_log,
    save_timing_cache,
)
from storage.private import read_sealed, write_sealed
from tdn_bench.models import FrameClassifier
from tdn_bench.models.inference import ShiftedTemporalConv
from tdn_bench.models.resnet import RESNET50, ResNetConfig
from tdn_bench.models.temporal_difference import TemporalConv
from tdn_bench.models.variants import VARIANTS

NO_GPU = not torch.cuda.is_available()


def build(network: torch.nn.Module, spec: EngineSpec, folder: Path) -> tuple[bytes, list[LayerTypes]]:
    quantised = spec.precision in QUANTISED
    clips = torch.randint(0, 256, (1, *spec.frames_shape), dtype=torch.uint8) if quantised else None
    export_onnx(
        network,
        spec,
        folder / "network.onnx",
        engine="trt",
        floating="fp16" if quantised else spec.precision,
        calibration=None if clips is None else [clips],
    )
    log: list[str] = []
    try:
        return build_engine(folder / "network.onnx", spec, log), layer_report(log)
    except EngineUnavailable as error:  # TensorRT itself, where there is no GPU to build on
        pytest.skip(str(error))


@pytest.mark.needs_tensorrt
def test_fp16_engine_of_tdn_computes_in_fp16(tmp_path: Path) -> None:
    plan, layers = build(small_tdn(), EngineSpec(TDN_SHAPE, 8, "fp16", "cuda"), tmp_path)
    assert len(plan) > 1_000_000
    computing = [layer for layer in layers if layer.inputs]
    assert len(computing) > 30
    assert not [layer for layer in computing if "Float" in layer.inputs]
    assert [layer.outputs for layer in computing if "Float" in layer.outputs] == [("Float",)]  # the logits
    assert [layer.inputs for layer in computing if "UInt8" in layer.inputs] == [("UInt8",)]  # the frames


def test_temporal_convolution_of_tensorrt_is_the_plain_one() -> None:
    plain = TemporalConv(6, num_segments=4)
    torch.nn.init.normal_(plain.weight)
    network, spec = small_tdn(), EngineSpec(TDN_SHAPE, 2)
    for name in ("trt", "torch-trt"):
        rewritten = copy_network(network, spec, name)
        assert not [module for module in rewritten.modules() if isinstance(module, TemporalConv)]
        exact = copy_network(network, EngineSpec(TDN_SHAPE, 2, rewrite=False), name)(tdn_frames(2))
        assert (rewritten(tdn_frames(2)) - exact).abs().max() <= 1e-3 * exact.std()
    x = torch.randn(8, 6, 3, 5)
    video = x.unflatten(0, (2, 4)).permute(0, 3, 4, 2, 1).flatten(0, 2)  # (2·3·5, 6, 4)
    slow = torch.nn.functional.conv1d(video, plain.weight, padding=1, groups=6)
    slow = slow.unflatten(0, (2, 3, 5)).permute(0, 4, 3, 1, 2).flatten(0, 1)
    torch.testing.assert_close(ShiftedTemporalConv(plain)(x), slow)


def steps(layer: LayerTypes) -> list[str]:
    """What TensorRT has put into a kernel that it wrote itself: "__myl_SlicSub_myl0_7" is a slice and a difference."""
    return re.findall("[A-Z][a-z]+", layer.name.removeprefix("__myl_").partition("_myl")[0])


@pytest.mark.needs_tensorrt
@pytest.mark.parametrize(
    ("blocks", "copied", "most"),
    [((1, 1, 1, 1), 9, 71), pytest.param(RESNET50.blocks, 26, 230, marks=pytest.mark.slow)],
)
def test_no_layer_of_tdn_is_left_on_a_slow_path(
    blocks: tuple[int, int, int, int], copied: int, most: int, tmp_path: Path
) -> None:
    """On ResNet-50, and on one with a single block a stage. `copied` kernels only move, of at most `most`."""
    network = FrameClassifier(VARIANTS["tdn"].build(ResNetConfig(blocks), 8, 8, 0.5))
    long_term = sum(blocks[1:])
    _, layers = build(network, EngineSpec((8, 5, 64, 64, 3), 1, "fp16", "cuda"), tmp_path)
    if not any(layer.kind == "kgen" for layer in layers):
        pytest.skip("TensorRT names its kernels otherwise than TensorRT-RTX")
    rewritten = copy_network(network, EngineSpec((8, 5, 64, 64, 3), 1), "trt")
    wanted = sum(isinstance(module, torch.nn.Conv2d) for module in rewritten.modules())
    computing = [layer for layer in layers if layer.inputs]
    heavy = [layer for layer in computing if layer.kind == "correlation" or {"Corr", "Fc"} & set(steps(layer))]
    # each convolution is one kernel, with what follows it; an L-TDM's last one, called twice, is two
    assert len(heavy) == wanted + long_term
    assert {(layer.inputs[0], layer.constants[0], *layer.outputs) for layer in heavy} == {("Half",) * 3}
    own = Counter("".join(steps(layer)) for layer in computing if layer.kind in ("kgen", "runtime_fusion"))
    assert own["CorrAddMulAddMul"] == long_term, "the gates' sum and product are not in their convolution's kernel"
    assert own["ReshSlicConcMulMulSlicConcMulAddAdd"] == long_term, "a temporal convolution is not one kernel"
    assert not [name for name in own if name.startswith("Scal")], "a batch norm was not folded"
    # Kernels that only move: reading the frames (2), the L-TDMs' segments without a neighbour (one each), the mean at
    # the end and the logits (2), and what TensorRT-RTX puts behind the 1×1 convolutions that it makes matrix products
    # of (9 of ResNet-50's, 2 of the small one's).
    moving = {"Tran", "Resh", "Slic", "Conc", "Move", "Cast"}
    copies = [layer.name for layer in computing if layer.kind == "kgen" and set(steps(layer)) <= moving]
    assert len(copies) <= copied, copies
    assert len(computing) <= most


@pytest.mark.slow
@pytest.mark.needs_tensorrt
@pytest.mark.parametrize(("precision", "kind", "written"), [("int8", "Int8", "Float"), ("fp8", "FP8", "Half")])
def test_every_quantised_convolution_computes_in_eight_bits(precision: str, kind: str, written: str, tmp_path) -> None:
    spec = EngineSpec(TDN_SHAPE, 2, precision, "cuda")
    network = small_tdn()
    _, layers = build(network, spec, tmp_path)
    convolutions = [layer for layer in layers if layer.kind == "correlation" or "Corr" in steps(layer)]
    wanted = quantisable(copy_network(network, EngineSpec(TDN_SHAPE, 2), "trt"))
    found = [layer for layer in convolutions if layer.inputs[0] == kind]
    assert len(found) == len(wanted) == 20
    assert {layer.constants[0] for layer in found} == {kind}
    # with a scale for each channel of the weights TensorRT-RTX leaves scaling, ReLU and rounding to a second kernel
    assert {layer.outputs for layer in found} == {(written,)}
    assert {layer.inputs[0] for layer in convolutions} == {kind, "Half"}


@pytest.mark.needs_tensorrt
def test_tf32_only_where_it_is_asked_for_and_a_profile_for_dynamic_batches() -> None:
    trt = load_tensorrt()
    builder = trt.Builder(new_log(trt))
    for precision in engines.PRECISIONS:
        config = new_config(trt, builder, EngineSpec(SPEC.frames_shape, 4, precision, "cuda"))
        assert config.get_flag(trt.BuilderFlag.TF32) == (precision == "tf32")
        assert config.num_optimization_profiles == 0
    assert new_config(trt, builder, EngineSpec(SPEC.frames_shape, 4, dynamic_batch=True)).num_optimization_profiles == 1


@pytest.mark.needs_tensorrt
def test_bf16_engine_convolves_in_bf16(tmp_path: Path) -> None:
    _, layers = build(Motion(), EngineSpec(SPEC.frames_shape, 4, "bf16", "cuda"), tmp_path)
    convolutions = [layer for layer in layers if layer.kind == "correlation"]
    assert convolutions
    assert {kind for layer in convolutions for kind in layer.inputs} == {"BFloat16"}  # pooling would be in fp32


@pytest.mark.needs_tensorrt
@pytest.mark.skipif(not NO_GPU, reason="has a GPU")
def test_engine_built_without_a_gpu_is_refused_where_there_is_none(tmp_path: Path) -> None:
    plan, layers = build(Motion(), EngineSpec(SPEC.frames_shape, 4, "fp32", "cuda"), tmp_path)
    assert {name for layer in layers for name in layer.inputs} == {"UInt8", "Float"}
    with pytest.raises(EngineError, match=r"cannot load this engine on this machine: .*cudaError") as caught:
        load_engine(plan, new_log(load_tensorrt()))
    assert "\n" not in str(caught.value)


@pytest.mark.needs_tensorrt
@pytest.mark.skipif(not NO_GPU, reason="has a GPU")
def test_build_gives_the_librarys_first_reason(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    if load_tensorrt().__name__ == "tensorrt":
        pytest.skip("tensorrt builds on a GPU only")
    shape = ["batch", *SPEC.frames_shape]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Transpose", ["frames"], ["logits"], perm=[0, 1, 2, 5, 3, 4])],
        "uint8 all the way",
        [onnx.helper.make_tensor_value_info("frames", onnx.TensorProto.UINT8, shape)],
        [onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.UINT8, None)],
    )
    path = tmp_path / "network.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 22)]), path)
    with pytest.raises(EngineError, match=r"cannot build this network: .*UInt8") as caught:
        build_engine(path, SPEC)
    assert "\n" not in str(caught.value)
    path.write_bytes(b"not a network")
    with pytest.raises(EngineError, match="cannot build this network"):
        build_engine(path, SPEC)


@pytest.mark.needs_tensorrt
def test_log_keeps_errors_and_the_first_one_is_the_cause() -> None:
    trt = load_tensorrt()
    log = new_log(trt)
    assert cause(log) == "it logged no error"
    log.log(trt.ILogger.INFO, "loading")
    log.log(trt.ILogger.ERROR, "the reason")
    log.log(trt.ILogger.INTERNAL_ERROR, "what follows from it")
    assert cause(log) == "the reason"
    assert len(log.lines) == 2


def pretend_gpu(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)


@pytest.mark.parametrize("capability", [(9, 0), (10, 0), (7, 0)])
def test_rtx_names_the_architecture_it_lacks(capability: tuple[int, int], monkeypatch) -> None:
    pytest.importorskip("tensorrt_rtx")
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    pretend_gpu(monkeypatch, capability)
    reason = engines.why_unavailable("trt", "cuda")
    assert reason is not None
    assert "no compute capability {}.{}, only SM75".format(*capability) in reason
    assert "pip install tensorrt, or use engine compile" in reason


@pytest.mark.parametrize("capability", [(7, 5), (8, 0), (8, 6), (8, 9), (12, 0)])
def test_rtx_takes_its_architectures(capability: tuple[int, int], monkeypatch) -> None:
    pytest.importorskip("tensorrt_rtx")
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    pretend_gpu(monkeypatch, capability)
    assert engines.why_unavailable("trt", "cuda") is None


def test_without_the_library_says_what_to_install(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    pretend_gpu(monkeypatch, (8, 6))
    assert "not installed: pip install tensorrt" in (engines.why_unavailable("trt", "cuda") or "")
    assert "CUDA GPU only: use the device cuda" in (engines.why_unavailable("trt", "cpu") or "")


def test_fp8_is_refused_on_a_card_without_it_before_anything_is_exported(monkeypatch, tmp_path: Path) -> None:
    pretend_gpu(monkeypatch, (8, 6))
    monkeypatch.setattr("engines.trt.export_onnx", lambda *_, **__: pytest.fail("exported"))
    with pytest.raises(
        EngineUnavailable, match=r"fp8 needs compute capability 8.9, this card has 8.6: choose precision"
    ):
        TrtEngine.build(Motion(), EngineSpec(SPEC.frames_shape, 4, "fp8", "cuda"), None, tmp_path / "a.plan")


class Timings:
    """TensorRT's timing cache as its documentation has it, for card "A"; a file of another card fits nothing."""

    def __init__(self, stored: bytes) -> None:
        card, _, entries = stored.decode().partition(":")
        self.card = card or "A"
        self.entries = set(entries.split())

    def combine(self, other: "Timings", ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        if other.card == self.card:
            self.entries |= other.entries
        return other.card == self.card

    def serialize(self) -> bytes:
        return f"{self.card}:{' '.join(sorted(self.entries))}".encode()


class TimingConfig:
    def create_timing_cache(self, stored: bytes) -> Timings | None:
        return None if stored == b"damaged" else Timings(stored)

    def set_timing_cache(self, cache: Timings, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        if fits := cache.card == "A":
            self.cache = cache
        return fits

    def get_timing_cache(self) -> Timings:
        return self.cache


@pytest.mark.parametrize(
    ("before", "meanwhile", "after"),
    [
        (None, None, "A:new"),
        (b"A:old", None, "A:new old"),
        (b"A:old", b"A:old theirs", "A:new old theirs"),
        (b"B:old", None, "A:new"),
        (b"damaged", None, "A:new"),
        (None, b"damaged", "A:new"),
    ],
)
def test_timing_cache_is_combined_and_replaced_where_it_does_not_fit(before, meanwhile, after: str, tmp_path) -> None:
    path, config = tmp_path / "folder" / "timings", TimingConfig()
    for content in (before, meanwhile):
        if content is not None:
            write_sealed(path, content)
        if content is before:
            load_timing_cache(config, path)
    config.cache.entries.add("new")
    save_timing_cache(config, path)
    assert read_sealed(path).decode() == after
    assert [file.name for file in path.parent.iterdir()] == ["timings"]


def test_layers_of_a_loaded_engine_are_read_as_the_build_logs_are() -> None:
    line = (
        "Name: a, LayerType: correlation, Inputs: [ { Name: x, Dimensions: [1,3], Datatype: Half, Format: (NHWC) }], "
        "Constants: [ { Name: w, Datatype: Int8, Format: (NHWC) }], Outputs: [ { Name: y, Datatype: Float }], "
        "TacticName: t, StreamId: 0, Metadata: "
    )
    inspector = SimpleNamespace(get_engine_information=lambda form: f"Layers:\n{line}\n{line}\nBindings:\nx\ny\n")
    trt = SimpleNamespace(LayerInformationFormat=SimpleNamespace(ONELINE=0))
    layers = engine_layers(trt, SimpleNamespace(create_engine_inspector=lambda: inspector))
    assert layers == [LayerTypes("a", "correlation", ("Half",), ("Int8",), ("Float",))] * 2


class Cuda:
    """Just enough of CUDA and of a TensorRT engine to follow which memory a call reads and writes, and when.

    The network's logits are the sum of a clip's pixels, times 1, 2, 3. What is launched while a graph is recorded runs
    when the graph is replayed.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, rtx: bool = False, refuses_recording: bool = False) -> None:
        self.log: list[str] = []
        self.addresses: dict[str, int] = {}
        self.recording: list[tuple[int, int, int]] | None = None
        self.refuses_recording = refuses_recording
        stream = SimpleNamespace(device="cpu", cuda_stream=7, wait_stream=lambda other: None)
        for name, value in {
            "Stream": lambda: stream,
            "current_stream": lambda: stream,
            "device": lambda device: nullcontext(),
            "stream": lambda stream: nullcontext(),
            "synchronize": lambda *device: None,
            "CUDAGraph": lambda: self,
            "graph": self.record,
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)
        monkeypatch.setattr(Tensor, "record_stream", lambda tensor, stream: None)
        self.config = SimpleNamespace(cuda_graph_strategy="disabled")
        monkeypatch.setattr("engines.trt.load_tensorrt", lambda: self.library())
        monkeypatch.setattr("engines.trt.new_log", lambda trt: SimpleNamespace(lines=[("ERROR", "told so")]))
        engine = SimpleNamespace(
            get_tensor_shape=lambda name: (-1, 3), create_execution_context=lambda config=None: self
        )
        if rtx:
            engine.create_runtime_config = lambda: self.config
        monkeypatch.setattr("engines.trt.load_engine", lambda plan, log: (None, engine))

    def library(self) -> SimpleNamespace:
        strategy = SimpleNamespace(WHOLE_GRAPH_CAPTURE="whole graph")
        return SimpleNamespace(__name__="tensorrt", __version__="0", CudaGraphStrategy=strategy)

    @contextmanager
    def record(self, graph: object, stream: object) -> Iterator[None]:
        self.recording = []
        yield
        self.recorded, self.recording = self.recording, None

    def replay(self) -> None:
        self.log.append("replay")
        for launch in self.recorded:
            self.compute(*launch)

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.batch = shape[0]
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        launch = (self.batch, self.addresses["frames"], self.addresses["logits"])
        if self.recording is None:
            self.log.append("launch")
            self.compute(*launch)
            return True
        self.recording.append(launch)
        return not self.refuses_recording

    def compute(self, batch: int, frames: int, logits: int) -> None:
        pixels = math.prod(SPEC.frames_shape)
        read = np.ctypeslib.as_array((ctypes.c_uint8 * (batch * pixels)).from_address(frames)).reshape(batch, pixels)
        written = np.ctypeslib.as_array((ctypes.c_float * (batch * 3)).from_address(logits)).reshape(batch, 3)
        written[:] = read.sum(1, keepdims=True) * np.array([1, 2, 3])


def expected(frames: Tensor) -> Tensor:
    return frames.flatten(1).sum(1, keepdim=True).float() * torch.tensor([1.0, 2.0, 3.0])


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    path = tmp_path / "network.plan"
    path.write_bytes(b"plan")
    return path


@pytest.mark.parametrize("rtx", [False, True])
def test_a_fixed_engine_launches_one_graph_on_memory_of_its_own(rtx: bool, plan: Path, monkeypatch) -> None:
    cuda = Cuda(monkeypatch, rtx=rtx)
    engine = TrtEngine(EngineSpec(SPEC.frames_shape, 2), plan)
    assert cuda.config.cuda_graph_strategy == ("whole graph" if rtx else "disabled")
    cuda.log.clear()
    frames = torch.randint(0, 256, (3, 2, *SPEC.frames_shape), dtype=torch.uint8)
    first, second = engine(frames[0]), engine(frames[1].transpose(3, 4))
    single = engine(frames[2][:1])
    own = dict(cuda.addresses)
    assert cuda.log == ["launch" if rtx else "replay"] * 3
    for logits, given in ((first, frames[0]), (second, frames[1]), (single, frames[2][:1])):
        assert torch.equal(logits, expected(given))  # also those of earlier calls
        assert logits.data_ptr() != own["logits"]
    assert own["frames"] not in [clips.data_ptr() for clips in frames]


@pytest.mark.parametrize("rtx", [False, True])
def test_an_engine_for_a_dynamic_batch_reads_the_callers_frames(rtx: bool, plan: Path, monkeypatch) -> None:
    cuda = Cuda(monkeypatch, rtx=rtx)
    engine = TrtEngine(EngineSpec(SPEC.frames_shape, 3, dynamic_batch=True), plan)
    assert cuda.config.cuda_graph_strategy == "disabled"
    for batch in (1, 3, 2):
        frames = torch.randint(0, 256, (batch, *SPEC.frames_shape), dtype=torch.uint8)
        logits = engine(frames)
        assert torch.equal(logits, expected(frames))
        assert cuda.addresses == {"frames": frames.data_ptr(), "logits": logits.data_ptr()}
        assert cuda.batch == batch
    assert set(cuda.log) == {"launch"}


def test_a_network_that_no_graph_can_hold_is_refused_in_one_line(plan: Path, monkeypatch) -> None:
    Cuda(monkeypatch, refuses_recording=True)
    with pytest.raises(
        EngineError, match=r"tensorrt 0 runs .*, but not in a CUDA graph: use --dynamic-batch .*told so"
    ):
        TrtEngine(EngineSpec(SPEC.frames_shape, 2), plan)


def test_kernels_compiled_by_earlier_processes_are_loaded(tmp_path: Path) -> None:
    told: list[object] = []
    config = SimpleNamespace(
        create_runtime_cache=lambda: SimpleNamespace(deserialize=told.append), set_runtime_cache=lambda cache: None
    )
    engine = SimpleNamespace(create_runtime_config=lambda: config, create_execution_context=lambda config: "context")
    trt = SimpleNamespace(DynamicShapesKernelSpecializationStrategy=SimpleNamespace(EAGER="eager"))
    path = tmp_path / "kernels.cache"
    assert create_context(trt, engine, SPEC, path)[0] == "context"
    assert told == []
    path.write_bytes(b"planted")
    assert create_context(trt, engine, SPEC, path)[1] is not None
    assert told == []
    write_sealed(path, b"kernels")
    assert create_context(trt, engine, SPEC, path)[1] is not None
    assert told == [b"kernels"]
    assert config.dynamic_shapes_kernel_specialization_strategy == "eager"


def test_memory_is_told_as_far_as_the_version_knows() -> None:
    trt = SimpleNamespace(EngineStat=SimpleNamespace(TOTAL_WEIGHTS_SIZE=0))
    assert memory_bytes(trt, SimpleNamespace()) == {}
    engine = SimpleNamespace(device_memory_size_v2=5, get_engine_stat=lambda stat: 7)
    assert memory_bytes(trt, engine) == {"context_bytes": 5, "weights_bytes": 7}


@pytest.mark.needs_gpu
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("name", ["compile", "onnx", "trt"])
def test_engines_on_the_gpu_match_eager(name: str, precision: str) -> None:
    if reason := engines.why_unavailable(name, "cuda"):
        pytest.skip(reason)
    network, spec = small_tdn(), EngineSpec(TDN_SHAPE, 3, precision, "cuda")
    frames = torch.randint(0, 256, (3, *TDN_SHAPE), dtype=torch.uint8, device="cuda")
    with (
        create_engine("eager", network, EngineSpec(TDN_SHAPE, 3, "fp32", "cuda")) as eager,
        create_engine(name, network, spec) as engine,
    ):
        for batch in (3, 1, 2, 3):
            exact = eager(frames[:batch])
            tolerance = 0.05 if precision == "fp16" else 0.01  # TF32 is allowed in fp32
            assert (engine(frames[:batch]) - exact).abs().max() <= tolerance * exact.std()
