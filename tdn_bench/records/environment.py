"""What machine, which libraries, which commit: the part of a record that makes its figures comparable."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from importlib import metadata
from pathlib import Path

import torch

from pipelines.processes import cores

PACKAGES = (
    "torch",
    "triton",
    "numpy",
    "av",
    "nvidia-dali-cuda120",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "tensorrt",
    "tensorrt-rtx-cu13",
    "torch-tensorrt",
)
# What a processor's name holds besides make and model.
_NOT_A_MODEL = r"\((r|tm|c)\)|\b\d+(st|nd|rd|th) gen\b|\b\d+-core\b|\b(processor|cpu)\b|\bwith .*|@.*"


def cpu_name() -> str:
    """The processor's name as the kernel gives it; where it gives none (many ARM systems), the architecture."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found.group(1).strip() if found else platform.processor() or platform.machine()


def processor_machine_name(processor: str, usable_cores: int) -> str:
    """A folder's name for a machine without a GPU, from its processor's name and the cores that may be used:
    `AMD EPYC 7B13 64-Core Processor` and 2 give `amd-epyc-7b13-2core`. Only lower-case letters, digits, `.` and `-`."""
    words = re.sub(_NOT_A_MODEL, " ", processor.lower())
    return f"{re.sub('[^a-z0-9.]+', '-', words).strip('-.') or 'cpu'}-{usable_cores}core"


def machine_name(device: torch.device) -> str:
    """A short name for a machine's folder of records: `h200` for a GPU, `amd-epyc-2core` without one."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device).lower()
        return re.sub(r"[^a-z0-9]+", "-", re.sub(r"nvidia|geforce|tesla", "", name)).strip("-").split("-")[0]
    return processor_machine_name(cpu_name(), cores())


def describe_machine(device: torch.device) -> dict[str, object]:
    """A record's `machine`: its short name, processor, usable cores, PyTorch's threads, memory in bytes and system;
    with a GPU also its name, memory in bytes, compute capability, driver and CUDA version."""
    machine: dict[str, object] = {
        "name": machine_name(device),
        "cpu": cpu_name(),
        "cores": cores(),
        "torch_threads": torch.get_num_threads(),
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY"),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": " ".join((platform.system(), platform.machine(), *platform.libc_ver())),
        "device": str(device),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        machine |= {
            "gpu": properties.name,
            "gpu_memory_bytes": properties.total_memory,
            "compute_capability": f"{properties.major}.{properties.minor}",
            "driver": _driver_version(),
            "cuda": torch.version.cuda,
        }
    return machine


def _driver_version() -> str | None:
    import pynvml

    try:
        pynvml.nvmlInit()
        return pynvml.nvmlSystemGetDriverVersion()
    except pynvml.NVMLError:
        return None


def versions() -> dict[str, str]:
    """A record's `versions`: of Python and of every installed library that can change a figure, by package name."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str | None:
    """The project's commit, with `+` where the working tree differs from it; None outside a checkout."""
    here = Path(__file__).resolve().parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(here), *arguments], capture_output=True, text=True, check=True, timeout=20
        ).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ":/*.py", ":/*.toml")
        return git("rev-parse", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None
