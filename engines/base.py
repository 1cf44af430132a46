"""What every engine promises, and the one place where engines are chosen.

An engine is a compiled network: it is built once for an `EngineSpec` and then called with batches of uint8
frames. Shapes: B clips, T segments, L frames in a segment, H height, W width, C colours.
"""

from __future__ import annotations

import abc
import copy
import tempfile
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch import Tensor, nn

PRECISIONS = ("fp32", "tf32", "bf16", "fp16", "int8", "fp8")
QUANTISED = ("int8", "fp8")  # calibrated; what is not quantised is in a floating-point type that the engine chooses
DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
ENGINES = ("eager", "compile", "aoti", "onnx", "openvino", "trt", "torch-trt")
GPU_ONLY = ("trt", "torch-trt")
IMPORTED_S = time.time()  # sources changed later are not what this process runs


class EngineError(RuntimeError):
    """A problem the user can solve. The message is one line: what is wrong and what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


class EngineUnavailable(EngineError):
    """A library, GPU or architecture is missing. The message says which, and how to get it."""


@dataclass(frozen=True)
class EngineSpec:
    """What an engine is built for: clips of `frames_shape` (T, L, H, W, C), at most `max_batch` at a time.

    Only max_batch clips at a time are computed, a smaller batch is filled up, unless it is `ranged`: then a batch costs
    its own size, or with an engine that compiles for fixed sizes the next power of two. `rewrite` lets a network
    rewrite itself for inference (`for_inference`). `keep` names layers that int8 and fp8 leave in floating point.
    Raises EngineError for a value that no engine could be built for.
    """

    frames_shape: tuple[int, int, int, int, int]
    max_batch: int
    precision: str = "fp32"
    device: str = "cpu"
    ranged: bool = False
    rewrite: bool = True
    keep: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(self.frames_shape) != 5 or min(self.frames_shape) < 1:
            raise EngineError(f"frames_shape is {self.frames_shape}: give five positive numbers (T, L, H, W, C)")
        if self.max_batch < 1:
            raise EngineError(f"max_batch is {self.max_batch}: give 1 or more")
        if self.precision not in PRECISIONS:
            raise EngineError(f"precision {self.precision!r} is unknown: choose one of {', '.join(PRECISIONS)}")
        if self.keep and self.precision not in QUANTISED:
            raise EngineError(
                f"keep names layers, but {self.precision} quantises none: choose int8 or fp8, or leave it out"
            )
        device_type(self.device)


def ladder(spec: EngineSpec) -> tuple[int, ...]:
    """The batch sizes to compile for where each is a compilation of its own: max_batch, if ranged the powers of two
    below it too."""
    if not spec.ranged:
        return (spec.max_batch,)
    return (*(1 << i for i in range((spec.max_batch - 1).bit_length())), spec.max_batch)


def device_type(device: str) -> str:
    """ "cpu" or "cuda", for a device such as "cuda:1". Raises EngineError for any other."""
    kind, _, index = device.partition(":")
    if kind not in ("cpu", "cuda") or (":" in device and not index.isdecimal()):
        raise EngineError(f"device {device!r} is unknown: choose cpu, cuda or cuda:<number>")
    return kind


Calibration = Sequence[Tensor] | None  # batches of uint8 frames (B, T, L, H, W, C)


class Engine(abc.ABC):
    """A network ready to run: `with create_engine(…) as engine: logits = engine(frames)`.

    A subclass gets ready in its constructor and implements `_run`. An engine serves one caller at a time.
    """

    name: str
    sizes: tuple[int, ...] | None = None  # batch sizes that it can compute, smallest first; None: every size
    build_s: float  # seconds from the network to an engine ready to run, apart from running; set by create_engine

    def __init__(self, spec: EngineSpec) -> None:
        self.spec = spec

    def __call__(self, frames: Tensor) -> Tensor:
        """uint8 frames (B, T, L, H, W, C), 1 <= B <= max_batch -> float32 logits (B, classes), on spec.device.

        On a GPU the work is queued on torch's current stream. Raises EngineError for frames of another type, shape,
        batch size or device.
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
        if self.sizes is None or len(frames) in self.sizes:
            return self._run(frames)
        filled = frames.new_zeros(next(size for size in self.sizes if size > len(frames)), *spec.frames_shape)
        filled[: len(frames)] = frames
        return self._run(filled)[: len(frames)]

    @classmethod
    @abc.abstractmethod
    def create(cls, network: nn.Module, spec: EngineSpec, calibration: Calibration, cache: Path | None) -> Self:
        """The engine for `network`, ready to run; arguments as `create_engine` takes and has checked them."""

    @staticmethod
    @abc.abstractmethod
    def why_unavailable(device: str) -> str | None:
        """None if this engine can be built for `device` here, else one line: what is missing, how to get it."""

    @abc.abstractmethod
    def _run(self, frames: Tensor) -> Tensor:
        """The call itself; `frames` fit the spec and are as many as one of `sizes`."""

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


class FileEngine(Engine):
    """An engine in two steps: `build` writes a file, which may be kept; the constructor starts what the file holds."""

    suffix: str
    libraries: tuple[str, ...]  # distributions that the file's contents depend on, beside torch

    def __init__(self, spec: EngineSpec, path: Path) -> None:
        super().__init__(spec)
        self.file_bytes = path.stat().st_size
        self.from_cache = False

    @classmethod
    @abc.abstractmethod
    def build(cls, network: nn.Module, spec: EngineSpec, calibration: Calibration, path: Path) -> None:
        """Write the engine's file."""

    @classmethod
    def create(cls, network: nn.Module, spec: EngineSpec, calibration: Calibration, cache: Path | None) -> Self:
        if cache is not None:
            from engines.cache import NotCacheable, cached, engine_key

            try:
                key = engine_key(cls.name, network, spec, cls.libraries, calibration)
            except NotCacheable as error:
                warnings.warn(f"this engine is not kept: {error}", stacklevel=3)
            else:
                build = partial(cls.build, network, spec, calibration)
                with cached(cache, key, build, suffix=cls.suffix) as artifact:
                    engine = cls(spec, artifact.path)
                    engine.from_cache = artifact.hit
                    return engine
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"network{cls.suffix}"
            cls.build(network, spec, calibration, path)
            return cls(spec, path)


def why_no_gpu(device: str) -> str | None:
    """None if TensorRT has a card to run on, else one line: what is missing, how to get it."""
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} sees no CUDA GPU, and TensorRT runs on nothing else: use another engine"
    return None if device_type(device) == "cuda" else "TensorRT runs on a CUDA GPU only: use the device cuda"


def copy_network(network: nn.Module, spec: EngineSpec, engine: str, precision: str | None = None) -> nn.Module:
    """An independent copy of `network` on spec.device, in eval mode and in `precision` (default: the spec's); the
    original is left as it was.

    With spec.rewrite a network that has `for_inference(engine)` returns what this engine shall run; it does so in its
    own precision, before the copy is rounded.
    """
    network = copy.deepcopy(network).eval().requires_grad_(False)
    for_inference = getattr(network, "for_inference", None)
    if spec.rewrite and for_inference is not None:
        with torch.no_grad():
            network = for_inference(engine)
    return network.to(spec.device, DTYPES[precision or spec.precision])


def supported_precisions(name: str, device: str) -> tuple[str, ...]:
    """The precisions engine `name` offers on `device`. Raises EngineError for an unknown name or device."""
    on_gpu = device_type(device) == "cuda"
    match name:
        case "eager" | "compile" | "aoti":
            return ("fp32", "tf32", "bf16", "fp16") if on_gpu else ("fp32", "bf16", "fp16")
        case "onnx":  # ONNX Runtime has no convolution in bf16, on the CPU none in fp16, on a GPU none in int8
            return ("fp32", "tf32", "fp16") if on_gpu else ("fp32", "int8")
        case "openvino":
            return ("fp32", "bf16", "int8")
        case "trt":
            return PRECISIONS
        case "torch-trt":
            return ("fp32", "tf32", "bf16", "fp16")
    raise EngineError(f"engine {name!r} is unknown: choose one of {', '.join(ENGINES)}")


def default_precision(name: str, device: str) -> str:
    """The precision to use where nobody asked for one: fp16 on a GPU, fp32 on a CPU."""
    on_gpu = name in GPU_ONLY or device_type(device) == "cuda"
    return "fp16" if on_gpu and "fp16" in supported_precisions(name, device) else "fp32"


def engine_class(name: str) -> type[Engine]:
    """The class of engine `name`, imported where it is asked for; `name` is one of ENGINES."""
    match name:
        case "eager":
            from engines.pytorch import EagerEngine

            return EagerEngine
        case "compile":
            from engines.pytorch import CompileEngine

            return CompileEngine
        case "aoti":
            from engines.aoti import AotiEngine

            return AotiEngine
        case "onnx":
            from engines.ort import OnnxEngine

            return OnnxEngine
        case "openvino":
            from engines.ov import OpenVinoEngine

            return OpenVinoEngine
        case "trt":
            from engines.trt import TrtEngine

            return TrtEngine
        case "torch-trt":
            from engines.torch_trt import TorchTrtEngine

            return TorchTrtEngine
    raise AssertionError(name)


def why_unavailable(name: str, device: str) -> str | None:
    """None if engine `name` can be built for `device` here, else one line: what is missing, how to get it.

    Raises EngineError for an unknown name or device.
    """
    supported_precisions(name, device)
    if device_type(device) == "cuda" and name not in (*GPU_ONLY, "openvino") and not torch.cuda.is_available():
        return f"torch {torch.__version__} sees no CUDA GPU: install a CUDA build of torch, or use the device cpu"
    return engine_class(name).why_unavailable(device)


def create_engine(
    name: str,
    network: nn.Module,
    spec: EngineSpec,
    *,
    calibration: Calibration = None,
    cache: Path | None = None,
) -> Engine:
    """Build engine `name` from `network` (uint8 frames in, float32 logits out); `network` is not changed.

    The network casts the frames to the dtype of its own parameters, and must also take frames already cast. For int8
    and fp8, `calibration` are batches of uint8 frames (B, T, L, H, W, C), real ones, from which the ranges of
    activations are taken. With a `cache` folder, what was built for the same network, spec, libraries and machine is
    used again. Raises EngineUnavailable where something is missing here, EngineError for an unknown name, a precision
    the engine has not got, or a network it cannot build.
    """
    precisions = supported_precisions(name, spec.device)
    if spec.precision not in precisions:
        raise EngineError(
            f"engine {name!r} has no {spec.precision} on {spec.device}: choose precision {' or '.join(precisions)}"
        )
    if spec.precision in QUANTISED and not calibration:
        raise EngineError(f"precision {spec.precision} needs clips to calibrate on: none were given")
    if (reason := why_unavailable(name, spec.device)) is not None:
        raise EngineUnavailable(f"engine {name!r} on {spec.device}: {reason}")
    start = time.perf_counter()
    engine = engine_class(name).create(network, spec, calibration, cache)
    engine.build_s = time.perf_counter() - start
    return engine
