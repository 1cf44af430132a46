"""What every engine promises.

An engine is a compiled network: it is built once for an `EngineSpec` and then called with batches of uint8 frames.
Shapes: B clips, T segments, L frames in a segment, H height and W width in pixels, C colours.
"""

from __future__ import annotations

import abc
import copy
import warnings
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from engines.cache import cached, temporary_folder
from engines.key import NotCacheable, engine_key
from engines.spec import DTYPES, Calibration, EngineError, EngineSpec, device_type


class Engine(abc.ABC):
    """A network ready to run: `with create_engine(…) as engine: logits = engine(frames)`.

    A subclass states its `name` and its precisions by device, gets ready in its constructor and implements `_run`. An
    engine serves one caller at a time.
    """

    name: ClassVar[str]
    cpu_precisions: ClassVar[tuple[str, ...]] = ()  # of PRECISIONS; (): it does not run on a CPU
    cuda_precisions: ClassVar[tuple[str, ...]] = ()  # (): it does not run on a GPU
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

    @classmethod
    def why_unavailable(cls, device: str) -> str | None:
        """None if this engine can be built for `device` here, else one line: what is missing, how to get it.

        Raises EngineError for an unknown device.
        """
        on_gpu, gpu_only = device_type(device) == "cuda", not cls.cpu_precisions
        if on_gpu and not cls.cuda_precisions:
            return "it runs on the CPU only: use the device cpu"
        if (on_gpu or gpu_only) and not torch.cuda.is_available():
            no_gpu = f"torch {torch.__version__} sees no CUDA GPU"
            if gpu_only:
                return f"{no_gpu}, and this engine runs on nothing else: use another engine"
            return f"{no_gpu}: install a CUDA build of torch, or use the device cpu"
        if gpu_only and not on_gpu:
            return "it runs on a CUDA GPU only: use the device cuda"
        return cls.what_is_missing(device)

    @staticmethod
    @abc.abstractmethod
    def what_is_missing(device: str) -> str | None:
        """As `why_unavailable`, of libraries and tools; the engine runs on `device`, which this machine has."""

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
    """An engine in two steps: `build` writes a file, which may be cached; the constructor starts what it holds."""

    suffix: ClassVar[str]  # of the file's name, with its dot
    libraries: ClassVar[tuple[str, ...]]  # distributions that the file's contents depend on, beside torch

    def __init__(self, spec: EngineSpec, path: Path) -> None:
        super().__init__(spec)
        self.file_bytes = path.stat().st_size
        self.from_cache = False

    @classmethod
    @abc.abstractmethod
    def build(cls, network: nn.Module, spec: EngineSpec, calibration: Calibration, path: Path) -> None:
        """Write the engine's file to `path`; arguments as `create` takes. Raises EngineError."""

    @classmethod
    def create(cls, network: nn.Module, spec: EngineSpec, calibration: Calibration, cache: Path | None) -> Self:
        if cache is not None:
            try:
                key = engine_key(cls.name, network, spec, cls.libraries, calibration)
            except NotCacheable as error:
                warnings.warn(f"this engine is not cached: {error}", stacklevel=3)
            else:
                build = partial(cls.build, network, spec, calibration)
                with cached(cache, key, build, suffix=cls.suffix) as artifact:
                    engine = cls(spec, artifact.path)
                    engine.from_cache = artifact.hit
                    return engine
        with temporary_folder() as folder:
            path = folder / f"network{cls.suffix}"
            cls.build(network, spec, calibration, path)
            return cls(spec, path)


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
