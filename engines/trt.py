"""TensorRT and TensorRT-RTX: one code path, on a CUDA GPU, on torch's memory and torch's stream."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from engines.base import Engine, EngineError, EngineSpec, device_type
from engines.onnx_export import export_onnx, why_export_unavailable
from engines.trt_build import GET_LIBRARY, build_engine, cause, find_tensorrt, load_tensorrt, new_log


class TrtEngine(Engine):
    name = "trt"

    def __init__(self, network: nn.Module, spec: EngineSpec) -> None:
        super().__init__(spec)
        trt = load_tensorrt()
        start = time.perf_counter()
        self._library = f"{trt.__name__} {trt.__version__}"
        with tempfile.TemporaryDirectory() as folder, torch.cuda.device(spec.device):
            path = Path(folder) / "network.onnx"
            export_onnx(network, spec, path)
            plan = build_engine(path, spec)
            self._plan_bytes = len(plan)
            self._log = new_log(trt)
            self._runtime, self._engine = load_engine(trt, plan, self._log)
            self._cache = RuntimeCache(self._engine, trt) if hasattr(self._engine, "create_runtime_config") else None
            arguments = (self._cache.config,) if self._cache and self._cache.config else ()
            self._context = self._engine.create_execution_context(*arguments)
        ...
