"""Causal attention behind one function, and which kernel computes it.

    out = softmax(q @ k.T / sqrt(K), keys at or before the query only) @ v

Documents packed into one block attend to each other, as in Pythia's own training. PyTorch's
``scaled_dot_product_attention`` gives the portable kernels; FlashAttention 3 and 4 are separate packages. A kernel that
is asked for by name is tried on a small input, forward and backward, before the run relies on it.

Shapes: B = batch, H = heads, T = tokens, K = head dimension.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from rewarm.config.errors import UserError

__all__ = ['Attention', 'attention_ref', 'choose_attention', 'scaled_dot_product']

_SDPA_BACKENDS = {
    'cudnn': SDPBackend.CUDNN_ATTENTION,
    'flash': SDPBackend.FLASH_ATTENTION,
    'math': SDPBackend.MATH,
}
_PACKAGES = {  # module, what it is, how to get it
    'fa3': (
        'flash_attn_interface',
        'FlashAttention 3',
        'build it from github.com/Dao-AILab/flash-attention, folder hopper',
    ),
    'fa4': ('flash_attn.cute', 'FlashAttention 4', 'pip install flash-attn-4'),
}
_PROBE_TOLERANCE = 3e-2
"""Largest difference to :func:`attention_ref` of a kernel that is right: four times bf16's rounding of values near 1."""


@dataclass(frozen=True)
class Attention:
    """A chosen causal attention; called with query, key and value of ``(B, H, T, K)``, it gives ``(B, H, T, K)``.

    Args:
        description (str): What computes it, in words for the log.
        function (Callable): The function that does.
    """

    description: str
    function: Callable[[Tensor, Tensor, Tensor], Tensor]

    def __call__(self, q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor) -> Tensor:
        """Computes causal attention."""
        return self.function(q_BHTK, k_BHTK, v_BHTK)


def choose_attention(
    name: str, device: torch.device | str, *, head_dim: int = 64, dtype: torch.dtype = torch.float32
) -> Attention:
    """Chooses the kernel of causal attention and tries it.

    Args:
        name (str): ``auto``, ``cudnn``, ``flash``, ``fa3``, ``fa4`` or ``math``, the run file's ``model.attention``.
        device (torch.device | str): Where the model will run.
        head_dim (int): K of the model.
        dtype (torch.dtype): The model's ``compute_dtype``.

    Returns:
        Attention: The function; log its ``description``.

    Raises:
        UserError: If what was asked for is absent, does not run here, or gives wrong numbers.
    """
    where = torch.device(device)
    if name == 'auto':
        kernel = _sdpa_choice(where, head_dim, dtype)
        return Attention(f'scaled_dot_product_attention, which picks its {kernel} kernel here', scaled_dot_product)
    if name in _SDPA_BACKENDS:
        attention = _sdpa_attention(name)
    elif name in _PACKAGES:
        attention = _package_attention(name)
    else:
        raise UserError(f'`model.attention` must be one of auto, cudnn, flash, fa3, fa4, math, got {name!r}')
    _probe(name, attention, where, head_dim, dtype)
    return attention


def scaled_dot_product(q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor) -> Tensor:
    """Causal attention by the kernel that PyTorch prefers for these inputs.

    Args:
        q_BHTK (Tensor): Queries, ``(B, H, T, K)``.
        k_BHTK (Tensor): Keys, ``(B, H, T, K)``.
        v_BHTK (Tensor): Values, ``(B, H, T, K)``.

    Returns:
        Tensor: ``(B, H, T, K)``.
    """
    return F.scaled_dot_product_attention(q_BHTK, k_BHTK, v_BHTK, is_causal=True)


def attention_ref(q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor) -> Tensor:
    """The definition of causal attention, in the dtype of its inputs.

    Args:
        q_BHTK (Tensor): Queries, ``(B, H, T, K)``.
        k_BHTK (Tensor): Keys, ``(B, H, T, K)``.
        v_BHTK (Tensor): Values, ``(B, H, T, K)``.

    Returns:
        Tensor: ``(B, H, T, K)``.
    """
    scores_BHTT = q_BHTK @ k_BHTK.transpose(-1, -2) / q_BHTK.shape[-1] ** 0.5
    is_future_TT = torch.ones(scores_BHTT.shape[-2:], dtype=torch.bool, device=q_BHTK.device).triu(1)
    return scores_BHTT.masked_fill(is_future_TT, float('-inf')).softmax(dim=-1) @ v_BHTK


def _sdpa_attention(name: str) -> Attention:
    backend = _SDPA_BACKENDS[name]

    def attend(q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor) -> Tensor:
        with sdpa_kernel(backend):
            return scaled_dot_product(q_BHTK, k_BHTK, v_BHTK)

    return Attention(f'scaled_dot_product_attention, held to its {name} kernel', attend)


def _package_attention(name: str) -> Attention:
    module_name, title, remedy = _PACKAGES[name]
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise UserError(
            f'`model.attention: {name}` was asked for, and {title} cannot be imported here ({error}). '
            f'To have it: {remedy}; otherwise write `attention: auto`.'
        ) from error

    def attend(q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor) -> Tensor:
        # These packages want (B, T, H, K), and some releases return (out, log-sum-exp, ...).
        out = module.flash_attn_func(*(x.transpose(1, 2) for x in (q_BHTK, k_BHTK, v_BHTK)), causal=True)
        return (out[0] if isinstance(out, tuple) else out).transpose(1, 2)

    return Attention(f'{title}, from the package {module_name}', attend)


def _probe(name: str, attention: Attention, device: torch.device, head_dim: int, dtype: torch.dtype) -> None:
    """Runs a kernel forward and backward on a small input and compares it with the definition."""
    generator = torch.Generator('cpu').manual_seed(0)
    inputs = [
        torch.randn(1, 2, 128, head_dim, generator=generator).to(device, dtype).requires_grad_() for _ in range(3)
    ]
    try:
        out = attention(*inputs)
        grads = torch.autograd.grad(out.float().square().sum(), inputs)
    except (RuntimeError, TypeError, ValueError, AssertionError, NotImplementedError) as error:
        raise UserError(
            f'`model.attention: {name}` was asked for, and it does not run on this {device.type} with {dtype} and heads of '
            f'{head_dim} dimensions: {str(error).partition(chr(10))[0]} Write `attention: auto`, or another of cudnn, flash, math.'
        ) from error
    doubles = [x.detach().double().requires_grad_() for x in inputs]
    expected = attention_ref(*doubles)
    expected_grads = torch.autograd.grad(expected.square().sum(), doubles)
    for got, want in zip((out, *grads), (expected, *expected_grads), strict=True):
        error = ((got.double() - want).abs().max() / want.abs().max()).item()
        if not error <= _PROBE_TOLERANCE:
            raise UserError(
                f'`model.attention: {name}` was asked for, and {attention.description}, gives wrong numbers here '
                f'(relative error {error:.2g} on a small input). Write `attention: auto`.'
            )


def _sdpa_choice(device: torch.device, head_dim: int, dtype: torch.dtype) -> str:
    x_BHTK = torch.zeros(1, 2, 128, head_dim, device=device, dtype=dtype)
    choice = SDPBackend(torch._fused_sdp_choice(x_BHTK, x_BHTK, x_BHTK, is_causal=True))  # pyright: ignore[reportPrivateImportUsage]
    return choice.name.lower().removesuffix('_attention')
