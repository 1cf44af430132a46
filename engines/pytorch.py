"""What the engines made of torch alone share: eager, torch.compile and AOTInductor."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

from engines.base import Engine, copy_network
from engines.cache import default_cache_dir, temporary_folder
from engines.spec import Calibration, EngineError, EngineSpec, device_type
from storage.private import private_folder


def torch_details() -> dict[str, object]:
    """Torch's version, its CUDA's, and the number of threads, for a record."""
    return {"torch": torch.__version__, "cuda": torch.version.cuda, "threads": torch.get_num_threads()}


def place(network: nn.Module) -> nn.Module:
    """`network` itself, its weights now in channels-last."""
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


@contextmanager
def float32_as(precision: str) -> Iterator[None]:
    """Within, on a GPU: float32 products in TF32 for the precision "tf32", in full for any other."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def exact_float32() -> None:
    """Float32 means float32, for the rest of this process: by default cuDNN computes its convolutions in TF32."""
    torch.backends.cudnn.allow_tf32 = False


def keep_freed_memory() -> None:
    """Let glibc keep what this process frees. By its defaults it returns every large buffer to the kernel, which then
    hands over zeroed pages anew for each layer's output."""
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is not None:
        for option, value in ((-4, 0), (-1, 2**31 - 1), (-2, 2**26)):  # M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD
            mallopt(option, value)


def why_no_compiler(device: str) -> str | None:
    """None if inductor can compile for `device`, else one line: what is missing, how to get it."""
    if device_type(device) == "cuda":
        missing = importlib.util.find_spec("triton") is None
        return "torch.compile needs Triton on a GPU: pip install triton" if missing else None
    compilers = [os.environ.get("CXX", "g++"), "g++", "clang++"]
    if any(shutil.which(compiler) for compiler in compilers):
        return None
    return "torch.compile needs a C++ compiler: install g++ (apt install g++), or set CXX to the one you have"


def prepare_compiler() -> None:
    """See to it that inductor and Triton, which run what they find in their caches, find there what this user compiled.

    TORCHINDUCTOR_CACHE_DIR and TRITON_CACHE_DIR are set, for this process and those that it starts, where they are not:
    torch's own choice is below /tmp, where anybody may have been first. Raises EngineError for a folder that is not
    private, or that the compiler's command line has no way to name.
    """
    with temporary_folder():  # inductor puts into such a one what it compiles
        pass
    for variable, below in (("TORCHINDUCTOR_CACHE_DIR", "torchinductor"), ("TRITON_CACHE_DIR", "triton")):
        folder = Path(os.environ.get(variable) or default_cache_dir().parent / below)
        try:
            os.environ[variable] = str(private_folder(folder))
        except OSError as error:
            raise EngineError(f"compiled code has no private place: {error}; or set {variable} to another") from error
    places = {"TMPDIR": tempfile.gettempdir(), "TORCHINDUCTOR_CACHE_DIR": os.environ["TORCHINDUCTOR_CACHE_DIR"]}
    for variable, place in places.items():
        if place.split() != [place]:  # inductor quotes nothing
            raise EngineError(f"torch.compile takes no space in {place!r}: set {variable} to a folder without one")


class TorchEngine(Engine):
    """What eager and compile share: built from the network in this process, with no file to cache."""

    def __init__(self, network: nn.Module, spec: EngineSpec) -> None:
        super().__init__(spec)
        if device_type(spec.device) == "cpu":
            keep_freed_memory()
        self._network: Callable[[Tensor], Tensor] = place(copy_network(network, spec, self.name))

    @classmethod
    def create(cls, network: nn.Module, spec: EngineSpec, calibration: Calibration, cache: Path | None) -> Self:
        return cls(network, spec)

    def details(self) -> dict[str, object]:
        return torch_details()
