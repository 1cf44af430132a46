"""torch.compile: the network compiled while its engine is built, for this process."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from engines.pytorch import TorchEngine, float32_as, prepare_compiler, torch_details, why_no_compiler
from engines.spec import EngineSpec, device_type, ladder


class CompileEngine(TorchEngine):
    """torch.compile with the inductor back end; CUDA graphs on a GPU.

    Compiled for fixed sizes (`ladder`): inductor's choice of convolution depends on the batch, a CUDA graph too.
    Every batch is copied into one buffer: other strides or an inference tensor would each compile again while running.
    """

    name = "compile"
    cpu_precisions = ("fp32", "bf16", "fp16")
    cuda_precisions = ("fp32", "tf32", "bf16", "fp16")

    def __init__(self, network: nn.Module, spec: EngineSpec) -> None:
        prepare_compiler()
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
    def what_is_missing(device: str) -> str | None:
        return why_no_compiler(device)
