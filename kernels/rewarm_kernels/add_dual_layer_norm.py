"""The residual sum of a parallel block and the two LayerNorms that read it, in one pass each way.

    total = x + (attn + attn_bias) + (mlp + mlp_bias)
    y_i   = (total - mean) * rstd * weight_i + bias_i                     i = 1, 2

    g   = sum_i dy_i * weight_i                    normed = (total - mean) * rstd
    dx  = rstd * (g - mean(g) - normed * mean(g * normed)) + dtotal
    d weight_i = sum_rows dy_i * normed            d bias_i = sum_rows dy_i

``dx`` is the gradient of ``x``, ``attn`` and ``mlp`` alike, and its sum over rows that of both projections' biases: they
live here and not in the projections, so that their gradients cost no pass of their own.

Bytes moved per row of D elements of E bytes: forward 6 D E (x, attn, mlp in; total, y_1, y_2 out), backward 5 D E (total,
dy_1, dy_2, dtotal in; dx out). At D = 1,024 in bf16 that is 12.3 and 10.2 kB a row, 0.81 and 0.67 GB for 65,536 rows.
The forward's 24 kB of parameters a row come from the L1 cache; the backward keeps them in registers.

Arithmetic and statistics are fp32. ``total`` is rounded to the activations' dtype first and then normalized, since that
is what the backward reads. The variance is that of the centred row, from registers, not a difference of two sums.

Shapes: N = rows (all leading dimensions), D = width, P = programs of the backward, S = its column sums (5, or 3 with one
norm).

Source: Ba et al. 2016, https://arxiv.org/abs/1607.06450; the parallel block, Black et al. 2022,
https://arxiv.org/abs/2204.06745, section 2.
"""

import math
from typing import Any, cast

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

from rewarm_kernels.launch import Launch, launch, programs, runs_kernels

__all__ = ['add_dual_layer_norm', 'add_dual_layer_norm_ref']

FORWARD = launch(Launch(num_warps=4), interpreted=Launch(rows=64))
"""For 1,024 columns. A thread then holds one 128-bit load of each bf16 row, in 32 registers (40 on sm_80), so that 64
warps fit on a multiprocessor. Two rows a program would halve the loads of parameters, but each of these would cross
shared memory and two barriers to get into the layout of the rows."""

BACKWARD = launch(Launch(num_warps=4, per_multiprocessor=4), interpreted=Launch(rows=64))
"""For 1,024 columns. Five column sums and two weights take 56 registers of a thread, and all of it at most 128: 4 programs
are what fits, and a fifth would wait for the others to end."""

STAGES = 3
"""The backward reads rows ahead, as asynchronous copies to shared memory: two rows of 8 kB for each of 4 programs, 64 kB
on a multiprocessor, are three times what bandwidth x latency asks for. Without that, its 16 warps could have 32 kB on the
way, and none of it while they reduce a row."""

MAX_STAGED_BYTES = 8192
"""Of one row of one tensor. Four of two stages are 64 kB of shared memory, which every device has; a wider row is not read
ahead."""

MAX_WARPS = 16
"""Of one row. Up to 4,096 columns a thread holds 8 of each tensor; beyond, the backward spills registers."""


def add_dual_layer_norm_ref(
    x: Tensor,
    attn: Tensor | None,
    mlp: Tensor | None,
    attn_bias: Tensor | None,
    mlp_bias: Tensor | None,
    weight_1: Tensor,
    bias_1: Tensor,
    weight_2: Tensor | None = None,
    bias_2: Tensor | None = None,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The definition of :func:`add_dual_layer_norm`, whose arguments and results it has."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    branches = [branch for branch in (attn, mlp) if branch is not None]
    total = x
    if branches:
        biases = [bias for bias in (attn_bias, mlp_bias) if bias is not None]
        total = x.to(dtype) + branches[0]
        for term in (*branches[1:], sum(biases[1:], biases[0])):  # of width D, so one pass for both biases
            total += term
        total = total.to(x.dtype)
    wide = total.to(dtype)

    def normalized(weight: Tensor, bias: Tensor) -> Tensor:
        return F.layer_norm(wide, weight.shape, weight.to(dtype), bias.to(dtype), eps).to(x.dtype)

    y_2 = None if weight_2 is None or bias_2 is None else normalized(weight_2, bias_2)
    return total, normalized(weight_1, bias_1), y_2


@triton.jit
def _add_dual_layer_norm_forward_kernel(
    x_ptr,  # (N, D)
    attn_ptr,  # (N, D)
    mlp_ptr,  # (N, D)
    attn_bias_ptr,  # (D,) fp32
    mlp_bias_ptr,  # (D,) fp32
    weight_1_ptr,  # (D,) fp32
    bias_1_ptr,  # (D,) fp32
    weight_2_ptr,  # (D,) fp32
    bias_2_ptr,  # (D,) fp32
    total_ptr,  # (N, D) out
    y_1_ptr,  # (N, D) out
    y_2_ptr,  # (N, D) out
    mean_ptr,  # (N,) out, fp32
    rstd_ptr,  # (N,) out, fp32
    N,
    eps,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ROWS: tl.constexpr,
    HAS_ATTN: tl.constexpr,
    HAS_MLP: tl.constexpr,
    IS_DUAL: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    cols = tl.arange(0, BLOCK_D)[None, :]  # two dimensions, as the activations have: parameters load into their layout
    is_row = rows < N
    is_col = cols < D
    is_in = is_row[:, None] & is_col
    at = rows[:, None] * D + cols

    total = tl.load(x_ptr + at, mask=is_in, other=0.0).to(tl.float32)
    if HAS_ATTN:
        total += tl.load(attn_ptr + at, mask=is_in, other=0.0).to(tl.float32)
        total += tl.load(attn_bias_ptr + cols, mask=is_col, other=0.0)
    if HAS_MLP:
        total += tl.load(mlp_ptr + at, mask=is_in, other=0.0).to(tl.float32)
        total += tl.load(mlp_bias_ptr + cols, mask=is_col, other=0.0)
    if HAS_ATTN or HAS_MLP:
        rounded = total.to(total_ptr.dtype.element_ty)
        tl.store(total_ptr + at, rounded, mask=is_in)
        total = rounded.to(tl.float32)

    mean = tl.sum(total, axis=1) / D
    centred = total - mean[:, None]
    if BLOCK_D != D:
        centred = tl.where(is_col, centred, 0.0)
    rstd = 1.0 / tl.sqrt(tl.sum(centred * centred, axis=1) / D + eps)
    normed = centred * rstd[:, None]
    tl.store(mean_ptr + rows, mean, mask=is_row)
    tl.store(rstd_ptr + rows, rstd, mask=is_row)

    weight = tl.load(weight_1_ptr + cols, mask=is_col, other=0.0)
    bias = tl.load(bias_1_ptr + cols, mask=is_col, other=0.0)
    tl.store(y_1_ptr + at, (normed * weight + bias).to(y_1_ptr.dtype.element_ty), mask=is_in)
    if IS_DUAL:
        weight = tl.load(weight_2_ptr + cols, mask=is_col, other=0.0)
        bias = tl.load(bias_2_ptr + cols, mask=is_col, other=0.0)
        tl.store(y_2_ptr + at, (normed * weight + bias).to(y_2_ptr.dtype.element_ty), mask=is_in)


@triton.jit
def _add_dual_layer_norm_backward_kernel(
    total_ptr,  # (N, D)
    dy_1_ptr,  # (N, D)
    dy_2_ptr,  # (N, D)
    dtotal_ptr,  # (N, D)
    weight_1_ptr,  # (D,) fp32
    weight_2_ptr,  # (D,) fp32
    mean_ptr,  # (N,) fp32
    rstd_ptr,  # (N,) fp32
    dx_ptr,  # (N, D) out
    partial_ptr,  # (P, S, D) out, fp32
    N,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ROWS: tl.constexpr,
    PROGRAMS: tl.constexpr,
    STEPS: tl.constexpr,
    STAGES: tl.constexpr,
    HAS_DTOTAL: tl.constexpr,
    IS_DUAL: tl.constexpr,
):
    program = tl.program_id(0)
    cols = tl.arange(0, BLOCK_D)[None, :]
    is_col = cols < D

    weight_1 = tl.load(weight_1_ptr + cols, mask=is_col, other=0.0)
    if IS_DUAL:
        weight_2 = tl.load(weight_2_ptr + cols, mask=is_col, other=0.0)
    dbranch_bias = tl.zeros([ROWS, BLOCK_D], tl.float32)
    dweight_1 = tl.zeros([ROWS, BLOCK_D], tl.float32)
    dbias_1 = tl.zeros([ROWS, BLOCK_D], tl.float32)
    dweight_2 = tl.zeros([ROWS, BLOCK_D], tl.float32)
    dbias_2 = tl.zeros([ROWS, BLOCK_D], tl.float32)

    # Neighbouring programs read neighbouring rows. What is out of bounds loads as zero and adds nothing to a sum.
    for step in tl.range(0, STEPS, num_stages=STAGES):
        rows = (step * PROGRAMS + program).to(tl.int64) * ROWS + tl.arange(0, ROWS)
        is_row = rows < N
        is_in = is_row[:, None] & is_col
        at = rows[:, None] * D + cols

        mean = tl.load(mean_ptr + rows, mask=is_row, other=0.0)[:, None]
        rstd = tl.load(rstd_ptr + rows, mask=is_row, other=0.0)[:, None]
        normed = (tl.load(total_ptr + at, mask=is_in, other=0.0).to(tl.float32) - mean) * rstd
        dy = tl.load(dy_1_ptr + at, mask=is_in, other=0.0).to(tl.float32)
        g = dy * weight_1
        dweight_1 += dy * normed
        dbias_1 += dy
        if IS_DUAL:
            dy = tl.load(dy_2_ptr + at, mask=is_in, other=0.0).to(tl.float32)
            g += dy * weight_2
            dweight_2 += dy * normed
            dbias_2 += dy

        # dx = rstd * (g - mean(g) - normed * mean(g * normed)) + dtotal
        mean_g = tl.sum(g, axis=1)[:, None] / D
        mean_g_normed = tl.sum(g * normed, axis=1)[:, None] / D
        dx = (g - mean_g - normed * mean_g_normed) * rstd
        if HAS_DTOTAL:
            dx += tl.load(dtotal_ptr + at, mask=is_in, other=0.0).to(tl.float32)
        dbranch_bias += dx
        tl.store(dx_ptr + at, dx.to(dx_ptr.dtype.element_ty), mask=is_in)

    cols = tl.arange(0, BLOCK_D)
    is_col = cols < D
    out = partial_ptr + program.to(tl.int64) * ((5 if IS_DUAL else 3) * D) + cols
    tl.store(out, tl.sum(dbranch_bias, axis=0), mask=is_col)
    tl.store(out + D, tl.sum(dweight_1, axis=0), mask=is_col)
    tl.store(out + 2 * D, tl.sum(dbias_1, axis=0), mask=is_col)
    if IS_DUAL:
        tl.store(out + 3 * D, tl.sum(dweight_2, axis=0), mask=is_col)
        tl.store(out + 4 * D, tl.sum(dbias_2, axis=0), mask=is_col)


def _warps(setting: Launch, block_d: int) -> int:
    """Warps of a row: the setting's for 1,024 columns, in proportion for others."""
    return min(max(setting.num_warps * block_d // 1024, 1), MAX_WARPS)


@torch.library.custom_op('rewarm::add_dual_layer_norm', mutates_args=())
def _add_dual_layer_norm(
    x: Tensor,
    attn: Tensor | None,
    mlp: Tensor | None,
    attn_bias: Tensor | None,
    mlp_bias: Tensor | None,
    weight_1: Tensor,
    bias_1: Tensor,
    weight_2: Tensor | None,
    bias_2: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    total, y_1, y_2, mean, rstd = _outputs(x, attn, mlp, weight_2)
    N, D = x.shape
    block_d = 1 << (D - 1).bit_length()
    if N:
        cast(Any, _add_dual_layer_norm_forward_kernel)[(math.ceil(N / FORWARD.rows),)](
            x,
            attn,
            mlp,
            attn_bias,
            mlp_bias,
            weight_1,
            bias_1,
            weight_2,
            bias_2,
            total,
            y_1,
            y_2,
            mean,
            rstd,
            N=N,
            eps=eps,
            D=D,
            BLOCK_D=block_d,
            ROWS=FORWARD.rows,
            HAS_ATTN=attn is not None,
            HAS_MLP=mlp is not None,
            IS_DUAL=weight_2 is not None,
            num_warps=_warps(FORWARD, block_d),
        )
    return total, y_1, y_2, mean, rstd


@_add_dual_layer_norm.register_fake
def _(x, attn, mlp, attn_bias, mlp_bias, weight_1, bias_1, weight_2, bias_2, eps):
    return _outputs(x, attn, mlp, weight_2)


def _outputs(x: Tensor, attn: Tensor | None, mlp: Tensor | None, weight_2: Tensor | None) -> tuple[Tensor, ...]:
    """Room for total, y_1, y_2, mean and rstd; an operator returns no ``None``, so what is not asked for is empty."""
    total = x.new_empty(0) if attn is None and mlp is None else torch.empty_like(x)
    y_2 = x.new_empty(0) if weight_2 is None else torch.empty_like(x)
    mean, rstd = (x.new_empty(x.shape[0], dtype=torch.float32) for _ in range(2))
    return total, torch.empty_like(x), y_2, mean, rstd


@torch.library.custom_op('rewarm::add_dual_layer_norm_backward', mutates_args=())
def _add_dual_layer_norm_backward(
    total: Tensor,
    dy_1: Tensor,
    dy_2: Tensor | None,
    dtotal: Tensor | None,
    weight_1: Tensor,
    weight_2: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
) -> tuple[Tensor, Tensor]:
    N, D = total.shape
    block_d = 1 << (D - 1).bit_length()
    warps = _warps(BACKWARD, block_d)
    per_multiprocessor = max(BACKWARD.per_multiprocessor * BACKWARD.num_warps // warps, 1)  # the same number of warps
    count = min(programs(total, per_multiprocessor), math.ceil(N / BACKWARD.rows))
    num_sums = 3 if weight_2 is None else 5
    dx = torch.empty_like(total)
    partial = total.new_empty(count, num_sums, D, dtype=torch.float32)
    if N:
        cast(Any, _add_dual_layer_norm_backward_kernel)[(count,)](
            total,
            dy_1,
            dy_2,
            dtotal,
            weight_1,
            weight_2,
            mean,
            rstd,
            dx,
            partial,
            N=N,
            D=D,
            BLOCK_D=block_d,
            ROWS=BACKWARD.rows,
            PROGRAMS=count,
            STEPS=math.ceil(N / (BACKWARD.rows * count)),
            STAGES=STAGES if block_d * total.element_size() <= MAX_STAGED_BYTES else 1,
            HAS_DTOTAL=dtotal is not None,
            IS_DUAL=weight_2 is not None,
            num_warps=warps,
        )
    return dx, partial.sum(0)


@_add_dual_layer_norm_backward.register_fake
def _(total, dy_1, dy_2, dtotal, weight_1, weight_2, mean, rstd):
    num_sums = 3 if weight_2 is None else 5
    return torch.empty_like(total), total.new_empty(num_sums, total.shape[1], dtype=torch.float32)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, attn, mlp, _, _, weight_1, _, weight_2, _, _ = inputs
    total, _, _, mean, rstd = output
    ctx.set_materialize_grads(False)  # an output that nobody used costs no tensor of zeros
    ctx.has_attn, ctx.has_mlp = attn is not None, mlp is not None
    ctx.save_for_backward(total if ctx.has_attn or ctx.has_mlp else x, weight_1, weight_2, mean, rstd)


def _backward(
    ctx: Any, dtotal: Tensor | None, dy_1: Tensor | None, dy_2: Tensor | None, *_: Any
) -> tuple[Tensor | None, ...]:
    total, weight_1, weight_2, mean, rstd = ctx.saved_tensors
    dy_1 = torch.zeros_like(total) if dy_1 is None else dy_1.contiguous()
    if weight_2 is None:
        dy_2 = None
    else:
        dy_2 = torch.zeros_like(total) if dy_2 is None else dy_2.contiguous()
    dtotal = dtotal.contiguous() if dtotal is not None and (ctx.has_attn or ctx.has_mlp) else None
    dx, sums = _add_dual_layer_norm_backward(total, dy_1, dy_2, dtotal, weight_1, weight_2, mean, rstd)
    dbranch_bias, dweight_1, dbias_1, *second = sums.unbind(0)
    dweight_2, dbias_2 = second or (None, None)
    attn = (dx, dbranch_bias) if ctx.has_attn else (None, None)
    mlp = (dx, dbranch_bias) if ctx.has_mlp else (None, None)
    return dx, attn[0], mlp[0], attn[1], mlp[1], dweight_1, dbias_1, dweight_2, dbias_2, None


_add_dual_layer_norm.register_autograd(_backward, setup_context=_save)


def add_dual_layer_norm(
    x: Tensor,
    attn: Tensor | None,
    mlp: Tensor | None,
    attn_bias: Tensor | None,
    mlp_bias: Tensor | None,
    weight_1: Tensor,
    bias_1: Tensor,
    weight_2: Tensor | None = None,
    bias_2: Tensor | None = None,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Adds the branches of the last block to the residual stream and normalizes it for the next one.

    Differentiable in all tensors. Where kernels cannot run, this is :func:`add_dual_layer_norm_ref`.

    Args:
        x (Tensor): The residual stream, ``(..., D)``, bf16 or fp32.
        attn (Tensor | None): Output of the attention's projection without its bias, ``(..., D)``; ``None`` for no such
            branch.
        mlp (Tensor | None): Output of the MLP's projection without its bias, ``(..., D)``, or ``None``.
        attn_bias (Tensor | None): Bias of the attention's projection, ``(D,)`` in fp32; ``None`` if ``attn`` is.
        mlp_bias (Tensor | None): Bias of the MLP's projection, ``(D,)`` in fp32; ``None`` if ``mlp`` is.
        weight_1 (Tensor): Weight of the first LayerNorm, ``(D,)`` in fp32.
        bias_1 (Tensor): Bias of the first LayerNorm, ``(D,)`` in fp32.
        weight_2 (Tensor | None): Weight of the second LayerNorm, ``(D,)`` in fp32; ``None`` for one norm alone.
        bias_2 (Tensor | None): Bias of the second LayerNorm, ``(D,)`` in fp32; ``None`` if ``weight_2`` is.
        eps (float): Added to the variance.

    Returns:
        tuple[Tensor, Tensor, Tensor | None]: The sum (``x`` itself without branches), its first and its second norm,
        each ``(..., D)`` in the dtype of ``x``; ``None`` for a second norm that is not asked for.

    Raises:
        ValueError: If a shape does not fit that of ``x``, or of a branch and its bias, or a weight and its bias, only one
            is given.
    """
    arguments = (attn, mlp, attn_bias, mlp_bias, weight_1, bias_1, weight_2, bias_2)
    _check(x, *arguments)
    if not runs_kernels(x, *arguments):
        return add_dual_layer_norm_ref(x, *arguments, eps)
    rows = [None if tensor is None else tensor.reshape(-1, x.shape[-1]).contiguous() for tensor in (x, attn, mlp)]
    parameters = [None if tensor is None else tensor.contiguous() for tensor in arguments[2:]]
    total, y_1, y_2, _, _ = _add_dual_layer_norm(*rows, *parameters, eps)
    return (
        x if attn is None and mlp is None else total.view(x.shape),
        y_1.view(x.shape),
        None if weight_2 is None else y_2.view(x.shape),
    )


def _check(
    x: Tensor,
    attn: Tensor | None,
    mlp: Tensor | None,
    attn_bias: Tensor | None,
    mlp_bias: Tensor | None,
    weight_1: Tensor,
    bias_1: Tensor,
    weight_2: Tensor | None,
    bias_2: Tensor | None,
) -> None:
    for name, tensor in {'attn': attn, 'mlp': mlp}.items():
        if tensor is not None and tensor.shape != x.shape:
            raise ValueError(f'{name} is {tuple(tensor.shape)} and x is {tuple(x.shape)}: the shapes must be equal')
    pairs = {
        ('attn', 'attn_bias'): (attn, attn_bias),
        ('mlp', 'mlp_bias'): (mlp, mlp_bias),
        ('weight_2', 'bias_2'): (weight_2, bias_2),
    }
    for (name, bias_name), (tensor, bias) in pairs.items():
        if (tensor is None) != (bias is None):
            missing, given = (name, bias_name) if tensor is None else (bias_name, name)
            raise ValueError(f'{missing} is None and {given} is not: give both or neither')
    width = x.shape[-1:]
    vectors = {'attn_bias': attn_bias, 'mlp_bias': mlp_bias, 'weight_1': weight_1, 'bias_1': bias_1}
    for name, tensor in {**vectors, 'weight_2': weight_2, 'bias_2': bias_2}.items():
        if tensor is not None and tensor.shape != width:
            raise ValueError(
                f'{name} is {tuple(tensor.shape)} and x is {tuple(x.shape)}: it must be {tuple(width)}, the width of x'
            )
