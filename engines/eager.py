"""PyTorch, call by call: the reference."""

from __future__ import annotations

import torch
from torch import Tensor

from engines.pytorch import TorchEngine, float32_as


class EagerEngine(TorchEngine):
    """The network call by call; in fp32 and without `rewrite`, what every other engine must match."""

    name = "eager"
    cpu_precisions = ("fp32", "bf16", "fp16")
    cuda_precisions = ("fp32", "tf32", "bf16", "fp16")

    @torch.inference_mode()
    def _run(self, frames: Tensor) -> Tensor:
        with float32_as(self.spec.precision):
            return self._network(frames)

    @staticmethod
    def what_is_missing(device: str) -> str | None:
        return None
