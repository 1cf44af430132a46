"""What machine, which libraries, which commit: the part of a record that makes its figures comparable."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

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
_NOT_A_MODEL = r"\((r|tm|c)\)|\b\d+(st|nd|rd|th) gen\b|\b\d+-core\b|\b(processor|cpu)\b|\bwith [^()]*|@[^()]*"
# Of /proc/cpuinfo: which processor it is, on x86 and on ARM.
_MODEL_FIELDS = ("cpu family", "model", "stepping", "CPU implementer", "CPU part", "CPU variant", "CPU revision")


def cpu_name() -> str:
    """The processor's name as the kernel gives it; where it gives none (many ARM systems), the architecture. Where that
    names no model (`AMD EPYC` and `Intel(R) Xeon(R) Processor` are what many virtual machines say), the numbers that
    do follow in brackets."""
    try:
        text = Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        text = ""
    fields = dict(re.findall(r"^([\w ]+?)[ \t]*:[ \t]*(\S.*?)[ \t]*$", text, re.MULTILINE))
    return complete_processor_name(fields.get("model name") or platform.processor() or platform.machine(), fields)


def complete_processor_name(name: str, fields: Mapping[str, str]) -> str:
    """`name`, and what `fields` of /proc/cpuinfo say where it names no model."""
    if re.search(r"\d", re.sub(rf"{_NOT_A_MODEL}|\bversion [\d.]+|x86_64|aarch64", " ", name.lower())):
        return name
    found = [f"{re.sub('^cpu ', '', f, flags=re.I)} {fields[f]}" for f in _MODEL_FIELDS if f in fields]
    return f"{name} ({', '.join(found)})" if found else name


def processor_machine_name(processor: str, usable_cores: int) -> str:
    """A folder's name for a machine without a GPU, from its processor's name and the cores that may be used:
    `AMD EPYC 7B13 64-Core Processor` and 2 give `amd-epyc-7b13-2core`. Only lower-case letters, digits, `.` and `-`."""
    words = re.sub(_NOT_A_MODEL, " ", processor.lower())
    return f"{re.sub('[^a-z0-9.]+', '-', words).strip('-.') or 'cpu'}-{usable_cores}core"


def gpu_name(gpu: str, memory_bytes: int) -> str:
    """A GPU's part of a folder's name: all of its name, and its memory where that does not say it. `NVIDIA GeForce RTX
    4090` with 24 GiB gives `rtx-4090-24gib`, a slice of an A100 `a100-sxm4-40gb-mig-1g-5gb`."""
    words = re.sub(r"[^a-z0-9]+", "-", re.sub(r"nvidia|geforce|tesla", "", gpu.lower())).strip("-") or "gpu"
    return words if re.search(r"\dgb\b", words) else f"{words}-{round(memory_bytes / 2**30)}gib"


def machine_name(device: torch.device) -> str:
    """A name for a machine's folder of records, such as `amd-epyc-7b13-2core`, with a GPU
    `a100-sxm4-40gb-amd-epyc-7b13-12core`. Other cards, other processors and other numbers of cores have other names."""
    processor = processor_machine_name(cpu_name(), cores())
    if device.type != "cuda":
        return processor
    properties = torch.cuda.get_device_properties(device)
    return f"{gpu_name(properties.name, properties.total_memory)}-{processor}"


def machine_text(machine: Mapping[str, Any]) -> str:
    """A record's `machine` for a heading, with all that makes it another one: records with the same line are of alike
    machines, others are never compared."""
    processor = f"{machine['cpu']}, {machine['cores']} cores, {round(machine['memory_bytes'] / 2**30)} GiB"
    if machine.get("gpu") is None:
        return processor
    facts = [f"{round((machine.get('gpu_memory_bytes') or 0) / 2**30)} GiB"]
    if machine.get("gpu_power_limit_w") is not None:
        facts.append(f"{machine['gpu_power_limit_w']:.0f} W")
    return f"{machine['gpu']} ({', '.join(facts)}), {processor}"


def describe_machine(device: torch.device) -> dict[str, Any]:
    """A record's `machine`: its short name, processor, usable cores, PyTorch's threads, memory in bytes and system;
    with a GPU also its name, memory in bytes, compute capability, driver, CUDA version and power limit."""
    machine: dict[str, Any] = {
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
        driver, power_limit_w = _driver(str(properties.uuid))
        machine |= {
            "gpu": properties.name,
            "gpu_memory_bytes": properties.total_memory,
            "gpu_power_limit_w": power_limit_w,
            "compute_capability": f"{properties.major}.{properties.minor}",
            "driver": driver,
            "cuda": torch.version.cuda,
        }
    return machine


def _driver(uuid: str) -> tuple[str | None, float | None]:
    """The driver's version and the card's power limit in watts; None where NVML does not say."""
    import pynvml

    driver = power_limit_w = None
    try:
        pynvml.nvmlInit()
        driver = pynvml.nvmlSystemGetDriverVersion()
        handle = pynvml.nvmlDeviceGetHandleByUUID(uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}")
        power_limit_w = pynvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1000
    except pynvml.NVMLError:
        pass
    return driver, power_limit_w


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


def tracked_files(folder: Path) -> set[str]:
    """The files below `folder` that git tracks, relative to it: published records, not a user's own. Empty without git
    and outside a checkout."""
    command = ["git", "-C", str(folder), "ls-files", "-z"]
    try:
        done = subprocess.run(command, capture_output=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return set()
    return {os.fsdecode(name) for name in done.stdout.split(b"\0") if name}
