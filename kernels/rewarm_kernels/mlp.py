"""The MLP of a transformer as one operator, so that its backward may write over what it owns.

    h = y W_in',   g = gelu(h + b_in),   out = g W_out'

without the second bias: the next ``add_dual_layer_norm`` adds it on its way, and has its gradient for nothing.

Kept for the backward, per row of S-byte numbers: y, which the layer keeps anyway, and h: F S bytes. g is computed again
beside its gradient (``recompute``), for F S more bytes moved there, or kept, for F S bytes of memory: at 65,536 rows of
4,096 in bf16, 0.54 GB a layer. The gradient of h is written over that of g, so that the backward's peak is h, g and dg.

Bytes moved per row besides the products: 2 F S forward, 4 F S backward (3 F S where g was kept): see ``bias_gelu``.
Operations: 4 D F forward and 8 D F backward. Each weight is cast once per call; its gradient is an fp32 product.

Numerics: h is rounded before the bias is added in fp32, g and the gradients of g and h are rounded once each, and the
gradients of weights and bias not at all.

Shapes: N = rows (all leading dimensions), D = inputs, F = features between, E = outputs (D in a transformer).
"""

from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional

from rewarm_kernels.bias_gelu import check_approximate, gelu_backward, gelu_forward
from rewarm_kernels.launch import runs_kernels
from rewarm_kernels.matmul import cast_once, mm_fp32

__all__ = ['mlp', 'mlp_ref']


def mlp_ref(
    y: Tensor,
    weight_in: Tensor,
    bias_in: Tensor,
    weight_out: Tensor,
    approximate: str = 'none',
    recompute: bool = True,
) -> Tensor:
    """Definition of :func:`mlp`, in plain PyTorch; it keeps both h and g whatever ``recompute`` says."""
    h = functional.linear(y, weight_in.to(y.dtype), bias_in.to(y.dtype))
    return functional.linear(functional.gelu(h, approximate=approximate), weight_out.to(y.dtype))


@torch.library.custom_op('rewarm::mlp', mutates_args=())
def _mlp(
    y: Tensor,
    weight_in: Tensor,
    bias_in: Tensor,
    weight_out: Tensor,
    cast_in: Tensor,
    cast_out: Tensor,
    approximate: str,
    recompute: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    h = y @ cast_in.t()
    g = gelu_forward(h, bias_in.contiguous(), approximate)
    return g @ cast_out.t(), h, y.new_empty(0) if recompute else g


@_mlp.register_fake
def _(
    y: Tensor,
    weight_in: Tensor,
    bias_in: Tensor,
    weight_out: Tensor,
    cast_in: Tensor,
    cast_out: Tensor,
    approximate: str,
    recompute: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    h = y.new_empty(y.shape[0], weight_in.shape[0])
    return y.new_empty(y.shape[0], weight_out.shape[0]), h, y.new_empty(0) if recompute else torch.empty_like(h)


@torch.library.custom_op('rewarm::mlp_backward', mutates_args=())
def _mlp_backward(
    dout: Tensor,
    y: Tensor,
    h: Tensor,
    g: Tensor | None,
    bias_in: Tensor,
    cast_in: Tensor,
    cast_out: Tensor,
    approximate: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dout = dout.contiguous()
    dg = dout @ cast_out
    dh, dbias, again = gelu_backward(h, bias_in.contiguous(), dg, approximate, recompute=g is None, in_place=True)
    dweight_out = mm_fp32(dout.t(), cast(Tensor, again if g is None else g))
    return dh @ cast_in, mm_fp32(dh.t(), y), dbias, dweight_out


@_mlp_backward.register_fake
def _(
    dout: Tensor,
    y: Tensor,
    h: Tensor,
    g: Tensor | None,
    bias_in: Tensor,
    cast_in: Tensor,
    cast_out: Tensor,
    approximate: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    wide = torch.promote_types(y.dtype, torch.float32)
    dweight_in, dweight_out = (copy.new_empty(copy.shape, dtype=wide) for copy in (cast_in, cast_out))
    return y.new_empty(y.shape), dweight_in, y.new_empty(h.shape[1], dtype=torch.float32), dweight_out


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    y, weight_in, bias_in, weight_out, cast_in, cast_out, ctx.approximate, recompute = inputs
    _, h, g = output
    ctx.set_materialize_grads(False)  # h and g have none, and zeros in their place would be as large as they
    ctx.parameter_dtypes = weight_in.dtype, bias_in.dtype, weight_out.dtype
    ctx.save_for_backward(y, h, None if recompute else g, bias_in, cast_in, cast_out)


def _backward(ctx: Any, dout: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if dout is None:
        return (None,) * 8
    dy, *dparameters = _mlp_backward(dout, *ctx.saved_tensors, ctx.approximate)
    return dy, *(grad.to(dtype) for grad, dtype in zip(dparameters, ctx.parameter_dtypes)), None, None, None, None


_mlp.register_autograd(_backward, setup_context=_save)


def mlp(
    y: Tensor,
    weight_in: Tensor,
    bias_in: Tensor,
    weight_out: Tensor,
    approximate: str = 'none',
    recompute: bool = True,
) -> Tensor:
    """Projects, adds a bias, applies GELU and projects back; differentiable in the first four.

    Args:
        y (Tensor): ``(..., D)``, bf16 or fp32.
        weight_in (Tensor): ``(F, D)``, fp32; the gradients of all parameters are fp32.
        bias_in (Tensor): ``(F,)``, fp32.
        weight_out (Tensor): ``(E, F)``, fp32.
        approximate (str): ``none``, the erf form of GELU, or ``tanh``.
        recompute (bool): Compute GELU again in the backward instead of keeping its ``(..., F)`` output.

    Returns:
        Tensor: ``gelu(y W_in' + b_in) W_out'``, ``(..., E)``, in the dtype of ``y``; the second bias is left to add.

    Raises:
        ValueError: If two shapes do not fit, or ``approximate`` is neither of the two.
    """
    check_approximate(approximate)
    if weight_in.ndim != 2 or weight_in.shape[1] != y.shape[-1]:
        raise ValueError(
            f'weight_in must be (features, last dimension of y): weight_in {tuple(weight_in.shape)}, y {tuple(y.shape)}'
        )
    if bias_in.shape != weight_in.shape[:1]:
        raise ValueError(
            'bias_in must be as long as weight_in has rows: '
            f'bias_in {tuple(bias_in.shape)}, weight_in {tuple(weight_in.shape)}'
        )
    if weight_out.ndim != 2 or weight_out.shape[1] != weight_in.shape[0]:
        raise ValueError(
            'weight_out must have as many columns as weight_in has rows: '
            f'weight_out {tuple(weight_out.shape)}, weight_in {tuple(weight_in.shape)}'
        )
    if not runs_kernels(y, weight_in, bias_in, weight_out):
        return mlp_ref(y, weight_in, bias_in, weight_out, approximate)
    out, _, _ = _mlp(
        y.reshape(-1, y.shape[-1]),
        weight_in,
        bias_in,
        weight_out,
        cast_once(weight_in, y),
        cast_once(weight_out, y),
        approximate,
        recompute,
    )
    return out.view(*y.shape[:-1], weight_out.shape[0])
