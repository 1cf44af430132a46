"""TensorRT and TensorRT-RTX: one code path, on a CUDA GPU, on torch's memory and in the order of torch's stream."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from engines.base import FileEngine
from engines.cache import default_cache_dir, temporary_folder
from engines.onnx_export import export_onnx, why_export_unavailable
from engines.spec import PRECISIONS, QUANTISED, Calibration, EngineError, EngineSpec, EngineUnavailable
from engines.trt_build import (
    GET_LIBRARY,
    LIBRARIES,
    LayerTypes,
    build_engine,
    cause,
    engine_layers,
    find_tensorrt,
    keep,
    load_tensorrt,
    new_log,
    refuse_precision,
)
from storage.private import read_sealed


class TrtEngine(FileEngine):
    """The file is TensorRT's plan: for the card and driver it was built on; TensorRT-RTX's for every card it names.

    At a fixed batch size all kernels are launched at once, as a CUDA graph: TensorRT-RTX records its own, around
    TensorRT torch does. A graph reads and writes the same memory at every call, so frames are copied there and logits
    from there; an engine for a dynamic batch works on the caller's frames.
    """

    name = "trt"
    cuda_precisions = PRECISIONS
    suffix = ".plan"
    libraries = (*LIBRARIES, "onnx", "onnxscript")

    def __init__(self, spec: EngineSpec, path: Path) -> None:
        super().__init__(spec, path)
        self.sizes = None if spec.dynamic_batch else (spec.max_batch,)
        self._trt = trt = load_tensorrt()
        self._library = f"{trt.__name__} {trt.__version__}"
        self._log = new_log(trt)
        self._graph: torch.cuda.CUDAGraph | None = None
        with torch.cuda.device(spec.device):
            self._runtime, self._engine = load_engine(path.read_bytes(), self._log)
            self._context, self._cache, self._own_graph = create_context(trt, self._engine, spec, _cache_path(trt))
            if self._context is None:
                raise EngineError(f"{self._library} cannot start this engine, try a smaller batch: {cause(self._log)}")
            self._num_classes: int = self._engine.get_tensor_shape("logits")[1]
            # All work is on one stream of the engine's own: on torch's default one TensorRT would wait for the device
            # at each call, and no call may overwrite frames that the call before it is still reading.
            self._stream = torch.cuda.Stream()
            self._frames = torch.zeros(spec.max_batch, *spec.frames_shape, dtype=torch.uint8, device=spec.device)
            self._logits = self._frames.new_empty(spec.max_batch, self._num_classes, dtype=torch.float32)
            self._run(self._frames)  # TensorRT-RTX compiles its kernels in the first call
            torch.cuda.synchronize()
            if not spec.dynamic_batch and not self._own_graph:
                self._graph = self._record()
            self._run(self._frames)  # and may record its graph in the second
            torch.cuda.synchronize()
        if spec.dynamic_batch:
            del self._frames, self._logits  # were for warming up only

    @classmethod
    def build(cls, network: nn.Module, spec: EngineSpec, calibration: Calibration, path: Path) -> None:
        refuse_precision(spec)
        trt = load_tensorrt()
        timings = default_cache_dir().parent / f"{trt.__name__}-{trt.__version__}.timings"
        with temporary_folder() as folder, torch.cuda.device(spec.device):
            exported = folder / "network.onnx"
            export_for_tensorrt(network, spec, exported, calibration)
            path.write_bytes(build_engine(exported, spec, timing_cache=timings))

    def _launch(self, frames: Tensor, logits: Tensor) -> None:
        """Queue the network on the engine's stream."""
        context = self._context
        accepted = (
            context.set_input_shape("frames", tuple(frames.shape))
            and context.set_tensor_address("frames", frames.data_ptr())
            and context.set_tensor_address("logits", logits.data_ptr())
            and context.execute_async_v3(self._stream.cuda_stream)
        )
        if not accepted:
            raise EngineError(f"{self._library} failed on a batch of {len(frames)}: {cause(self._log)}")

    def _record(self) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=self._stream):
                self._launch(self._frames, self._logits)
        except RuntimeError as error:  # torch's, or ours if TensorRT refused
            reason = str(error).strip().partition("\n")[0]
            message = f"{self._library} runs this network, but not in a CUDA graph: use --dynamic-batch"
            raise EngineError(f"{message} ({reason})") from error
        return graph

    @torch.inference_mode()
    def _run(self, frames: Tensor) -> Tensor:
        stream = self._stream
        with torch.cuda.device(stream.device):
            frames, current = frames.contiguous(), torch.cuda.current_stream()
            stream.wait_stream(current)
            with torch.cuda.stream(stream):
                if self.spec.dynamic_batch:
                    logits = frames.new_empty(len(frames), self._num_classes, dtype=torch.float32)
                    self._launch(frames, logits)
                else:
                    self._frames.copy_(frames)
                    if self._graph is not None:
                        self._graph.replay()
                    else:
                        self._launch(self._frames, self._logits)
                    logits = self._logits.clone()
            current.wait_stream(stream)
        frames.record_stream(stream)  # the caller may free them before they have been read,
        logits.record_stream(current)  # or these
        return logits

    def layers(self) -> list[LayerTypes]:
        """The layers of the built engine and their types, as TensorRT tells them."""
        return engine_layers(self._trt, self._engine)

    def details(self) -> dict[str, object]:
        return {
            "tensorrt": self._library,
            "gpu": torch.cuda.get_device_name(self.spec.device),
            "file_bytes": self.file_bytes,
            "from_cache": self.from_cache,
            "runtime_cache": self._cache is not None,
            "cuda_graphs": self._own_graph or self._graph is not None,
            **memory_bytes(self._trt, self._engine),
        }

    def close(self) -> None:
        if "_context" in self.__dict__:
            torch.cuda.synchronize(self.spec.device)
            if self._cache is not None:
                keep(_cache_path(self._trt), bytes(self._cache.serialize()))
            # in this order: each needs the next. A constructor that failed has not got them all.
            for name in ("_graph", "_context", "_cache", "_engine", "_runtime"):
                self.__dict__.pop(name, None)
        super().close()

    @staticmethod
    def what_is_missing(device: str) -> str | None:
        library = find_tensorrt()
        if library is None:
            return f"TensorRT is not installed: {GET_LIBRARY}"
        if library == "tensorrt_rtx":
            try:
                architectures = load_tensorrt().ComputeCapability.__members__
            except EngineUnavailable as error:
                return str(error)
            major, minor = torch.cuda.get_device_capability(device)
            if f"SM{major}{minor}" not in architectures:
                known = ", ".join(name for name in architectures if name.startswith("SM"))
                return (
                    f"TensorRT-RTX has no compute capability {major}.{minor}, only {known}: "
                    "pip install tensorrt, or use engine compile"
                )
        return why_export_unavailable()


def export_for_tensorrt(network: nn.Module, spec: EngineSpec, path: Path, calibration: Calibration) -> None:
    """Write `network` to `path` as the ONNX file that TensorRT builds from. Raises EngineError."""
    floating = "fp16" if spec.precision in QUANTISED else spec.precision
    export_onnx(network, spec, path, engine=TrtEngine.name, floating=floating, calibration=calibration)


def load_engine(plan: bytes, log: Any) -> tuple[Any, Any]:
    """The TensorRT (runtime, engine) of a built plan; `log` is a `new_log`. Raises EngineError with TensorRT's
    reason if it cannot be loaded here: no GPU, or one that the plan was not built for.
    """
    trt = load_tensorrt()
    runtime = trt.Runtime(log)
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise EngineError(f"{trt.__name__} {trt.__version__} cannot load this engine on this machine: {cause(log)}")
    return runtime, engine


def create_context(trt: Any, engine: Any, spec: EngineSpec, cache_path: Path) -> tuple[Any, Any, bool]:
    """An execution context (None if there is no room), its cache of compiled kernels (None if it has none), and
    whether it launches CUDA graphs of its own; the last two are TensorRT-RTX's."""
    if not hasattr(engine, "create_runtime_config"):
        return engine.create_execution_context(), None, False
    config = engine.create_runtime_config()
    cache = None
    if hasattr(config, "create_runtime_cache"):  # kernels compiled by earlier processes
        cache = config.create_runtime_cache()
        if stored := read_sealed(cache_path):
            cache.deserialize(stored)  # False, and empty, if not for this GPU
        config.set_runtime_cache(cache)
        # compile for a new batch size in its first call, not behind the calls that somebody is timing
        config.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
    own_graph = not spec.dynamic_batch and hasattr(config, "cuda_graph_strategy")
    if own_graph:
        config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
    return engine.create_execution_context(config), cache, own_graph


def memory_bytes(trt: Any, engine: Any) -> dict[str, int]:
    """What the engine takes of the card's memory, as far as this version tells."""
    found = {}
    if hasattr(engine, "device_memory_size_v2"):
        found["context_bytes"] = int(engine.device_memory_size_v2)
    if hasattr(engine, "get_engine_stat"):
        found["weights_bytes"] = int(engine.get_engine_stat(trt.EngineStat.TOTAL_WEIGHTS_SIZE))
    return found


def _cache_path(trt: Any) -> Path:
    return default_cache_dir().parent / f"{trt.__name__}-{trt.__version__}.cache"
