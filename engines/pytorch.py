"""The engines that are torch itself: eager, the plain reference, and torch.compile."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

from engines.base import Calibration, Engine, EngineSpec, copy_network, device_type, ladder


def torch_details() -> dict[str, object]:
    return {"torch": torch.__version__, "cuda": torch.version.cuda, "threads": torch.get_num_threads()}


def place(network: nn.Module) -> nn.Module:
    """The network's weights in channels-last."""
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


@contextmanager
def float32_as(precision: str) -> Iterator[None]:
    """On a GPU: float32 products in TF32 for the precision "tf32", in full for any other."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def keep_freed_memory() -> None:
    """Let glibc keep what this process frees. By its defaults it returns every large buffer to the kernel, which then
    hands over zeroed pages anew for each layer's output."""
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is not None:
        for option, value in ((-4, 0), (-1, 2**31 - 1), (-2, 2**26)):  # M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD
            mallopt(option, value)


def why_no_compiler(device: str) -> str | None:
    """None if inductor can compile for `device`, else one line: what is missing, how to get it."""
    if device_type(device) == "cuda":
        missing = importlib.util.find_spec("triton") is None
        return "torch.compile needs Triton on a GPU: pip install triton" if missing else None
    compilers = [os.environ.get("CXX", "g++"), "g++", "clang++"]
    if any(shutil.which(compiler) for compiler in compilers):
        return None
    return "torch.compile needs a C++ compiler: install g++ (apt install g++), or set CXX to the one you have"


class _TorchEngine(Engine):
    """What eager and compile share: built from the network in this process, nothing to keep in a file."""

    def __init__(self, network: nn.Module, spec: EngineSpec) -> None:
        super().__init__(spec)
        if device_type(spec.device) == "cpu":
            keep_freed_memory()
        self._network: Callable[[Tensor], Tensor] = place(copy_network(network, spec, self.name))

    @classmethod
    def create(cls, network: nn.Module, spec: EngineSpec, calibration: Calibration, cache: Path | None) -> Self:
        return cls(network, spec)

    def details(self) -> dict[str, object]:
        return torch_details()


class EagerEngine(_TorchEngine):
    """The network call by call; in fp32 and without `rewrite`, what every other engine must match."""

    name = "eager"

    @torch.inference_mode()
    def _run(self, frames: Tensor) -> Tensor:
        with float32_as(self.spec.precision):
            return self._network(frames)

    @staticmethod
    def why_unavailable(device: str) -> str | None:
        return None


class CompileEngine(_TorchEngine):
    """torch.compile with the inductor back end; CUDA graphs on a GPU.

    Compiled for fixed sizes (`ladder`): inductor's choice of convolution depends on the batch, a CUDA graph too.
    Every batch is copied into one buffer: other strides or an inference tensor would each compile again while running.
    """

    name = "compile"

    def __init__(self, network: nn.Module, spec: EngineSpec) -> None:
        super().__init__(network, spec)
        self.sizes = ladder(spec)
        self._cuda_graphs = device_type(spec.device) == "cuda"
        self._frames = torch.zeros(spec.max_batch, *spec.frames_shape, dtype=torch.uint8, device=spec.device)
        self._compiled = torch.compile(
            self._network,
            fullgraph=True,  # a graph break, or one compilation too many, is an error, not a slow engine
            dynamic=False,
            mode="reduce-overhead" if self._cuda_graphs else "default",
        )
        with torch._dynamo.config.patch(recompile_limit=len(self.sizes) + 8):
            for size in reversed(self.sizes):
                for _ in range(3 if self._cuda_graphs else 1):  # compile; then CUDA graphs warm up, and record
                    self._run(self._frames[:size])
        if self._cuda_graphs:
            torch.cuda.synchronize(spec.device)

    @torch.inference_mode()
    def _run(self, frames: Tensor) -> Tensor:
        batch = self._frames[: len(frames)]
        batch.copy_(frames)
        with float32_as(self.spec.precision):
            logits = self._compiled(batch)
        return logits.clone() if self._cuda_graphs else logits  # the next replay overwrites the graph's output

    def details(self) -> dict[str, object]:
        return torch_details() | {"backend": "inductor", "cuda_graphs": self._cuda_graphs}

    def close(self) -> None:
        super().close()
        # The compiled code is kept per forward(), not per network, up to a small limit: make room for the next
        # engine. Another compile engine that is still open compiles once more at its next call.
        torch._dynamo.reset()

    @staticmethod
    def why_unavailable(device: str) -> str | None:
        return why_no_compiler(device)
