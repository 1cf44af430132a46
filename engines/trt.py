"""TensorRT and TensorRT-RTX: one code path, on a CUDA GPU, on torch's memory and torch's stream."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from engines.base import (
    QUANTISED,
    Calibration,
    EngineError,
    EngineSpec,
    EngineUnavailable,
    FileEngine,
    device_type,
)
from engines.onnx_export import export_onnx, why_export_unavailable
from engines.trt_build import GET_LIBRARY, LIBRARIES, build_engine, cause, find_tensorrt, load_tensorrt, new_log


class TrtEngine(FileEngine):
    """The file is TensorRT's plan: for the card and driver it was built on; TensorRT-RTX's for every card it names."""

    name = "trt"
    suffix = ".plan"
    libraries = (*LIBRARIES, "onnx", "onnxscript")

    def __init__(self, spec: EngineSpec, path: Path) -> None:
        super().__init__(spec, path)
        self.sizes = None if spec.ranged else (spec.max_batch,)
        trt = load_tensorrt()
        self._library = f"{trt.__name__} {trt.__version__}"
        self._log = new_log(trt)
        with torch.cuda.device(spec.device):
            self._runtime, self._engine = load_engine(path.read_bytes(), self._log)
            self._context = self._create_context(trt)
        if self._context is None:
            raise EngineError(f"{self._library} cannot start this engine, try a smaller batch: {cause(self._log)}")
        self._num_classes: int = self._engine.get_tensor_shape("logits")[1]
        self._run(torch.zeros(spec.max_batch, *spec.frames_shape, dtype=torch.uint8, device=spec.device))
        torch.cuda.synchronize(spec.device)  # TensorRT-RTX compiles its kernels in the first call

    @classmethod
    def build(cls, network: nn.Module, spec: EngineSpec, calibration: Calibration, path: Path) -> None:
        base = "fp16" if spec.precision in QUANTISED else spec.precision
        with tempfile.TemporaryDirectory() as folder, torch.cuda.device(spec.device):
            exported = Path(folder) / "network.onnx"
            export_onnx(network, spec, exported, engine=cls.name, floating=base, calibration=calibration)
            path.write_bytes(build_engine(exported, spec))

    def _create_context(self, trt: Any) -> Any:
        self._cache = None
        if not hasattr(self._engine, "create_runtime_config"):
            return self._engine.create_execution_context()
        config = self._engine.create_runtime_config()
        if hasattr(config, "create_runtime_cache"):  # TensorRT-RTX: kernels compiled by earlier processes
            self._cache = config.create_runtime_cache()
            self._cache_path = _cache_folder() / f"{trt.__name__}-{trt.__version__}.cache"
            if self._cache_path.exists():
                self._cache.deserialize(self._cache_path.read_bytes())  # False, and empty, if not for this GPU
            config.set_runtime_cache(self._cache)
            # compile for a new batch size in its first call, not behind the calls that somebody is timing
            config.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
        return self._engine.create_execution_context(config)

    def _run(self, frames: Tensor) -> Tensor:
        frames = frames.contiguous()
        logits = torch.empty(len(frames), self._num_classes, device=frames.device)
        context = self._context
        with torch.cuda.device(frames.device):
            accepted = (
                context.set_input_shape("frames", tuple(frames.shape))
                and context.set_tensor_address("frames", frames.data_ptr())
                and context.set_tensor_address("logits", logits.data_ptr())
                and context.execute_async_v3(torch.cuda.current_stream().cuda_stream)
            )
        if not accepted:
            raise EngineError(f"{self._library} failed on a batch of {len(frames)}: {cause(self._log)}")
        return logits

    def details(self) -> dict[str, object]:
        return {
            "tensorrt": self._library,
            "gpu": torch.cuda.get_device_name(self.spec.device),
            "file_bytes": self.file_bytes,
            "from_cache": self.from_cache,
            "runtime_cache": self._cache is not None,
        }

    def close(self) -> None:
        if "_context" in self.__dict__:
            torch.cuda.synchronize(self.spec.device)
            if self._cache is not None:
                _write(self._cache_path, bytes(self._cache.serialize()))
            del self._context, self._cache, self._engine, self._runtime  # in this order: each needs the next
        super().close()

    @staticmethod
    def why_unavailable(device: str) -> str | None:
        if not torch.cuda.is_available():
            return f"torch {torch.__version__} sees no CUDA GPU, and TensorRT runs on nothing else: use another engine"
        if device_type(device) != "cuda":
            return "TensorRT runs on a CUDA GPU only: use the device cuda"
        library = find_tensorrt()
        if library is None:
            return f"TensorRT is not installed: {GET_LIBRARY}"
        if library == "tensorrt_rtx":
            try:
                architectures = load_tensorrt().ComputeCapability.__members__
            except EngineUnavailable as error:
                return str(error)
            major, minor = torch.cuda.get_device_capability(device)
            if f"SM{major}{minor}" not in architectures:
                known = ", ".join(name for name in architectures if name.startswith("SM"))
                return (
                    f"TensorRT-RTX has no compute capability {major}.{minor}, only {known}: "
                    "pip install tensorrt, or use engine compile"
                )
        return why_export_unavailable()


def load_engine(plan: bytes, log: Any) -> tuple[Any, Any]:
    """The TensorRT (runtime, engine) of a built plan; `log` is a `new_log`. Raises EngineError with TensorRT's
    reason if it cannot be loaded here: no GPU, or one that the plan was not built for.
    """
    trt = load_tensorrt()
    runtime = trt.Runtime(log)
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise EngineError(f"{trt.__name__} {trt.__version__} cannot load this engine on this machine: {cause(log)}")
    return runtime, engine


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "tdn_bench"


def _write(path: Path, content: bytes) -> None:
    """Write all of `content` or nothing, also when another process writes the same file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}")
    part.write_bytes(content)
    part.replace(path)
