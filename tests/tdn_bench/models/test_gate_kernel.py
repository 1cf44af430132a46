"""The kernels in Triton's interpreter and on a GPU, what they compile to without one, and how they refuse."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from support.paths import ROOT
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd

from tdn_bench.models import gate_kernel
from tdn_bench.models.gate_kernel import gated_temporal_conv, gated_temporal_conv_from_squeezed, why_no_kernel

compiles = pytest.mark.skipif(
    gate_kernel.triton is None or os.environ.get("TRITON_INTERPRET") == "1",
    reason="Triton is not installed, or interprets (TRITON_INTERPRET=1)",
)


def run_cases(interpret: str, folder: Path) -> None:
    """A process of its own: Triton reads TRITON_INTERPRET when it is imported."""
    pytest.importorskip("triton", reason="Triton is not installed")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "--noconftest",
        "-p",
        "no:cacheprovider",
        "tests/support/gate_kernel_cases.py",
    ]
    environment = {"OMP_NUM_THREADS": "1"} | os.environ
    environment |= {"TRITON_INTERPRET": interpret, "TRITON_CACHE_DIR": str(folder)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


@pytest.mark.slow
def test_numbers_in_the_interpreter(tmp_path):
    run_cases("1", tmp_path)


@pytest.mark.needs_gpu
def test_numbers_on_a_gpu(tmp_path):
    run_cases("0", tmp_path)


@compiles
@pytest.mark.parametrize("kernel", ["_forward_kernel", "_backward_kernel", "_squeezed_kernel"])
@pytest.mark.parametrize(("kind", "capability"), [("bf16", 80), ("fp16", 90), ("fp32", 90)])
def test_kernels_compile_without_a_gpu(kernel, kind, capability, tmp_path, monkeypatch):
    from triton import compile
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    function = getattr(gate_kernel, kernel)
    constants = {"BLOCK_P": gate_kernel.PIXELS, "BLOCK_C": gate_kernel.CHANNELS}
    if kernel == "_squeezed_kernel":
        constants |= {"BLOCK_R": 16, "PRECISION": "ieee", "FAST": kind != "fp32"}
    types, divisible = {}, {}
    for i, name in enumerate(function.arg_names):
        number = name in ("segments", "pixels", "channels", "squeezed")
        single = name in ("weight", "expand_bias", "grad_weight")
        types[name] = "constexpr" if name in constants else "i32" if number else "*fp32" if single else f"*{kind}"
        if name not in ("segments", "pixels", *constants):  # pointers are, and the channels of every network
            divisible[i,] = [["tt.divisibility", 16]]
    code = compile(ASTSource(function, types, constants, divisible), target=GPUTarget("cuda", capability, 32))
    assert code.asm["cubin"]
    assert "ld.global.v4" in code.asm["ptx"]  # 16 bytes at once
    assert ("tanh.approx" in code.asm["ptx"]) == (kernel == "_squeezed_kernel" and kind != "fp32")


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.before = nn.Conv2d(3, 32, 3)
        self.expand, self.bias = nn.Parameter(torch.randn(32, 4)), nn.Parameter(torch.zeros(32))
        self.weight = nn.Parameter(torch.randn(32, 1, 3))

    def forward(self, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        x = self.before(x)
        if self.training:
            return gated_temporal_conv(x, z, x, self.weight, 4)
        return gated_temporal_conv_from_squeezed(x, y, y, self.expand, self.bias, self.weight, 4)


def channels_last(*shape: int) -> Tensor:
    return torch.randn(shape).contiguous(memory_format=torch.channels_last)


@pytest.fixture
def example() -> tuple[Tensor, Tensor, Tensor]:
    return channels_last(8, 3, 6, 6), channels_last(8, 4, 4, 4), channels_last(8, 32, 4, 4)


@compiles
@pytest.mark.parametrize("training", [True, False])
def test_export_keeps_the_operator(training, example):
    videos = 4 * torch.export.Dim("videos", max=64)
    program = torch.export.export(Block().train(training), example, dynamic_shapes=({0: videos},) * 3)
    name = "gated_temporal_conv" + "_from_squeezed" * (not training)
    assert [str(n.target) for n in program.graph.nodes].count(f"tdn_bench.{name}.default") == 1


@compiles
def test_compiled_graphs_hold_the_kernels(example, monkeypatch):
    import triton
    from triton.backends.compiler import GPUTarget

    class Driver:
        """Stands for a GPU while torch looks which arguments a kernel writes."""

        def get_current_target(self) -> GPUTarget:
            return GPUTarget("cuda", 90, 32)

    kernels: list[int] = []

    def compiler(graph: torch.fx.GraphModule, _: list[Tensor]) -> Any:
        """Counts the kernels, and gives zeros in their stead: there may be no GPU."""
        kernels.append(sum("triton_kernel_wrapper" in str(n.target) for n in graph.graph.nodes))
        (outputs,) = graph.graph.output_node().args
        shapes = [o if o is None else (o.meta["val"].shape, o.meta["val"].dtype) for o in outputs]

        def zeros(_: list[Tensor]) -> list[Tensor | None]:
            return [s if s is None else torch.zeros(s[0], dtype=s[1]) for s in shapes]

        zeros._boxed_call = True  # type: ignore[attr-defined]
        return zeros

    monkeypatch.setattr(triton.runtime.driver, "_active", Driver())
    block = Block()
    backend = aot_autograd(fw_compiler=compiler, bw_compiler=compiler)
    torch.compile(block, backend=backend, fullgraph=True)(*example).sum().backward()
    with torch.no_grad():
        torch.compile(block.eval(), backend=backend, fullgraph=True)(*example)
    assert kernels == [1, 1, 1]  # forward, backward, inference
    assert block.weight.grad is not None


def test_why_no_kernel_says_what_to_do(monkeypatch):
    monkeypatch.setattr(gate_kernel, "triton", None)
    assert "pip install" in str(why_no_kernel("cuda"))


@compiles
def test_why_no_kernel_on_a_processor():
    assert "name a CUDA device" in str(why_no_kernel("cpu"))


def test_operators_keep_their_docstrings():
    assert "channels-last" in str(gated_temporal_conv.__doc__)
    assert "channels-last" in str(gated_temporal_conv_from_squeezed.__doc__)


def test_wrong_use_is_refused_by_name():
    x, y = channels_last(4, 32, 2, 3), channels_last(4, 4, 2, 3)
    weight, expand, bias = torch.zeros(32, 1, 3), torch.zeros(32, 4), torch.zeros(32)
    for message, inputs in {
        r"z_forward must be .* with strides \(192, 6, 3, 1\)": (x, x.contiguous(), x, weight, 2),
        "x must be 4-D": (x[0], x, x, weight, 2),
        "z_backward is torch.float16": (x, x, x.half(), weight, 2),
        "x is torch.float64": (x.double(), x.double(), x.double(), weight, 2),
        "not a positive number of videos of 3 segments": (x, x, x, weight, 3),
        r"z_forward must be \(4, 32, 2, 3\), not \(4, 4, 2, 3\)": (x, y, x, weight, 2),
        r"weight must be \(32, 1, 3\), not \(32, 3\)": (x, x, x, weight[:, 0], 2),
    }.items():
        with pytest.raises(ValueError, match=message):
            gated_temporal_conv(*inputs)
    for message, inputs in {
        r"y_backward must be \(4, 4, 2, 3\)": (x, y, x, expand, bias, weight, 2),
        r"expand_weight must be \(32, 4\), not \(32, 4, 1, 1\)": (x, y, y, expand[..., None, None], bias, weight, 2),
        r"expand_bias must be \(32,\)": (x, y, y, expand, bias[:4], weight, 2),
        "at most 64 columns, not torch.float16": (x, y, y, expand.half(), bias, weight, 2),
    }.items():
        with pytest.raises(ValueError, match=message):
            gated_temporal_conv_from_squeezed(*inputs)
