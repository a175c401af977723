"""The projection to queries, keys and values, their rotation and attention as one operator, which owns what lies between.

    qkv = y W' + b,   q and k rotated by position,   out = attention(q, k, v)

before the dense projection. The rotation is in place, on a buffer that no one else has seen, so that autograd and
torch.compile see a function. Its backward makes the gradient of ``qkv`` in one pass over those of q, k and v: rotated
back, packed, and summed for the bias.

Kept for the backward, per token of S-byte numbers: y, which the layer keeps anyway, the rotated qkv, the output and one
fp32 number a head: 4 H K S + 4 H bytes. Bytes moved per token besides products and attention: the rotated dimensions of
q and k forward, 4 R H S read and written; 3 H K S read and 3 H K S written backward.
Operations besides attention's: 6 D H K forward and 12 D H K backward.

Numerics: qkv is rounded before the rotation and again after it, as in GPT-NeoX; the gradients of weight and bias are
fp32 sums, not rounded. What attention itself does is its backend's: see ``attention``.

Shapes: B = sequences, T = tokens, D = width, H = heads, K = head dimension, R = half of the rotated dimensions.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from rewarm_kernels.attention import (
    attention,
    attention_backward,
    attention_forward,
    attention_ref,
    check_backend,
    document_bounds,
)
from rewarm_kernels.launch import runs_kernels
from rewarm_kernels.matmul import cast_once, mm_fp32
from rewarm_kernels.rotary import pack_qkv_grad, rotary_ref, rotate_

__all__ = ['qkv_attention', 'qkv_attention_ref']


def qkv_attention_ref(
    y: Tensor,
    weight: Tensor,
    bias: Tensor,
    cos: Tensor,
    sin: Tensor,
    num_heads: int,
    backend: str | None = None,
    cu_seqlens: Tensor | None = None,
) -> Tensor:
    """The definition of :func:`qkv_attention`: its three operations one after the other.

    Without a ``backend``, attention too is by its definition.
    """
    qkv = functional.linear(y, weight.to(y.dtype), bias.to(y.dtype)).unflatten(-1, (num_heads, 3, -1))
    qkv = rotary_ref(qkv, cos, sin)
    return attention_ref(qkv, cu_seqlens) if backend is None else attention(qkv, backend, cu_seqlens)


@torch.library.custom_op('rewarm::qkv_attention', mutates_args=())
def _qkv_attention(
    y: Tensor,
    weight: Tensor,
    bias: Tensor,
    weight_cast: Tensor,
    cos: Tensor,
    sin: Tensor,
    num_heads: int,
    backend: str,
    bounds: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    qkv = torch.addmm(bias.to(y.dtype), y.flatten(0, 1), weight_cast.t())
    qkv = rotate_(qkv.view(_qkv_shape(y, weight, num_heads)), cos, sin)
    q, k, v = qkv.unbind(3)
    out, lse = attention_forward(q, k, v, backend, bounds)
    return out.flatten(2), qkv, lse


@_qkv_attention.register_fake
def _(
    y: Tensor,
    weight: Tensor,
    bias: Tensor,
    weight_cast: Tensor,
    cos: Tensor,
    sin: Tensor,
    num_heads: int,
    backend: str,
    bounds: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    out = y.new_empty(*y.shape[:2], weight.shape[0] // 3)
    lse = y.new_empty(y.shape[0], num_heads, y.shape[1], dtype=torch.promote_types(y.dtype, torch.float32))
    return out, y.new_empty(_qkv_shape(y, weight, num_heads)), lse


@torch.library.custom_op('rewarm::qkv_attention_backward', mutates_args=())
def _qkv_attention_backward(
    dout: Tensor,
    y: Tensor,
    weight_cast: Tensor,
    cos: Tensor,
    sin: Tensor,
    out: Tensor,
    qkv: Tensor,
    lse: Tensor,
    bounds: Tensor | None,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = qkv.unbind(3)
    dq, dk, dv = attention_backward(dout.reshape(q.shape), q, k, v, out.view(q.shape), lse, backend, bounds)
    dqkv, dbias = pack_qkv_grad(dq.transpose(1, 2), dk.transpose(1, 2), dv.transpose(1, 2), cos, sin)
    dqkv = dqkv.view(-1, weight_cast.shape[0])
    return (dqkv @ weight_cast).view(y.shape), mm_fp32(dqkv.t(), y.flatten(0, 1)), dbias


@_qkv_attention_backward.register_fake
def _(
    dout: Tensor,
    y: Tensor,
    weight_cast: Tensor,
    cos: Tensor,
    sin: Tensor,
    out: Tensor,
    qkv: Tensor,
    lse: Tensor,
    bounds: Tensor | None,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    dweight = y.new_empty(weight_cast.shape, dtype=torch.promote_types(y.dtype, torch.float32))
    return y.new_empty(y.shape), dweight, y.new_empty(weight_cast.shape[0], dtype=torch.float32)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    y, weight, bias, weight_cast, cos, sin, _, ctx.backend, bounds = inputs
    ctx.set_materialize_grads(False)  # qkv and lse have none, and zeros in their place would be as large as they
    ctx.parameter_dtypes = weight.dtype, bias.dtype
    ctx.save_for_backward(y, weight_cast, cos, sin, *output, bounds)


def _backward(ctx: Any, dout: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if dout is None:
        return (None,) * 9
    dy, *dparameters = _qkv_attention_backward(dout, *ctx.saved_tensors, ctx.backend)
    return dy, *(grad.to(dtype) for grad, dtype in zip(dparameters, ctx.parameter_dtypes)), *(None,) * 6


_qkv_attention.register_autograd(_backward, setup_context=_save)


def _qkv_shape(y: Tensor, weight: Tensor, num_heads: int) -> tuple[int, ...]:
    return (*y.shape[:2], num_heads, 3, weight.shape[0] // (3 * num_heads))


def qkv_attention(
    y: Tensor,
    weight: Tensor,
    bias: Tensor,
    cos: Tensor,
    sin: Tensor,
    num_heads: int,
    backend: str,
    cu_seqlens: Tensor | None = None,
) -> Tensor:
    """Projects to queries, keys and values, rotates and attends causally; differentiable in the first three.

    Args:
        y (Tensor): ``(B, T, D)``, bf16 or fp32.
        weight (Tensor): ``(H * 3 * K, D)``, fp32: each head's query, key and value side by side, as GPT-NeoX packs them;
            H K is D in a transformer.
        bias (Tensor): ``(H * 3 * K,)``, fp32.
        cos (Tensor): ``(T, R)``, fp32.
        sin (Tensor): ``(T, R)``, fp32.
        num_heads (int): H.
        backend (str): One of :data:`rewarm_kernels.attention.BACKENDS`.
        cu_seqlens (Tensor | None): Boundaries of documents in the B T tokens, ``(documents + 1,)`` in int32.

    Returns:
        Tensor: ``(B, T, H * K)`` in the dtype of ``y``, before the dense projection.

    Raises:
        ValueError: If two shapes do not fit, there is no such backend, or it cannot keep documents apart.
    """
    if y.ndim != 3 or weight.ndim != 2 or weight.shape[1] != y.shape[2]:
        raise ValueError(
            f'y must be (B, T, D) and weight (H * 3 * K, D): y {tuple(y.shape)}, weight {tuple(weight.shape)}'
        )
    if weight.shape[0] % (3 * num_heads):
        raise ValueError(f'weight must have 3 * K rows for each of {num_heads} heads: weight {tuple(weight.shape)}')
    if bias.shape != weight.shape[:1]:
        raise ValueError(
            f'bias must be as long as weight has rows: bias {tuple(bias.shape)}, weight {tuple(weight.shape)}'
        )
    if cos.shape != sin.shape or cos.ndim != 2 or cos.shape[0] != y.shape[1]:
        raise ValueError(
            f'cos and sin must be (T, R) for the T of y: cos {tuple(cos.shape)}, sin {tuple(sin.shape)}, '
            f'y {tuple(y.shape)}'
        )
    if 6 * num_heads * cos.shape[1] > weight.shape[0]:
        raise ValueError(
            f'cos must rotate at most the dimensions of a head, of which there are {weight.shape[0] // (3 * num_heads)}: '
            f'cos {tuple(cos.shape)}, weight {tuple(weight.shape)}'
        )
    check_backend(backend, cu_seqlens, y)
    if not runs_kernels(y, weight, bias, cos, sin):
        return qkv_attention_ref(y, weight, bias, cos, sin, num_heads, backend, cu_seqlens)
    bounds = None if cu_seqlens is None else document_bounds(cu_seqlens, y.shape[0], y.shape[1])
    return _qkv_attention(y, weight, bias, cast_once(weight, y), cos, sin, num_heads, backend, bounds)[0]
