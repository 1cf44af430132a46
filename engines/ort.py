"""ONNX Runtime, on the CPU or a CUDA GPU; both take the frames from torch's memory without a copy."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from engines.base import FileEngine
from engines.onnx_export import export_onnx, why_export_unavailable
from engines.spec import QUANTISED, Calibration, EngineSpec, EngineUnavailable, device_type

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
GET_GPU = "pip install onnxruntime-gpu in place of onnxruntime, of a release for torch's CUDA and cuDNN"


class OnnxEngine(FileEngine):
    """The file is the exported network: it may be moved to any machine."""

    name = "onnx"
    # ONNX Runtime has no convolution in bf16, on the CPU none in fp16, on a GPU none in int8
    cpu_precisions = ("fp32", "int8")
    cuda_precisions = ("fp32", "tf32", "fp16")
    suffix = ".onnx"
    libraries = ("onnx", "onnxscript")

    def __init__(self, spec: EngineSpec, path: Path) -> None:
        super().__init__(spec, path)
        self.sizes = None if spec.dynamic_batch else (spec.max_batch,)
        import onnxruntime

        self._device = device_type(spec.device)
        self._index = torch.device(spec.device).index or 0
        wanted, provider_options = PROVIDERS[self._device], {}
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3  # errors
        if self._device == "cuda":
            self._stream = torch.cuda.current_stream(spec.device).cuda_stream
            provider_options = {
                "device_id": self._index,
                "user_compute_stream": str(self._stream),
                "use_tf32": int(spec.precision == "tf32"),
            }
        self._session = onnxruntime.InferenceSession(path, options, providers=[(wanted, provider_options)])
        if self._session.get_providers()[0] != wanted:  # it falls back to the CPU without an error
            raise EngineUnavailable(f"ONNX Runtime could not start its {wanted}: {GET_GPU}")
        self._num_classes: int = self._session.get_outputs()[0].shape[1]

    @classmethod
    def build(cls, network: nn.Module, spec: EngineSpec, calibration: Calibration, path: Path) -> None:
        base = "fp32" if spec.precision in QUANTISED else spec.precision
        export_onnx(network, spec, path, engine=cls.name, floating=base, calibration=calibration)

    def _run(self, frames: Tensor) -> Tensor:
        frames = frames.contiguous()
        logits = torch.empty(len(frames), self._num_classes, device=frames.device)
        binding = self._session.io_binding()
        binding.bind_input("frames", self._device, self._index, np.uint8, tuple(frames.shape), frames.data_ptr())
        binding.bind_output("logits", self._device, self._index, np.float32, tuple(logits.shape), logits.data_ptr())
        if self._device == "cuda" and torch.cuda.current_stream(frames.device).cuda_stream != self._stream:
            torch.cuda.current_stream(frames.device).synchronize()  # the session stays on the stream it was made on
        self._session.run_with_iobinding(binding)  # returns when its work is done
        return logits

    def details(self) -> dict[str, object]:
        import onnxruntime

        return {
            "onnxruntime": onnxruntime.__version__,
            "providers": self._session.get_providers(),
            "threads": self._session.get_session_options().intra_op_num_threads,
            "file_bytes": self.file_bytes,
            "from_cache": self.from_cache,
        }

    @staticmethod
    def what_is_missing(device: str) -> str | None:
        if importlib.util.find_spec("onnxruntime") is None:
            return "ONNX Runtime is not installed: pip install onnxruntime (with a GPU: onnxruntime-gpu)"
        import onnxruntime

        wanted = PROVIDERS[device_type(device)]
        if wanted not in onnxruntime.get_available_providers():
            return f"this onnxruntime {onnxruntime.__version__} has no {wanted}: {GET_GPU}"
        return why_export_unavailable()
