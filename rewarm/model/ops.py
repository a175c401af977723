"""The operations of the model behind one door, :class:`Ops`, and the plain PyTorch functions that define them.

Which implementation runs is decided once, by :func:`choose_ops`, and its description is logged. The cuts between
operations are where fused kernels pay (bytes moved, not arithmetic, is what they save): the LayerNorm, the partial
rotary embedding on the packed queries, keys and values, the GELU between the two MLP projections, and the vocabulary
projection with its loss. Parameters are fp32; an operation casts them to the dtype of the activations it is given, so
no autocast context is needed. Normalization, rotation and loss are computed in fp32 and rounded once.

Shapes: B = batch, T = tokens, D = width, H = heads, K = head dimension, R = half of the rotated dimensions,
F = MLP width, V = vocabulary, N = rows (B * T).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from rewarm.config.errors import UserError

__all__ = [
    'IGNORED_LABEL',
    'TORCH_OPS',
    'Ops',
    'choose_ops',
    'gelu_mlp',
    'layer_norm',
    'linear',
    'linear_cross_entropy',
    'logits_chunk_rows',
    'rotary',
    'rotary_tables',
]

IGNORED_LABEL = -100
"""Label of a position that is no target: it counts neither in the loss nor in the number of targets."""

CPU_LOGITS_BYTES = 8 * 2**20
"""fp32 logits held at once on a CPU, if that is MIN_CHUNK_ROWS of them: they stay in its cache between two passes."""

GPU_LOGITS_BYTES = 2**30
"""fp32 logits held at once on a GPU: 5,312 rows at V = 50,304, where all 65,536 rows of a microbatch would be 13 GB."""

MIN_CHUNK_ROWS = 256
"""Each chunk reads and writes the weight's fp32 gradient once; with fewer rows that outweighs the cache
(2 cores, V = 50,304, D = 1,024, 1,024 rows: 64 rows 4.5 s, 128 rows 3.9 s, 320 rows 3.7 s; unchunked 4.0 s)."""


@dataclass(frozen=True)
class Ops:
    """The operations of a model, chosen once.

    Args:
        description (str): What was chosen and why, in words for the log.
        layer_norm (Callable): See :func:`layer_norm`.
        rotary (Callable): See :func:`rotary`.
        gelu_mlp (Callable): See :func:`gelu_mlp`.
        linear_cross_entropy (Callable): See :func:`linear_cross_entropy`.
    """

    description: str
    layer_norm: Callable[[Tensor, Tensor, Tensor, float], Tensor]
    rotary: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
    gelu_mlp: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, str], Tensor]
    linear_cross_entropy: Callable[[Tensor, Tensor, Tensor], Tensor]


def choose_ops(kernels: str, device: torch.device | str) -> Ops:
    """Chooses the implementation of the model's operations.

    Args:
        kernels (str): ``auto``, ``triton`` or ``torch``, the run file's ``model.kernels``.
        device (torch.device | str): Where the model will run.

    Returns:
        Ops: The operations; log their ``description``.

    Raises:
        UserError: If ``triton`` is asked for, or the name is unknown.
    """
    where = torch.device(device).type
    if kernels == 'torch':
        return _torch_ops(f'plain PyTorch on {where}, as asked for')
    if kernels == 'auto':
        return _torch_ops(f'plain PyTorch on {where}, the only implementation in this version')
    if kernels == 'triton':
        raise UserError(
            '`model.kernels: triton` was asked for, and this version has no Triton kernels. '
            'Write `kernels: torch` or `kernels: auto`.'
        )
    raise UserError(f'`model.kernels` must be one of auto, triton, torch, got {kernels!r}')


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Applies ``x @ weight.T + bias`` in the dtype of ``x``.

    Args:
        x (Tensor): ``(..., D)``.
        weight (Tensor): ``(F, D)``, fp32.
        bias (Tensor | None): ``(F,)``, fp32.

    Returns:
        Tensor: ``(..., F)``, in the dtype of ``x``.
    """
    return F.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Normalizes the last dimension; statistics and affine part in fp32, rounded once.

    Args:
        x (Tensor): ``(..., D)``.
        weight (Tensor): ``(D,)``, fp32.
        bias (Tensor): ``(D,)``, fp32.
        eps (float): Added to the variance.

    Returns:
        Tensor: ``(..., D)``, in the dtype of ``x``.
    """
    return F.layer_norm(x.float(), weight.shape, weight, bias, eps).to(x.dtype)


def rotary_tables(num_tokens: int, rotary_dim: int, base: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotary embedding at positions 0 to ``num_tokens - 1``.

    Computed at each forward pass rather than kept in a buffer: a few microseconds, and a model that was built on the
    ``meta`` device has nothing to forget.

    Args:
        num_tokens (int): T.
        rotary_dim (int): Rotated dimensions of each head, ``2 R``.
        base (float): Base of the geometric series of wavelengths.
        device (torch.device): Where to put the tables.

    Returns:
        tuple[Tensor, Tensor]: Cosines and sines, each ``(T, R)`` in fp32.

    Source: Su et al. 2021, https://arxiv.org/abs/2104.09864.
    """
    exponents_R = torch.arange(0, rotary_dim, 2, dtype=torch.float32, device=device) / rotary_dim
    positions_T = torch.arange(num_tokens, dtype=torch.float32, device=device)
    angles_TR = positions_T[:, None] * (1.0 / base**exponents_R)
    return angles_TR.cos(), angles_TR.sin()


def rotary(qkv_BTHC: Tensor, cos_TR: Tensor, sin_TR: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rotates the first ``2 R`` dimensions of queries and keys (rotate-half) and takes the packed tensor apart.

    Args:
        qkv_BTHC (Tensor): ``(B, T, H, 3 K)``: each head's query, key and value side by side, as GPT-NeoX packs them.
        cos_TR (Tensor): ``(T, R)``, fp32.
        sin_TR (Tensor): ``(T, R)``, fp32.

    Returns:
        tuple[Tensor, Tensor, Tensor]: Query, key and value, each ``(B, H, T, K)`` in the dtype of ``qkv_BTHC``.
    """
    half = cos_TR.shape[-1]
    head_dim = qkv_BTHC.shape[-1] // 3
    qk_BTHC, v_BTHK = qkv_BTHC.split((2 * head_dim, head_dim), dim=-1)
    qk_BTH2K = qk_BTHC.unflatten(-1, (2, head_dim))  # one rotation for both
    first, second, rest = qk_BTH2K.split((half, half, head_dim - 2 * half), dim=-1)
    cos, sin = cos_TR[:, None, None, :], sin_TR[:, None, None, :]
    rotated = (first * cos - second * sin, second * cos + first * sin)  # fp32 whatever the dtype of qkv
    qk_BTH2K = torch.cat((rotated[0].to(rest.dtype), rotated[1].to(rest.dtype), rest), dim=-1)
    q_BTHK, k_BTHK = qk_BTH2K.unbind(dim=-2)
    return q_BTHK.transpose(1, 2), k_BTHK.transpose(1, 2), v_BTHK.transpose(1, 2)


def gelu_mlp(
    x: Tensor, weight_in: Tensor, bias_in: Tensor, weight_out: Tensor, bias_out: Tensor, approximate: str
) -> Tensor:
    """The two projections of the MLP with a GELU between them.

    Args:
        x (Tensor): ``(..., D)``.
        weight_in (Tensor): ``(F, D)``, fp32.
        bias_in (Tensor): ``(F,)``, fp32.
        weight_out (Tensor): ``(D, F)``, fp32.
        bias_out (Tensor): ``(D,)``, fp32.
        approximate (str): ``tanh`` or ``none`` (the exact one, by the error function).

    Returns:
        Tensor: ``(..., D)``, in the dtype of ``x``.
    """
    return linear(F.gelu(linear(x, weight_in, bias_in), approximate=approximate), weight_out, bias_out)


def logits_chunk_rows(vocab_size: int, device: torch.device) -> int:
    """Rows whose logits are held at once by :func:`linear_cross_entropy`, from the constants above.

    Args:
        vocab_size (int): V.
        device (torch.device): Where the logits will be.

    Returns:
        int: A multiple of 64.
    """
    budget = CPU_LOGITS_BYTES if device.type == 'cpu' else GPU_LOGITS_BYTES
    return max(MIN_CHUNK_ROWS, budget // (4 * vocab_size) // 64 * 64)


def linear_cross_entropy(hidden_ND: Tensor, weight_VD: Tensor, labels_N: Tensor) -> Tensor:
    """Sum of the cross-entropy of ``softmax(hidden @ weight.T)``, never holding more than a chunk of logits.

    The gradients of a chunk are made while its logits exist, in the forward pass: three matrix products as in the plain
    way, where recomputing the logits in the backward pass would take four. Logits come in the dtype of ``hidden_ND``
    from the matrix product; everything after it is fp32, the sum over rows is fp64, and the gradient of the weight is
    accumulated over chunks in fp32.

    Args:
        hidden_ND (Tensor): ``(N, D)``.
        weight_VD (Tensor): ``(V, D)``, fp32.
        labels_N (Tensor): ``(N,)``, int64; ``IGNORED_LABEL`` marks rows that do not count.

    Returns:
        Tensor: Sum over the rows that count, in nats; a scalar in fp64. Divide by the number of such rows.
    """
    rows = logits_chunk_rows(weight_VD.shape[0], hidden_ND.device)
    return cast(Tensor, _LinearCrossEntropy.apply(hidden_ND, weight_VD, labels_N, rows, torch.is_grad_enabled()))


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, labels_N: Tensor, chunk_rows: int, wants_grad: bool
    ) -> Tensor:
        weight_cast_VD = weight_VD.to(hidden_ND.dtype)
        grad_hidden_ND = torch.empty_like(hidden_ND) if wants_grad else None
        grad_weight_VD = torch.zeros_like(weight_VD) if wants_grad else None
        losses_N = torch.empty(len(hidden_ND), dtype=torch.float32, device=hidden_ND.device)
        for start in range(0, len(hidden_ND), chunk_rows):
            rows = slice(start, start + chunk_rows)
            hidden, labels = hidden_ND[rows], labels_N[rows, None]
            counts = labels != IGNORED_LABEL
            targets = labels.where(counts, 0)
            log_probs = (hidden @ weight_cast_VD.T).float().log_softmax(dim=-1)
            target_log_probs = log_probs.gather(1, targets)
            losses_N[rows] = -target_log_probs.where(counts, 0.0).squeeze(1)
            if grad_hidden_ND is None or grad_weight_VD is None:
                continue
            # d loss / d logits = softmax - onehot, and nothing for rows that do not count: dropped in (N, D), not in (N, V)
            grad_logits = log_probs.exp_().scatter_(1, targets, target_log_probs.exp() - 1).to(hidden.dtype)
            grad_hidden_ND[rows] = (grad_logits @ weight_cast_VD).where(counts, 0.0)
            counted_hidden = hidden.where(counts, 0.0)
            if hidden.dtype == grad_weight_VD.dtype:
                grad_weight_VD.addmm_(grad_logits.T, counted_hidden)
            else:
                grad_weight_VD += grad_logits.T @ counted_hidden
        if grad_hidden_ND is not None:
            ctx.save_for_backward(grad_hidden_ND, grad_weight_VD)
        return losses_N.sum(dtype=torch.float64)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        grad_hidden_ND, grad_weight_VD = ctx.saved_tensors
        scale = grad_outputs[0].float()
        return grad_hidden_ND * scale.to(grad_hidden_ND.dtype), grad_weight_VD * scale, None, None, None


def _torch_ops(description: str) -> Ops:
    return Ops(description, layer_norm, rotary, gelu_mlp, linear_cross_entropy)


TORCH_OPS = _torch_ops('plain PyTorch')
"""The definitions: what every other implementation is tested against."""
