"""The authors' network as tests see it: expected logits, and the deterministic weights and clips they belong to.

`data/expected_logits.json` lists cases {arch, num_segments, num_classes, size, batch, params, state_dict: {name:
shape}, logits}: what the released implementation computes with every tensor of its state dict filled by its
name and shape alone.
"""

import json
import zlib

import numpy as np
import torch
from torch import Tensor

from support.paths import DATA

CASES = json.loads((DATA / "expected_logits.json").read_text())


def case_name(case: dict) -> str:
    return f"{case['arch']}-{case['num_segments']}f-{case['size']}px"


def _rng(name: str) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(zlib.crc32(name.encode())))


def tensor_for(name: str, shape: list[int]) -> Tensor:
    """The float32 tensor that belongs to a name and a shape (int64 zero for num_batches_tracked)."""
    if name.endswith("num_batches_tracked"):
        return torch.zeros((), dtype=torch.int64)
    rng = _rng(name)
    leaf = name.rsplit(".", 1)[-1]
    if leaf == "running_var":
        value = rng.uniform(0.8, 1.2, shape)
    elif leaf == "running_mean":
        value = rng.normal(0.0, 0.05, shape)
    elif leaf == "weight" and len(shape) > 1:
        value = rng.normal(0.0, (1.5 / int(np.prod(shape[1:]))) ** 0.5, shape)
    elif leaf == "weight":  # batch norm's scale
        value = rng.uniform(0.7, 1.1, shape)
    else:
        value = rng.normal(0.0, 0.05, shape)
    return torch.from_numpy(np.asarray(value, np.float32))


def released_state_dict(case: dict) -> dict[str, Tensor]:
    """A state dict with the names and shapes of a released checkpoint (without the prefix `module.`)."""
    return {name: tensor_for(name, shape) for name, shape in case["state_dict"].items()}


def reference_clip(case: dict) -> Tensor:
    """The case's input: a smooth moving pattern, float32 (B, T, L, C, H, W)."""
    rng, size, batch, segments = _rng("clip"), case["size"], case["batch"], case["num_segments"]
    y, x = np.meshgrid(np.linspace(0, 1, size), np.linspace(0, 1, size), indexing="ij")
    out = np.empty((batch, segments * 5, 3, size, size), np.float32)
    for b in range(batch):
        for c in range(3):
            fx, fy = rng.uniform(1, 6, 2)
            vx, vy = rng.uniform(-0.4, 0.4, 2)
            phase = rng.uniform(0, 6)
            for f in range(segments * 5):
                out[b, f, c] = 1.4 * np.sin(2 * np.pi * (fx * x + fy * y + (vx + vy) * f) + phase)
    return torch.from_numpy(out).view(batch, segments, 5, 3, size, size)
