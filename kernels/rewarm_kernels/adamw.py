"""AdamW in one pass over flat buffers, with the gradient's clipping; and the squared norm that the clipping needs.

    g = clip grad                      clip = min(1, max_norm / (|all gradients| + 1e-6))
    m' = m + (1 - beta1) (g - m)       v' = beta2 v + (1 - beta2) g^2
    p' = (1 - lr weight_decay) p - lr / (1 - beta1^step) m' / (sqrt(v') / sqrt(1 - beta2^step) + eps)

Weight decay, bias correction and the place of eps are those of ``torch.optim.AdamW``, the clipping that of
``torch.nn.utils.clip_grad_norm_``. The norm stays on the device, so that nothing waits for it, and the gradient is not
written: scaling it in place would move 8 bytes more.

Meant for two flat buffers, of the parameters that decay and of those that do not: one launch each. The norm is over
both: ``grad_squared_norm = squared_norm(grad_1) + squared_norm(grad_2)``.

- Bytes for each parameter: 28 (reads p, g, m, v; writes p, m, v, fp32); ``squared_norm`` reads 4. At 405 million
  parameters 11.3 GB and 1.6 GB.
- Pad buffers to a multiple of 16 elements: only then is it known that a mask holds for all of 4 neighbours, and loads
  are 128 bits wide.
- fp32 throughout; factors of lr, betas and step are made in fp64 on the host. A NaN in the norm reaches all parameters,
  as with PyTorch.

Shapes: N = parameters, P = programs.

Source: Loshchilov and Hutter 2019, https://arxiv.org/abs/1711.05101, as in ``torch.optim.AdamW``.
"""

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from rewarm_kernels.launch import Launch, launch, runs_kernels

__all__ = ['adamw_', 'adamw_ref', 'squared_norm', 'squared_norm_ref']

CLIP_EPS = 1e-6
"""Added to the norm by ``torch.nn.utils.clip_grad_norm_``."""

STEP = launch(Launch(num_warps=4, block=1024), interpreted=Launch(block=65536))
"""Not measured yet: two 128-bit loads of each of four buffers a thread are under way at once."""

NORM = launch(Launch(num_warps=8, rows=16, block=4096), interpreted=Launch(rows=4, block=16384))
"""Not measured yet: a program adds up ``rows`` blocks, 65,536 elements on every device, so that all get the same sum."""


def squared_norm_ref(flat: Tensor) -> Tensor:
    """The definition: see :func:`squared_norm`."""
    return torch.linalg.vector_norm(flat).square()  # no copy of the buffer


def adamw_ref(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    step: int,
    grad_squared_norm: Tensor | None = None,
    max_norm: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The definition, out of place; arguments are those of :func:`adamw_`.

    Returns:
        tuple[Tensor, Tensor, Tensor]: Parameter, first and second moment after the step, each ``(N,)``.
    """
    if grad_squared_norm is not None and max_norm is not None:
        grad = grad * (max_norm / (grad_squared_norm.sqrt() + CLIP_EPS)).clamp(max=1.0)
    exp_avg = exp_avg.lerp(grad, 1.0 - betas[0])
    exp_avg_sq = exp_avg_sq * betas[1] + (1.0 - betas[1]) * grad.square()
    denominator = exp_avg_sq.sqrt() / math.sqrt(1.0 - betas[1] ** step) + eps
    param = param * (1.0 - lr * weight_decay) - lr / (1.0 - betas[0] ** step) * (exp_avg / denominator)
    return param, exp_avg, exp_avg_sq


@triton.jit
def _squared_norm_kernel(
    x_ptr,  # (N,)
    partial_ptr,  # (P,) out
    N,
    BLOCK: tl.constexpr,
    NUM_BLOCKS: tl.constexpr,
):
    program = tl.program_id(0)
    start = program.to(tl.int64) * (NUM_BLOCKS * BLOCK)

    total = tl.zeros([BLOCK], dtype=tl.float32)
    for block in range(NUM_BLOCKS):
        at = start + block * BLOCK + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + at, mask=at < N, other=0.0)
        total += x * x

    tl.store(partial_ptr + program, tl.sum(total, axis=0))


@triton.jit
def _adamw_kernel(
    param_ptr,  # (N,) in and out
    grad_ptr,  # (N,)
    exp_avg_ptr,  # (N,) in and out
    exp_avg_sq_ptr,  # (N,) in and out
    grad_squared_norm_ptr,  # ()
    N,
    decay,  # 1 - lr weight_decay
    weight_1,  # 1 - beta1
    beta_2,
    weight_2,  # 1 - beta2
    step_size,  # lr / (1 - beta1^step)
    correction_2,  # sqrt(1 - beta2^step)
    eps,
    max_norm,
    clip_eps,
    HAS_CLIP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < N

    param = tl.load(param_ptr + at, mask=inside, other=0.0)
    grad = tl.load(grad_ptr + at, mask=inside, other=0.0)
    exp_avg = tl.load(exp_avg_ptr + at, mask=inside, other=0.0)
    exp_avg_sq = tl.load(exp_avg_sq_ptr + at, mask=inside, other=0.0)

    if HAS_CLIP:
        clip = max_norm / (tl.sqrt(tl.load(grad_squared_norm_ptr)) + clip_eps)
        grad *= tl.where(clip > 1.0, 1.0, clip)  # a minimum would turn NaN into 1
    # m' = m + (1 - beta1) (g - m);  v' = beta2 v + (1 - beta2) g^2
    exp_avg += weight_1 * (grad - exp_avg)
    exp_avg_sq = beta_2 * exp_avg_sq + weight_2 * grad * grad
    # p' = (1 - lr weight_decay) p - step_size m' / (sqrt(v') / correction_2 + eps)
    param = decay * param - step_size * (exp_avg / (tl.sqrt(exp_avg_sq) / correction_2 + eps))

    tl.store(param_ptr + at, param, mask=inside)
    tl.store(exp_avg_ptr + at, exp_avg, mask=inside)
    tl.store(exp_avg_sq_ptr + at, exp_avg_sq, mask=inside)


def _covering(count: int, block: int) -> int:
    return (count + block - 1) // block


@torch.library.custom_op('rewarm::squared_norm', mutates_args=())
def _squared_norm(flat: Tensor) -> Tensor:
    num_programs = _covering(flat.numel(), NORM.rows * NORM.block)
    partial = flat.new_empty(num_programs, dtype=torch.float32)
    if num_programs:
        kernel: Any = _squared_norm_kernel
        kernel[(num_programs,)](
            flat, partial, N=flat.numel(), BLOCK=NORM.block, NUM_BLOCKS=NORM.rows, num_warps=NORM.num_warps
        )
    return partial.sum()


@_squared_norm.register_fake
def _(flat: Tensor) -> Tensor:
    return flat.new_empty((), dtype=torch.float32)


@torch.library.custom_op('rewarm::adamw_', mutates_args=('param', 'exp_avg', 'exp_avg_sq'))
def _adamw_(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    grad_squared_norm: Tensor | None,
    lr: float,
    beta_1: float,
    beta_2: float,
    eps: float,
    weight_decay: float,
    step: int,
    max_norm: float | None,
) -> None:
    if not param.numel():
        return
    has_clip = grad_squared_norm is not None and max_norm is not None
    kernel: Any = _adamw_kernel
    kernel[(_covering(param.numel(), STEP.block),)](
        param,
        grad,
        exp_avg,
        exp_avg_sq,
        grad_squared_norm if has_clip else param,
        N=param.numel(),
        decay=1.0 - lr * weight_decay,
        weight_1=1.0 - beta_1,
        beta_2=beta_2,
        weight_2=1.0 - beta_2,
        step_size=lr / (1.0 - beta_1**step),
        correction_2=math.sqrt(1.0 - beta_2**step),
        eps=eps,
        max_norm=max_norm if has_clip else 0.0,
        clip_eps=CLIP_EPS,
        HAS_CLIP=has_clip,
        BLOCK=STEP.block,
        num_warps=STEP.num_warps,
    )


@_adamw_.register_fake
def _(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    grad_squared_norm: Tensor | None,
    lr: float,
    beta_1: float,
    beta_2: float,
    eps: float,
    weight_decay: float,
    step: int,
    max_norm: float | None,
) -> None:
    return None


def _check_flat(**tensors: Tensor) -> None:
    first_name, first = next(iter(tensors.items()))
    for name, tensor in tensors.items():
        if tensor.shape != first.shape:
            raise ValueError(
                f'{name} {tuple(tensor.shape)} and {first_name} {tuple(first.shape)} must have the same shape'
            )
        if tensor.ndim != 1 or not tensor.is_contiguous():
            raise ValueError(
                f'{name} must be flat and contiguous, (N,) with stride 1; its shape is {tuple(tensor.shape)} '
                f'and its strides are {tensor.stride()}'
            )
        if tensor.dtype != torch.float32:
            raise ValueError(f'{name} must be fp32, and is {tensor.dtype}')


@torch.no_grad()
def squared_norm(flat: Tensor) -> Tensor:
    """Sum of squares of a flat buffer; not differentiable.

    Args:
        flat (Tensor): ``(N,)``, fp32, contiguous.

    Returns:
        Tensor: fp32, a scalar on the device.

    Raises:
        ValueError: If it is not flat, contiguous and fp32.
    """
    _check_flat(flat=flat)
    return _squared_norm(flat) if runs_kernels(flat) else squared_norm_ref(flat)


@torch.no_grad()
def adamw_(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    step: int,
    grad_squared_norm: Tensor | None = None,
    max_norm: float | None = None,
) -> None:
    """One step of AdamW in place, with clipping if ``grad_squared_norm`` and ``max_norm`` are given.

    Args:
        param (Tensor): ``(N,)``, fp32, contiguous; overwritten.
        grad (Tensor): ``(N,)``, fp32, contiguous; only read.
        exp_avg (Tensor): ``(N,)``, fp32, contiguous: the first moment; overwritten.
        exp_avg_sq (Tensor): ``(N,)``, fp32, contiguous: the second moment; overwritten.
        lr (float): Learning rate.
        betas (tuple[float, float]): Decay of the two moments, each step.
        eps (float): Added to the root of the corrected second moment.
        weight_decay (float): The step multiplies the parameter by ``1 - lr * weight_decay``.
        step (int): Number of this step, from 1.
        grad_squared_norm (Tensor | None): fp32 scalar on the device: of all gradients, those of other buffers included.
        max_norm (float | None): Largest norm; the gradient is scaled down to it.

    Raises:
        ValueError: If a buffer is not flat, contiguous and fp32, if their shapes differ, if ``step`` is not positive or
            if one of ``grad_squared_norm`` and ``max_norm`` is given without the other.
    """
    _check_flat(param=param, grad=grad, exp_avg=exp_avg, exp_avg_sq=exp_avg_sq)
    if step < 1:
        raise ValueError(f'step counts from 1, and is {step}')
    if (grad_squared_norm is None) != (max_norm is None):
        raise ValueError('grad_squared_norm and max_norm make the clipping together: give both or neither')
    if runs_kernels(param, grad, exp_avg, exp_avg_sq, grad_squared_norm):
        _adamw_(param, grad, exp_avg, exp_avg_sq, grad_squared_norm, lr, *betas, eps, weight_decay, step, max_norm)
        return
    after = adamw_ref(
        param,
        grad,
        exp_avg,
        exp_avg_sq,
        lr=lr,
        betas=betas,
        eps=eps,
        weight_decay=weight_decay,
        step=step,
        grad_squared_norm=grad_squared_norm,
        max_norm=max_norm,
    )
    for old, new in zip((param, exp_avg, exp_avg_sq), after, strict=True):
        old.copy_(new)
