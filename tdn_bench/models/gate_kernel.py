"""Triton kernels for the temporal part of a TDN block: L-TDM gate → scaled features → temporal convolution.

Provenance: "TDN: Temporal Difference Networks for Efficient Action Recognition" (arXiv 2012.10071), Eqs. 4 to 7
and Sec. 3.4, with the gate less 0.5 of the released network, as in `temporal_difference.py`:

    s = x + ½·x·(σ(z_forward) − ½ + σ(z_backward) − ½) = ½·x·(1 + σ(z_forward) + σ(z_backward))
    out[b, t] = w₀·s[b, t−1] + w₁·s[b, t] + w₂·s[b, t+1], zero outside 0 … T−1

Why: a GPU computes an element of these in less time than it moves one, so the time is that of the bytes.
Reads and writes of a map with c channels, for each element of x, and bytes in half precision:

    inference, from the squeezed differences                                     passes    bytes
    plain torch: expand 2, σ 4, −½ 4, sum 3, scale 3, convolution 2                  18    36
    torch.compile: expand 2, all between the convolutions 4, convolution 2            8    16
    expand 2, then `gated_temporal_conv` 4                                            6    12
    `gated_temporal_conv_from_squeezed`: x, out                                       2     4 (+ ¼ for two c/16 maps)

    training, from z_forward and z_backward (the batch norm before them needs whole maps)
    plain torch: forward 16, backward 22; keeps 5 maps for the backward pass
    `gated_temporal_conv`: forward 4, backward 7; keeps 3 maps

Shapes: B videos, T segments, N = B·T, c channels, r = c/16 squeezed channels, H, W pixels. Feature maps are 4-D and
channels-last. A program covers some pixels and channels of one video and walks over T with a window of three values.
"""

from __future__ import annotations

import shutil
from typing import Any

import torch
from torch import Tensor
from torch.library import triton_op, wrap_triton

try:
    import triton
    import triton.language as tl
except ImportError:  # it comes with torch's CUDA builds only; the kernels' decorator needs it here
    triton = None


def jit(function: Any) -> Any:
    """`triton.jit`, or without Triton the function itself, so that this module can always be imported."""
    return function if triton is None else triton.jit(function)


def operator(function: Any) -> Any:
    """`torch.library.triton_op` with a docstring: torch.export keeps it whole, torch.compile sees the kernel in it.
    Without Triton, about which that would warn on import, the function itself; its call raises ImportError."""
    if triton is None:
        return function
    op: Any = triton_op(f"tdn_bench::{function.__name__}", mutates_args=())(function)
    op.__doc__ = function.__doc__
    return op


def why_no_kernel(device: torch.device | str) -> str | None:
    """What the kernels lack on this device and how to get it, in one line; None where they can run."""
    device = torch.device(device)
    if triton is None:
        return "Triton is not installed: pip install --constraint constraints.txt triton"
    if triton.knobs.runtime.interpret:
        return None
    if device.type != "cuda" or not torch.cuda.is_available():
        return f"Triton finds no GPU as {device}: name a CUDA device (TRITON_INTERPRET=1 emulates one, slowly)"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return f"Triton needs a GPU of compute capability 8.0, {torch.cuda.get_device_name(device)} is older"
    if not (triton.knobs.build.cc or shutil.which("gcc") or shutil.which("clang")):
        return "Triton needs a C compiler to start kernels: install gcc, or name one in the variable CC"
    return None


# In all kernels: program (i, j, b) has the i-th tile of channels, fastest, because those lie side by side in memory,
# and the j-th tile of pixels, of video b. Offsets within a video fit into 32 bits, those of a video may not.


@jit
def _tile(pixels, channels, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr):
    """Pixels and channels of this program, and as a tile which are there, and where in a segment."""
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    p = tl.program_id(1) * BLOCK_P + tl.arange(0, BLOCK_P)
    there = (p < pixels)[:, None] & (c < channels)[None, :]
    return p, c, there, p[:, None] * channels + c[None, :]


@jit
def _scaled(x, z_forward, z_backward):
    """s in float32."""
    return 0.5 * x.to(tl.float32) * (1 + tl.sigmoid(z_forward.to(tl.float32)) + tl.sigmoid(z_backward.to(tl.float32)))


@jit
def _taps(weight, c, channels):
    """The three weights of each channel (1, BLOCK_C), float32."""
    at = weight + 3 * c[None, :]
    there = c[None, :] < channels
    w0 = tl.load(at, there, 0).to(tl.float32)
    w1 = tl.load(at + 1, there, 0).to(tl.float32)
    w2 = tl.load(at + 2, there, 0).to(tl.float32)
    return w0, w1, w2


@jit
def _forward_kernel(
    x, z_forward, z_backward, weight, out, segments, pixels, channels, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr
):
    _, c, there, at = _tile(pixels, channels, BLOCK_P, BLOCK_C)
    w0, w1, w2 = _taps(weight, c, channels)
    step = pixels * channels
    video = tl.program_id(2).to(tl.int64) * segments * step
    x += video
    z_forward += video
    z_backward += video
    out += video
    here = _scaled(tl.load(x + at, there, 0), tl.load(z_forward + at, there, 0), tl.load(z_backward + at, there, 0))
    before = tl.zeros_like(here)
    for t in range(segments):
        ahead = at + step
        more = there & (t + 1 < segments)
        after = _scaled(
            tl.load(x + ahead, more, 0), tl.load(z_forward + ahead, more, 0), tl.load(z_backward + ahead, more, 0)
        )
        tl.store(out + at, (w0 * before + w1 * here + w2 * after).to(out.dtype.element_ty), there)
        before, here, at = here, after, ahead


@jit
def _backward_kernel(
    grad,
    x,
    z_forward,
    z_backward,
    weight,
    grad_x,
    grad_forward,
    grad_backward,
    grad_weight,
    segments,
    pixels,
    channels,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    _, c, there, at = _tile(pixels, channels, BLOCK_P, BLOCK_C)
    w0, w1, w2 = _taps(weight, c, channels)
    step = pixels * channels
    video = tl.program_id(2).to(tl.int64) * segments * step
    grad += video
    x += video
    z_forward += video
    z_backward += video
    grad_x += video
    grad_forward += video
    grad_backward += video
    here = tl.load(grad + at, there, 0).to(tl.float32)
    before = tl.zeros_like(here)
    sum0 = tl.zeros_like(here)
    sum1 = tl.zeros_like(here)
    sum2 = tl.zeros_like(here)
    for t in range(segments):
        ahead = at + step
        after = tl.load(grad + ahead, there & (t + 1 < segments), 0).to(tl.float32)
        v = tl.load(x + at, there, 0).to(tl.float32)
        f = tl.sigmoid(tl.load(z_forward + at, there, 0).to(tl.float32))
        b = tl.sigmoid(tl.load(z_backward + at, there, 0).to(tl.float32))
        scale = 0.5 * (1 + f + b)
        s = v * scale
        # s[t] went to out[t+1] with w₀, to out[t] with w₁ and to out[t−1] with w₂.
        grad_s = w0 * after + w1 * here + w2 * before
        sum0 += s * after
        sum1 += s * here
        sum2 += s * before
        kind = grad_x.dtype.element_ty
        tl.store(grad_x + at, (grad_s * scale).to(kind), there)
        tl.store(grad_forward + at, (0.5 * grad_s * v * f * (1 - f)).to(kind), there)
        tl.store(grad_backward + at, (0.5 * grad_s * v * b * (1 - b)).to(kind), there)
        before, here, at = here, after, ahead
    # grad_weight is (programs, c, 3): every program has a row of its own, so that the sum has one order.
    row = tl.program_id(2) * tl.num_programs(1) + tl.program_id(1)
    mine = grad_weight + (row * channels + c) * 3
    tl.store(mine, tl.sum(sum0, 0), c < channels)
    tl.store(mine + 1, tl.sum(sum1, 0), c < channels)
    tl.store(mine + 2, tl.sum(sum2, 0), c < channels)


@jit
def _tanh(x):
    """tanh in one instruction of NVIDIA GPUs, to 11 bits. With σ from it the loop of `_squeezed_kernel` has 20
    instructions an element instead of 39 (compute capability 9.0): from as long as the memory takes to well below."""
    return tl.inline_asm_elementwise("tanh.approx.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)


@jit
def _scaled_from_squeezed(
    x, y_forward, y_backward, expand, bias, at, at_y, there, there_y, PRECISION: tl.constexpr, FAST: tl.constexpr
):
    v = tl.load(x + at, there, 0).to(tl.float32)  # all three on their way before the first is waited for
    y_f = tl.load(y_forward + at_y, there_y, 0)
    y_b = tl.load(y_backward + at_y, there_y, 0)
    z_f = tl.dot(y_f, expand, input_precision=PRECISION) + bias
    z_b = tl.dot(y_b, expand, input_precision=PRECISION) + bias
    if FAST:
        return v + 0.25 * v * (_tanh(0.5 * z_f) + _tanh(0.5 * z_b))
    else:
        return _scaled(v, z_f, z_b)


@jit
def _squeezed_kernel(
    x,
    y_forward,
    y_backward,
    expand,
    expand_bias,
    weight,
    out,
    segments,
    pixels,
    channels,
    squeezed,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_R: tl.constexpr,
    PRECISION: tl.constexpr,
    FAST: tl.constexpr,
):
    p, c, there, at = _tile(pixels, channels, BLOCK_P, BLOCK_C)
    w0, w1, w2 = _taps(weight, c, channels)
    r = tl.arange(0, BLOCK_R)  # at least 16 for tl.dot; what lies beyond r is read as zero
    at_y = p[:, None] * squeezed + r[None, :]
    there_y = (p < pixels)[:, None] & (r < squeezed)[None, :]
    e = tl.load(
        expand + c[None, :] * squeezed + r[:, None], (c < channels)[None, :] & (r < squeezed)[:, None], 0
    )  # (BLOCK_R, BLOCK_C), kept over all segments
    bias = tl.load(expand_bias + c[None, :], c[None, :] < channels, 0).to(tl.float32)
    step = pixels * channels
    step_y = pixels * squeezed
    video = tl.program_id(2).to(tl.int64) * segments
    x += video * step
    out += video * step
    y_forward += video * step_y
    y_backward += video * step_y
    here = _scaled_from_squeezed(x, y_forward, y_backward, e, bias, at, at_y, there, there_y, PRECISION, FAST)
    before = tl.zeros_like(here)
    for t in range(segments):
        ahead = at + step
        at_y += step_y
        more = t + 1 < segments
        # Beyond the last segment x, not the gate, is zero.
        after = _scaled_from_squeezed(
            x, y_forward, y_backward, e, bias, ahead, at_y, there & more, there_y & more, PRECISION, FAST
        )
        tl.store(out + at, (w0 * before + w1 * here + w2 * after).to(out.dtype.element_ty), there)
        before, here, at = here, after, ahead


FLOATS = (torch.float32, torch.float16, torch.bfloat16)
# A tile: 16 bytes a thread in half precision, and no register spilled at compute capability 8.0 or 9.0.
PIXELS, CHANNELS = 16, 64


def _check(maps: dict[str, Tensor], num_segments: int) -> None:
    """ValueError, unless the maps, the first of them x, go together and lie in memory as the kernels read them."""
    x = maps["x"]
    for name, m in maps.items():
        if m.dim() != 4 or not m.is_contiguous(memory_format=torch.channels_last):
            raise ValueError(
                f"{name} must be 4-D and channels-last contiguous, not {(*m.shape,)} with strides {m.stride()}"
            )
        if m.dtype not in FLOATS or m.dtype != x.dtype:
            raise ValueError(f"{name} is {m.dtype}; all maps must be of one type out of {FLOATS}")
    if num_segments < 1 or x.shape[0] % num_segments or not x.numel():
        raise ValueError(f"x {(*x.shape,)} is not a positive number of videos of {num_segments} segments")


def _check_shape(name: str, found: Tensor, *wanted: int) -> None:
    if found.shape != wanted:
        raise ValueError(f"{name} must be {wanted}, not {(*found.shape,)}")


def _grid(x: Tensor, num_segments: int) -> tuple[int, int, int]:
    n, c, h, w = x.shape
    return -(-c // CHANNELS), -(-h * w // PIXELS), n // num_segments


@operator
def gated_temporal_conv(x: Tensor, z_forward: Tensor, z_backward: Tensor, weight: Tensor, num_segments: int) -> Tensor:
    """Scale x by the gates of both directions and convolve over T: `out` of this module's docstring.

    x, z_forward, z_backward: (N, c, H, W), channels-last, one of float32, float16, bfloat16; the z are the L-TDM's
    expanded differences, before the sigmoid. weight: (c, 1, 3), any of those types. Returns out like x; sums are in
    float32. Differentiable once in all four; the gradient of weight is the same in every run.
    Raises ValueError on other types, shapes or strides, ImportError without Triton; see also `why_no_kernel`.
    """
    _check({"x": x, "z_forward": z_forward, "z_backward": z_backward}, num_segments)
    n, c, h, w = x.shape
    _check_shape("z_forward", z_forward, n, c, h, w)
    _check_shape("z_backward", z_backward, n, c, h, w)
    _check_shape("weight", weight, c, 1, 3)
    out = torch.empty_like(x)
    with torch.cuda.device_of(x):
        wrap_triton(_forward_kernel)[_grid(x, num_segments)](
            x, z_forward, z_backward, weight.contiguous(), out, num_segments, h * w, c, PIXELS, CHANNELS
        )
    return out


@operator
def gated_temporal_conv_backward(
    grad: Tensor, x: Tensor, z_forward: Tensor, z_backward: Tensor, weight: Tensor, num_segments: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of x, z_forward, z_backward and weight, from that of out (N, c, H, W)."""
    _, c, h, w = x.shape
    grid = _grid(x, num_segments)
    grads = [torch.empty_like(x) for _ in range(3)]
    partial = x.new_empty((grid[1] * grid[2], c, 3), dtype=torch.float32)
    with torch.cuda.device_of(x):
        wrap_triton(_backward_kernel)[grid](
            grad.contiguous(memory_format=torch.channels_last),
            x,
            z_forward,
            z_backward,
            weight.contiguous(),
            *grads,
            partial,
            num_segments,
            h * w,
            c,
            PIXELS,
            CHANNELS,
        )
    return grads[0], grads[1], grads[2], partial.sum(0).unsqueeze(1).to(weight.dtype)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.num_segments = inputs
    ctx.save_for_backward(*tensors)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return *gated_temporal_conv_backward(grad, *ctx.saved_tensors, ctx.num_segments), None


if triton is not None:
    gated_temporal_conv.register_autograd(_differentiate, setup_context=_keep)


@operator
def gated_temporal_conv_from_squeezed(
    x: Tensor,
    y_forward: Tensor,
    y_backward: Tensor,
    expand_weight: Tensor,
    expand_bias: Tensor,
    weight: Tensor,
    num_segments: int,
) -> Tensor:
    """`gated_temporal_conv` with z = expand_weight·y + expand_bias computed in the kernel. For inference: no gradient.

    x: (N, c, H, W); y_forward, y_backward: (N, r, H, W), what the L-TDM's `expand` is given, also where a segment has
    no neighbour. All are channels-last, one of float32, float16, bfloat16. expand_weight: (c, r) of the same type,
    r at most 64, batch norm folded in. expand_bias: (c,), weight: (c, 1, 3), any of those types. Returns out like x;
    sums are in float32, and in half precision on an NVIDIA GPU σ is off by up to 2⁻¹² (`_tanh`).
    Raises ValueError on other types, shapes or strides, ImportError without Triton; see also `why_no_kernel`.
    """
    _check({"x": x, "y_forward": y_forward, "y_backward": y_backward}, num_segments)
    n, c, h, w = x.shape
    r = y_forward.shape[1]
    _check_shape("y_forward", y_forward, n, r, h, w)
    _check_shape("y_backward", y_backward, n, r, h, w)
    _check_shape("expand_weight", expand_weight, c, r)
    _check_shape("expand_bias", expand_bias, c)
    _check_shape("weight", weight, c, 1, 3)
    if expand_weight.dtype != x.dtype or r > 64:
        raise ValueError(f"expand_weight must be {x.dtype} with at most 64 columns, not {expand_weight.dtype} with {r}")
    out = torch.empty_like(x)
    with torch.cuda.device_of(x):
        wrap_triton(_squeezed_kernel)[_grid(x, num_segments)](
            x,
            y_forward,
            y_backward,
            expand_weight.contiguous(),
            expand_bias.contiguous(),
            weight.contiguous(),
            out,
            num_segments,
            h * w,
            c,
            r,
            PIXELS,
            CHANNELS,
            max(16, 1 << (r - 1).bit_length()),
            "ieee",  # else float32 is rounded to 10 bits; takes no tensor cores, so float32 gains less
            x.dtype != torch.float32 and x.is_cuda and torch.version.hip is None,  # _tanh: NVIDIA's, 11 bits
        )
    return out
