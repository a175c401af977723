"""Partial rotary embedding of the queries and keys in GPT-NeoX's packed ``[heads, 3, head_dim]``, and its way back.

    out[r]     = x[r] * cos[r] - x[r + R] * sin[r]
    out[r + R] = x[r + R] * cos[r] + x[r] * sin[r]            r < R, of each head's query and key

The other K - 2 R dimensions and the values stay as they are. The backward is the rotation by minus the angle.

Bytes moved per token of H heads of K dimensions of E bytes: :func:`rotate_` reads and writes 8 H R E (at R = 8 in bf16 one
32-byte sector of each query and key: 1.0 kB each way for 16 heads, 134 MB for 65,536 tokens). The copy of :func:`rotary`
and the packing of :func:`pack_qkv_grad`, which also sums the gradient of the projection's bias, move 6 H K E (12.3 kB a
token, 0.81 GB).

Arithmetic and sums are fp32, whatever the dtype of the activations.

Shapes: B = batch, T = tokens, H = heads, K = head dimension, R = half of the rotated dimensions, C = H K, N = B T,
P = programs of the packing.

Source: Su et al. 2021, https://arxiv.org/abs/2104.09864; rotate-half and the partial form as in GPT-NeoX.
"""

import math
from typing import Any, cast

import torch
import triton
import triton.language as tl
from torch import Tensor

from rewarm_kernels.launch import Launch, cover, launch, programs, runs_kernels

__all__ = ['pack_qkv_grad', 'rotary', 'rotary_ref', 'rotate_']

ROTATE = launch(Launch(num_warps=4, block=128), interpreted=Launch(block=4096))
"""Queries and keys a program rotates. At R = 8 in bf16 a thread has one of them, as two 128-bit loads of one sector."""

PACK = launch(Launch(num_warps=4, rows=2, per_multiprocessor=3), interpreted=Launch(rows=64))
"""For C = 1,024 in bf16 (fp32: half the rows). A thread has 8 columns of two tokens in each of q, k and v: 128-bit loads and
stores throughout, and 37 kB on the way to a multiprocessor. That takes up to 164 registers, of which 3 programs fit."""

MAX_WARPS = 16
"""Of the packing. Up to C = 2,048 (Pythia-1.4b) it spills no registers."""


def rotary_ref(qkv: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The definition of :func:`rotary`, whose arguments and result it has."""
    half, head_dim = cos.shape[-1], qkv.shape[-1]
    rest = head_dim - 2 * half
    sizes = (half, half, rest, half, half, rest + head_dim)
    q_1, q_2, q_rest, k_1, k_2, k_rest_and_v = qkv.flatten(-2).split(sizes, dim=-1)
    dtype = torch.promote_types(qkv.dtype, torch.float32)
    cos, sin = cos.to(dtype)[:, None, :], sin.to(dtype)[:, None, :]
    rotated = (q_1 * cos - q_2 * sin, q_2 * cos + q_1 * sin, k_1 * cos - k_2 * sin, k_2 * cos + k_1 * sin)
    q_1, q_2, k_1, k_2 = (part.to(qkv.dtype) for part in rotated)
    return torch.cat((q_1, q_2, q_rest, k_1, k_2, k_rest_and_v), dim=-1).view(qkv.shape)


@triton.jit
def _rotate_kernel(
    qkv_ptr,  # (B, T, H, 3, K) in place
    cos_ptr,  # (T, R) fp32
    sin_ptr,  # (T, R) fp32
    T,
    CHUNKS,
    H: tl.constexpr,
    K: tl.constexpr,
    R: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # Of a sequence's 2 T H queries and keys, a program has BLOCK.
    batch = tl.program_id(0) // CHUNKS
    vector = (tl.program_id(0) % CHUNKS) * BLOCK + tl.arange(0, BLOCK)[:, None]
    token = vector // (2 * H)
    head_and_part = vector % (2 * H)
    r = tl.arange(0, BLOCK_R)[None, :]
    is_in = (vector < T * 2 * H) & (r < R)
    start = (batch.to(tl.int64) * T + token) * (H * 3 * K) + (head_and_part // 2) * (3 * K) + (head_and_part % 2) * K
    low_ptr = qkv_ptr + start + r

    cos = tl.load(cos_ptr + token * R + r, mask=is_in, other=0.0)
    sin = tl.load(sin_ptr + token * R + r, mask=is_in, other=0.0)
    low = tl.load(low_ptr, mask=is_in, other=0.0).to(tl.float32)
    high = tl.load(low_ptr + R, mask=is_in, other=0.0).to(tl.float32)

    tl.store(low_ptr, (low * cos - high * sin).to(qkv_ptr.dtype.element_ty), mask=is_in)
    tl.store(low_ptr + R, (high * cos + low * sin).to(qkv_ptr.dtype.element_ty), mask=is_in)


@triton.jit
def _pack_kernel(
    q_ptr,  # (B, H, T, K), any strides but the last
    k_ptr,  # (B, H, T, K)
    v_ptr,  # (B, H, T, K)
    cos_ptr,  # (T, R) fp32
    sin_ptr,  # (T, R) fp32
    out_ptr,  # (N, H, 3, K) out
    partial_ptr,  # (P, H, 3, K) out, fp32
    stride_q_b,
    stride_q_h,
    stride_q_t,
    stride_k_b,
    stride_k_h,
    stride_k_t,
    stride_v_b,
    stride_v_h,
    stride_v_t,
    N,
    T,
    H: tl.constexpr,
    K: tl.constexpr,
    R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    ROWS: tl.constexpr,
    PROGRAMS: tl.constexpr,
    STEPS: tl.constexpr,
    IS_INVERSE: tl.constexpr,
    HAS_SUMS: tl.constexpr,
):
    program = tl.program_id(0)
    c = tl.arange(0, BLOCK_C)[None, :]
    is_col = c < H * K
    h = (c // K).to(tl.int64)
    at = c % K
    is_low = at < R
    r = tl.where(is_low, at, at - R)
    partner = tl.where(is_low, at + R, at - R)
    is_turned = is_col & (at < 2 * R)
    packed = h * (3 * K) + at

    q_sum = tl.zeros([ROWS, BLOCK_C], tl.float32)
    k_sum = tl.zeros([ROWS, BLOCK_C], tl.float32)
    v_sum = tl.zeros([ROWS, BLOCK_C], tl.float32)
    for step in range(STEPS):
        token = (step * PROGRAMS + program) * ROWS + tl.arange(0, ROWS)[:, None]
        is_row = token < N
        is_in = is_row & is_col
        turns = is_row & is_turned
        b = (token // T).to(tl.int64)
        t = token % T
        out = out_ptr + token.to(tl.int64) * (H * 3 * K) + packed
        q_head = q_ptr + b * stride_q_b + t.to(tl.int64) * stride_q_t + h * stride_q_h
        k_head = k_ptr + b * stride_k_b + t.to(tl.int64) * stride_k_t + h * stride_k_h
        v_head = v_ptr + b * stride_v_b + t.to(tl.int64) * stride_v_t + h * stride_v_h

        cos = tl.load(cos_ptr + t * R + r, mask=turns, other=1.0)
        sin = tl.load(sin_ptr + t * R + r, mask=turns, other=0.0)
        q = tl.load(q_head + at, mask=is_in, other=0.0).to(tl.float32)
        k = tl.load(k_head + at, mask=is_in, other=0.0).to(tl.float32)
        v = tl.load(v_head + at, mask=is_in, other=0.0)
        q_partner = tl.load(q_head + partner, mask=turns, other=0.0).to(tl.float32)
        k_partner = tl.load(k_head + partner, mask=turns, other=0.0).to(tl.float32)

        # Of the half below, the partner counts negative; of a rotation back, that of the half above.
        if IS_INVERSE:
            sin = tl.where(is_low, sin, -sin)
        else:
            sin = tl.where(is_low, -sin, sin)
        q = q * cos + q_partner * sin
        k = k * cos + k_partner * sin

        tl.store(out, q.to(out_ptr.dtype.element_ty), mask=is_in)
        tl.store(out + K, k.to(out_ptr.dtype.element_ty), mask=is_in)
        tl.store(out + 2 * K, v, mask=is_in)
        if HAS_SUMS:
            q_sum += q
            k_sum += k
            v_sum += v.to(tl.float32)

    if HAS_SUMS:
        c = tl.arange(0, BLOCK_C)
        is_col = c < H * K
        partial = partial_ptr + program.to(tl.int64) * (H * 3 * K) + (c // K) * (3 * K) + c % K
        tl.store(partial, tl.sum(q_sum, axis=0), mask=is_col)
        tl.store(partial + K, tl.sum(k_sum, axis=0), mask=is_col)
        tl.store(partial + 2 * K, tl.sum(v_sum, axis=0), mask=is_col)


def rotate_(qkv: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates queries and keys in place: no operator, for the owner of a buffer that autograd knows nothing of.

    Args:
        qkv (Tensor): ``(B, T, H, 3, K)``, contiguous.
        cos (Tensor): ``(T, R)``, fp32.
        sin (Tensor): ``(T, R)``, fp32.

    Returns:
        Tensor: ``qkv``.

    Raises:
        ValueError: If ``qkv`` is not contiguous, or the shapes do not fit.
    """
    _check(qkv, cos, sin)
    if not qkv.is_contiguous():
        raise ValueError(f'qkv of strides {qkv.stride()} is not contiguous')
    B, T, H, _, K = qkv.shape
    R = cos.shape[1]
    block = cover(2 * T * H, ROTATE.block)
    chunks = math.ceil(2 * T * H / block)
    if qkv.numel() and R:
        cast(Any, _rotate_kernel)[(B * chunks,)](
            qkv,
            cos.contiguous(),
            sin.contiguous(),
            T=T,
            CHUNKS=chunks,
            H=H,
            K=K,
            R=R,
            BLOCK_R=1 << (R - 1).bit_length(),
            BLOCK=block,
            num_warps=ROTATE.num_warps,
        )
    return qkv


def pack_qkv_grad(dq: Tensor, dk: Tensor, dv: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Rotates the gradients of queries and keys back and packs them with that of the values, in one pass.

    Args:
        dq (Tensor): ``(B, H, T, K)``, in any layout.
        dk (Tensor): ``(B, H, T, K)``, in any layout.
        dv (Tensor): ``(B, H, T, K)``, in any layout.
        cos (Tensor): ``(T, R)``, fp32.
        sin (Tensor): ``(T, R)``, fp32.

    Returns:
        tuple[Tensor, Tensor]: Gradient of the packed tensor before the rotation, ``(B, T, H, 3, K)``, and its sum over
        B and T, the gradient of the projection's bias, ``(H * 3 * K,)`` in fp32.
    """
    packed, partial = _pack(dq, dk, dv, cos, sin, is_inverse=True, has_sums=True)
    return packed, partial.sum(0)


def _pack(
    q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, *, is_inverse: bool, has_sums: bool
) -> tuple[Tensor, Tensor]:
    """Launches the packing; the second result has a row of sums for each program, or none."""
    q, k, v = (part if part.stride(-1) == 1 else part.contiguous() for part in (q, k, v))
    B, H, T, K = q.shape
    R = cos.shape[1]
    N = B * T
    rows = max(PACK.rows * 2 // q.element_size(), 1)
    block_c = 1 << (H * K - 1).bit_length()
    warps = min(max(PACK.num_warps * block_c // 1024, 1), MAX_WARPS)
    per_multiprocessor = max(PACK.per_multiprocessor * PACK.num_warps // warps, 1)  # the same number of warps
    count = min(programs(q, per_multiprocessor), math.ceil(N / rows))
    packed = q.new_empty(B, T, H, 3, K)
    partial = q.new_empty(count if has_sums else 0, H * 3 * K, dtype=torch.float32)
    if N:
        cast(Any, _pack_kernel)[(count,)](
            q,
            k,
            v,
            cos.contiguous(),
            sin.contiguous(),
            packed,
            partial if has_sums else None,
            *(part.stride(dim) for part in (q, k, v) for dim in range(3)),
            N=N,
            T=T,
            H=H,
            K=K,
            R=R,
            BLOCK_C=block_c,
            ROWS=rows,
            PROGRAMS=count,
            STEPS=math.ceil(N / (rows * count)),
            IS_INVERSE=is_inverse,
            HAS_SUMS=has_sums,
            num_warps=warps,
        )
    return packed, partial


@torch.library.custom_op('rewarm::rotary', mutates_args=())
def _rotary(qkv: Tensor, cos: Tensor, sin: Tensor, is_inverse: bool) -> Tensor:
    q, k, v = (part.transpose(1, 2) for part in qkv.unbind(3))
    return _pack(q, k, v, cos, sin, is_inverse=is_inverse, has_sums=False)[0]


@_rotary.register_fake
def _(qkv, cos, sin, is_inverse):
    return qkv.new_empty(qkv.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, cos, sin, ctx.is_inverse = inputs
    ctx.save_for_backward(cos, sin)


def _backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
    cos, sin = ctx.saved_tensors
    return _rotary(dout, cos, sin, not ctx.is_inverse), None, None, None


_rotary.register_autograd(_backward, setup_context=_save)


def rotary(qkv: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates the first ``2 R`` dimensions of each query and key by the angles of its position.

    A copy, differentiable in ``qkv``. Where kernels cannot run, this is :func:`rotary_ref`.

    Args:
        qkv (Tensor): ``(B, T, H, 3, K)``, each head's query, key and value side by side, bf16 or fp32.
        cos (Tensor): ``(T, R)``, fp32.
        sin (Tensor): ``(T, R)``, fp32.

    Returns:
        Tensor: ``(B, T, H, 3, K)`` in the dtype of ``qkv``.

    Raises:
        ValueError: If the shapes do not fit.
    """
    _check(qkv, cos, sin)
    if not runs_kernels(qkv, cos, sin):
        return rotary_ref(qkv, cos, sin)
    return _rotary(qkv, cos, sin, False)


def _check(qkv: Tensor, cos: Tensor, sin: Tensor) -> None:
    if qkv.dim() != 5 or qkv.shape[3] != 3:
        raise ValueError(f'qkv is {tuple(qkv.shape)}: it must be (B, T, H, 3, K)')
    if cos.shape != sin.shape:
        raise ValueError(f'cos is {tuple(cos.shape)} and sin is {tuple(sin.shape)}: the shapes must be equal')
    if cos.dim() != 2 or cos.shape[0] != qkv.shape[1]:
        raise ValueError(
            f'cos is {tuple(cos.shape)} and qkv is {tuple(qkv.shape)}: it must be (T, R), T = {qkv.shape[1]}'
        )
    if 2 * cos.shape[1] > qkv.shape[4]:
        raise ValueError(
            f'cos is {tuple(cos.shape)} and qkv is {tuple(qkv.shape)}: it rotates {2 * cos.shape[1]} dimensions of a head '
            f'that has {qkv.shape[4]}'
        )
