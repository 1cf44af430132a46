"""A module in, a fast callable out. Importing this package imports torch and no engine's library."""

from engines.base import Engine, FileEngine, copy_network
from engines.cache import default_cache_dir
from engines.key import NotCacheable
from engines.onnx_export import export_onnx
from engines.pytorch import exact_float32, prepare_compiler
from engines.quantize import Range, calibrate, quantisable, simulated
from engines.registry import (
    ENGINES,
    create_engine,
    default_precision,
    engine_class,
    supported_precisions,
    why_unavailable,
)
from engines.spec import (
    DTYPES,
    PRECISIONS,
    QUANTISED,
    Calibration,
    EngineError,
    EngineSpec,
    EngineUnavailable,
    device_type,
)

__all__ = [
    "DTYPES",
    "ENGINES",
    "PRECISIONS",
    "QUANTISED",
    "Calibration",
    "Engine",
    "EngineError",
    "EngineSpec",
    "EngineUnavailable",
    "FileEngine",
    "NotCacheable",
    "Range",
    "calibrate",
    "copy_network",
    "create_engine",
    "default_cache_dir",
    "default_precision",
    "device_type",
    "engine_class",
    "exact_float32",
    "export_onnx",
    "prepare_compiler",
    "quantisable",
    "simulated",
    "supported_precisions",
    "why_unavailable",
]
