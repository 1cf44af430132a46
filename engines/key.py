"""What a built engine depends on: weights, attributes, sources, spec, versions and machine, in a form fit for JSON."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import platform
import sys
from collections.abc import Sequence
from contextlib import suppress
from enum import Enum
from importlib.metadata import distributions
from pathlib import Path
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from engines.spec import IMPORTED_S, EngineError, EngineSpec, device_type

_PLAIN = (type(None), bool, int, float, str, bytes, torch.dtype, torch.device)
_MODULE_STATE = frozenset(vars(nn.Module()))  # what torch itself keeps in every module, `training` among it
_VERSIONED = sys.stdlib_module_names | {"torch"}  # their sources are covered by a version


class NotCacheable(EngineError):
    """The network holds something that cannot be compared between processes: build its engine without the cache."""


def engine_key(
    name: str, network: nn.Module, spec: EngineSpec, libraries: Sequence[str], calibration: Sequence[Tensor] | None
) -> dict[str, Any]:
    """All that the built file of engine `name` depends on, fit for JSON. Exports nothing. Raises NotCacheable.

    `libraries` are the distributions whose versions matter, `calibration` batches of uint8 frames. Weights
    count as they are, not as the precision rounds them. Code counts as it stands in the folders of the files that
    define the network's classes: what it imports from elsewhere does not. Without a GPU an engine for cuda is one for
    any card.
    """
    folders = {Path(__file__).parent.resolve()}
    try:
        described = json.dumps(_describe(type(network).__qualname__, network, folders))
    except RecursionError as error:
        raise NotCacheable("the network nests too deep for the engine cache") from error
    return {
        "engine": name,
        "spec": dataclasses.asdict(spec) | {"device": device_type(spec.device)},
        "network": _digest(described.encode()),
        "sources": sorted({_folder_digest(folder) for folder in folders}),
        "calibration": calibration and [_tensor_digest("calibration", frames) for frames in calibration],
        "versions": {name: [found.version for found in distributions(name=name)] for name in ("torch", *libraries)},
        "python": platform.python_version(),
        "machine": _card(spec.device) if device_type(spec.device) == "cuda" else _processor(),
    }


def _describe(where: str, value: Any, folders: set[Path]) -> Any:
    """`value` as JSON, equal for two values only if they behave equally; adds where its classes are defined."""
    kind = type(value)
    if kind in _PLAIN:
        return repr(value)
    if isinstance(value, Tensor):
        return _tensor_digest(where, value)
    if kind in (tuple, list, dict, set, frozenset):
        items = [_describe(where, item, folders) for item in (value.items() if kind is dict else value)]
        return [kind.__name__, sorted(items, key=json.dumps) if kind in (set, frozenset) else items]
    if isinstance(value, Enum):
        parts = [(value.name, value.value)]
    elif dataclasses.is_dataclass(kind) and kind.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        parts = [(field.name, getattr(value, field.name)) for field in dataclasses.fields(kind)]
    elif isinstance(value, nn.Module):
        if value._forward_hooks or value._forward_pre_hooks:
            raise NotCacheable(f"{where} has a forward hook, unfit for the engine cache")
        own = [(name, vars(value)[name]) for name in sorted(vars(value).keys() - _MODULE_STATE)]
        parts = [*own, *value._parameters.items(), *value._buffers.items(), *value._modules.items()]
    else:
        raise NotCacheable(f"{where} is a {kind.__qualname__}, unfit for the engine cache")
    for base in kind.__mro__:
        if base.__module__.partition(".")[0] not in _VERSIONED:
            members = vars(base).values() if isinstance(value, nn.Module) else ()
            files = {Path(member.__code__.co_filename) for member in members if isinstance(member, FunctionType)}
            files.add(Path(getattr(sys.modules.get(base.__module__), "__file__", None) or ""))
            if not all(file.suffix == ".py" and file.is_file() for file in files):
                raise NotCacheable(f"{where} is a {kind.__qualname__}, which has no source file for the engine cache")
            folders.update(file.parent.resolve() for file in files)
    return [kind.__module__, kind.__qualname__, [[k, _describe(f"{where}.{k}", v, folders)] for k, v in parts]]


def _folder_digest(folder: Path) -> str:
    """Of the Python files of a folder, wherever it lies; this process runs them as they are, as none is newer."""
    files = sorted(path for path in folder.glob("*.py") if path.is_file())
    for path in files:
        if path.stat().st_ctime > IMPORTED_S:  # unlike st_mtime not set back by what copies a file
            raise NotCacheable(f"{path} was edited while this process ran: restart it to use the engine cache")
    return _digest(json.dumps([(path.name, _digest(path.read_bytes())) for path in files]).encode())


def _digest(content: Any) -> str:
    return hashlib.sha256(content).hexdigest()


def _tensor_digest(where: str, tensor: Tensor) -> str:
    """Of dtype, shape and values, wherever they lie and in whatever order."""
    strange = tensor.is_quantized or tensor.is_meta or tensor.layout != torch.strided
    if strange or type(tensor) not in (Tensor, nn.Parameter):
        raise NotCacheable(f"{where} is no plain tensor, unfit for the engine cache")
    values = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return f"{tensor.dtype} {tuple(tensor.shape)} {_digest(values.numpy())}"


def _processor() -> list[str]:
    about = [platform.system(), platform.machine(), platform.processor()]
    with suppress(OSError):  # Linux alone has it; the names are those of x86 and of ARM
        first = Path("/proc/cpuinfo").read_text(encoding="utf-8").partition("\n\n")[0].splitlines()
        about += [line for line in first if line.startswith(("model", "cpu family", "flags", "CPU", "Features"))]
    return about


def _card(device: str) -> list[Any]:
    if not torch.cuda.is_available():
        return []  # built without the card, as TensorRT-RTX can
    import pynvml

    driver = ""
    with suppress(pynvml.NVMLError):
        pynvml.nvmlInit()
        driver = pynvml.nvmlSystemGetDriverVersion()
    card = torch.cuda.get_device_properties(device)
    return [card.name, card.major, card.minor, card.multi_processor_count, driver]  # a slice of a card has its name
