"""The one list of engines: what each states about itself, and what adding one takes."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from support.paths import ROOT

import engines
from engines import PRECISIONS, EngineError, EngineSpec
from engines.registry import CLASSES

MIRROR = '''
"""The network as it is, seen in a mirror."""

from engines.eager import EagerEngine


class MirrorEngine(EagerEngine):
    name = "mirror"
    cpu_precisions = ("fp32",)
    cuda_precisions = ()

    def _run(self, frames):
        return super()._run(frames.flip(4))

    @staticmethod
    def what_is_missing(device):
        return None
'''
USE = """
import torch, engines
class Mean(torch.nn.Module):
    def forward(self, frames):
        return (frames.float() * torch.arange(4)[:, None]).mean((1, 2, 3, 4))

spec = engines.EngineSpec((1, 1, 1, 4, 3), 1)
frames = torch.arange(12, dtype=torch.uint8).reshape(1, 1, 1, 1, 4, 3)
with engines.create_engine("eager", Mean(), spec) as eager, engines.create_engine("mirror", Mean(), spec) as mirror:
    assert torch.equal(mirror(frames), eager(frames.flip(4)))
    assert not torch.equal(mirror(frames), eager(frames))
assert engines.supported_precisions("mirror", "cpu") == ("fp32",)
print(*engines.ENGINES, engines.why_unavailable("mirror", "cuda"))
"""


def test_every_engine_states_its_name_and_precisions() -> None:
    assert engines.ENGINES == ("eager", "compile", "aoti", "onnx", "openvino", "trt", "torch-trt")
    assert len({engine.name for engine in CLASSES}) == len(CLASSES)
    for engine in CLASSES:
        assert engines.engine_class(engine.name) is engine
        assert engine.cpu_precisions or engine.cuda_precisions
        assert set(engine.cpu_precisions + engine.cuda_precisions) <= set(PRECISIONS)
        assert "tf32" not in engine.cpu_precisions, "it is a GPU's"


def test_precisions_are_of_the_device_or_of_the_only_one_there_is() -> None:
    assert engines.supported_precisions("onnx", "cpu") == ("fp32", "int8")
    assert engines.supported_precisions("onnx", "cuda:1") == ("fp32", "tf32", "fp16")
    assert engines.supported_precisions("openvino", "cuda") == ("fp32", "bf16", "int8")
    assert engines.supported_precisions("trt", "cpu") == PRECISIONS
    for choose in (engines.supported_precisions, engines.default_precision, engines.why_unavailable):
        with pytest.raises(EngineError, match="device 'gpu' is unknown"):
            choose("eager", "gpu")
        with pytest.raises(EngineError, match="engine 'tvm' is unknown"):
            choose("tvm", "cpu")


@pytest.mark.parametrize(
    ("name", "device", "gpu", "reason"),
    [
        ("eager", "cuda", False, "sees no CUDA GPU: install a CUDA build of torch, or use the device cpu"),
        ("openvino", "cuda", False, "it runs on the CPU only: use the device cpu"),
        ("openvino", "cuda", True, "it runs on the CPU only: use the device cpu"),
        ("trt", "cpu", False, "sees no CUDA GPU, and this engine runs on nothing else: use another engine"),
        ("trt", "cpu", True, "it runs on a CUDA GPU only: use the device cuda"),
        ("torch-trt", "cuda", False, "sees no CUDA GPU, and this engine runs on nothing else: use another engine"),
        ("eager", "cuda", True, None),
    ],
)
def test_an_engine_says_which_device_it_needs(name: str, device: str, gpu: bool, reason, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    found = engines.why_unavailable(name, device)
    assert found is None if reason is None else found.endswith(reason)


def test_adding_an_engine_takes_its_file_and_its_line_in_the_list(tmp_path: Path) -> None:
    copy = shutil.copytree(Path(engines.__file__).parent, tmp_path / "engines")
    (copy / "mirror.py").write_text(MIRROR)
    registry = (copy / "registry.py").read_text()
    registry = registry.replace("    TorchTrtEngine,\n)", "    TorchTrtEngine,\n    MirrorEngine,\n)")
    (copy / "registry.py").write_text(
        registry.replace("from engines.ort", "from engines.mirror import MirrorEngine\nfrom engines.ort")
    )
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    run = subprocess.run([sys.executable, "-c", USE], capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert run.returncode == 0, run.stderr
    assert (
        run.stdout
        == "eager compile aoti onnx openvino trt torch-trt mirror it runs on the CPU only: use the device cpu\n"
    )


def test_exact_float32_switches_tf32_off_for_the_process(monkeypatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    engines.exact_float32()
    assert torch.backends.cudnn.allow_tf32 is False


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"network": 5}, "network is a int: give a torch.nn.Module"),
        ({"spec": "fp32"}, "spec is a str: give an EngineSpec"),
        ({"cache": 5}, "cache is a int: give a folder, or None"),
        ({"name": 5}, "engine 5 is unknown"),
        ({"calibration": torch.zeros(1)}, "calibration is a Tensor: give a list of batches"),
        ({"calibration": []}, "none were given"),
        ({"calibration": [None]}, "calibration holds NoneType: give uint8 frames"),
        ({"calibration": [torch.zeros(1, 4, 1, 32, 32, 3)]}, "calibration holds torch.float32 (1, 4, 1, 32, 32, 3)"),
        ({"calibration": [torch.zeros(1, 2, dtype=torch.uint8)]}, "calibration holds torch.uint8 (1, 2)"),
    ],
)
def test_odd_arguments_are_named(change: dict, said: str) -> None:
    spec = EngineSpec((4, 1, 32, 32, 3), 2, "int8" if "calibration" in change else "fp32")
    arguments = {"name": "onnx", "network": torch.nn.Identity(), "spec": spec, "cache": None, "calibration": None}
    with pytest.raises(EngineError) as caught:
        engines.create_engine(**arguments | change)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        {"frames_shape": (4, 1, 32, 32)},
        {"frames_shape": (4, 1, 32, 32, 3.0)},
        {"frames_shape": 5},
        {"max_batch": 2.0},
        {"max_batch": True},
        {"device": torch.device("meta")},
        {"device": None},
        {"exclude_layers": "layer1"},
    ],
)
def test_odd_specs_are_refused_by_name(change: dict) -> None:
    with pytest.raises(EngineError, match=next(iter(change))):
        EngineSpec(**{"frames_shape": (4, 1, 32, 32, 3), "max_batch": 2, "precision": "int8"} | change)


def test_a_spec_takes_lists_and_torchs_own_types() -> None:
    plain = EngineSpec((4, 1, 32, 32, 3), 2)
    assert EngineSpec([4, 1, 32, 32, 3], 2, device=torch.device("cpu")) == plain  # type: ignore[arg-type]
    assert EngineSpec(torch.zeros(1, 4, 1, 32, 32, 3).shape[1:], 2) == plain  # type: ignore[arg-type]


def test_a_cache_may_be_a_string(tmp_path: Path, monkeypatch) -> None:
    seen = []
    monkeypatch.setattr(
        engines.registry.EagerEngine, "create", lambda *args: seen.append(args[-1]) or SimpleNamespace()
    )
    engines.create_engine("eager", torch.nn.Identity(), EngineSpec((4, 1, 32, 32, 3), 2), cache=str(tmp_path))
    assert seen == [tmp_path]
