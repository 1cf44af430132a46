"""Built engines kept on disk: a second start loads what the first one built.

An entry is three files in one folder, named by a digest of its key: the payload, a JSON header with the whole key and
the payload's checksum, and an empty lock. A payload is handed out only while header, key and checksum fit together.
The processor or card is part of the key, so a folder may be copied to another machine: what was built for a different
one is never asked for there, what was built for an equal one is.
"""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
import sys
import tempfile
import time
import warnings
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from engines.base import EngineError, EngineSpec, device_type

FORMAT = 1  # of the header; entries of another are rebuilt
KEEP_BYTES = 20 * 10**9
FOLDER_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)
_PLAIN = (type(None), type(...), bool, int, float, complex, str, bytes)
_MODULE_STATE = frozenset(vars(nn.Module()))  # what torch itself keeps in every module, `training` among it
_HOOKS = ("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs", "_forward_hooks", "_forward_hooks_with_kwargs")
_CODE = ("code", "exceptiontable", "flags", "names", "varnames", "freevars", "cellvars", "argcount", "kwonlyargcount")
_VERSIONED = sys.stdlib_module_names | {"torch"}  # packages that the key holds a version of


class NotCacheable(EngineError):
    """The network holds something that cannot be compared between processes: build its engine without the cache."""


@dataclass(frozen=True)
class Artifact:
    """A built file, and whether an earlier call had built it."""

    path: Path
    hit: bool


def default_folder() -> Path:
    """Where engines are kept unless the user names a folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tdn_bench" / "engines"


def engine_key(
    name: str, network: nn.Module, spec: EngineSpec, libraries: Sequence[str], calibration: Sequence[Tensor] | None
) -> dict[str, Any]:
    """All that the built file depends on, fit for JSON. Exports nothing.

    `libraries` are the distributions whose versions matter. Weights count as they are, not as the precision rounds
    them; whether the network is in training mode does not count. Code counts twice: as it runs in this process, and
    as it stands in the folders of the files that define it, which may have been edited since. Without a GPU an engine
    for cuda is one for any card. Raises NotCacheable.
    """
    graph = _Graph()
    try:
        graph.add("network", network)
        graph.finish()
    except RecursionError as error:
        raise NotCacheable("the network nests too deep for the engine cache") from error
    return {
        "engine": name,
        "spec": dataclasses.asdict(spec) | {"device": device_type(spec.device)},
        "weights": graph.weights.hexdigest(),
        "graph": graph.structure.hexdigest(),
        "sources": sorted({_sources(folder) for folder in graph.folders} | {_OWN_SOURCES}),
        "calibration": None if calibration is None else [_tensor_digest(frames) for frames in calibration],
        "versions": {library: _version(library) for library in libraries}
        | {"python": platform.python_version(), "torch": str(torch.__version__)},
        "machine": _card(spec.device) if device_type(spec.device) == "cuda" else _processor(),
    }


def _version(library: str) -> str:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def _processor() -> dict[str, Any]:
    about: dict[str, str] = {}
    with suppress(OSError):  # Linux alone has it
        first = Path("/proc/cpuinfo").read_text(encoding="utf-8").partition("\n\n")[0]
        about = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in first.splitlines())}
    names = ("model name", "cpu family", "model", "CPU implementer", "CPU part")
    features = sorted(about.get("flags", about.get("Features", "")).split())
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": [about[name] for name in names if name in about] or platform.processor(),
        "features": _digest(" ".join(features).encode()),
    }


def _card(device: str) -> dict[str, Any]:
    if not torch.cuda.is_available():
        return {"card": None}  # built without the card, as TensorRT-RTX can
    card = torch.cuda.get_device_properties(device)
    return {
        "card": card.name,
        "capability": f"{card.major}.{card.minor}",
        "multiprocessors": card.multi_processor_count,  # a slice of a card has its name
        "driver": _driver(),
    }


def _driver() -> str:
    try:
        import pynvml
    except ImportError:
        return "unknown"
    try:
        pynvml.nvmlInit()
        return str(pynvml.nvmlSystemGetDriverVersion())
    except pynvml.NVMLError:
        return "unknown"


def _digest(content: Any) -> str:
    return hashlib.sha256(content).hexdigest()


def _tensor_digest(tensor: Tensor) -> str:
    """Of dtype, shape and values, wherever they lie and in whatever order."""
    if type(tensor) not in (Tensor, nn.Parameter) or tensor.is_quantized:
        raise TypeError(f"a {type(tensor).__name__} may hold more than its values")
    values = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return _digest(f"{tensor.dtype} {tuple(tensor.shape)} {_digest(values.numpy())}".encode())


def _sources(folder: Path) -> str:
    """A digest of the Python files of a folder, wherever it lies."""
    files = [path for path in sorted(folder.glob("*.py")) if path.is_file()]
    return _digest(json.dumps([(path.name, _digest(path.read_bytes())) for path in files]).encode())


_OWN_SOURCES = _sources(Path(__file__).parent)  # now: before anybody edits the code that is running


class _Graph:
    """Digests of all that is added: equal in two processes only if it behaves equally in both.

    Modules, classes and functions are numbered where they are met and described in `finish`, once each.
    """

    def __init__(self) -> None:
        self.structure, self.weights = hashlib.sha256(), hashlib.sha256()
        self.folders: set[Path] = set()
        self._numbers: dict[int, int] = {}
        self._met: list[Any] = []  # also keeps them alive: an id is good for as long as its object

    def _say(self, *words: Any) -> None:
        self.structure.update(json.dumps(words).encode())

    def _number(self, value: Any) -> bool:
        """Say the number of `value`; True if it is a new one."""
        number = self._numbers.setdefault(id(value), len(self._met))
        self._say("number", number)
        if new := number == len(self._met):
            self._met.append(value)
        return new

    def add(self, where: str, value: Any) -> None:
        """Take in `value`. Raises NotCacheable, which says where it was met."""
        kind = type(value)
        self._say(kind.__module__, kind.__qualname__)
        if kind in _PLAIN:
            self._say(repr(value))
        elif kind in (tuple, list, dict, set, frozenset):
            items = [part for item in value.items() for part in item] if kind is dict else value
            if kind in (set, frozenset):
                items = sorted(value, key=repr)  # their own order differs from process to process
            self._say(len(items))
            for item in items:
                self.add(where, item)
        elif isinstance(value, (nn.Module, type, FunctionType, ModuleType)):
            self._number(value)
        elif isinstance(value, MethodType):
            self.add(where, [value.__func__, value.__self__])
        elif isinstance(value, property):
            self.add(where, [value.fget, value.fset])
        elif isinstance(value, (staticmethod, classmethod)):
            self.add(where, value.__func__)
        elif isinstance(value, weakref.ref):
            self.add(where, value())
        elif self._number(value):
            try:
                content = _tensor_digest(value) if isinstance(value, Tensor) else _content(value)
            except (TypeError, RuntimeError, AttributeError) as error:
                raise NotCacheable(f"{where} is a {kind.__qualname__}, unfit for the engine cache") from error
            self.add(where, content)

    def _add_code(self, where: str, values: Iterable[Any]) -> None:
        """Take in what code refers to: of what cannot be described, a lock or a logger, the type must do."""
        for value in values:
            with suppress(NotCacheable):
                self.add(where, value)

    def finish(self) -> None:
        for value in self._met:  # which grows meanwhile
            if isinstance(value, nn.Module):
                self._describe_module(value)
            elif isinstance(value, (type, FunctionType, ModuleType)):
                self._describe_code(value)

    def _describe_module(self, module: nn.Module) -> None:
        where = type(module).__qualname__
        self.add(where, [type(module), module._modules])
        for name, tensor in sorted((module._parameters | module._buffers).items()):
            self._say(name, tensor is None)
            if tensor is not None:
                try:
                    self.weights.update(f"{name} {_tensor_digest(tensor)} ".encode())
                except (TypeError, RuntimeError) as error:
                    raise NotCacheable(f"{where}.{name} is unfit for the engine cache: {error}") from error
        for name in sorted(vars(module).keys() - _MODULE_STATE):
            self._say(name)
            self.add(f"{where}.{name}", vars(module)[name])
        self.add(f"a forward hook of {where}", [list(getattr(module, hooks).values()) for hooks in _HOOKS])

    def _describe_code(self, value: Any) -> None:
        module = value.__name__ if isinstance(value, ModuleType) else value.__module__ or ""
        where = module if isinstance(value, ModuleType) else f"{module}.{value.__qualname__}"
        self._say(where)
        if isinstance(value, FunctionType):
            self.add(where, [value.__defaults__, value.__kwdefaults__, _cells(value)])
        elif isinstance(value, type):
            self.add(where, [*value.__bases__, type(value)])
        if module.partition(".")[0] in _VERSIONED:
            return
        file = getattr(sys.modules.get(module), "__file__", None)
        if file is not None:
            self.folders.add(Path(file).parent)
            if not {"site-packages", "dist-packages"}.isdisjoint(Path(file).parts):
                return  # installed, not edited while it runs: its source says it all
        if isinstance(value, type):
            for name, member in sorted(vars(value).items()):
                if not name.startswith("__") or isinstance(member, (FunctionType, property, staticmethod, classmethod)):
                    self._say(name)
                    self._add_code(where, [member])
        elif isinstance(value, FunctionType):
            codes = list(_codes(value.__code__))
            for code in codes:
                self._say(*(repr(getattr(code, f"co_{part}")) for part in _CODE))
                self._add_code(where, [const for const in code.co_consts if not isinstance(const, CodeType)])
            names = sorted({name for code in codes for name in code.co_names} & value.__globals__.keys())
            self._say(names)
            self._add_code(where, [value.__globals__[name] for name in names])


def _content(value: Any) -> Any:
    """What `copy.deepcopy` takes over of an object: the engines are built from such a copy. Raises TypeError."""
    reduced = value.__reduce_ex__(4)
    if isinstance(reduced, str):  # a global: "float32"; a cache around a function has it inside
        return [reduced, getattr(value, "__wrapped__", None)]
    return [list(part) if isinstance(part, Iterator) else part for part in reduced]


def _cells(function: FunctionType) -> list[Any]:
    contents = []
    for cell in function.__closure__ or ():
        with suppress(ValueError):  # empty
            contents.append(cell.cell_contents)
    return contents


def _codes(code: CodeType) -> Iterator[CodeType]:
    """`code` and all that is defined inside it."""
    yield code
    for const in code.co_consts:
        if isinstance(const, CodeType):
            yield from _codes(const)


@contextmanager
def cached(
    folder: Path,
    key: Mapping[str, Any],
    build: Callable[[Path], None],
    *,
    suffix: str = ".engine",
    keep_bytes: int = KEEP_BYTES,
) -> Iterator[Artifact]:
    """`with cached(…) as artifact:` gives the file that `build(path)` writes for `key`; the path holds inside the with.

    It is built where there is none, or none that is whole and has this very key; a process that wants the same key
    waits meanwhile, and then has it. What `build` raises goes through and leaves no entry. A folder that cannot be
    written costs a warning and a build at every start. Raises EngineError for one that cannot be made.
    """
    assert re.fullmatch(r"\.(?!(json|lock|part)$)\w+", suffix), suffix
    stem = _digest(_canonical(key).encode())[:32]
    payload = folder / f"{stem}{suffix}"
    problem: OSError | None = None
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context(_lock(folder / f"{stem}.lock", fcntl.LOCK_SH))
        except OSError as error:
            if not folder.is_dir() and folder != default_folder():
                raise EngineError(f"no engine cache can be made at {folder}, name another folder: {error}") from error
            problem = error
        hit = _intact(payload, key)
        if not hit and problem is None:
            fcntl.flock(lock, fcntl.LOCK_EX)
            hit = _intact(payload, key)  # somebody may have built it while this process waited
            if not hit:
                try:
                    _store(payload, key, build)
                except OSError as error:
                    if error.errno not in FOLDER_ERRORS:
                        raise
                    problem = error
                with suppress(OSError):
                    prune(folder, keep_bytes)
        if hit:
            with suppress(OSError):
                os.utime(payload)  # for `prune`
        elif problem is not None:
            warnings.warn(f"no engine can be kept in {folder}, each start builds its own: {problem}", stacklevel=3)
            payload = Path(stack.enter_context(tempfile.TemporaryDirectory())) / payload.name
            build(payload)
        yield Artifact(payload, hit)


def prune(folder: Path, keep_bytes: int = KEEP_BYTES) -> None:
    """Remove what dead builders left, and the least recently used entries beyond `keep_bytes`; none that is in use."""
    entries: dict[str, list[Path]] = defaultdict(list)
    used_s: dict[str, float] = defaultdict(float)
    size: dict[str, int] = defaultdict(int)
    for path in folder.iterdir():
        if re.fullmatch(r"[0-9a-f]{32}\.(?!lock$).*", path.name):
            stem = path.name[:32]
            with suppress(FileNotFoundError):  # removed meanwhile
                stat = path.lstat()
                entries[stem].append(path)
                used_s[stem] = max(used_s[stem], stat.st_mtime)
                size[stem] += stat.st_size
    total = 0
    for stem in sorted(entries, key=used_s.__getitem__, reverse=True):
        total += size[stem]
        doomed = [path for path in entries[stem] if total > keep_bytes or path.name[32:].startswith(".part")]
        if doomed:
            with suppress(OSError), _lock(folder / f"{stem}.lock", fcntl.LOCK_EX | fcntl.LOCK_NB):
                _remove(doomed)


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, allow_nan=False)


def _header(path: Path, key: Mapping[str, Any]) -> dict[str, Any]:
    """What the header of the payload at `path` must say."""
    with path.open("rb") as file:
        checksum = hashlib.file_digest(file, "sha256").hexdigest()
        return {"format": FORMAT, "key": key, "bytes": file.tell(), "sha256": checksum}


def _intact(payload: Path, key: Mapping[str, Any]) -> bool:
    header = payload.with_suffix(".json")
    try:
        if not (header.is_file() and payload.is_file()):  # a pipe would be waited for
            return False
        stored = json.loads(header.read_text(encoding="utf-8"))
        wanted = _header(payload, key)
        return _canonical({name: stored[name] for name in wanted}) == _canonical(wanted)
    except (OSError, ValueError, LookupError, TypeError, RecursionError):  # whatever a damaged header leads to
        return False


def _store(payload: Path, key: Mapping[str, Any], build: Callable[[Path], None]) -> None:
    """Build a new entry in the place of what is there. The caller holds the lock: other parts are dead builders'."""
    stem, header = payload.stem, payload.with_suffix(".json")
    _remove(path for path in payload.parent.glob(f"{stem}.*") if path.suffix != ".lock")
    part, header_part = (path.with_suffix(f".part{path.suffix}") for path in (payload, header))
    try:
        build(part)
        about = {"created": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **_header(part, key)}
        header_part.write_text(json.dumps(about, indent=1), encoding="utf-8")
        for source, target in ((part, payload), (header_part, header)):
            with source.open("rb") as file:
                os.fsync(file.fileno())
            source.replace(target)
    finally:
        _remove(payload.parent.glob(f"{stem}.part*"))


def _remove(paths: Iterable[Path]) -> None:
    for path in list(paths):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


@contextmanager
def _lock(path: Path, operation: int) -> Iterator[int]:
    """The system frees it when its holder dies. The file stays: two processes could hold a deleted and a new one."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, operation)
        yield descriptor
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)  # a forked child may have inherited the descriptor
        os.close(descriptor)
