import importlib.machinery
import importlib.metadata
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from support.engines import SPEC, TDN_SHAPE, DependsOnValues, Motion, small_tdn, tdn_frames

import engines
from engines import EngineError, EngineSpec, create_engine
from engines.torch_trt import TorchTrtEngine

MINOR = ".".join(torch.__version__.split(".")[:2])


def module(name: str, version: str | None) -> ModuleType:
    made = ModuleType(name)
    made.__spec__ = importlib.machinery.ModuleSpec(name, None)
    made.__version__ = version  # type: ignore[attr-defined]
    return made


def install(monkeypatch: pytest.MonkeyPatch, version: str | None, distribution: str = "torch-tensorrt") -> ModuleType:
    """Pretend that this Torch-TensorRT is installed; None: that there is none."""
    real = importlib.metadata.version

    def pretended(name: str) -> str:
        if not name.startswith("torch-tensorrt"):
            return real(name)
        if name != distribution or version is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(importlib.metadata, "version", pretended)
    library = module("torch_tensorrt", version)
    monkeypatch.setitem(sys.modules, "torch_tensorrt", library)
    return library


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


@pytest.mark.parametrize(
    ("version", "distribution", "message"),
    [
        (
            None,
            "torch-tensorrt",
            "Torch-TensorRT is not installed: pip install torch-tensorrt, of torch's minor version",
        ),
        ("1.0.0", "torch-tensorrt", rf"torch-tensorrt 1.0.0 is not for torch {MINOR}.*: pip install .*=={MINOR}\.\*$"),
        (f"{MINOR}.0+cu130", "torch-tensorrt", None),
        (f"{MINOR}.1", "torch-tensorrt-rtx", None),
        ("2.1", "torch-tensorrt-rtx", rf"pip install torch-tensorrt-rtx=={MINOR}\.\*$"),
    ],
)
def test_only_the_version_for_this_torch_will_do(version, distribution: str, message, gpu, monkeypatch) -> None:
    install(monkeypatch, version, distribution)
    reason = engines.why_unavailable("torch-trt", "cuda")
    if message is None:
        assert reason is None
    else:
        with pytest.raises(AssertionError, match=message):
            raise AssertionError(reason)
    assert "CUDA GPU only: use the device cuda" in (engines.why_unavailable("torch-trt", "cpu") or "")


def test_a_library_that_does_not_load_is_one_line(gpu, monkeypatch, tmp_path: Path, capsys) -> None:
    (tmp_path / "torch_tensorrt").mkdir()
    (tmp_path / "torch_tensorrt" / "__init__.py").write_text("print('noise')\nraise Exception('no\\nlibnvinfer')")
    install(monkeypatch, f"{MINOR}.0")
    monkeypatch.delitem(sys.modules, "torch_tensorrt")
    monkeypatch.syspath_prepend(tmp_path)
    reason = engines.why_unavailable("torch-trt", "cuda")
    assert reason == f"torch-tensorrt {MINOR}.0 does not load, reinstall it: no libnvinfer"
    assert capsys.readouterr() == ("", "")


@pytest.fixture
def handed(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What a Torch-TensorRT that compiles nothing was called with; it gives back the exported program to run."""
    library, arguments = install(monkeypatch, f"{MINOR}.0"), {}

    def compile(exported: Any, inputs: Any = None, *, device: Any = None, **options: Any) -> Callable:
        arguments.update(options, exported=exported, inputs=inputs, device=device)
        return exported.module()

    library.Input = SimpleNamespace  # type: ignore[attr-defined]
    library.dynamo = SimpleNamespace(compile=compile)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tensorrt", module("tensorrt", "10.0"))
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    return arguments


@pytest.mark.parametrize("dynamic_batch", [False, True])
def test_exports_tdn_and_asks_for_all_of_it_in_its_own_types(dynamic_batch: bool, handed: dict[str, Any]) -> None:
    network, spec = small_tdn(), EngineSpec(TDN_SHAPE, 3, dynamic_batch=dynamic_batch)
    engine = TorchTrtEngine.create(network, spec, None, None)
    (frames,) = handed["inputs"]
    smallest, largest = (1, *TDN_SHAPE), (3, *TDN_SHAPE)
    sizes = {"min_shape": smallest, "opt_shape": largest, "max_shape": largest} if dynamic_batch else {"shape": largest}
    assert vars(frames) == {"dtype": torch.uint8, **sizes}
    assert handed["device"] == torch.device("cpu")
    assert (handed["disable_tf32"], handed["require_full_compilation"], handed["min_block_size"]) == (True, True, 1)
    assert "use_explicit_typing" not in handed
    assert "enabled_precisions" not in handed
    (pixels,) = (node for node in handed["exported"].graph.nodes if node.name == "frames")
    readers = {str(node.target) for node in pixels.users} - {
        "aten._assert_tensor_metadata.default",
        "aten.sym_size.int",
    }
    assert readers == {"aten.to.dtype"}, "TensorRT takes uint8 at the edge of a network only"
    with create_engine("eager", network, EngineSpec(TDN_SHAPE, 3)) as eager:
        for batch in (3, 1, 2):
            exact = eager(tdn_frames(batch))
            assert (engine(tdn_frames(batch)) - exact).abs().max() <= 1e-3 * exact.std()


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "fp16"])
def test_precision_is_the_networks_and_tf32_a_flag(precision: str, handed: dict[str, Any], monkeypatch) -> None:
    plain = sys.modules["torch_tensorrt"].dynamo.compile

    def explicit(exported: Any, inputs: Any, *, use_explicit_typing: bool = False, **options: Any) -> Callable:
        return plain(exported, inputs, use_explicit_typing=use_explicit_typing, **options)

    monkeypatch.setattr(sys.modules["torch_tensorrt"].dynamo, "compile", explicit)
    engine = TorchTrtEngine(Motion(), EngineSpec(SPEC.frames_shape, 1, precision, dynamic_batch=True))
    assert handed["use_explicit_typing"] is True
    assert handed["disable_tf32"] == (precision != "tf32")
    types = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    assert {weight.dtype for weight in handed["exported"].state_dict.values()} == {types[precision]}
    assert engine.sizes == (1,)  # there is no range
    engine.build_s = 0
    engine.close()
    engine.close()
    assert "_compiled" not in vars(engine)


def test_a_network_that_does_not_compile_is_refused_in_one_line(handed: dict[str, Any], monkeypatch) -> None:
    with pytest.raises(EngineError, match="torch-tensorrt cannot compile this network in fp32: ") as caught:
        TorchTrtEngine(DependsOnValues(), SPEC)
    assert "\n" not in str(caught.value)

    def broken(*arguments: Any, **options: Any) -> None:
        raise Exception("no converter\nfor that")

    monkeypatch.setattr(sys.modules["torch_tensorrt"].dynamo, "compile", broken)
    with pytest.raises(EngineError, match=r"in fp32: no converter$"):
        TorchTrtEngine(Motion(), SPEC)
