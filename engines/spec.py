"""What an engine is built for, and the errors that engines raise; imports nothing of this package.

Shapes: B clips, T segments, L frames in a segment, H height and W width in pixels, C colours.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from operator import index

import torch
from torch import Tensor

PRECISIONS = ("fp32", "tf32", "bf16", "fp16", "int8", "fp8")
QUANTISED = ("int8", "fp8")  # calibrated; what is not quantised is in a floating-point type that the engine chooses
DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
IMPORTED_S = time.time()  # sources changed later are not what this process runs

Calibration = Sequence[Tensor] | None  # batches of uint8 frames (B, T, L, H, W, C)


class EngineError(RuntimeError):
    """A problem the user can solve. The message is one line: what is wrong and what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


class EngineUnavailable(EngineError):
    """A library, GPU or architecture is missing. The message says which, and how to get it."""


@dataclass(frozen=True)
class EngineSpec:
    """What an engine is built for. Raises EngineError for a value that no engine could be built for.

    Args:
        frames_shape: the shape of one clip, (T, L, H, W, C).
        max_batch: the largest number of clips in a call.
        precision: one of PRECISIONS.
        device: "cpu", "cuda" or "cuda:<number>", or a torch.device.
        dynamic_batch: a batch costs what its own size costs (with an engine that compiles for fixed sizes, what the
            next power of two costs). Without it every batch is filled up to max_batch and costs as much.
        rewrite: let the network rewrite itself for inference, if it has `for_inference(engine)`.
        exclude_layers: names of layers that int8 and fp8 leave in floating point, with all layers below them.
    """

    frames_shape: tuple[int, int, int, int, int]
    max_batch: int
    precision: str = "fp32"
    device: str = "cpu"
    dynamic_batch: bool = False
    rewrite: bool = True
    exclude_layers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        try:
            shape = tuple(index(n) for n in self.frames_shape)
        except TypeError:
            shape = ()
        if len(shape) != 5 or min(shape) < 1:
            raise EngineError(f"frames_shape is {self.frames_shape}: give five positive numbers (T, L, H, W, C)")
        if type(self.max_batch) is not int or self.max_batch < 1:
            raise EngineError(f"max_batch is {self.max_batch!r}: give a whole number, 1 or more")
        if isinstance(self.exclude_layers, str):
            raise EngineError(f"exclude_layers is {self.exclude_layers!r}: give a tuple of names")
        object.__setattr__(self, "frames_shape", shape)  # the dataclass is frozen, and what is given may be a list
        object.__setattr__(self, "exclude_layers", tuple(self.exclude_layers))
        object.__setattr__(self, "device", str(self.device))
        if self.precision not in PRECISIONS:
            raise EngineError(f"precision {self.precision!r} is unknown: choose one of {', '.join(PRECISIONS)}")
        if self.exclude_layers and self.precision not in QUANTISED:
            raise EngineError(
                f"--exclude-layers names layers, but {self.precision} quantises none: choose int8 or fp8, or drop it"
            )
        device_type(self.device)


def ladder(spec: EngineSpec) -> tuple[int, ...]:
    """The batch sizes to compile for, smallest first, where each is a compilation of its own: max_batch, and with a
    dynamic batch the powers of two below it."""
    if not spec.dynamic_batch:
        return (spec.max_batch,)
    return (*(1 << i for i in range((spec.max_batch - 1).bit_length())), spec.max_batch)


def device_type(device: str) -> str:
    """ "cpu" or "cuda", for a device such as "cuda:1". Raises EngineError for any other."""
    kind, _, index = device.partition(":")
    if kind not in ("cpu", "cuda") or (":" in device and not index.isdecimal()):
        raise EngineError(f"device {device!r} is unknown: choose cpu, cuda or cuda:<number>")
    return kind
