"""Torch-TensorRT (dynamo): TensorRT inside a torch program, no ONNX on the way."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import inspect
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from engines.base import Engine, copy_network
from engines.onnx_export import CastFirst
from engines.pytorch import torch_details
from engines.spec import DTYPES, Calibration, EngineError, EngineSpec, EngineUnavailable

DISTRIBUTIONS = ("torch-tensorrt", "torch-tensorrt-rtx")
GET_LIBRARY = "pip install torch-tensorrt, of torch's minor version"


def load_torch_tensorrt() -> Any:
    """The module. Raises EngineUnavailable if there is none, it is not for this torch, or its libraries do not load."""
    name = next((name for name in DISTRIBUTIONS if _version(name) is not None), None)
    if name is None or importlib.util.find_spec("torch_tensorrt") is None:
        raise EngineUnavailable(f"Torch-TensorRT is not installed: {GET_LIBRARY}")
    version, wanted = str(_version(name)), torch.__version__.split(".")[:2]
    if version.split(".")[:2] != wanted:
        raise EngineUnavailable(
            f"{name} {version} is not for torch {torch.__version__}: pip install {name}=={'.'.join(wanted)}.*"
        )
    try:
        with redirect_stdout(StringIO()):  # where it prints what it raises
            return importlib.import_module("torch_tensorrt")
    except Exception as error:  # without TensorRT's libraries it raises just that
        raise EngineUnavailable(f"{name} {version} does not load, reinstall it: {error}") from error


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


class TorchTrtEngine(Engine):
    """All of the network in one TensorRT engine, in the types of the exported program; nothing is cached."""

    name = "torch-trt"
    cuda_precisions = ("fp32", "tf32", "bf16", "fp16")

    def __init__(self, network: nn.Module, spec: EngineSpec) -> None:
        super().__init__(spec)
        library = load_torch_tensorrt()
        self._versions = {"torch_tensorrt": library.__version__, "tensorrt": _tensorrt_version()}
        dynamic = spec.dynamic_batch and spec.max_batch > 1
        self.sizes = None if dynamic else (spec.max_batch,)
        with torch.cuda.device(spec.device):
            self._compiled: Callable[[Tensor], Tensor] = _compile(library, network, spec, dynamic)
            self._run(torch.zeros(spec.max_batch, *spec.frames_shape, dtype=torch.uint8, device=spec.device))
            torch.cuda.synchronize()

    @classmethod
    def create(cls, network: nn.Module, spec: EngineSpec, calibration: Calibration, cache: Path | None) -> Self:
        return cls(network, spec)

    @torch.inference_mode()
    def _run(self, frames: Tensor) -> Tensor:
        with torch.cuda.device(frames.device):
            return self._compiled(frames.contiguous())

    def details(self) -> dict[str, object]:
        return {**torch_details(), **self._versions, "gpu": torch.cuda.get_device_name(self.spec.device)}

    @staticmethod
    def what_is_missing(device: str) -> str | None:
        try:
            load_torch_tensorrt()
        except EngineUnavailable as error:
            return str(error)
        return None


def _compile(library: Any, network: nn.Module, spec: EngineSpec, dynamic: bool) -> Callable[[Tensor], Tensor]:
    plain = CastFirst(copy_network(network, spec, TorchTrtEngine.name), DTYPES[spec.precision])
    largest = (spec.max_batch, *spec.frames_shape)
    options: dict[str, Any] = {
        "disable_tf32": spec.precision != "tf32",
        "require_full_compilation": True,  # what TensorRT has not got would run in torch, and nobody would know
        "min_block_size": 1,
    }
    if dynamic:
        smallest = (1, *spec.frames_shape)
        frames = library.Input(min_shape=smallest, opt_shape=largest, max_shape=largest, dtype=torch.uint8)
        shapes = ({0: torch.export.Dim("batch", min=1, max=spec.max_batch)},)
    else:
        frames, shapes = library.Input(shape=largest, dtype=torch.uint8), None
    if "use_explicit_typing" in inspect.signature(library.dynamo.compile).parameters:
        options["use_explicit_typing"] = True  # since 2.14 there is nothing else
    example = torch.zeros(2 if dynamic else spec.max_batch, *spec.frames_shape, dtype=torch.uint8, device=spec.device)
    try:
        with torch.no_grad():
            exported = torch.export.export(plain, (example,), dynamic_shapes=shapes)
            return library.dynamo.compile(exported, inputs=[frames], device=torch.device(spec.device), **options)
    except Exception as error:  # torch.export and TensorRT's converters raise what they like
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise EngineError(f"torch-tensorrt cannot compile this network in {spec.precision}: {reason}") from error


def _tensorrt_version() -> str:
    """Of the TensorRT that torch_tensorrt has imported."""
    return str(getattr(importlib.import_module("tensorrt"), "__version__", "unknown"))
