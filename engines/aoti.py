"""AOTInductor: the network compiled ahead of time, to a package that starts without compiling anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from engines.base import FileEngine, copy_network
from engines.pytorch import float32_as, keep_freed_memory, place, prepare_compiler, torch_details, why_no_compiler
from engines.spec import Calibration, EngineSpec, device_type, ladder
from engines.torch_export import export_program, quiet_torch


class AotiEngine(FileEngine):
    """A package runs on the kind of processor or card it was compiled on, and nowhere else."""

    name = "aoti"
    cpu_precisions = ("fp32", "bf16", "fp16")
    cuda_precisions = ("fp32", "tf32", "bf16", "fp16")
    suffix = ".pt2"
    libraries = ("triton",)

    def __init__(self, spec: EngineSpec, path: Path) -> None:
        super().__init__(spec, path)
        if device_type(spec.device) == "cpu":
            keep_freed_memory()
        from torch._inductor.package import load_package

        index = torch.device(spec.device).index
        self.sizes = ladder(spec)
        self._compiled = {
            size: load_package(str(path), f"batch{size}", device_index=-1 if index is None else index)
            for size in self.sizes
        }

    @classmethod
    def build(cls, network: nn.Module, spec: EngineSpec, calibration: Calibration, path: Path) -> None:
        prepare_compiler()
        from torch._inductor.package import package_aoti

        network = place(copy_network(network, spec, cls.name))
        files: dict[str, Any] = {}
        with torch.no_grad(), float32_as(spec.precision), quiet_torch():
            for size in ladder(spec):
                example = torch.zeros(size, *spec.frames_shape, dtype=torch.uint8, device=spec.device)
                exported = export_program(network, example)
                options = {"aot_inductor.package": True}
                files[f"batch{size}"] = torch._inductor.aot_compile(exported.module(), (example,), options=options)
        package_aoti(str(path), files)

    @torch.inference_mode()
    def _run(self, frames: Tensor) -> Tensor:
        with float32_as(self.spec.precision):
            return self._compiled[len(frames)](frames.contiguous())

    def details(self) -> dict[str, object]:
        return torch_details() | {"file_bytes": self.file_bytes, "from_cache": self.from_cache}

    @staticmethod
    def what_is_missing(device: str) -> str | None:
        return why_no_compiler(device)
