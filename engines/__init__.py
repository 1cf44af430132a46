"""A module in, a fast callable out. Importing this package imports torch and no engine's library."""

from engines.base import (
    ENGINES,
    PRECISIONS,
    QUANTISED,
    Engine,
    EngineError,
    EngineSpec,
    EngineUnavailable,
    create_engine,
    default_precision,
    supported_precisions,
    why_unavailable,
)

__all__ = [
    "ENGINES",
    "PRECISIONS",
    "QUANTISED",
    "Engine",
    "EngineError",
    "EngineSpec",
    "EngineUnavailable",
    "create_engine",
    "default_precision",
    "supported_precisions",
    "why_unavailable",
]
