"""Causal attention over packed queries, keys and values, computed by whichever backend it is told to use.

    out = softmax(q k' / sqrt(K), keys of the same document at or before the query only) v

No kernel of attention is ours. Each backend is another's kernel, called directly: a forward that returns the logarithm
of each softmax's denominator, and a backward that takes it. So an operator that owns more than attention can keep what
the backward needs and nothing else. ``math`` is the definition by the same two steps, in plain PyTorch.

Work: 2 B H T^2 K FLOPs forward (half of the square is masked) and 5 B H T^2 K backward. Memory beyond the inputs: the
output, and T fp32 numbers a head; ``math`` also holds three (H, T, T) of one sequence at a time.

Numerics: the forward is the same from run to run. The backward of ``flash``, ``efficient``, ``fa3`` and ``fa4`` adds up
the gradient of queries in no fixed order, unless ``torch.use_deterministic_algorithms`` is on; ``cudnn`` has no such
switch here; ``math`` and ``cpu`` are always the same.

Documents: ``cu_seqlens`` are the boundaries of documents in the batch's B T tokens, one after the other; a token attends
inside its document only. The end of a sequence is a boundary, whether it is named or not.

Shapes: B = sequences, T = tokens, H = heads, K = head dimension. GPT-NeoX packs ``qkv`` as (B, T, H, 3, K); everything
here is (B, T, H, K) of any strides; views of a packed tensor are read where they lie. The logarithm (``lse``) is (B, H, T) in fp32.

Source: Dao 2023, https://arxiv.org/abs/2307.08691.
"""

import functools
import importlib
import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = [
    'BACKENDS',
    'Backend',
    'attend',
    'attention',
    'attention_backward',
    'attention_forward',
    'attention_ref',
    'check_backend',
    'document_bounds',
]

aten: Any = torch.ops.aten

_LSE_ALIGNMENT = 32
"""The efficient kernel pads the tokens of its ``lse`` to a multiple of this, with infinity."""
_FA4_READ = '4.0.0b3 to 4.0.0b36'
"""Releases of flash-attn-4 against whose sources the calls were written; its public function hides ``lse``."""


def attention_ref(qkv: Tensor, cu_seqlens: Tensor | None = None) -> Tensor:
    """The definition of :func:`attention`: a masked softmax, in fp32 (fp64 of fp64), rounded once.

    Args:
        qkv (Tensor): ``(B, T, H, 3, K)``.
        cu_seqlens (Tensor | None): Boundaries of documents, ``(documents + 1,)``, int32.

    Returns:
        Tensor: ``(B, T, H * K)``, in the dtype of ``qkv``.

    Raises:
        ValueError: If a shape is not as above.
    """
    _check_packed(qkv)
    num_sequences, num_tokens = qkv.shape[:2]
    if cu_seqlens is not None:
        _check_boundaries(cu_seqlens, qkv)
        cu_seqlens = document_bounds(cu_seqlens, num_sequences, num_tokens)
    q, k, v = qkv.to(torch.promote_types(qkv.dtype, torch.float32)).permute(3, 0, 2, 1, 4)  # each (B, H, T, K)
    scores = q @ k.mT * qkv.shape[-1] ** -0.5
    scores = scores.masked_fill(~_is_seen(num_sequences, num_tokens, cu_seqlens, qkv.device), float('-inf'))
    return (scores.softmax(dim=-1) @ v).to(qkv.dtype).transpose(1, 2).flatten(2)


def document_bounds(cu_seqlens: Tensor, num_sequences: int, num_tokens: int) -> Tensor:
    """The boundaries of documents and those of sequences in one sorted list; equal ones bound an empty document.

    Kernels are told that no document is longer than a sequence, and would leave the rest of a longer one unwritten. To
    look whether there is one would wait for the device; this does not.

    Args:
        cu_seqlens (Tensor): ``(documents + 1,)``, int32.
        num_sequences (int): B.
        num_tokens (int): T.

    Returns:
        Tensor: ``(documents + B + 2,)``, int32, from 0 to B T.
    """
    step = max(num_tokens, 1)
    ends = torch.arange(0, num_sequences * step + 1, step, dtype=torch.int32, device=cu_seqlens.device)
    return torch.cat((cu_seqlens, ends)).sort().values


def _is_seen(num_sequences: int, num_tokens: int, bounds: Tensor | None, device: torch.device) -> Tensor:
    """Whether a query (last dimension but one) sees a key (last): ``(T, T)``, with documents ``(B, 1, T, T)``."""
    is_seen = torch.ones(num_tokens, num_tokens, dtype=torch.bool, device=device).tril()
    if bounds is None:
        return is_seen
    positions = torch.arange(num_sequences * num_tokens, dtype=bounds.dtype, device=device)
    document = torch.bucketize(positions, bounds, right=True).view(num_sequences, 1, num_tokens)
    return is_seen & (document[..., :, None] == document[..., None, :])


# The backends: forward(q, k, v, bounds) -> out, lse and backward(dout, q, k, v, out, lse, bounds) -> dq, dk, dv, all of
# (B, T, H, K) with a dense last dimension, lse (B, H, T). `bounds` is what document_bounds made, or None.


def _math_forward(q: Tensor, k: Tensor, v: Tensor, bounds: Tensor | None) -> tuple[Tensor, Tensor]:
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    lse = q.new_empty(_lse_shape(q), dtype=torch.promote_types(q.dtype, torch.float32))
    for sequence, scores in enumerate(_math_scores(q, k, bounds)):
        lse[sequence] = scores.logsumexp(dim=-1)
        weights = scores.sub_(lse[sequence, :, :, None]).exp_()
        out[sequence] = (weights @ _of_heads(v[sequence])).transpose(0, 1)
    return out, lse


def _math_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, bounds: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    dq, dk, dv = (torch.empty_like(q, memory_format=torch.contiguous_format) for _ in range(3))
    scale = q.shape[-1] ** -0.5
    for sequence, scores in enumerate(_math_scores(q, k, bounds)):
        q_h, k_h, v_h, out_h, dout_h = (_of_heads(x[sequence]) for x in (q, k, v, out, dout))  # each (H, T, K)
        weights = scores.sub_(lse[sequence, :, :, None]).exp_()
        dv[sequence] = (weights.mT @ dout_h).transpose(0, 1)
        # dscores = weights * (dout v' - rowsum(dout * out)): the row sum is that of dweights * weights
        dscores = (dout_h @ v_h.mT).sub_((dout_h * out_h).sum(dim=-1, keepdim=True)).mul_(weights)
        dq[sequence] = (dscores @ k_h * scale).transpose(0, 1)
        dk[sequence] = (dscores.mT @ q_h * scale).transpose(0, 1)
    return dq, dk, dv


def _math_scores(q: Tensor, k: Tensor, bounds: Tensor | None) -> Any:
    """The scores of one sequence after the other, ``(H, T, T)``, masked."""
    is_seen = _is_seen(q.shape[0], q.shape[1], bounds, q.device).expand(len(q), 1, -1, -1)
    for sequence in range(len(q)):
        scores = _of_heads(q[sequence]) @ _of_heads(k[sequence]).mT * q.shape[-1] ** -0.5
        yield scores.masked_fill_(~is_seen[sequence], float('-inf'))


def _cpu_forward(q: Tensor, k: Tensor, v: Tensor, bounds: Tensor | None) -> tuple[Tensor, Tensor]:
    out, lse = aten._scaled_dot_product_flash_attention_for_cpu(
        *_heads_first(q, k, v), 0.0, bounds is None, attn_mask=_cpu_mask(q, bounds)
    )
    return out.transpose(1, 2), lse


def _cpu_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, bounds: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    dout, q, k, v, out = _heads_first(dout, q, k, v, out)
    grads = aten._scaled_dot_product_flash_attention_for_cpu_backward(
        dout, q, k, v, out, lse, 0.0, bounds is None, attn_mask=_cpu_mask(q.transpose(1, 2), bounds)
    )
    return _heads_first(*grads)


def _cpu_mask(q: Tensor, bounds: Tensor | None) -> Tensor | None:
    """What is added to scores, ``(B, 1, T, T)``: nothing where a key is seen, minus infinity elsewhere."""
    if bounds is None:
        return None
    is_seen = _is_seen(q.shape[0], q.shape[1], bounds, q.device)
    return torch.zeros_like(is_seen, dtype=q.dtype).masked_fill_(~is_seen, float('-inf'))


def _cudnn_forward(q: Tensor, k: Tensor, v: Tensor, bounds: Tensor | None) -> tuple[Tensor, Tensor]:
    # no bias, with lse, no dropout, causal, no debug mask
    out, lse = aten._scaled_dot_product_cudnn_attention(*_heads_first(q, k, v), None, True, 0.0, True, False)[:2]
    return out.transpose(1, 2), lse.view(_lse_shape(q))  # its last dimension is one long


def _cudnn_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, bounds: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    num_tokens = q.shape[1]
    unread = q.new_empty((), dtype=torch.int64)  # the state of a dropout that there is not
    dout, q, k, v, out = _heads_first(dout, q, k, v, out)
    grads = aten._scaled_dot_product_cudnn_attention_backward(
        dout, q, k, v, out, lse.unsqueeze(-1), unread, unread, None, None, None, num_tokens, num_tokens, 0.0, True
    )
    return _heads_first(*grads)


def _efficient_forward(q: Tensor, k: Tensor, v: Tensor, bounds: Tensor | None) -> tuple[Tensor, Tensor]:
    out, lse = aten._scaled_dot_product_efficient_attention(*_heads_first(q, k, v), None, True, 0.0, True)[:2]
    return out.transpose(1, 2), lse.narrow(-1, 0, q.shape[1])


def _efficient_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, bounds: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    lse = F.pad(lse, (0, -q.shape[1] % _LSE_ALIGNMENT), value=float('inf'))
    unread = q.new_empty((), dtype=torch.int64)
    wanted = [True, True, True, False]  # of query, key, value, bias
    dout, q, k, v, out = _heads_first(dout, q, k, v, out)
    grads = aten._scaled_dot_product_efficient_attention_backward(
        dout, q, k, v, None, out, lse, unread, unread, 0.0, wanted, True
    )
    return _heads_first(*grads[:3])


# The FlashAttentions take sequences of one length as (B, T, H, K), and documents one after the other as (B T, H, K) with
# their bounds and the longest; their lse is (B, H, T) or (H, B T).


def _flash_forward(q: Tensor, k: Tensor, v: Tensor, bounds: Tensor | None) -> tuple[Tensor, Tensor]:
    # What scaled_dot_product_attention and torch.nn.attention.varlen (newer than torch 2.7) call.
    longest = q.shape[1]
    out, lse = aten._flash_attention_forward(
        *_flat(bounds, q, k, v), bounds, bounds, longest, longest, 0.0, True, False
    )[:2]
    return out.view(q.shape), _lse_by_sequence(lse, bounds, q)


def _flash_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, bounds: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    longest = q.shape[1]
    unread = [q.new_empty(size, dtype=torch.uint64) for size in (2, ())]  # the state of a dropout that there is not
    tensors = (*_flat(bounds, dout, q, k, v, out), _lse_by_head(lse, bounds))
    dq, dk, dv = aten._flash_attention_backward(*tensors, bounds, bounds, longest, longest, 0.0, True, *unread)
    return dq.view(q.shape), dk.view(q.shape), dv.view(q.shape)


def _fa3_forward(q: Tensor, k: Tensor, v: Tensor, bounds: Tensor | None) -> tuple[Tensor, Tensor]:
    # By position: releases differ in names and defaults of arguments, not in the places of these.
    longest = None if bounds is None else q.shape[1]
    places = [
        *[None] * 4,  # new keys and values, another value, output
        *(
            bounds,
            bounds,
            None,
            None,
            None,
            longest,
            longest,
        ),  # boundaries of q, k, new k; used and longest, of q and k
        *[None] * 9,  # pages, batch index, left padding, three of rotary, three scales
    ]
    out, lse = _fa3()._flash_attn_forward(*_flat(bounds, q, k, v), *places, q.shape[-1] ** -0.5, True)[:2]
    return out.view(q.shape), _lse_by_sequence(lse, bounds, q)


def _fa3_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, bounds: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    dq, dk, dv = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
    longest = None if bounds is None else q.shape[1]
    _fa3()._flash_attn_backward(
        *_flat(bounds, dout, q, k, v, out),
        _lse_by_head(lse, bounds),
        *(bounds, bounds, None, None, longest, longest),  # boundaries, used, longest, each of q and k
        *_flat(bounds, dq, dk, dv),  # written
        q.shape[-1] ** -0.5,
        True,
        deterministic=torch.are_deterministic_algorithms_enabled(),
    )
    return dq, dk, dv


def _fa4_forward(q: Tensor, k: Tensor, v: Tensor, bounds: Tensor | None) -> tuple[Tensor, Tensor]:
    # Releases return 2, 4 or 5 values; the first two are these.
    tensors = _flat(bounds, q, k, v)
    out, lse = _fa4()._flash_attn_fwd(*tensors, causal=True, return_lse=True, **_fa4_lengths(bounds, q))[:2]
    return out.view(q.shape), _lse_by_sequence(lse, bounds, q)


def _fa4_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, bounds: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    tensors = (*_flat(bounds, q, k, v, out, dout), _lse_by_head(lse, bounds))
    deterministic = torch.are_deterministic_algorithms_enabled()
    lengths = _fa4_lengths(bounds, q)
    dq, dk, dv = _fa4()._flash_attn_bwd(*tensors, causal=True, deterministic=deterministic, **lengths)[:3]
    return dq.view(q.shape), dk.view(q.shape), dv.view(q.shape)


def _fa4_lengths(bounds: Tensor | None, q: Tensor) -> dict[str, Any]:
    longest = None if bounds is None else q.shape[1]
    return {'cu_seqlens_q': bounds, 'cu_seqlens_k': bounds, 'max_seqlen_q': longest, 'max_seqlen_k': longest}


@functools.cache
def _fa3() -> ModuleType:
    return importlib.import_module('flash_attn_interface')


@functools.cache
def _fa4() -> ModuleType:
    module = importlib.import_module('flash_attn.cute.interface')
    try:
        version = importlib.metadata.version('flash-attn-4')
    except importlib.metadata.PackageNotFoundError:
        raise ImportError('this flash_attn.cute is not of the package flash-attn-4') from None
    if not version.startswith('4.'):
        raise ImportError(f'flash-attn-4 {version} is none of the releases this was written for, {_FA4_READ}')
    return module


def _heads_first(*tensors: Tensor) -> Any:
    """``(B, T, H, K)`` as ``(B, H, T, K)``, or back."""
    return tuple(x.transpose(1, 2) for x in tensors)


def _of_heads(x: Tensor) -> Tensor:
    """``(T, H, K)`` as ``(H, T, K)``, in the dtype of the arithmetic."""
    return x.transpose(0, 1).to(torch.promote_types(x.dtype, torch.float32))


def _dense(*tensors: Tensor) -> list[Tensor]:
    """Copies those whose last dimension is not dense, which no kernel takes."""
    return [x if x.stride(-1) == 1 else x.contiguous() for x in tensors]


def _flat(bounds: Tensor | None, *tensors: Tensor) -> tuple[Tensor, ...]:
    """``(B, T, H, K)``, and with documents ``(B T, H, K)``."""
    return tensors if bounds is None else tuple(x.flatten(0, 1) for x in tensors)


def _lse_shape(q: Tensor) -> tuple[int, int, int]:
    num_sequences, num_tokens, num_heads, _ = q.shape
    return num_sequences, num_heads, num_tokens


def _lse_by_sequence(lse: Tensor, bounds: Tensor | None, q: Tensor) -> Tensor:
    """With documents, ``(H, B T)`` as ``(B, H, T)``."""
    return lse if bounds is None else lse.unflatten(1, q.shape[:2]).transpose(0, 1)


def _lse_by_head(lse: Tensor, bounds: Tensor | None) -> Tensor:
    """With documents, ``(B, H, T)`` as ``(H, B T)``."""
    return lse if bounds is None else lse.transpose(0, 1).flatten(1)


@dataclass(frozen=True)
class Backend:
    """One way to compute attention.

    Args:
        title (str): What computes it, in words for a log.
        devices (tuple[str, ...]): The types of device it can run on.
        documents (bool): Whether it can keep documents apart.
        forward (Callable): ``(q, k, v, bounds) -> (out, lse)``.
        backward (Callable): ``(dout, q, k, v, out, lse, bounds) -> (dq, dk, dv)``.
        load (Callable | None): Imports the package it is in; raises ImportError. ``None``: it is in torch.
    """

    title: str
    devices: tuple[str, ...]
    documents: bool
    forward: Callable[..., tuple[Tensor, Tensor]]
    backward: Callable[..., tuple[Tensor, Tensor, Tensor]]
    load: Callable[[], ModuleType] | None = None


BACKENDS = {
    'cudnn': Backend("cuDNN's attention", ('cuda',), False, _cudnn_forward, _cudnn_backward),
    'flash': Backend('FlashAttention 2, as in torch', ('cuda',), True, _flash_forward, _flash_backward),
    'fa3': Backend('FlashAttention 3', ('cuda',), True, _fa3_forward, _fa3_backward, _fa3),
    'fa4': Backend('FlashAttention 4', ('cuda',), True, _fa4_forward, _fa4_backward, _fa4),
    'efficient': Backend(
        "torch's memory-efficient attention", ('cuda',), False, _efficient_forward, _efficient_backward
    ),
    'cpu': Backend("torch's flash attention for CPUs", ('cpu',), True, _cpu_forward, _cpu_backward),
    'math': Backend('the definition in plain PyTorch', ('cuda', 'cpu'), True, _math_forward, _math_backward),
}
"""Every backend by its name. There is no default: a run measures and chooses, and says so."""


def attention_forward(
    q: Tensor, k: Tensor, v: Tensor, backend: str, bounds: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Attention for an operator with a backward of its own; no autograd.

    Args:
        q (Tensor): ``(B, T, H, K)``, as are ``k`` and ``v``; they may be views of one packed tensor.
        k (Tensor): Keys.
        v (Tensor): Values.
        backend (str): One of :data:`BACKENDS`.
        bounds (Tensor | None): What :func:`document_bounds` made.

    Returns:
        tuple[Tensor, Tensor]: The output, ``(B, T, H, K)``, and its ``lse``, ``(B, H, T)`` in fp32; both contiguous.
    """
    if not q.numel():
        return _attention_fake(q, k, v, backend, bounds)
    out, lse = BACKENDS[backend].forward(*_dense(q, k, v), bounds)
    return out.contiguous(), lse.contiguous()


def attention_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, backend: str, bounds: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of :func:`attention_forward`.

    Args:
        dout (Tensor): Gradient of the output, ``(B, T, H, K)``.
        q (Tensor): As in the forward.
        k (Tensor): As in the forward.
        v (Tensor): As in the forward.
        out (Tensor): What the forward returned.
        lse (Tensor): What the forward returned.
        backend (str): As in the forward.
        bounds (Tensor | None): As in the forward.

    Returns:
        tuple[Tensor, Tensor, Tensor]: Gradients of ``q``, ``k`` and ``v``, each ``(B, T, H, K)`` in the backend's strides.
    """
    if not q.numel():
        return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    return BACKENDS[backend].backward(dout.contiguous(), *_dense(q, k, v), out, lse, bounds)


@torch.library.custom_op('rewarm::attention', mutates_args=())
def _attention(q: Tensor, k: Tensor, v: Tensor, backend: str, bounds: Tensor | None) -> tuple[Tensor, Tensor]:
    return attention_forward(q, k, v, backend, bounds)


@_attention.register_fake
def _attention_fake(q: Tensor, k: Tensor, v: Tensor, backend: str, bounds: Tensor | None) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), q.new_empty(_lse_shape(q), dtype=torch.promote_types(q.dtype, torch.float32))


@torch.library.custom_op('rewarm::attention_backward', mutates_args=())
def _attention_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, backend: str, bounds: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    dq, dk, dv = attention_backward(dout, q, k, v, out, lse, backend, bounds)
    return dq.contiguous(), dk.contiguous(), dv.contiguous()


@_attention_backward.register_fake
def _(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, backend: str, bounds: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), q.new_empty(q.shape), q.new_empty(q.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, ctx.backend, bounds = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(q, k, v, *output, bounds)


def _differentiate(ctx: Any, dout: Tensor | None, _dlse: None) -> tuple[Tensor | None, ...]:
    if dout is None:
        return None, None, None, None, None
    q, k, v, out, lse, bounds = ctx.saved_tensors
    return *_attention_backward(dout, q, k, v, out, lse, ctx.backend, bounds), None, None


_attention.register_autograd(_differentiate, setup_context=_save)


def _check_packed(qkv: Tensor) -> None:
    if qkv.ndim != 5 or qkv.shape[3] != 3:
        raise ValueError(
            f'qkv must be (B, T, H, 3, K), with query, key and value in the last but one; got {tuple(qkv.shape)}'
        )


def _check_boundaries(cu_seqlens: Tensor, like: Tensor) -> None:
    if cu_seqlens.ndim != 1 or cu_seqlens.dtype != torch.int32 or cu_seqlens.device != like.device:
        raise ValueError(
            f'cu_seqlens must be (documents + 1,) in int32 on {like.device}; '
            f'got {tuple(cu_seqlens.shape)} in {cu_seqlens.dtype} on {cu_seqlens.device}'
        )


def check_backend(backend: str, cu_seqlens: Tensor | None, like: Tensor) -> None:
    """Checks what an operator is asked for before it computes.

    Args:
        backend (str): Its name.
        cu_seqlens (Tensor | None): Boundaries of documents that it is to keep apart.
        like (Tensor): On the device where it computes.

    Raises:
        ValueError: If there is no such backend, it cannot keep documents apart, or the boundaries are none.
    """
    if backend not in BACKENDS:
        raise ValueError(f'there is no attention backend {backend!r}: it must be one of {", ".join(BACKENDS)}')
    if cu_seqlens is None:
        return
    if not BACKENDS[backend].documents:
        able = ', '.join(name for name, each in BACKENDS.items() if each.documents)
        raise ValueError(f'the attention backend {backend!r} cannot keep documents apart: {able} can')
    _check_boundaries(cu_seqlens, like)


def attend(q: Tensor, k: Tensor, v: Tensor, backend: str, cu_seqlens: Tensor | None = None) -> Tensor:
    """Causal attention over separate queries, keys and values; differentiable in all three.

    Args:
        q (Tensor): ``(B, T, H, K)``.
        k (Tensor): ``(B, T, H, K)``.
        v (Tensor): ``(B, T, H, K)``.
        backend (str): One of :data:`BACKENDS`.
        cu_seqlens (Tensor | None): Boundaries of documents in the B T tokens, ``(documents + 1,)`` in int32.

    Returns:
        Tensor: ``(B, T, H, K)``.

    Raises:
        ValueError: If the shapes differ, there is no such backend, or it cannot keep documents apart.
    """
    if q.ndim != 4 or not q.shape == k.shape == v.shape:
        shapes = ', '.join(str(tuple(x.shape)) for x in (q, k, v))
        raise ValueError(f'q, k and v must all be of one shape (B, T, H, K), got {shapes}')
    check_backend(backend, cu_seqlens, q)
    bounds = None if cu_seqlens is None else document_bounds(cu_seqlens, q.shape[0], q.shape[1])
    return _attention(q, k, v, backend, bounds)[0]


def attention(qkv: Tensor, backend: str, cu_seqlens: Tensor | None = None) -> Tensor:
    """Causal attention over packed queries, keys and values; differentiable in ``qkv``.

    Args:
        qkv (Tensor): ``(B, T, H, 3, K)``, as GPT-NeoX packs them.
        backend (str): One of :data:`BACKENDS`; nothing else runs in its place.
        cu_seqlens (Tensor | None): Boundaries of documents in the B T tokens, ``(documents + 1,)`` in int32, from 0 to
            B T; a token attends inside its document. ``None``: inside its sequence.

    Returns:
        Tensor: ``(B, T, H * K)``, in the dtype of ``qkv``.

    Raises:
        ValueError: If a shape is not as above, there is no such backend, or it cannot keep documents apart.
    """
    _check_packed(qkv)
    q, k, v = qkv.unbind(3)
    return attend(q, k, v, backend, cu_seqlens).flatten(2)
