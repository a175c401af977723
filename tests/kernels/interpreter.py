"""Corrects two faults of Triton's interpreter, for the tests alone.

1. A cast of fp32 to bf16 truncates; hardware rounds to nearest even.
2. ``tl.dot`` of bf16 operands multiplies their bit patterns as integers (triton #11584).

Both are in 3.3, 3.6 and 3.7. Each is measured first, and a release without them is left alone; a release that is not
in ``TESTED`` and still has them is an error, so that somebody looks. Casts of bf16 to fp32 and ``erf`` are made fast
on the way.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from rewarm_kernels.launch import INTERPRETED

TESTED = ('3.3.', '3.6.', '3.7.')


def to_bf16(x: np.ndarray) -> np.ndarray:
    """fp32 as bf16 in uint16: to nearest even, NaN stays NaN."""
    bits = np.ascontiguousarray(x, dtype=np.float32).view(np.uint32)
    rounded = (bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))) >> np.uint32(16)
    return np.where(np.isnan(x), np.uint32(0x7FC0), rounded).astype(np.uint16).reshape(np.shape(x))


def to_fp32(x: np.ndarray) -> np.ndarray:
    """bf16 in uint16 as fp32."""
    return (np.ascontiguousarray(x).astype(np.uint32) << np.uint32(16)).view(np.float32).reshape(np.shape(x))


@triton.jit
def _cast_kernel(x_ptr, y_ptr, N: tl.constexpr):
    at = tl.arange(0, N)
    tl.store(y_ptr + at, tl.load(x_ptr + at).to(tl.bfloat16))


@triton.jit
def _dot_kernel(a_ptr, b_ptr, c_ptr, N: tl.constexpr):
    at = tl.arange(0, N)[:, None] * N + tl.arange(0, N)[None, :]
    tl.store(c_ptr + at, tl.dot(tl.load(a_ptr + at), tl.load(b_ptr + at)))


def cast(x: torch.Tensor) -> torch.Tensor:
    """fp32 to bf16, by the interpreter."""
    y = torch.empty_like(x, dtype=torch.bfloat16)
    _cast_kernel[(1,)](x, y, N=x.numel())
    return y


def dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """A product of two square bf16 matrices, by the interpreter."""
    c = torch.empty(a.shape, dtype=torch.float32)
    _dot_kernel[(1,)](a, b, c, N=len(a))
    return c


def faults() -> set[str]:
    """What the interpreter gets wrong at the moment: a subset of 'cast' and 'dot'."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4096, generator=generator)
    a, b = (torch.randn(16, 16, generator=generator).bfloat16() for _ in range(2))
    found = set() if torch.equal(cast(x), x.bfloat16()) else {'cast'}
    try:
        wrong = not torch.allclose(dot(a, b), a.float() @ b.float(), atol=1e-3)
    except Exception:  # whatever it dies of, it does not multiply
        wrong = True
    return found | ({'dot'} if wrong else set())


def correct() -> set[str]:
    """Mends what is wrong in this process; returns what was."""
    if not INTERPRETED:
        return set()
    from triton.runtime import interpreter

    builder: Any = interpreter.InterpreterBuilder
    if hasattr(builder, 'corrected'):
        return builder.corrected
    found = faults()
    if found and not triton.__version__.startswith(TESTED):
        raise RuntimeError(
            f'the interpreter of triton {triton.__version__} has the faults {sorted(found)}, and they were corrected on '
            f'{", ".join(TESTED)} only: look whether correct() still fits and add the version to TESTED'
        )
    handle = interpreter.TensorHandle
    if 'cast' in found:
        _correct_casts(builder, handle)
    if 'dot' in found:
        plain_dot = builder.create_dot

        def wide(operand: Any) -> Any:
            is_bf16 = operand.dtype.scalar is tl.bfloat16
            return handle(to_fp32(operand.data), tl.float32) if is_bf16 else operand

        builder.create_dot = lambda self, a, b, *rest: plain_dot(self, wide(a), wide(b), *rest)

    def create_erf(self: Any, operand: Any) -> Any:
        return handle(torch.erf(torch.from_numpy(np.ascontiguousarray(operand.data))).numpy(), operand.dtype.scalar)

    builder.create_erf = create_erf
    builder.corrected = found
    return found


def _correct_casts(builder: Any, handle: Callable[..., Any]) -> None:
    plain_cast, plain_fp_to_fp = builder.cast_impl, builder.create_fp_to_fp

    def converted(source: Any, target: Any) -> Any:
        pair = (source.dtype.scalar, target.scalar)
        if pair == (tl.float32, tl.bfloat16):
            return handle(to_bf16(source.data), tl.bfloat16)
        if pair == (tl.bfloat16, tl.float32):
            return handle(to_fp32(source.data), tl.float32)
        return None

    def cast_impl(self: Any, source: Any, target: Any) -> Any:
        done = converted(source, target)  # not `or`: the truth of a handle is that of its numbers
        return plain_cast(self, source, target) if done is None else done

    def create_fp_to_fp(self: Any, source: Any, target: Any, rounding_mode: Any) -> Any:
        done = converted(source, target)
        return plain_fp_to_fp(self, source, target, rounding_mode) if done is None else done

    builder.cast_impl, builder.create_fp_to_fp = cast_impl, create_fp_to_fp
