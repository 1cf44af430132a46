import logging
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch
from support.engines import SHAPE, SPEC, TDN_SHAPE, DependsOnValues, Motion, random_frames, small_tdn, tdn_frames
from torch import Tensor, nn

import engines
from engines import EngineError, EngineSpec, EngineUnavailable, create_engine
from engines.base import copy_network
from engines.onnx_export import export_onnx

PLAIN = replace(SPEC, rewrite=False)
NO_GPU = not torch.cuda.is_available()
EXPORTED = ["onnx", "openvino"]


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    network = Motion()
    nn.init.uniform_(network.norm.running_mean, -0.2, 0.2)
    nn.init.uniform_(network.norm.running_var, 0.5, 2)
    nn.init.normal_(network.motion.weight)
    return network


@pytest.fixture(scope="module")
def frames() -> Tensor:
    return torch.randint(0, 256, (4, *SHAPE), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def skip_unless_available(name: str, device: str = "cpu") -> None:
    if reason := engines.why_unavailable(name, device):
        pytest.skip(reason)


@pytest.mark.parametrize(("name", "dynamic_batch"), [*product(EXPORTED, (False, True)), ("aoti", False)])
def test_engine_matches_eager_for_every_batch_size(
    name: str, dynamic_batch: bool, network: nn.Module, frames: Tensor
) -> None:
    skip_unless_available(name)
    spec = replace(SPEC, dynamic_batch=dynamic_batch)
    with create_engine("eager", network, PLAIN) as eager, create_engine(name, network, spec) as engine:
        assert (engine.name, engine.spec) == (name, spec)
        assert engine.build_s > 0
        for batch in (1, 3, 4, 1):
            logits = engine(frames[:batch])
            assert logits.dtype == torch.float32
            torch.testing.assert_close(logits, eager(frames[:batch]), rtol=1e-4, atol=1e-5)
        kept = logits.clone()
        engine(frames[1:2])
        assert torch.equal(logits, kept), "a later call overwrote an earlier call's logits"
        strided = frames.flip(0).transpose(3, 4)  # not contiguous, and every pixel elsewhere
        torch.testing.assert_close(engine(strided), eager(strided), rtol=1e-4, atol=1e-5)
        backwards = engine(frames.flip(1, 2))
        assert (backwards - engine(frames)).abs().max() > 1e-3, "the engine does not see which way time runs"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["eager", "openvino", "aoti"])
def test_bf16_is_close_and_not_fp32(name: str, network: nn.Module, frames: Tensor) -> None:
    skip_unless_available(name)
    with create_engine("eager", network, SPEC) as eager:
        exact = eager(frames)
    try:
        engine = create_engine(name, network, replace(SPEC, precision="bf16"))
    except EngineError as error:  # OpenVINO, on a processor without bf16
        pytest.skip(str(error))
    with engine:
        error = (engine(frames) - exact).abs().max()
    assert 0 < error < 0.03 * exact.abs().max()


@pytest.mark.parametrize("name", ["eager", "onnx", "openvino"])
def test_the_given_network_is_left_as_it_was(name: str) -> None:
    skip_unless_available(name)
    network = Motion().train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with create_engine(name, network, replace(SPEC, precision=engines.supported_precisions(name, "cpu")[0])):
        after = network.state_dict()
    assert list(before) == list(after)
    assert all(value.dtype == after[key].dtype and torch.equal(value, after[key]) for key, value in before.items())
    assert isinstance(network.norm, nn.BatchNorm2d)
    assert network.training
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_copies_are_rounded_after_folding() -> None:
    network = Motion()
    nn.init.constant_(network.norm.running_var, 3)
    copied = copy_network(network, replace(SPEC, precision="bf16"), "eager")
    folded = network.stem.weight / (3 + network.norm.eps) ** 0.5
    torch.testing.assert_close(copied.stem.weight, folded.bfloat16(), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda frames: frames.float(), "frames are torch.float32: hand over uint8"),
        (lambda frames: frames[:, :3], r"frames have shape \(4, 3, 5, 32, 32, 3\): this engine takes \(B, \*\(4, 5"),
        (lambda frames: frames[0], r"frames have shape \(4, 5, 32, 32, 3\)"),
        (lambda frames: frames.repeat(2, 1, 1, 1, 1, 1), "the batch is 8: this engine takes 1 to 4 clips"),
        (lambda frames: frames[:0], "the batch is 0"),
        (lambda frames: frames.to("meta"), "frames are on meta: this engine takes them on cpu"),
    ],
)
def test_wrong_frames_are_refused_in_one_line(change, message: str, network: nn.Module, frames: Tensor) -> None:
    with create_engine("eager", network, SPEC) as engine, pytest.raises(EngineError, match=message) as caught:
        engine(change(frames))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"precision": "int4"}, "precision 'int4' is unknown: choose one of fp32, tf32, bf16, fp16, int8, fp8"),
        ({"exclude_layers": ("stem",)}, "--exclude-layers names layers, but fp32 quantises none: choose int8"),
        ({"max_batch": 0}, "max_batch is 0"),
        ({"frames_shape": (4, 5, 0, 32, 3)}, r"frames_shape is \(4, 5, 0, 32, 3\)"),
        ({"device": "gpu"}, "device 'gpu' is unknown: choose cpu, cuda"),
        ({"device": "cuda:x"}, "device 'cuda:x' is unknown"),
    ],
)
def test_wrong_specs_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(EngineError, match=message):
        replace(SPEC, **arguments)


def test_unknown_engine_and_missing_precision_name_the_choices(network: nn.Module) -> None:
    with pytest.raises(EngineError, match="engine 'tvm' is unknown: choose one of eager, compile, aoti, onnx"):
        create_engine("tvm", network, SPEC)
    with pytest.raises(EngineError, match="engine 'tvm' is unknown"):
        engines.why_unavailable("tvm", "cpu")
    with pytest.raises(EngineError, match="engine 'onnx' has no fp16 on cpu: choose precision fp32 or int8"):
        create_engine("onnx", network, replace(SPEC, precision="fp16"))


def test_every_engine_has_its_default_precision() -> None:
    for name in engines.ENGINES:
        for device in ("cpu", "cuda"):
            assert engines.default_precision(name, device) in engines.supported_precisions(name, device)
    assert engines.default_precision("trt", "cuda") == "fp16"
    assert engines.default_precision("eager", "cpu") == "fp32"


@pytest.mark.skipif(not NO_GPU, reason="has a GPU")
@pytest.mark.parametrize("name", engines.ENGINES)
def test_without_a_gpu_cuda_is_refused_in_one_line(name: str, network: nn.Module) -> None:
    precision = engines.default_precision(name, "cuda")
    with pytest.raises(EngineUnavailable, match=r"CUDA GPU|runs on the CPU") as caught:
        create_engine(name, network, replace(SPEC, device="cuda", precision=precision))
    assert "\n" not in str(caught.value)


def test_onnx_runtime_falling_back_to_another_provider_is_refused(network: nn.Module, monkeypatch) -> None:
    ort = pytest.importorskip("onnxruntime")
    monkeypatch.setattr(ort.InferenceSession, "get_providers", lambda session: ["AzureExecutionProvider"])
    with pytest.raises(EngineUnavailable, match="could not start its CPUExecutionProvider: pip install"):
        create_engine("onnx", network, SPEC)


@pytest.mark.skipif(not NO_GPU, reason="has a GPU")
def test_onnx_runtime_without_cuda_says_which_package_has_it(monkeypatch) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert "has no CUDAExecutionProvider: pip install onnxruntime-gpu" in engines.why_unavailable("onnx", "cuda")


def test_compile_without_a_compiler_says_so(monkeypatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    assert "install g++" in engines.why_unavailable("compile", "cpu")


def test_modules_import_without_their_libraries() -> None:
    blocked = ["tensorrt", "tensorrt_rtx", "onnxruntime", "openvino", "onnx", "onnxscript", "tdn_bench", "pipelines"]
    modules = sorted(path.stem for path in Path(engines.__file__).parent.glob("*.py"))
    code = (
        f"import sys, importlib; sys.modules.update(dict.fromkeys({blocked})); import engines\n"
        f"for module in {modules}: importlib.import_module('engines.' + module)\n"
        "print([engines.why_unavailable(name, 'cpu') for name in ('onnx', 'openvino')])"
    )
    root = Path(engines.__file__).parents[1]
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root)
    assert run.returncode == 0, run.stderr
    assert "pip install onnxruntime" in run.stdout
    assert "pip install openvino" in run.stdout


def test_onnx_file_has_names_a_free_batch_and_nothing_else_beside_it(network, tmp_path, capfd, caplog) -> None:
    onnx = pytest.importorskip("onnx")
    with caplog.at_level(logging.WARNING, logger="torch.onnx"):
        export_onnx(
            network, replace(SPEC, dynamic_batch=True), tmp_path / "network.onnx", engine="onnx", floating="fp32"
        )
    assert [path.name for path in tmp_path.iterdir()] == ["network.onnx"]
    model = onnx.load(tmp_path / "network.onnx")
    (frames,), (logits,) = model.graph.input, model.graph.output
    assert (frames.name, logits.name) == ("frames", "logits")
    assert frames.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert logits.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    assert frames.type.tensor_type.shape.dim[0].dim_param
    assert model.graph.node[0].op_type == "Cast"
    assert capfd.readouterr() == ("", "")


class FreezesBatch(Motion):
    def forward(self, frames: Tensor) -> Tensor:
        return super().forward(torch.cat(frames.chunk(2, 0)))


def test_networks_that_cannot_be_exported_are_refused_in_one_line(tmp_path) -> None:
    pytest.importorskip("onnxscript")
    with pytest.raises(EngineError, match="one batch size only"):
        export_onnx(
            FreezesBatch(), replace(SPEC, dynamic_batch=True), tmp_path / "a.onnx", engine="onnx", floating="fp32"
        )
    with pytest.raises(EngineError, match="does not export to ONNX in fp32") as caught:
        export_onnx(DependsOnValues(), SPEC, tmp_path / "b.onnx", engine="onnx", floating="fp32")
    assert "\n" not in str(caught.value)


def test_close_frees_the_network_and_may_be_repeated(network: nn.Module, frames: Tensor) -> None:
    engine = create_engine("eager", network, SPEC)
    engine.close()
    engine.close()
    assert not any(isinstance(value, nn.Module) for value in vars(engine).values())


@pytest.mark.parametrize("name", EXPORTED)
def test_small_tdn_matches_eager(name: str) -> None:
    skip_unless_available(name)
    network, spec = small_tdn(), EngineSpec(TDN_SHAPE, max_batch=3)
    with create_engine("eager", network, spec) as eager, create_engine(name, network, spec) as engine:
        for frames in (tdn_frames(1), tdn_frames(2), tdn_frames(3)):
            exact = eager(frames)
            assert (engine(frames) - exact).abs().max() <= 1e-3 * exact.std()
        assert engine.details()["threads"] == torch.get_num_threads()


@pytest.mark.parametrize(
    ("make", "shape"), [(Motion, SHAPE), pytest.param(small_tdn, TDN_SHAPE, marks=pytest.mark.slow)]
)
def test_compiled_network_matches_eager_and_compiles_only_while_building(
    make: Callable[[], nn.Module], shape: tuple[int, int, int, int, int]
) -> None:
    skip_unless_available("compile")
    from torch._dynamo.utils import counters

    torch.manual_seed(0)
    network, spec = make(), EngineSpec(shape, max_batch=3)
    with create_engine("eager", network, spec) as eager, create_engine("compile", network, spec) as engine:
        compiled = counters["stats"]["unique_graphs"]
        assert compiled > 0
        clips = random_frames(3, shape)
        with torch.inference_mode():
            inference_tensor = clips.clone()
        for frames in (clips, clips[:1], clips[:2].transpose(3, 4), inference_tensor):
            exact = eager(frames)
            assert (engine(frames) - exact).abs().max() <= 1e-3 * exact.std()
        assert counters["stats"]["unique_graphs"] == compiled
