"""Tries attention kernels: whether one runs here, is right, repeats its bits, and how long it takes.

Shapes: B = batch, H = heads, T = tokens, K = head dimension.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from rewarm_kernels.attention import BACKENDS, attention_backward, attention_forward
from torch import Tensor

from rewarm.model.attention import attention_ref

__all__ = ['ERROR_FLOOR', 'Trial', 'Trials', 'first_line', 'row_error']

ERROR_FLOOR = {torch.float32: 1e-4, torch.bfloat16: 8e-3}
"""Errors that are never held against a kernel, relative to a row. Of bf16, two roundings. Of fp32, what rounding makes of
the first rows' gradients, whose terms cancel; a row that is missing is 1 off."""
_SMALL_ROW = 0.1
"""A row of an output or gradient counts as at least this much of a mean one, or rounding would look like an error."""
_REPETITIONS = 7


@dataclass(frozen=True)
class Trial:
    """What trying a backend gave: a time, or why it is out.

    Args:
        milliseconds (float | None): Median of forward and backward.
        repeats (bool): Whether it gave the same bits again.
        out (str | None): What it does instead of being right, as in "it does not run here".
    """

    milliseconds: float | None = None
    repeats: bool = True
    out: str | None = None

    def __str__(self) -> str:
        if self.milliseconds is None:
            return f'is out: it {self.out}'
        return f'{self.milliseconds:.3g} ms' + ('' if self.repeats else ', not the same bits each time')


class Trials:
    """Tries backends on the same random inputs, all of the run's shape.

    Right is what errs at most twice as much as the definition computed in the same dtype, and a floor, against the
    definition in fp64. Both are computed for one head of the first and of the last sequence, so they need little memory.
    An error is that of a row: a kernel that fails on a few of them is found.
    """

    def __init__(self, device: torch.device, shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
        num_sequences, num_heads, _, _ = shape
        self.device = device
        self.shape = shape
        self.dtype = dtype
        self.checked = {(0, 0), (num_sequences - 1, num_heads - 1)}  # sequence and head

    def run(self, backend: str) -> Trial:
        """Tries one."""
        each = BACKENDS[backend]
        if self.device.type not in each.devices:
            return Trial(out=f'runs on {" or ".join(each.devices)}, not on {self.device.type}')
        try:
            if each.load is not None:
                each.load()
        except Exception as error:  # a package may fail to load in any way
            return Trial(out=f'cannot be imported here ({first_line(error)})')
        try:
            return self._run(backend)
        except Exception as error:  # nor is it said what a kernel raises
            return Trial(out=f'does not run here ({first_line(error)})')
        finally:
            if self.device.type == 'cuda':
                torch.cuda.empty_cache()

    def _run(self, backend: str) -> Trial:
        q, k, v, dout = self._inputs

        def call() -> tuple[Tensor, ...]:
            out, lse = attention_forward(q, k, v, backend)
            return out, *attention_backward(dout, q, k, v, out, lse, backend)

        first = call()
        for at, truth, bounds in self._truths:
            for result, want, bound in zip(first, truth, bounds, strict=True):
                error = row_error(result[at], want)
                if not error <= bound:
                    return Trial(out=f'gives wrong numbers here (relative error {error:.2g}, bound {bound:.2g})')
        repeats = all(torch.equal(x, again) for x, again in zip(first, call(), strict=True))
        if not repeats and torch.are_deterministic_algorithms_enabled():
            return Trial(out='does not give the same bits again, and torch.use_deterministic_algorithms is on')
        del first
        return Trial(milliseconds=_milliseconds(call, self.device), repeats=repeats)

    @functools.cached_property
    def _inputs(self) -> tuple[Tensor, ...]:
        num_sequences, num_heads, num_tokens, head_dim = self.shape
        generator = torch.Generator(self.device).manual_seed(0)
        draw = functools.partial(torch.randn, device=self.device, dtype=self.dtype, generator=generator)
        qkv = draw(num_sequences, num_tokens, num_heads, 3, head_dim)
        return *qkv.unbind(3), draw(num_sequences, num_tokens, num_heads, head_dim)

    @functools.cached_property
    def _truths(self) -> list[tuple[Any, tuple[Tensor, ...], list[float]]]:
        """For each head that is checked: where it is, its output and gradients in fp64, and the bounds of their errors."""
        found = []
        for sequence, head in sorted(self.checked):
            at = sequence, slice(None), head
            one_head = [x[at] for x in self._inputs]
            truth = _by_definition(*(x.double() for x in one_head))
            same = _by_definition(*one_head)
            bounds = [2 * row_error(x, want) + ERROR_FLOOR[self.dtype] for x, want in zip(same, truth, strict=True)]
            found.append((at, truth, bounds))
        return found


def _by_definition(q_TK: Tensor, k_TK: Tensor, v_TK: Tensor, dout_TK: Tensor) -> tuple[Tensor, ...]:
    """One head's output and gradients, in the dtype of its inputs."""
    leaves = [x.detach().clone().requires_grad_() for x in (q_TK, k_TK, v_TK)]
    with torch.enable_grad():
        out = attention_ref(*(x[None, None] for x in leaves))[0, 0]
    return out.detach(), *torch.autograd.grad(out, leaves, dout_TK)


def row_error(x_TK: Tensor, truth_TK: Tensor) -> float:
    """The largest relative error of a row; not a number if one of them is none.

    Args:
        x_TK (Tensor): ``(..., K)``.
        truth_TK (Tensor): ``(..., K)``, fp64.
    """
    size = truth_TK.norm(dim=-1)
    difference = (x_TK.double() - truth_TK).norm(dim=-1)
    return (difference / size.clamp(min=max(_SMALL_ROW * size.mean().item(), 0.01))).max().item()


def _milliseconds(call: Callable[[], object], device: torch.device) -> float:
    """The median time of a few calls; the first two have been made already."""
    times = []
    for _ in range(_REPETITIONS):
        if device.type == 'cuda':
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            call()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end))
        else:
            start = time.perf_counter()
            call()
            times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


def first_line(error: Exception) -> str:
    """What an error says, short enough for a sentence."""
    return (str(error).partition('\n')[0] or type(error).__name__).removesuffix('.')
