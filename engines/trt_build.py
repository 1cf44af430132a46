"""An ONNX file in, a TensorRT engine's bytes out, for TensorRT and TensorRT-RTX alike.

TensorRT builds on the GPU it builds for. TensorRT-RTX needs none: what is left to decide it decides when
the engine is loaded.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from engines.spec import EngineError, EngineSpec, EngineUnavailable
from storage.private import read_sealed, write_sealed

LIBRARIES = ("tensorrt", "tensorrt_rtx")  # the first one installed is used
GET_LIBRARY = "pip install tensorrt (or tensorrt-rtx-cu13, for GeForce and RTX GPUs)"


def find_tensorrt() -> str | None:
    """The name of the TensorRT library to use, or None if there is none. Imports nothing."""
    return next((name for name in LIBRARIES if importlib.util.find_spec(name) is not None), None)


def load_tensorrt(library: str | None = None) -> Any:
    """The TensorRT module, or that of LIBRARIES which is named. Raises EngineUnavailable if it is not there, or its
    shared libraries do not load."""
    name = library or find_tensorrt()
    if name is None or importlib.util.find_spec(name) is None:
        raise EngineUnavailable(f"{library or 'TensorRT'} is not installed: {GET_LIBRARY}")
    try:
        return importlib.import_module(name)
    except (ImportError, OSError) as error:
        raise EngineUnavailable(f"{name} is installed but does not load, reinstall it: {error}") from error


def new_log(trt: Any, verbose: bool = False) -> Any:
    """A logger for TensorRT whose `lines` are the (severity, message) it was told: errors, or all of it."""

    class Log(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)  # the binding refuses super()
            self.lines: list[tuple[str, str]] = []

        def log(self, severity: Any, message: str) -> None:
            if verbose or severity.name in ("INTERNAL_ERROR", "ERROR"):
                self.lines.append((severity.name, message))

    return Log()


def cause(log: Any) -> str:
    """The first error of a `new_log`: those after it are its consequences."""
    return next((message for severity, message in log.lines if severity.endswith("ERROR")), "it logged no error")


def refuse_precision(spec: EngineSpec) -> None:
    """Raise EngineUnavailable if spec.device is a card without the spec's precision; before anything is built."""
    if spec.precision == "fp8" and torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability(spec.device)
        if (major, minor) < (8, 9):
            raise EngineUnavailable(
                f"fp8 needs compute capability 8.9, this card has {major}.{minor}: choose precision int8 or fp16"
            )


def build_engine(
    onnx_path: Path,
    spec: EngineSpec,
    build_log: list[str] | None = None,
    timing_cache: Path | None = None,
    library: str | None = None,
) -> bytes:
    """Build `onnx_path` for spec.max_batch clips, or from 1 to that; bytes to deserialize or keep.

    The precision is the ONNX file's own, and tf32 where that is fp32: networks are strongly typed, nothing is rounded
    here. A `build_log` is filled with all that TensorRT says, for `layer_report`. What TensorRT times is kept in the
    file `timing_cache`; TensorRT-RTX times nothing. `library` is one of LIBRARIES; default: the first that is
    installed. Raises EngineError with TensorRT's reason when it cannot parse or build the file, EngineUnavailable when
    the library, or the GPU it builds on, is missing.
    """
    trt = load_tensorrt(library)
    if trt.__name__ == "tensorrt" and not torch.cuda.is_available():
        raise EngineUnavailable("tensorrt builds on the GPU it builds for, and torch sees none: use tensorrt_rtx")
    log = new_log(trt, verbose=build_log is not None)
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    config = new_config(trt, builder, spec)
    if timing_cache is not None and trt.__name__ == "tensorrt":
        load_timing_cache(config, timing_cache)
    plan = builder.build_serialized_network(network, config) if parser.parse_from_file(str(onnx_path)) else None
    if build_log is not None:
        build_log.extend(message for _, message in log.lines)
    if plan is None:
        raise EngineError(f"{trt.__name__} {trt.__version__} cannot build this network: {cause(log)}")
    if timing_cache is not None and trt.__name__ == "tensorrt":
        save_timing_cache(config, timing_cache)
    return bytes(plan)


def new_config(trt: Any, builder: Any, spec: EngineSpec) -> Any:
    """TensorRT's settings for `spec`."""
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # the engine can list its layers; costs no time
    if hasattr(trt.BuilderFlag, "TF32") and spec.precision != "tf32":  # set by default
        config.clear_flag(trt.BuilderFlag.TF32)
    if torch.cuda.is_available() and hasattr(config, "num_compute_capabilities"):
        config.num_compute_capabilities = 1  # for this GPU only; without one, for all that it can
        config.set_compute_capability(trt.ComputeCapability.CURRENT, 0)
    if spec.dynamic_batch:
        # One profile, at its best at max_batch. A second one for batch 1 would be built and kept beside it, and chosen
        # anew from call to call; who serves single clips builds a fixed engine of max_batch 1. TensorRT-RTX compiles
        # for the batch that comes.
        profile = builder.create_optimization_profile()
        largest = (spec.max_batch, *spec.frames_shape)
        profile.set_shape("frames", (1, *spec.frames_shape), largest, largest)
        config.add_optimization_profile(profile)
    return config


def load_timing_cache(config: Any, path: Path) -> None:
    """Let a build start from the timings in `path`, or from none where they are of another version, card or damaged."""
    cache = config.create_timing_cache(read_sealed(path))
    if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
        config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)


def save_timing_cache(config: Any, path: Path) -> None:
    """Write what the build timed to `path`, with what other processes have written there meanwhile."""
    cache = config.get_timing_cache()
    others = config.create_timing_cache(read_sealed(path))
    if others is not None:
        cache.combine(others, ignore_mismatch=False)  # False, and nothing added, if they are of another version or card
    keep(path, bytes(cache.serialize()))


def keep(path: Path, content: bytes) -> None:
    """Keep what saves the next build or start time; where it cannot be kept, that one takes longer."""
    try:
        write_sealed(path, content)
    except OSError as error:
        warnings.warn(f"{path} is not kept: {error}", stacklevel=3)


@dataclass(frozen=True)
class LayerTypes:
    """One layer of a built engine: its kind, and the types of what it reads, holds and writes."""

    name: str
    kind: str
    inputs: tuple[str, ...]
    constants: tuple[str, ...]
    outputs: tuple[str, ...]


_LAYER = re.compile(
    r"^Name: (?P<name>.*?), LayerType: (?P<kind>[^,]+), Inputs: (?P<inputs>.*?)"
    r"(, Constants: (?P<constants>.*?))?, Outputs: (?P<outputs>.*?), TacticName: ",
    re.MULTILINE,
)


def layer_report(build_log: list[str]) -> list[LayerTypes]:
    """The layers of the engine, as a `build_engine` log lists them; types as TensorRT names them ("Half")."""
    types = re.compile(r"Datatype: (\w+)")
    return [
        LayerTypes(
            match["name"],
            match["kind"],
            tuple(types.findall(match["inputs"])),
            tuple(types.findall(match["constants"] or "")),
            tuple(types.findall(match["outputs"])),
        )
        for match in _LAYER.finditer("\n".join(build_log))
    ]


def engine_layers(trt: Any, engine: Any) -> list[LayerTypes]:
    """The layers of a loaded engine, which takes a GPU: the inspector writes a layer a line, as the build log does."""
    return layer_report([engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.ONELINE)])
