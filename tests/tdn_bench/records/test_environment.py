"""A machine's short name, from its processor."""

import re

import pytest
import torch
from support.paths import ROOT

from tdn_bench.records import default_folder, describe_machine, machine_name
from tdn_bench.records.environment import processor_machine_name

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


GPUS = {"NVIDIA H200": "h200", "NVIDIA GeForce RTX 4090": "rtx", "Tesla V100-SXM2-16GB": "v100"}


@pytest.mark.parametrize(("gpu", "name"), GPUS.items())
def test_a_gpu_names_its_machine(monkeypatch, gpu, name):
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: gpu)
    assert machine_name(torch.device("cuda")) == name


def test_a_run_writes_where_git_does_not_look():
    folder = default_folder("throughput")
    assert folder.as_posix() == "runs/throughput"
    assert f"{folder.parts[0]}/" in (ROOT / ".gitignore").read_text().splitlines()
