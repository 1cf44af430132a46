"""Torch-TensorRT (dynamo): TensorRT inside a torch program, no ONNX on the way."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

from engines.base import Calibration, Engine, EngineSpec, device_type

GET_LIBRARY = "pip install torch-tensorrt, of torch's minor version"


class TorchTrtEngine(Engine):
    name = "torch-trt"

    @classmethod
    def create(cls, network: nn.Module, spec: EngineSpec, calibration: Calibration, cache: Path | None) -> Self:
        raise NotImplementedError

    def _run(self, frames: Tensor) -> Tensor:
        raise NotImplementedError

    def details(self) -> dict[str, object]:
        raise NotImplementedError

    @staticmethod
    def why_unavailable(device: str) -> str | None:
        if not torch.cuda.is_available():
            return f"torch {torch.__version__} sees no CUDA GPU, and TensorRT runs on nothing else: use another engine"
        if device_type(device) != "cuda":
            return "TensorRT runs on a CUDA GPU only: use the device cuda"
        missing = importlib.util.find_spec("torch_tensorrt") is None
        return f"Torch-TensorRT is not installed: {GET_LIBRARY}" if missing else None
