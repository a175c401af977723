"""Every attention backend at one shape: speed, error, and whether two runs are equal bit for bit.

The calls are those that an operator makes which owns the packed buffer: a forward that returns the logarithm of the
softmax's denominators, a backward that takes it, no autograd. ``scaled_dot_product_attention``, as a model of plain
PyTorch calls it, is measured beside them. Causal: half of the square is counted, and 2.5 times that backward.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from bench_cases import Sizes
from bench_measure import Records, kernel_spans, relative_error, seconds
from torch import Tensor
from torch.nn import functional as F

__all__ = ['measure_attention']

REORDERED = ('flash', 'efficient', 'fa3', 'fa4')
"""Backends whose backward adds in no fixed order unless deterministic algorithms are asked for."""

Passes = tuple[Callable[[], Any], Callable[[], tuple[Tensor, ...]]]


def measure_attention(records: Records, sizes: Sizes, device: torch.device) -> None:
    """Measures all backends that can run on a device.

    Args:
        records (Records): Where to.
        sizes (Sizes): Batch, tokens and heads.
        device (torch.device): Where.
    """
    from rewarm_kernels.attention import BACKENDS

    shape = (sizes.batch, sizes.tokens, sizes.heads, sizes.head_dim)
    packed = torch.randn(*shape[:3], 3, shape[3], device=device, dtype=torch.bfloat16)
    dout = torch.randn(shape, device=device, dtype=torch.bfloat16)
    truth = _definition(packed[:1, :, :2], dout[:1, :, :2])
    passes = {
        'sdpa': partial(_sdpa, packed, dout),
        **{name: partial(_backend, name, packed, dout) for name in BACKENDS},
    }
    for name, make in passes.items():
        backend = BACKENDS.get(name)
        if backend is not None and device.type not in backend.devices:
            continue
        with records.attempt('causal', name):
            records.need(3)
            if backend is not None and backend.load is not None:
                backend.load()
            _measure(records, name, make(), truth, sizes, device)
        if name in REORDERED:
            with records.attempt('causal', f'{name}, deterministic'):
                records.need(3)
                if backend is not None and backend.load is not None:
                    backend.load()
                torch.use_deterministic_algorithms(True, warn_only=True)
                try:
                    _measure(records, f'{name}, deterministic', make(), truth, sizes, device)
                finally:
                    torch.use_deterministic_algorithms(False)


def _measure(
    records: Records, name: str, passes: Passes, truth: tuple[Tensor, ...], sizes: Sizes, device: torch.device
) -> None:
    forward, both = passes
    first, second = both(), both()
    errors = [relative_error(value[:1, :, :2], true) for value, true in zip(first, truth, strict=True)]
    equal = all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    del first, second
    forward_seconds, both_seconds = seconds(forward, device), seconds(both, device)
    flops = 2 * sizes.rows * sizes.tokens * sizes.width
    kernels = sorted({span[0] for span in kernel_spans(both, device)})
    records.add(
        'causal',
        name,
        ms_forward=forward_seconds * 1e3,
        ms_both=both_seconds * 1e3,
        tflops_forward=flops / forward_seconds / 1e12,
        tflops_both=3.5 * flops / both_seconds / 1e12,
        ms_a_step=both_seconds * 1e3 * sizes.layers,
        error_out=errors[0],
        error_grads=max(errors[1:]),
        bit_equal=equal,
        kernels=kernels[:12],
    )


def _backend(name: str, packed: Tensor, dout: Tensor) -> Passes:
    from rewarm_kernels.attention import attention_backward, attention_forward

    q, k, v = packed.unbind(3)

    def both() -> tuple[Tensor, ...]:
        out, lse = attention_forward(q, k, v, name)
        return out, *attention_backward(dout, q, k, v, out, lse, name)

    return partial(attention_forward, q, k, v, name), both


def _sdpa(packed: Tensor, dout: Tensor) -> Passes:
    leaves = [x.contiguous().requires_grad_() for x in packed.unbind(3)]

    def forward() -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in leaves)
        return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)

    def both() -> tuple[Tensor, ...]:
        out = forward()
        return out.detach(), *torch.autograd.grad(out, leaves, dout)

    return forward, both


def _definition(packed: Tensor, dout: Tensor) -> tuple[Tensor, ...]:
    from rewarm_kernels.attention import attention_ref

    packed = packed.double().requires_grad_()
    out = attention_ref(packed).unflatten(-1, (packed.shape[2], packed.shape[4]))
    (grad,) = torch.autograd.grad(out, packed, dout.double())
    return out.detach(), *grad.unbind(3)
