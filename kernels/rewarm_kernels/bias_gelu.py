r"""GELU of a sum with a bias, forward and backward, with the gradient of the bias in the same pass.

    g = x \Phi(x),   dh = dg (\Phi(x) + x \varphi(x)),   dbias = sum of dh over rows,   x = h + bias

with the normal distribution :math:`\Phi` (``approximate='none'``), or with ``sigmoid(2 u)``, ``u = sqrt(2 / pi)
(x + 0.044715 x^3)``, in its place (``'tanh'``, since ``1 + tanh(u) = 2 sigmoid(2 u)``; what Pythia was trained with).

Bytes moved per row of F elements of E bytes: forward reads h and writes g, 2 F E; backward reads h and dg and writes dh,
3 F E, and writes g again where it was not kept, 4 F E. The partial sums of the bias gradient add F / 16 bytes.

Numerics: arithmetic in fp32, each result rounded once; the bias gradient is summed in fp32 before ``dh`` is rounded.
``tl.erf`` is as exact, but would run out of instructions before bandwidth. Compiled for sm_90 it makes 37 instructions an
element forward and 48 backward; at 85 % of its copy bandwidth an H200 has time to issue 32 and 48 (132 multiprocessors
of 128 lanes, 1.75 GHz, 4.3 TB/s). The fit in ``_gelu`` makes 17 and 24; tanh, by ``exp2``, 16 and 24.

Shapes: N = rows (all leading dimensions), F = features, P = partial sums of the bias gradient.
Source: Hendrycks and Gimpel 2016, https://arxiv.org/abs/1606.08415.
"""

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional

from rewarm_kernels.launch import Launch, cover, launch, runs_kernels

__all__ = ['bias_gelu', 'bias_gelu_ref', 'check_approximate', 'gelu_backward', 'gelu_forward']

# Chosen from compiled code, not yet measured: each thread has 4 loads of 128 bits in flight, forward and backward, and on
# sm_90 takes 38 and 64 registers (85 with g again), so that 12 and 8 (5) programs share a multiprocessor.
FORWARD = launch(Launch(num_warps=4, rows=4, block=1024), interpreted=Launch(rows=64, block=4096))
BACKWARD = launch(Launch(num_warps=4, rows=4, block=512), interpreted=Launch(rows=64, block=4096))

ROWS_PER_PARTIAL = 128
"""Rows whose bias gradient one program sums: 1 % more bytes, thousands of programs to spread over any device, and the
same sums in the same order on every one of them."""


def bias_gelu_ref(h: Tensor, bias: Tensor, approximate: str = 'none') -> Tensor:
    """Definition of :func:`bias_gelu`, in plain PyTorch."""
    wide = torch.promote_types(h.dtype, torch.float32)
    return functional.gelu(h.to(wide) + bias.to(wide), approximate=approximate).to(h.dtype)


@triton.jit
def _gelu(x, IS_TANH: tl.constexpr):
    # gelu(x) and its derivative; what a caller does not use is not computed.
    if IS_TANH:
        square = x * x
        # sigmoid(2 u) = 1 / (1 + 2^(-2 u log2(e)));  2 sqrt(2 / pi) = 1.5957691..., times log2(e) = 2.3022082...
        cdf = 1.0 / (1.0 + tl.exp2(x * (-2.3022081984 - 0.1029432396 * square)))
        # d cdf / dx = cdf (1 - cdf) d(2 u)/dx
        pdf = cdf * (1.0 - cdf) * (1.5957691216 + 0.2140644488 * square)
    else:
        # log2 of Phi(-a), a >= 0, as a polynomial: the least largest error of Phi on [0, 6] for degree 8 (2.6e-8;
        # 7.5e-8 as computed in fp32, 1.3 times the spacing of fp32 below 1), exact at 0, and falling for ever after.
        a = tl.abs(x)
        exponent = -1.429097665e-06 * a + 2.357053745e-05
        exponent = exponent * a - 1.172668708e-04
        exponent = exponent * a - 2.858762163e-04
        exponent = exponent * a + 7.232395932e-03
        exponent = exponent * a - 5.259390920e-02
        exponent = exponent * a - 4.591827095e-01
        exponent = exponent * a - 1.151107311
        tail = tl.exp2(exponent * a - 1.0)
        cdf = tl.where(x < 0.0, tail, 1.0 - tail)
        # phi(x) = exp(-x^2 / 2) / sqrt(2 pi);  log2(e) / 2 = 0.7213475...
        pdf = 0.3989422804 * tl.exp2(-0.7213475204 * (x * x))
    return x * cdf, cdf + x * pdf


@triton.jit
def _bias_gelu_forward_kernel(
    h_ptr,  # (N, F)
    bias_ptr,  # (F,) fp32
    g_ptr,  # (N, F) out
    N,
    F: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_F: tl.constexpr,
    IS_TANH: tl.constexpr,
):
    # Neighbouring programs take neighbouring columns of the same rows.
    BLOCKS: tl.constexpr = (F + BLOCK_F - 1) // BLOCK_F
    program = tl.program_id(0)
    rows = (program // BLOCKS).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = program % BLOCKS * BLOCK_F + tl.arange(0, BLOCK_F)
    inside = (rows < N)[:, None] & (columns < F)[None, :]
    at = rows[:, None] * F + columns[None, :]

    bias = tl.load(bias_ptr + columns, mask=columns < F, other=0.0).to(tl.float32)
    x = tl.load(h_ptr + at, mask=inside, other=0.0).to(tl.float32) + bias[None, :]

    g, _ = _gelu(x, IS_TANH)  # pyright: ignore[reportGeneralTypeIssues]

    tl.store(g_ptr + at, g.to(g_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _bias_gelu_backward_kernel(
    h_ptr,  # (N, F)
    bias_ptr,  # (F,) fp32
    dg_ptr,  # (N, F)
    dh_ptr,  # (N, F) out; may be dg: a thread writes what it has read itself
    g_ptr,  # (N, F) out, if RECOMPUTE
    partial_ptr,  # (P, F) out, fp32
    N,
    F: tl.constexpr,
    ROWS: tl.constexpr,
    STEPS: tl.constexpr,
    BLOCK_F: tl.constexpr,
    IS_TANH: tl.constexpr,
    RECOMPUTE: tl.constexpr,
):
    BLOCKS: tl.constexpr = (F + BLOCK_F - 1) // BLOCK_F
    program = tl.program_id(0)
    partial = (program // BLOCKS).to(tl.int64)
    columns = program % BLOCKS * BLOCK_F + tl.arange(0, BLOCK_F)
    bias = tl.load(bias_ptr + columns, mask=columns < F, other=0.0).to(tl.float32)
    total = tl.zeros([ROWS, BLOCK_F], tl.float32)  # over steps; over rows once, at the end

    for step in range(STEPS):
        rows = (partial * STEPS + step) * ROWS + tl.arange(0, ROWS)
        inside = (rows < N)[:, None] & (columns < F)[None, :]
        at = rows[:, None] * F + columns[None, :]
        x = tl.load(h_ptr + at, mask=inside, other=0.0).to(tl.float32) + bias[None, :]
        dg = tl.load(dg_ptr + at, mask=inside, other=0.0).to(tl.float32)

        # dh = dg gelu'(x);  dbias = sum of dh
        g, slope = _gelu(x, IS_TANH)  # pyright: ignore[reportGeneralTypeIssues]
        dh = dg * slope
        total += dh

        tl.store(dh_ptr + at, dh.to(dh_ptr.dtype.element_ty), mask=inside)
        if RECOMPUTE:
            tl.store(g_ptr + at, g.to(g_ptr.dtype.element_ty), mask=inside)

    tl.store(partial_ptr + partial * F + columns, tl.sum(total, axis=0), mask=columns < F)


def gelu_forward(h: Tensor, bias: Tensor, approximate: str) -> Tensor:
    """The forward kernel, for operators that own ``h``.

    Args:
        h (Tensor): ``(N, F)``, contiguous.
        bias (Tensor): ``(F,)``, contiguous.
        approximate (str): ``none`` or ``tanh``.

    Returns:
        Tensor: ``gelu(h + bias)``, ``(N, F)``.
    """
    num_rows, num_features = h.shape
    g = torch.empty_like(h)
    block = cover(num_features, FORWARD.block)
    grid = (math.ceil(num_rows / FORWARD.rows) * math.ceil(num_features / block),)
    kernel: Any = _bias_gelu_forward_kernel
    kernel[grid](
        h,
        bias,
        g,
        N=num_rows,
        F=num_features,
        ROWS=FORWARD.rows,
        BLOCK_F=block,
        IS_TANH=approximate == 'tanh',
        num_warps=FORWARD.num_warps,
    )
    return g


def gelu_backward(
    h: Tensor, bias: Tensor, dg: Tensor, approximate: str, recompute: bool, in_place: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The backward kernel, for operators that own ``dg``.

    Args:
        h (Tensor): ``(N, F)``, contiguous.
        bias (Tensor): ``(F,)``, contiguous.
        dg (Tensor): Gradient of the output, ``(N, F)``, contiguous.
        approximate (str): ``none`` or ``tanh``.
        recompute (bool): Also return the output of the forward, of the same bits.
        in_place (bool): Write the gradient of ``h`` over ``dg``.

    Returns:
        tuple[Tensor, Tensor, Tensor | None]: Gradient of ``h``, ``(N, F)``; of the bias, ``(F,)`` in fp32; and
        ``gelu(h + bias)``, ``(N, F)``, or ``None``.
    """
    num_rows, num_features = h.shape
    dh = dg if in_place else torch.empty_like(dg)
    g = torch.empty_like(h) if recompute else None
    block = cover(num_features, BACKWARD.block)
    num_partials = math.ceil(num_rows / ROWS_PER_PARTIAL)
    partial = h.new_empty(num_partials, num_features, dtype=torch.float32)
    grid = (num_partials * math.ceil(num_features / block),)
    kernel: Any = _bias_gelu_backward_kernel
    kernel[grid](
        h,
        bias,
        dg,
        dh,
        dh if g is None else g,
        partial,
        N=num_rows,
        F=num_features,
        ROWS=BACKWARD.rows,
        STEPS=ROWS_PER_PARTIAL // BACKWARD.rows,
        BLOCK_F=block,
        IS_TANH=approximate == 'tanh',
        RECOMPUTE=recompute,
        num_warps=BACKWARD.num_warps,
    )
    return dh, partial.sum(0), g


@torch.library.custom_op('rewarm::bias_gelu', mutates_args=())
def _bias_gelu(h: Tensor, bias: Tensor, approximate: str) -> Tensor:
    return gelu_forward(h.contiguous(), bias.contiguous(), approximate)


@_bias_gelu.register_fake
def _(h: Tensor, bias: Tensor, approximate: str) -> Tensor:
    return h.new_empty(h.shape)


@torch.library.custom_op('rewarm::bias_gelu_backward', mutates_args=())
def _bias_gelu_backward(h: Tensor, bias: Tensor, dg: Tensor, approximate: str) -> tuple[Tensor, Tensor]:
    h, bias, dg = h.contiguous(), bias.contiguous(), dg.contiguous()
    dh, dbias, _ = gelu_backward(h, bias, dg, approximate, recompute=False, in_place=False)
    return dh, dbias


@_bias_gelu_backward.register_fake
def _(h: Tensor, bias: Tensor, dg: Tensor, approximate: str) -> tuple[Tensor, Tensor]:
    return h.new_empty(h.shape), h.new_empty(h.shape[1], dtype=torch.float32)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    h, bias, ctx.approximate = inputs
    ctx.save_for_backward(h, bias)


def _backward(ctx: Any, dg: Tensor) -> tuple[Tensor, Tensor, None]:
    h, bias = ctx.saved_tensors
    dh, dbias = _bias_gelu_backward(h, bias, dg, ctx.approximate)
    return dh, dbias.to(bias.dtype), None


_bias_gelu.register_autograd(_backward, setup_context=_save)


def check_approximate(approximate: str) -> None:
    """Raises ``ValueError`` if ``approximate`` names no form of GELU."""
    if approximate not in ('none', 'tanh'):
        raise ValueError(f"approximate must be 'none' (erf) or 'tanh', got {approximate!r}")


def bias_gelu(h: Tensor, bias: Tensor, approximate: str = 'none') -> Tensor:
    """Adds a bias and applies GELU; differentiable in both.

    Args:
        h (Tensor): ``(..., F)``, bf16 or fp32.
        bias (Tensor): ``(F,)``, fp32.
        approximate (str): ``none``, the erf form, or ``tanh``.

    Returns:
        Tensor: ``gelu(h + bias)``, ``(..., F)``, in the dtype of ``h``.

    Raises:
        ValueError: If the bias does not fit, or ``approximate`` is neither of the two.
    """
    check_approximate(approximate)
    if bias.shape != h.shape[-1:]:
        raise ValueError(
            f'bias must be as long as the last dimension of h: bias {tuple(bias.shape)}, h {tuple(h.shape)}'
        )
    if not runs_kernels(h, bias):
        return bias_gelu_ref(h, bias, approximate)
    return _bias_gelu(h.reshape(-1, h.shape[-1]), bias, approximate).view(h.shape)
