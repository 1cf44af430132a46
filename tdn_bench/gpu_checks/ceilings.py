"""The step `ceilings`: what the device can do at most, so that other figures can be given as a share of it."""

from __future__ import annotations

import statistics
from functools import partial

import torch

from engines import DTYPES
from tdn_bench.gpu_checks.run import Outcome, Row, Run, time_calls


def ceilings(run: Run) -> Outcome:
    """The most that the device can do: a large matrix product and a large copy within its memory."""
    n, precision = run.sizes.matrix_side, run.sizes.ceiling_precision
    a = torch.randn(n, n, device=run.device).to(DTYPES[precision])
    product = torch.empty_like(a)
    matmul_ms = time_calls(partial(torch.mm, a, a, out=product), run.device, run.sizes.timing_s)
    found = Outcome()
    finite = bool(product.isfinite().all())
    found.expect(finite, f"a product of {n} × {n} matrices holds values that are not finite")
    del a, product
    source = torch.zeros(run.sizes.copy_bytes, dtype=torch.uint8, device=run.device)
    target = torch.empty_like(source)
    copy_ms = time_calls(partial(target.copy_, source), run.device, run.sizes.timing_s)
    found.samples = {"matmul_ms": matmul_ms, "copy_ms": copy_ms}
    found.figures = {
        "matmul_tflop_per_s": 2 * n**3 / statistics.median(matmul_ms) / 1e9,
        "copy_gb_per_s": 2 * run.sizes.copy_bytes / statistics.median(copy_ms) / 1e6,  # read and written
    }
    found.rows = [
        Row(f"matrix product, {precision}, {n} × {n}", f"{found.figures['matmul_tflop_per_s']:.3g} TFLOP/s"),
        Row(f"copy of {run.sizes.copy_bytes / 2**20:.0f} MiB", f"{found.figures['copy_gb_per_s']:.3g} GB/s"),
    ]
    return found
