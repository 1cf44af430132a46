import sys
from pathlib import Path

import pytest
import torch
from test_engines import SPEC, TDN_SHAPE, Motion, small_tdn

import engines
from engines import EngineError, EngineSpec, EngineUnavailable, create_engine
from engines.onnx_export import export_onnx
from engines.trt import load_engine
from engines.trt_build import LayerTypes, build_engine, cause, layer_report, load_tensorrt, new_log

NO_GPU = not torch.cuda.is_available()


def build(network: torch.nn.Module, spec: EngineSpec, folder: Path) -> tuple[bytes, list[LayerTypes]]:
    export_onnx(network, spec, folder / "network.onnx", engine="trt", floating=spec.precision)
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
