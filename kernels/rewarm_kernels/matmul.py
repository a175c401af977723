"""Matrix products with fp32 results of bf16 factors: what a weight's gradient is made of.

cuBLAS accumulates in fp32 anyway; asking it for the fp32 result keeps what rounding to bf16 would throw away, and
``addmm`` adds to an fp32 total without a pass of its own. Both forms are newer than torch 2.7, where the product is
taken of fp32 copies.
"""

import torch
from torch import Tensor

__all__ = ['add_mm_fp32_', 'cast_once', 'mm_fp32']

_HAS_OUT_DTYPE = 'dtype' in torch.ops.aten.mm.overloads()
"""Whether this torch has ``mm(..., out_dtype=)``; the CUDA build implements it, the CPU build does not."""


def mm_fp32(a: Tensor, b: Tensor) -> Tensor:
    """Multiplies two matrices of one dtype; the result is fp32 (fp64 of fp64)."""
    if a.dtype in (torch.float32, torch.float64):
        return a @ b
    if a.is_cuda and _HAS_OUT_DTYPE:
        return torch.mm(a, b, out_dtype=torch.float32)
    return a.float() @ b.float()


def add_mm_fp32_(total: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Adds the product of two matrices to an fp32 total, in place; returns it."""
    if a.dtype == total.dtype:
        return total.addmm_(a, b)
    if a.is_cuda and _HAS_OUT_DTYPE:
        return torch.addmm(total, a, b, out_dtype=torch.float32, out=total)
    return total.add_(mm_fp32(a, b))


def cast_once(weight: Tensor, like: Tensor) -> Tensor:
    """The weight in the dtype of the activations, outside autograd: made in the forward, kept for the backward.

    An operator takes the fp32 parameter, which gets the gradient, and this copy, which is what it multiplies with.
    """
    return weight.detach().to(like.dtype)
