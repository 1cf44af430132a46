"""--device, in all commands alike."""

from __future__ import annotations

import torch

from tdn_bench.errors import UserError


def pick_device(name: str) -> torch.device:
    """The device that --device names; `auto` is the GPU where there is one. Raises UserError for a GPU that is not
    there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as e:
        raise UserError(f"--device {name}: not a device; use cpu, cuda or cuda:N") from e
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device {name}: only cpu and cuda are supported")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"--device {name}: this machine has {torch.cuda.device_count()} CUDA GPUs; use --device cpu")
    return device
