"""Causal attention behind one function.

    out = softmax(q @ k.T / sqrt(K), keys at or before the query only) @ v

Documents packed into one block attend to each other, as in Pythia's own training. The kernels are those of
:mod:`rewarm_kernels.attention`; :mod:`rewarm.model.attention_choice` chooses one of them.

Shapes: B = batch, H = heads, T = tokens, K = head dimension.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from rewarm_kernels.attention import attend
from torch import Tensor
from torch.nn import functional as F

__all__ = ['Attention', 'Choice', 'attention_named', 'attention_ref', 'scaled_dot_product']


@dataclass(frozen=True)
class Choice:
    """Which backend of :data:`rewarm_kernels.attention.BACKENDS` runs, and why; strings, to be sent to other ranks.

    Args:
        backend (str): Its name.
        description (str): What it is and why it was chosen, in words for the log.
    """

    backend: str
    description: str


@dataclass(frozen=True)
class Attention:
    """A chosen causal attention; called with query, key and value of ``(B, H, T, K)``, it gives ``(B, H, T, K)``.

    Args:
        backend (str): Its name in :data:`rewarm_kernels.attention.BACKENDS`, for operators that hold an attention.
        description (str): What computes it, in words for the log.
        function (Callable): The function that does.
    """

    backend: str
    description: str
    function: Callable[[Tensor, Tensor, Tensor], Tensor]

    def __call__(self, q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor) -> Tensor:
        """Computes causal attention."""
        return self.function(q_BHTK, k_BHTK, v_BHTK)


def attention_named(choice: Choice) -> Attention:
    """Builds what was chosen.

    Args:
        choice (Choice): What :func:`choose_backend` gave, here or on another rank.

    Returns:
        Attention: The function over query, key and value, and the backend's name.
    """
    if choice.backend == 'cpu':  # the same kernel, without the cost of an operator in Python
        return Attention(choice.backend, choice.description, scaled_dot_product)
    return Attention(choice.backend, choice.description, functools.partial(_attend, choice.backend))


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


def _attend(backend: str, q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor) -> Tensor:
    q_BTHK, k_BTHK, v_BTHK = (x_BHTK.transpose(1, 2) for x_BHTK in (q_BHTK, k_BHTK, v_BHTK))
    return attend(q_BTHK, k_BTHK, v_BTHK, backend).transpose(1, 2)
