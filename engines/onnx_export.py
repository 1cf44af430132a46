"""A module in, an ONNX file out: the bridge to ONNX Runtime, OpenVINO and TensorRT."""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from engines.base import copy_network
from engines.quantize import calibrate, quantise_onnx
from engines.spec import DTYPES, QUANTISED, Calibration, EngineError, EngineSpec

OPSET = 22  # the first whose Conv takes bf16


class CastFirst(nn.Module):
    """`network`, behind a cast of the uint8 frames to `dtype`: TensorRT takes uint8 at the edge of a graph only."""

    def __init__(self, network: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.network = network
        self.dtype = dtype

    def forward(self, frames: Tensor) -> Tensor:
        return self.network(frames.to(self.dtype))  # 0 to 255 are exact in every float type we use


def why_export_unavailable() -> str | None:
    """None if networks can be exported here, else one line: what is missing, how to get it."""
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    return f"{' and '.join(missing)} not installed: pip install {' '.join(missing)}" if missing else None


def export_onnx(
    network: nn.Module,
    spec: EngineSpec,
    path: Path,
    *,
    engine: str,
    floating: str,
    calibration: Calibration = None,
) -> None:
    """Write `network`, as `engine` is to run it, to `path`.

    The graph's input is `frames`, uint8 (batch, T, L, H, W, C), its output `logits`, float32 (batch, classes); the
    batch is spec.max_batch, or free with spec.dynamic_batch.

    Args:
        engine: the engine's name, for the network's `for_inference`.
        floating: the precision of what is not quantised, a key of DTYPES. spec.precision matters for int8 and fp8
            alone: those put Quantize/DequantizeLinear pairs around the layers to quantise.
        calibration: batches of uint8 frames, for int8 and fp8.

    Raises EngineError for a network that cannot be exported, or that works for one batch size only where the batch is
    to be dynamic.
    """
    import onnx

    plain = copy_network(network, replace(spec, device="cpu"), engine, floating)
    ranges = {}
    if spec.precision in QUANTISED:
        exact = plain if floating == "fp32" else copy_network(network, replace(spec, device="cpu"), engine, "fp32")
        found = calibrate(exact, calibration, spec.exclude_layers, unsigned=engine != "trt")  # TensorRT has no uint8
        ranges = {f"network.{name}": limits for name, limits in found.items()}
    example = torch.zeros(2 if spec.dynamic_batch else spec.max_batch, *spec.frames_shape, dtype=torch.uint8)
    try:
        with _quiet():
            torch.onnx.export(
                CastFirst(plain, DTYPES[floating]),
                (example,),
                path,
                dynamo=True,
                verbose=False,
                opset_version=OPSET,
                external_data=False,
                input_names=["frames"],
                output_names=["logits"],
                dynamic_shapes=({0: torch.export.Dim("batch")},) if spec.dynamic_batch else None,
            )
        if ranges:
            quantise_onnx(path, ranges, spec.precision)
        onnx.checker.check_model(path, full_check=True)
    except (torch.onnx.OnnxExporterError, onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        message = f"this network does not export to ONNX in {spec.precision} (eager and compile need no export)"
        raise EngineError(f"{message}: {reason}") from error
    graph = onnx.load(path).graph
    if spec.dynamic_batch and not graph.input[0].type.tensor_type.shape.dim[0].dim_param:
        raise EngineError("the network works for one batch size only: slice its first dimension, never chunk or split")


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the exporter's progress, and its remarks about libraries this project does not use, to itself."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
