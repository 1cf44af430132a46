"""What GPUs can compute at most, by card and precision."""

from __future__ import annotations

import re

import torch

# Dense 10^12 FLOP/s of tensor cores in fp16, bf16 and fp32, which PyTorch's convolutions compute in TF32 where the card
# has it. From NVIDIA's data sheets (whose larger figures are with sparsity); the first name that fits counts.
_TFLOP_PER_S: tuple[tuple[str, float, float | None, float], ...] = (
    (r"H100 PCIe\b", 756, 756, 378),
    (r"H100 NVL\b", 835, 835, 417),
    (r"(?:G?H200|H100)\b", 989, 989, 494),
    (r"A100\b", 312, 312, 156),
    (r"A30\b", 165, 165, 82),
    (r"A10\b", 125, 125, 62.5),
    (r"A40\b", 149.7, 149.7, 74.8),
    (r"L40S\b", 362, 362, 183),
    (r"L40\b", 181, 181, 90.5),
    (r"L4\b", 121, 121, 60),
    (r"RTX 4090\b(?! D)", 165.2, 165.2, 82.6),
    (r"RTX 3090\b(?! Ti)", 71, 71, 35.6),
    (r"V100-PCIE\b", 112, None, 14),
    (r"V100\b", 125, None, 15.7),
    (r"T4\b", 65, None, 8.1),
)


def peak_flop_per_s(name: str, precision: str) -> float | None:
    """Of the card that PyTorch calls `name`, in "fp16", "bf16" or "fp32"; None where that is not known here."""
    for pattern, fp16, bf16, fp32 in _TFLOP_PER_S:
        if re.search(rf"\b{pattern}", name):
            peak = {"fp16": fp16, "bf16": bf16, "fp32": fp32}[precision]
            return None if peak is None else 1e12 * peak
    return None


def device_peak(device: torch.device, precision: str) -> float | None:
    """`peak_flop_per_s` of a device; None on a CPU."""
    return peak_flop_per_s(torch.cuda.get_device_name(device), precision) if device.type == "cuda" else None
