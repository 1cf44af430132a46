"""A machine's short name, from its processor."""

import re
from types import SimpleNamespace

import pytest
import torch
from support.paths import ROOT

from tdn_bench.records import default_folder, describe_machine, machine_name, machine_text
from tdn_bench.records.environment import complete_processor_name, processor_machine_name

NAMES = [
    ("AMD EPYC", 2, "amd-epyc-2core"),
    ("AMD EPYC 7B13 64-Core Processor", 2, "amd-epyc-7b13-2core"),
    ("AMD Ryzen 7 5800H with Radeon Graphics", 16, "amd-ryzen-7-5800h-16core"),
    ("Intel(R) Xeon(R) Processor", 2, "intel-xeon-2core"),
    ("Intel(R) Xeon(R) CPU E5-2670 v3 @ 2.30GHz", 24, "intel-xeon-e5-2670-v3-24core"),
    ("Intel Xeon Processor (Skylake, IBRS)", 4, "intel-xeon-skylake-ibrs-4core"),
    ("Intel(R) Core(TM) i7-9750H CPU @ 2.60GHz", 12, "intel-core-i7-9750h-12core"),
    ("11th Gen Intel(R) Core(TM) i7-1165G7 @ 2.80GHz", 8, "intel-core-i7-1165g7-8core"),
    ("QEMU Virtual CPU version 2.5+", 1, "qemu-virtual-version-2.5-1core"),
    ("Neoverse-N1", 4, "neoverse-n1-4core"),
    ("Apple M1", 8, "apple-m1-8core"),
    ("aarch64", 4, "aarch64-4core"),
    ("", 2, "cpu-2core"),
    ("../..", 2, "cpu-2core"),
]


@pytest.mark.parametrize(("processor", "cores", "name"), NAMES)
def test_a_processor_names_its_machine(processor, cores, name):
    assert processor_machine_name(processor, cores) == name
    assert re.fullmatch(r"[a-z0-9][a-z0-9.-]*", name)


def test_this_machine_has_one_name():
    described = describe_machine(torch.device("cpu"))
    assert described["name"] == machine_name(torch.device("cpu"))
    assert described["name"] == processor_machine_name(described["cpu"], described["cores"])


# Name, memory in GiB as the driver gives it, part of the folder's name.
GPUS = [
    ("NVIDIA H200", 139.8, "h200-140gib"),
    ("NVIDIA GeForce RTX 4090", 23.5, "rtx-4090-24gib"),
    ("NVIDIA GeForce RTX 4090 Laptop GPU", 15.7, "rtx-4090-laptop-gpu-16gib"),
    ("NVIDIA GeForce RTX 4080", 15.6, "rtx-4080-16gib"),
    ("NVIDIA RTX 6000 Ada Generation", 47.5, "rtx-6000-ada-generation-48gib"),
    ("Quadro RTX 6000", 23.6, "quadro-rtx-6000-24gib"),
    ("NVIDIA GeForce RTX 3060", 11.8, "rtx-3060-12gib"),
    ("NVIDIA GeForce RTX 3060", 7.8, "rtx-3060-8gib"),
    ("Tesla V100-SXM2-16GB", 15.8, "v100-sxm2-16gb"),
    ("Tesla V100-SXM2-32GB", 31.7, "v100-sxm2-32gb"),
    ("NVIDIA A100-SXM4-40GB", 39.4, "a100-sxm4-40gb"),
    ("NVIDIA A100-SXM4-80GB", 79.2, "a100-sxm4-80gb"),
    ("NVIDIA A100 80GB PCIe", 79.2, "a100-80gb-pcie"),
    ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", 4.8, "a100-sxm4-40gb-mig-1g-5gb"),
    ("NVIDIA A100-SXM4-40GB MIG 2g.10gb", 9.8, "a100-sxm4-40gb-mig-2g-10gb"),
    ("../..", 1.0, "gpu-1gib"),
]


@pytest.mark.parametrize(("gpu", "gib", "part"), GPUS)
def test_a_gpu_and_its_processor_name_a_machine(monkeypatch, gpu, gib, part):
    card = SimpleNamespace(name=gpu, total_memory=int(gib * 2**30))
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda device: card)
    name = machine_name(torch.device("cuda"))
    assert name == f"{part}-{machine_name(torch.device('cpu'))}"
    assert re.fullmatch(r"[a-z0-9][a-z0-9.-]*", name)


def test_no_two_cards_share_a_name():
    assert len({part for _, _, part in GPUS}) == len(GPUS)


X86 = {"cpu family": "6", "model": "207", "stepping": "2"}
ARM = {"CPU implementer": "0x41", "CPU part": "0xd0c"}


@pytest.mark.parametrize(
    ("name", "fields", "complete"),
    [
        ("AMD EPYC", {"cpu family": "25", "model": "1"}, "AMD EPYC (family 25, model 1)"),
        ("Intel(R) Xeon(R) Processor", X86, "Intel(R) Xeon(R) Processor (family 6, model 207, stepping 2)"),
        ("Intel(R) Xeon(R) CPU @ 2.20GHz", X86, "Intel(R) Xeon(R) CPU @ 2.20GHz (family 6, model 207, stepping 2)"),
        ("QEMU Virtual CPU version 2.5+", X86, "QEMU Virtual CPU version 2.5+ (family 6, model 207, stepping 2)"),
        ("AMD EPYC Processor (with IBPB)", X86, "AMD EPYC Processor (with IBPB) (family 6, model 207, stepping 2)"),
        ("aarch64", ARM, "aarch64 (implementer 0x41, part 0xd0c)"),
        ("AMD EPYC 7B13 64-Core Processor", X86, "AMD EPYC 7B13 64-Core Processor"),
        ("Apple M1", {}, "Apple M1"),
        ("riscv64", {}, "riscv64"),
    ],
)
def test_a_processor_without_a_model_in_its_name_gets_its_numbers(name, fields, complete):
    assert complete_processor_name(name, fields) == complete
    if complete != name:  # and they reach the folder's name
        other = complete_processor_name(name, {key: f"{value}9" for key, value in fields.items()})
        assert processor_machine_name(complete, 2) != processor_machine_name(other, 2)


def test_records_with_another_line_are_of_another_machine():
    card = {"cpu": "AMD EPYC 7B13", "cores": 12, "memory_bytes": 64 * 2**30}
    card |= {"gpu": "NVIDIA A100-SXM4-40GB", "gpu_memory_bytes": 42_300_000_000}
    assert machine_text(card) == "NVIDIA A100-SXM4-40GB (39 GiB), AMD EPYC 7B13, 12 cores, 64 GiB"
    limited = card | {"gpu_power_limit_w": 250.0}
    assert machine_text(limited) == "NVIDIA A100-SXM4-40GB (39 GiB, 250 W), AMD EPYC 7B13, 12 cores, 64 GiB"
    others = [
        {"cpu": "x"},
        {"cores": 2},
        {"gpu": None},
        {"gpu": "x"},
        {"gpu_memory_bytes": 85e9},
        {"memory_bytes": 2**30},
    ]
    assert len({machine_text(card | other) for other in ({}, *others)} | {machine_text(limited)}) == 8
    assert machine_text(card | {"gpu_memory_bytes": 42_300_900_000}) == machine_text(card)  # another driver's view


def test_a_run_writes_where_git_does_not_look():
    folder = default_folder("throughput")
    assert folder.as_posix() == "runs/throughput"
    assert f"{folder.parts[0]}/" in (ROOT / ".gitignore").read_text().splitlines()
