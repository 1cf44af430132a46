"""What every engine promises, and the one place where engines are chosen.

An engine is a compiled network: it is built once for an `EngineSpec` and then called with batches of uint8
frames. Shapes: B clips, T segments, L frames in a segment, H height, W width, C colours.
"""

from __future__ import annotations

import abc
import copy
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import torch
from torch import Tensor, nn

PRECISIONS = ("fp32", "bf16", "fp16")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
ENGINES = ("eager", "compile", "onnx", "openvino", "trt")


class EngineError(RuntimeError):
    """A problem the user can solve. The message is one line: what is wrong and what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


class EngineUnavailable(EngineError):
    """A library, GPU or architecture is missing. The message says which, and how to get it."""


@dataclass(frozen=True)
class EngineSpec:
    """What an engine is built for: clips of `frames_shape` (T, L, H, W, C), at most `max_batch` at a time.

    Raises EngineError for a value that no engine could be built for.
    """

    frames_shape: tuple[int, int, int, int, int]
    max_batch: int
    precision: str = "fp32"
    device: str = "cpu"

    def __post_init__(self) -> None:
        if len(self.frames_shape) != 5 or min(self.frames_shape) < 1:
            raise EngineError(f"frames_shape is {self.frames_shape}: give five positive numbers (T, L, H, W, C)")
        if self.max_batch < 1:
            raise EngineError(f"max_batch is {self.max_batch}: give 1 or more")
        if self.precision not in PRECISIONS:
            raise EngineError(f"precision {self.precision!r} is unknown: choose one of {', '.join(PRECISIONS)}")
        device_type(self.device)


def device_type(device: str) -> str:
    """ "cpu" or "cuda", for a device such as "cuda:1". Raises EngineError for any other."""
    kind, _, index = device.partition(":")
    if kind not in ("cpu", "cuda") or (":" in device and not index.isdecimal()):
        raise EngineError(f"device {device!r} is unknown: choose cpu, cuda or cuda:<number>")
    return kind


class Engine(abc.ABC):
    """A network ready to run: `with create_engine(…) as engine: logits = engine(frames)`.

    A subclass builds everything in its constructor, sets `build_s`, and implements `_run`. An engine serves
    one caller at a time.
    """

    name: str
    build_s: float  # seconds spent building (export, compilation, first call), apart from running

    def __init__(self, spec: EngineSpec) -> None:
        self.spec = spec

    def __call__(self, frames: Tensor) -> Tensor:
        """uint8 frames (B, T, L, H, W, C), 1 <= B <= max_batch -> float32 logits (B, classes), on spec.device.

        Raises EngineError for frames of another type, shape, batch size or device.
        """
        spec = self.spec
        if frames.dtype != torch.uint8:
            raise EngineError(f"frames are {frames.dtype}: hand over uint8, the network normalises them itself")
        if frames.ndim != 6 or tuple(frames.shape[1:]) != spec.frames_shape:
            raise EngineError(f"frames have shape {tuple(frames.shape)}: this engine takes (B, *{spec.frames_shape})")
        if not 1 <= len(frames) <= spec.max_batch:
            raise EngineError(f"the batch is {len(frames)}: this engine takes 1 to {spec.max_batch} clips")
        if frames.device.type != device_type(spec.device):
            raise EngineError(f"frames are on {frames.device}: this engine takes them on {spec.device}")
        return self._run(frames)

    @abc.abstractmethod
    def _run(self, frames: Tensor) -> Tensor:
        """The call itself; `frames` fit the spec."""

    @abc.abstractmethod
    def details(self) -> dict[str, object]:
        """What a record should say about this engine: versions, threads, providers. Fit for JSON."""

    def close(self) -> None:
        """Free the network and its memory; the engine cannot be called again. Closing twice is allowed."""
        spec, build_s = self.spec, self.build_s
        self.__dict__.clear()
        self.spec, self.build_s = spec, build_s

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def copy_network(network: nn.Module, precision: str, fold: bool) -> nn.Module:
    """An independent copy of `network` in eval mode and in `precision`; the original is left as it was.

    `fold` lets the network fold its batch norms into its convolutions, if it has `fold_batch_norm()`; it does
    so in the network's own precision, before the copy is rounded.
    """
    network = copy.deepcopy(network).eval().requires_grad_(False)
    fold_batch_norm = getattr(network, "fold_batch_norm", None)
    if fold and fold_batch_norm is not None:
        network = fold_batch_norm()
    return network.to(DTYPES[precision])


def supported_precisions(name: str, device: str) -> tuple[str, ...]:
    """The precisions engine `name` offers on `device`. Raises EngineError for an unknown name or device."""
    kind = device_type(device)
    match name:
        case "eager" | "compile" | "trt":
            return PRECISIONS
        case "onnx":  # ONNX Runtime has no convolution in bf16, and on the CPU none in fp16 either
            return ("fp32", "fp16") if kind == "cuda" else ("fp32",)
        case "openvino":
            return ("fp32", "bf16")
    raise EngineError(f"engine {name!r} is unknown: choose one of {', '.join(ENGINES)}")


def default_precision(name: str, device: str) -> str:
    """The precision to use where nobody asked for one: fp16 on a GPU, fp32 on a CPU."""
    on_gpu = name == "trt" or device_type(device) == "cuda"
    return "fp16" if on_gpu and "fp16" in supported_precisions(name, device) else "fp32"


def why_unavailable(name: str, device: str) -> str | None:
    """None if engine `name` can be built for `device` here, else one line: what is missing, how to get it.

    Raises EngineError for an unknown name or device.
    """
    supported_precisions(name, device)
    if device_type(device) == "cuda" and name not in ("openvino", "trt") and not torch.cuda.is_available():
        return f"torch {torch.__version__} sees no CUDA GPU: install a CUDA build of torch, or use the device cpu"
    match name:
        case "compile":
            from engines.pytorch import why_compile_unavailable

            return why_compile_unavailable(device)
        case "onnx":
            from engines.ort import why_onnx_unavailable

            return why_onnx_unavailable(device)
        case "openvino":
            from engines.ov import why_openvino_unavailable

            return why_openvino_unavailable(device)
        case "trt":
            from engines.trt import why_trt_unavailable

            return why_trt_unavailable(device)
    return None


def create_engine(name: str, network: nn.Module, spec: EngineSpec) -> Engine:
    """Build engine `name` from `network` (uint8 frames in, float32 logits out); `network` is not changed.

    The network casts the frames to the dtype of its own parameters, and must also take frames already cast.
    Raises EngineUnavailable where something is missing here, EngineError for an unknown name, a precision
    the engine has not got, or a network it cannot build.
    """
    precisions = supported_precisions(name, spec.device)
    if spec.precision not in precisions:
        raise EngineError(
            f"engine {name!r} has no {spec.precision} on {spec.device}: choose precision {' or '.join(precisions)}"
        )
    if (reason := why_unavailable(name, spec.device)) is not None:
        raise EngineUnavailable(f"engine {name!r} on {spec.device}: {reason}")
    match name:
        case "eager":
            from engines.pytorch import EagerEngine

            return EagerEngine(network, spec)
        case "compile":
            from engines.pytorch import CompileEngine

            return CompileEngine(network, spec)
        case "onnx":
            from engines.ort import OnnxEngine

            return OnnxEngine(network, spec)
        case "openvino":
            from engines.ov import OpenVinoEngine

            return OpenVinoEngine(network, spec)
        case "trt":
            from engines.trt import TrtEngine

            return TrtEngine(network, spec)
    raise AssertionError(name)  # supported_precisions has refused unknown names
