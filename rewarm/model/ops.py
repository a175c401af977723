"""The operations of the model behind one door, :class:`Ops`: plain PyTorch or fused Triton kernels.

Which implementation runs is decided once, by :func:`choose_ops`, and its description is logged; before that,
:func:`rewarm.model.trial.try_ops` tries the kernels that would run. The cuts between
operations are where fusion saves bytes: the residual sum with both LayerNorms, the packed queries, keys and values
(projected, rotated in place and attended to), the MLP, and the vocabulary projection with its loss. Each fused
operation has its definition in plain PyTorch beside it in ``rewarm_kernels``; where no kernels run, the definitions do.

Parameters are fp32; an operation casts them to the dtype of the activations it is given, so no autocast context is
needed. Normalization, rotation and loss are computed in fp32 and rounded once.

Shapes: B = batch, T = tokens, D = width, H = heads, K = head dimension, R = half of the rotated dimensions,
F = MLP width, V = vocabulary, N = rows (B * T).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import rewarm_kernels
import torch
from rewarm_kernels.launch import INTERPRETED
from torch import Tensor
from torch.nn import functional as F

from rewarm.config.errors import UserError
from rewarm.model.attention import Attention, scaled_dot_product

__all__ = ['IGNORED_LABEL', 'TORCH_OPS', 'Ops', 'choose_ops', 'rotary_tables', 'wanted_kernels']

IGNORED_LABEL = -100
"""Label of a position that is no target: it counts neither in the loss nor in the number of targets."""

FUSED_OPS = ('add_dual_layer_norm', 'rotary', 'bias_gelu', 'linear_cross_entropy')
"""The operations that a run file can choose an implementation for."""

OLDEST_CAPABILITY = (8, 0)
"""Compute capability of Ampere: bf16 in hardware, and what the kernels are compiled ahead of time for."""


@dataclass(frozen=True)
class Ops:
    """The operations of a model, chosen once; those of ``rewarm_kernels`` are described there.

    Args:
        description (str): What was chosen and why, in words for the log.
        add_dual_layer_norm (Callable): Residual sum and one or two LayerNorms.
        qkv_attention (Callable): Projection, rotary embedding and attention: ``(y, weight, bias, cos, sin, num_heads)``,
            ``(B, T, D)`` in and out.
        linear (Callable): ``x W'`` without a bias.
        mlp (Callable): Both projections with a GELU between them, without the second bias.
        linear_cross_entropy (Callable): Summed loss and number of targets.
    """

    description: str
    add_dual_layer_norm: Callable[..., tuple[Tensor, Tensor, Tensor | None]]
    qkv_attention: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, int], Tensor]
    linear: Callable[[Tensor, Tensor], Tensor]
    mlp: Callable[[Tensor, Tensor, Tensor, Tensor, str], Tensor]
    linear_cross_entropy: Callable[..., tuple[Tensor, Tensor]]


def wanted_kernels(choices: Mapping[str, str], device: torch.device | str) -> list[str]:
    """Names the operations whose Triton kernels would run.

    Args:
        choices (Mapping[str, str]): ``auto``, ``triton`` or ``torch`` for each of ``FUSED_OPS``: the run file's
            ``model.kernels``.
        device (torch.device | str): Where the model will run.

    Returns:
        list[str]: Of ``FUSED_OPS``.

    Raises:
        UserError: If Triton kernels are asked for by name where they cannot run.
    """
    obstacle = _obstacle(torch.device(device))
    if obstacle is not None and 'triton' in choices.values():
        raise UserError(
            f'`model.kernels` asks for Triton kernels, and {obstacle}. Write `kernels: auto` or `kernels: torch`.'
        )
    # Interpreted kernels are for tests: nobody gets them without asking.
    auto = obstacle is None and not INTERPRETED
    return [op for op in FUSED_OPS if choices[op] == 'triton' or (choices[op] == 'auto' and auto)]


def choose_ops(
    choices: Mapping[str, str],
    device: torch.device | str,
    attention: Attention,
    faults: Mapping[str, str] | None = None,
) -> Ops:
    """Chooses the implementation of each operation.

    Args:
        choices (Mapping[str, str]): ``auto``, ``triton`` or ``torch`` for each of ``FUSED_OPS``: the run file's
            ``model.kernels``.
        device (torch.device | str): Where the model will run.
        attention (Attention): What :func:`rewarm.model.attention_choice.choose_attention` chose.
        faults (Mapping[str, str] | None): What :func:`rewarm.model.trial.try_ops` found, here or on another rank: those
            operations are left to plain PyTorch. ``None`` if nothing was tried.

    Returns:
        Ops: The operations; log their ``description``.

    Raises:
        UserError: If Triton kernels are asked for by name where they cannot run.
    """
    wanted = wanted_kernels(choices, device)
    triton = {op: op in wanted and op not in (faults or {}) for op in FUSED_OPS}
    return Ops(
        _describe(triton, choices, _obstacle(torch.device(device)), faults),
        add_dual_layer_norm=_pick(triton, 'add_dual_layer_norm'),
        qkv_attention=_fused_qkv_attention(attention) if triton['rotary'] else _torch_qkv_attention(attention),
        linear=rewarm_kernels.linear if all(triton.values()) else rewarm_kernels.linear_ref,
        mlp=rewarm_kernels.mlp if triton['bias_gelu'] else rewarm_kernels.mlp_ref,
        linear_cross_entropy=_pick(triton, 'linear_cross_entropy'),
    )


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


def _obstacle(device: torch.device) -> str | None:
    """Why Triton kernels cannot run on a device, in words; ``None`` if they can."""
    if INTERPRETED:
        return None
    if device.type != 'cuda':
        return f'they need a CUDA device, and this is a {device.type}'
    if (capability := torch.cuda.get_device_capability(device)) < OLDEST_CAPABILITY:
        return f'they need compute capability 8.0 (Ampere), and this device has {capability[0]}.{capability[1]}'
    return None


def _describe(
    triton: dict[str, bool], choices: Mapping[str, str], obstacle: str | None, faults: Mapping[str, str] | None
) -> str:
    fused = [op for op, chosen in triton.items() if chosen]
    asked = [op for op in FUSED_OPS if op not in (*fused, *(faults or {}))]
    where = ', interpreted on the CPU, which is for tests' if INTERPRETED and fused else ''
    tried = '' if faults is None else ', each tried now and right'
    exceptions = [f'{", ".join(asked)}, as asked for'] if asked else []
    exceptions += [f'{op}, whose kernel {fault}' for op, fault in (faults or {}).items()]
    if fused:
        return f'Triton kernels{where}{tried}' + (
            f', but plain PyTorch for {"; for ".join(exceptions)}' if exceptions else ''
        )
    if faults:
        return f'plain PyTorch for {"; for ".join(exceptions)}'
    if all(choices[op] == 'torch' for op in asked):
        return 'plain PyTorch, as asked for'
    return f'plain PyTorch, since Triton kernels {f"cannot run: {obstacle}" if obstacle else "would be interpreted"}'


def _pick(triton: dict[str, bool], op: str) -> Callable[..., tuple]:
    return getattr(rewarm_kernels, op if triton[op] else f'{op}_ref')


def _fused_qkv_attention(attention: Attention) -> Callable[..., Tensor]:
    def attend(y: Tensor, weight: Tensor, bias: Tensor, cos: Tensor, sin: Tensor, num_heads: int) -> Tensor:
        return rewarm_kernels.qkv_attention(y, weight, bias, cos, sin, num_heads, attention.backend)

    return attend


def _torch_qkv_attention(attention: Attention) -> Callable[..., Tensor]:
    def attend(y: Tensor, weight: Tensor, bias: Tensor, cos: Tensor, sin: Tensor, num_heads: int) -> Tensor:
        qkv_BTH3K = F.linear(y, weight.to(y.dtype), bias.to(y.dtype)).unflatten(-1, (num_heads, 3, -1))
        q, k, v = rewarm_kernels.rotary_ref(qkv_BTH3K, cos, sin).transpose(1, 2).unbind(3)  # each (B, H, T, K)
        return attention(q, k, v).transpose(1, 2).flatten(2)

    return attend


_UNTRIED = Attention('math', 'scaled_dot_product_attention, untried', scaled_dot_product)
TORCH_OPS = choose_ops(dict.fromkeys(FUSED_OPS, 'torch'), 'cpu', _UNTRIED)
"""Plain PyTorch everywhere: what every other implementation is tested against."""
