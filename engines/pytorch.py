"""The engines that are torch itself: eager, the plain reference, and torch.compile."""

from __future__ import annotations

import importlib.util
import os
import shutil
import time

import torch
from torch import Tensor, nn

from engines.base import Engine, EngineSpec, copy_network, device_type


def torch_details() -> dict[str, object]:
    return {"torch": torch.__version__, "cuda": torch.version.cuda, "threads": torch.get_num_threads()}


def _place(network: nn.Module, device: str) -> nn.Module:
    return network.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]


class EagerEngine(Engine):
    """The network as it is written, in spec.precision and channels-last: what the other engines must match."""

    name = "eager"

    def __init__(self, network: nn.Module, spec: EngineSpec) -> None:
        super().__init__(spec)
        start = time.perf_counter()
        self._network = _place(copy_network(network, spec.precision, fold=False), spec.device)
        self.build_s = time.perf_counter() - start

    @torch.inference_mode()
    def _run(self, frames: Tensor) -> Tensor:
        return self._network(frames)

    def details(self) -> dict[str, object]:
        return torch_details()


class CompileEngine(Engine):
    """torch.compile with the inductor back end; CUDA graphs on a GPU.

    It is compiled for one buffer of max_batch clips, into which every batch is copied: other strides, another
    batch size or an inference tensor would each compile again while running.
    """

    name = "compile"

    def __init__(self, network: nn.Module, spec: EngineSpec) -> None:
        super().__init__(spec)
        start = time.perf_counter()
        self._cuda_graphs = device_type(spec.device) == "cuda"
        self._compiled = torch.compile(
            _place(copy_network(network, spec.precision, fold=True), spec.device),
            fullgraph=True,  # a graph break, or one compilation too many, is an error, not a slow engine
            dynamic=False,
            mode="reduce-overhead" if self._cuda_graphs else "default",
        )
        self._frames = torch.zeros(spec.max_batch, *spec.frames_shape, dtype=torch.uint8, device=spec.device)
        for _ in range(3 if self._cuda_graphs else 1):  # compile; then CUDA graphs warm up, and record
            self._run(self._frames)
        if self._cuda_graphs:
            torch.cuda.synchronize(spec.device)
        self.build_s = time.perf_counter() - start

    @torch.inference_mode()
    def _run(self, frames: Tensor) -> Tensor:
        self._frames[: len(frames)].copy_(frames)
        logits = self._compiled(self._frames)[: len(frames)]
        return logits.clone() if self._cuda_graphs else logits  # the next replay overwrites the graph's output

    def details(self) -> dict[str, object]:
        return torch_details() | {"backend": "inductor", "cuda_graphs": self._cuda_graphs}

    def close(self) -> None:
        super().close()
        # The compiled code is kept per forward(), not per network, up to a small limit: make room for the next
        # engine. Another compile engine that is still open compiles once more at its next call.
        torch._dynamo.reset()


def why_compile_unavailable(device: str) -> str | None:
    """None if torch.compile can work on `device`, else one line: what is missing, how to get it."""
    if device_type(device) == "cuda":
        missing = importlib.util.find_spec("triton") is None
        return "torch.compile needs Triton on a GPU: pip install triton" if missing else None
    compilers = [os.environ.get("CXX", "g++"), "g++", "clang++"]
    if any(shutil.which(compiler) for compiler in compilers):
        return None
    return "torch.compile needs a C++ compiler: install g++ (apt install g++), or set CXX to the one you have"
