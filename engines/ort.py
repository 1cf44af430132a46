"""ONNX Runtime, on the CPU or a CUDA GPU; both take the frames from torch's memory without a copy."""

from __future__ import annotations

import importlib.util
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from engines.base import Engine, EngineSpec, EngineUnavailable, device_type
from engines.onnx_export import export_onnx, why_export_unavailable

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
GET_GPU = "pip install onnxruntime-gpu in place of onnxruntime, of a release for torch's CUDA and cuDNN"


class OnnxEngine(Engine):
    name = "onnx"

    def __init__(self, network: nn.Module, spec: EngineSpec) -> None:
        super().__init__(spec)
        import onnxruntime

        start = time.perf_counter()
        self._device = device_type(spec.device)
        self._index = torch.device(spec.device).index or 0
        wanted = PROVIDERS[self._device]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3  # errors
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "network.onnx"
            export_onnx(network, spec, path)
            provider_options = {"device_id": self._index} if self._device == "cuda" else {}
            self._session = onnxruntime.InferenceSession(path, options, providers=[(wanted, provider_options)])
        if self._session.get_providers()[0] != wanted:  # it falls back to the CPU without an error
            raise EngineUnavailable(f"ONNX Runtime could not start its {wanted}: {GET_GPU}")
        self._num_classes: int = self._session.get_outputs()[0].shape[1]
        self.build_s = time.perf_counter() - start

    def _run(self, frames: Tensor) -> Tensor:
        frames = frames.contiguous()
        logits = torch.empty(len(frames), self._num_classes, device=frames.device)
        binding = self._session.io_binding()
        binding.bind_input("frames", self._device, self._index, np.uint8, tuple(frames.shape), frames.data_ptr())
        binding.bind_output("logits", self._device, self._index, np.float32, tuple(logits.shape), logits.data_ptr())
        if self._device == "cuda":  # the session has its own stream, and waits for it before it returns
            torch.cuda.current_stream(frames.device).synchronize()
        self._session.run_with_iobinding(binding)
        return logits

    def details(self) -> dict[str, object]:
        import onnxruntime

        return {
            "onnxruntime": onnxruntime.__version__,
            "providers": self._session.get_providers(),
            "threads": self._session.get_session_options().intra_op_num_threads,
        }


def why_onnx_unavailable(device: str) -> str | None:
    """None if ONNX Runtime offers `device`, else one line: what is missing, how to get it."""
    if importlib.util.find_spec("onnxruntime") is None:
        return "ONNX Runtime is not installed: pip install onnxruntime (with a GPU: onnxruntime-gpu)"
    import onnxruntime

    wanted = PROVIDERS[device_type(device)]
    if wanted not in onnxruntime.get_available_providers():
        return f"this onnxruntime {onnxruntime.__version__} has no {wanted}: {GET_GPU}"
    return why_export_unavailable()
