"""Which card is which, by the names that PyTorch and NVIDIA's driver give them."""

import pytest
import torch

from tdn_bench.measurement.peak_flops import device_peak, peak_flop_per_s


@pytest.mark.parametrize(
    ("name", "bf16", "fp32"),
    [
        ("NVIDIA H100 80GB HBM3", 989, 494),
        ("NVIDIA H100 PCIe", 756, 378),
        ("NVIDIA H100 NVL", 835, 417),
        ("NVIDIA H200", 989, 494),
        ("NVIDIA A100-SXM4-80GB", 312, 156),
        ("NVIDIA A100 80GB PCIe", 312, 156),
        ("NVIDIA A10", 125, 62.5),
        ("NVIDIA L4", 121, 60),
        ("NVIDIA L40S", 362, 183),
        ("NVIDIA L40", 181, 90.5),
        ("NVIDIA GeForce RTX 4090", 165.2, 82.6),
        ("Tesla T4", None, 8.1),
        ("Tesla V100-SXM2-16GB", None, 15.7),
        ("NVIDIA GeForce RTX 4090 D", None, None),  # fewer cores
        ("NVIDIA GeForce RTX 3090 Ti", None, None),  # more
        ("NVIDIA A100X", None, None),
        ("NVIDIA B200", None, None),
        ("NVIDIA A1000 Laptop GPU", None, None),
    ],
)
def test_peaks_by_the_cards_name(name: str, bf16: float | None, fp32: float | None) -> None:
    for precision, tflop in (("bf16", bf16), ("fp32", fp32)):
        assert peak_flop_per_s(name, precision) == (None if tflop is None else pytest.approx(1e12 * tflop))


def test_a_cpu_has_none() -> None:
    assert device_peak(torch.device("cpu"), "fp32") is None
