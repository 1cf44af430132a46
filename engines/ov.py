"""OpenVINO on the CPU. (The library's name is openvino; a module of that name here would hide it.)"""

from __future__ import annotations

import importlib.util
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from engines.base import Engine, EngineError, EngineSpec, device_type
from engines.onnx_export import export_onnx, why_export_unavailable


class OpenVinoEngine(Engine):
    """Compiled for exactly max_batch clips, which is faster than for any number; smaller batches are padded."""

    name = "openvino"

    def __init__(self, network: nn.Module, spec: EngineSpec) -> None:
        super().__init__(spec)
        import openvino

        start = time.perf_counter()
        hint = {"fp32": "f32", "bf16": "bf16"}[spec.precision]
        properties = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": hint,
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        }
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "network.onnx"
            export_onnx(network, replace(spec, precision="fp32"), path)  # OpenVINO rounds by the hint
            core = openvino.Core()
            model = core.read_model(path)
            model.reshape([spec.max_batch, *spec.frames_shape])
            self._compiled = core.compile_model(model, "CPU", properties)
        used = self._compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        if used != hint:  # a processor without bf16 gets f32 without an error
            raise EngineError(f"OpenVINO computes in {used} on this processor: choose precision fp32")
        self._request = self._compiled.create_infer_request()
        self.build_s = time.perf_counter() - start

    def _run(self, frames: Tensor) -> Tensor:
        import openvino

        clips = frames.contiguous()
        if missing := self.spec.max_batch - len(frames):
            clips = torch.cat([clips, clips.new_zeros(missing, *self.spec.frames_shape)])
        self._request.infer({0: openvino.Tensor(clips.numpy(), shared_memory=True)}, share_outputs=True)
        return torch.from_numpy(self._request.get_output_tensor(0).data[: len(frames)].copy())

    def details(self) -> dict[str, object]:
        import openvino

        return {
            "openvino": openvino.__version__,
            "threads": self._compiled.get_property("INFERENCE_NUM_THREADS"),
            "streams": int(self._compiled.get_property("NUM_STREAMS")),
        }


def why_openvino_unavailable(device: str) -> str | None:
    """None if OpenVINO can run on `device`, else one line: what is missing, how to get it."""
    if device_type(device) != "cpu":
        return "OpenVINO runs on the CPU here: use the device cpu"
    if importlib.util.find_spec("openvino") is None:
        return "OpenVINO is not installed: pip install openvino"
    return why_export_unavailable()
