"""OpenVINO on the CPU. (The library's name is openvino; a module of that name here would hide it.)"""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from engines.base import FileEngine
from engines.cache import temporary_folder
from engines.onnx_export import export_onnx, why_export_unavailable
from engines.spec import Calibration, EngineError, EngineSpec


def precision_hint(precision: str, core: Any) -> str:
    """OpenVINO's INFERENCE_PRECISION_HINT: int8 leaves the rest in bf16 where the processor has it, else in fp32.
    Raises EngineError for bf16 where it has not."""
    has_bf16 = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if precision == "bf16" and not has_bf16:  # OpenVINO would compute in f32 without an error
        raise EngineError("this processor has no bf16: choose precision fp32")
    return "f32" if precision == "fp32" or not has_bf16 else "bf16"


def openvino_model(network: nn.Module, spec: EngineSpec, calibration: Calibration) -> Any:
    """The network as OpenVINO's graph, for spec.max_batch clips, or from 1 to that. Raises EngineError."""
    import openvino

    with temporary_folder() as folder:
        exported = folder / "network.onnx"  # in fp32: OpenVINO rounds by the hint
        export_onnx(network, spec, exported, engine=OpenVinoEngine.name, floating="fp32", calibration=calibration)
        model = openvino.Core().read_model(exported)
    if spec.dynamic_batch:
        model.reshape([openvino.Dimension(1, spec.max_batch), *spec.frames_shape])
    return model


def _properties(spec: EngineSpec, core: Any) -> dict[str, object]:
    """What the network is compiled with."""
    threads = torch.get_num_threads()
    return {
        "INFERENCE_PRECISION_HINT": precision_hint(spec.precision, core),
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1 if spec.dynamic_batch else min(spec.max_batch, threads),
    }


class OpenVinoEngine(FileEngine):
    """The file is OpenVINO's compiled network, for this kind of processor.

    At a fixed batch size it is compiled for one clip, and the clips of a batch run beside each other, each on its share
    of the threads: there is less to wait for than where all threads work on one layer.
    """

    name = "openvino"
    cpu_precisions = ("fp32", "bf16", "int8")
    suffix = ".blob"
    libraries = ("openvino", "onnx", "onnxscript")

    def __init__(self, spec: EngineSpec, path: Path) -> None:
        super().__init__(spec, path)
        import openvino

        core = openvino.Core()
        with path.open("rb") as blob:
            self._compiled = core.import_model(blob.read(), "CPU", _properties(spec, core))
        count = 1 if spec.dynamic_batch else spec.max_batch
        self._requests = [self._compiled.create_infer_request() for _ in range(count)]

    @classmethod
    def build(cls, network: nn.Module, spec: EngineSpec, calibration: Calibration, path: Path) -> None:
        import openvino

        core = openvino.Core()
        properties = _properties(spec, core)
        one = spec if spec.dynamic_batch else replace(spec, max_batch=1)
        model = openvino_model(network, one, calibration)
        path.write_bytes(core.compile_model(model, "CPU", properties).export_model().getvalue())

    def _run(self, frames: Tensor) -> Tensor:
        import openvino

        clips = frames.contiguous().numpy()
        parts = [clips] if self.spec.dynamic_batch else [clips[i : i + 1] for i in range(len(clips))]
        requests = self._requests[: len(parts)]
        for request, part in zip(requests, parts, strict=True):
            request.start_async({0: openvino.Tensor(part, shared_memory=True)}, share_inputs=True)
        for request in requests:
            request.wait()
        return torch.from_numpy(np.concatenate([request.get_output_tensor(0).data for request in requests]))

    def details(self) -> dict[str, object]:
        import openvino

        return {
            "openvino": openvino.__version__,
            "threads": self._compiled.get_property("INFERENCE_NUM_THREADS"),
            "streams": int(self._compiled.get_property("NUM_STREAMS")),
            "floating_point": self._compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name(),
            "file_bytes": self.file_bytes,
            "from_cache": self.from_cache,
        }

    @staticmethod
    def what_is_missing(device: str) -> str | None:
        if importlib.util.find_spec("openvino") is None:
            return "OpenVINO is not installed: pip install openvino"
        return why_export_unavailable()
