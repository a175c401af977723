"""A projection without a bias whose weight is fp32 and whose product is taken in the dtype of the activations.

    y = x W',   dx = dy W,   dW = dy' x

The products are cuBLAS's. What the operator adds to them: the weight is cast once, for the forward and the backward, and
its gradient leaves the product in fp32, where differentiating the cast would round it to bf16 and cast it back. A bias
belongs into whatever reads the result next; a pass of its own would move 2 E more numbers a row.

Bytes moved per row of D inputs and E outputs of S bytes: (D + E) S forward, 2 (D + E) S backward; 2 D E operations
forward and 4 D E backward bound it. Once per call: 4 + S bytes a weight for the cast, 4 for the gradient.

Numerics: products accumulate in fp32 and are rounded once; dW is not rounded.

Shapes: N = rows (all leading dimensions), D = inputs, E = outputs.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from rewarm_kernels.launch import runs_kernels
from rewarm_kernels.matmul import cast_once, mm_fp32

__all__ = ['linear', 'linear_ref']


def linear_ref(x: Tensor, weight: Tensor) -> Tensor:
    """Definition of :func:`linear`, in plain PyTorch."""
    return functional.linear(x, weight.to(x.dtype))


@torch.library.custom_op('rewarm::linear', mutates_args=())
def _linear(x: Tensor, weight: Tensor, weight_cast: Tensor) -> Tensor:
    return x @ weight_cast.t()


@_linear.register_fake
def _(x: Tensor, weight: Tensor, weight_cast: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])


@torch.library.custom_op('rewarm::linear_backward', mutates_args=())
def _linear_backward(dy: Tensor, x: Tensor, weight_cast: Tensor) -> tuple[Tensor, Tensor]:
    dy = dy.contiguous()
    return dy @ weight_cast, mm_fp32(dy.t(), x)


@_linear_backward.register_fake
def _(dy: Tensor, x: Tensor, weight_cast: Tensor) -> tuple[Tensor, Tensor]:
    wide = torch.promote_types(x.dtype, torch.float32)
    return x.new_empty(x.shape), weight_cast.new_empty(weight_cast.shape, dtype=wide)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, weight_cast = inputs
    ctx.weight_dtype = weight.dtype
    ctx.save_for_backward(x, weight_cast)


def _backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, None]:
    dx, dweight = _linear_backward(dy, *ctx.saved_tensors)
    return dx, dweight.to(ctx.weight_dtype), None


_linear.register_autograd(_backward, setup_context=_save)


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """Multiplies by the transpose of a weight; differentiable in both.

    Args:
        x (Tensor): ``(..., D)``, bf16 or fp32.
        weight (Tensor): ``(E, D)``, fp32; its gradient is fp32.

    Returns:
        Tensor: ``x W'``, ``(..., E)``, in the dtype of ``x``.

    Raises:
        ValueError: If the weight does not fit.
    """
    if weight.ndim != 2 or weight.shape[1] != x.shape[-1]:
        raise ValueError(
            f'weight must be (outputs, last dimension of x): weight {tuple(weight.shape)}, x {tuple(x.shape)}'
        )
    if not runs_kernels(x, weight):
        return linear_ref(x, weight)
    y = _linear(x.reshape(-1, x.shape[-1]), weight, cast_once(weight, x))
    return y.view(*x.shape[:-1], weight.shape[0])
