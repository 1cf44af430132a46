"""The one list of engines, and the functions that choose from it.

To add an engine, write a subclass of `engines.base.Engine` in a file of its own and add the class to `CLASSES`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from engines.aoti import AotiEngine
from engines.base import Engine
from engines.compile import CompileEngine
from engines.eager import EagerEngine
from engines.ort import OnnxEngine
from engines.ov import OpenVinoEngine
from engines.spec import QUANTISED, Calibration, EngineError, EngineSpec, EngineUnavailable, device_type
from engines.torch_trt import TorchTrtEngine
from engines.trt import TrtEngine

CLASSES: tuple[type[Engine], ...] = (
    EagerEngine,
    CompileEngine,
    AotiEngine,
    OnnxEngine,
    OpenVinoEngine,
    TrtEngine,
    TorchTrtEngine,
)
ENGINES = tuple(engine.name for engine in CLASSES)


def engine_class(name: str) -> type[Engine]:
    """The class of engine `name`. Raises EngineError for a name that is not in ENGINES."""
    for engine in CLASSES:
        if engine.name == name:
            return engine
    raise EngineError(f"engine {name!r} is unknown: choose one of {', '.join(ENGINES)}")


def supported_precisions(name: str, device: str) -> tuple[str, ...]:
    """The precisions that engine `name` offers on `device`, or elsewhere, if it does not run there.

    Raises EngineError for an unknown name or device.
    """
    engine = engine_class(name)
    cpu, cuda = engine.cpu_precisions, engine.cuda_precisions
    return cuda or cpu if device_type(device) == "cuda" else cpu or cuda


def default_precision(name: str, device: str) -> str:
    """The precision to use where nobody asked for one: fp16 on a GPU if the engine has it, else fp32.

    Raises EngineError for an unknown name or device.
    """
    on_gpu = device_type(device) == "cuda" or not engine_class(name).cpu_precisions
    return "fp16" if on_gpu and "fp16" in supported_precisions(name, device) else "fp32"


def why_unavailable(name: str, device: str) -> str | None:
    """None if engine `name` can be built for `device` here, else one line: what is missing, how to get it.

    Raises EngineError for an unknown name or device.
    """
    return engine_class(name).why_unavailable(device)


def create_engine(
    name: str,
    network: nn.Module,
    spec: EngineSpec,
    *,
    calibration: Calibration = None,
    cache: Path | str | None = None,
) -> Engine:
    """Build engine `name` from `network`; `network` is not changed.

    Args:
        name: one of ENGINES.
        network: takes uint8 frames (B, T, L, H, W, C) and returns float32 logits (B, classes). It casts the frames to
            the dtype of its own parameters, and must also take frames already cast.
        spec: what to build for.
        calibration: for int8 and fp8, batches of real uint8 frames (B, T, L, H, W, C), from which the ranges of
            activations are taken.
        cache: a folder of the user's own; what this user built for the same network, spec, libraries and machine is
            loaded from there, and what is built now is stored. None builds anew.

    Raises EngineUnavailable where something is missing here, EngineError for an unknown name, a precision the engine
    has not got, missing calibration, or a network it cannot build.
    """
    if not isinstance(network, nn.Module):
        raise EngineError(f"network is a {type(network).__name__}: give a torch.nn.Module")
    if not isinstance(spec, EngineSpec):
        raise EngineError(f"spec is a {type(spec).__name__}: give an EngineSpec")
    if not isinstance(cache, Path | str | None):
        raise EngineError(f"cache is a {type(cache).__name__}: give a folder, or None")
    precisions = supported_precisions(name, spec.device)
    if spec.precision not in precisions:
        raise EngineError(
            f"engine {name!r} has no {spec.precision} on {spec.device}: choose precision {' or '.join(precisions)}"
        )
    if spec.precision in QUANTISED:
        _check_calibration(calibration, spec)
    if (reason := why_unavailable(name, spec.device)) is not None:
        raise EngineUnavailable(f"engine {name!r} on {spec.device}: {reason}")
    start = time.perf_counter()
    folder = None if cache is None else Path(cache)
    engine = engine_class(name).create(network, spec, calibration, folder)
    engine.build_s = time.perf_counter() - start
    return engine


def _check_calibration(calibration: Calibration, spec: EngineSpec) -> None:
    """Raise EngineError for what is no sequence of batches of uint8 frames as `spec` has them, at least one."""
    if not isinstance(calibration, Sequence | None):
        raise EngineError(f"calibration is a {type(calibration).__name__}: give a list of batches of uint8 frames")
    if not calibration:
        raise EngineError(f"precision {spec.precision} needs clips to calibrate on: none were given")
    for frames in calibration:
        is_frames = isinstance(frames, Tensor) and frames.dtype == torch.uint8
        if not is_frames or tuple(frames.shape[1:]) != spec.frames_shape or not len(frames):
            what = f"{frames.dtype} {tuple(frames.shape)}" if isinstance(frames, Tensor) else type(frames).__name__
            raise EngineError(f"calibration holds {what}: give uint8 frames (B, *{spec.frames_shape})")
