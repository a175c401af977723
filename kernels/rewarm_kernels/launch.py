"""How kernels are launched: fixed settings, no autotuning, no device asked at import.

Autotuning would make a run's arithmetic depend on timings, and needs a live driver. A setting is a plain number per
kernel, measured on a device and kept in the kernel's file. Triton's interpreter pays for each program and not for each
element (10 to 18 ms a program), so there a kernel gets few, fat programs.
"""

import functools
import os
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ['INTERPRETED', 'Launch', 'cover', 'launch', 'programs', 'runs_kernels']

INTERPRETED = os.environ.get('TRITON_INTERPRET', '0') == '1'
"""Whether Triton interprets kernels on the CPU; Triton reads the same variable when a kernel is defined."""


@dataclass(frozen=True)
class Launch:
    """The launch of one kernel.

    Args:
        num_warps (int): Warps of a program.
        rows (int): Rows a program handles at once.
        block (int): Columns, or elements, a program handles at once.
        per_multiprocessor (int): Programs of a persistent kernel on each multiprocessor.
    """

    num_warps: int = 4
    rows: int = 1
    block: int = 1024
    per_multiprocessor: int = 4


def launch(measured: Launch, *, interpreted: Launch) -> Launch:
    """The setting for this process: ``measured`` on a device, ``interpreted`` under Triton's interpreter."""
    return interpreted if INTERPRETED else measured


def runs_kernels(*tensors: Tensor | None) -> bool:
    """Whether kernels run on these tensors: all on one CUDA device, or Triton is interpreted; else definitions do."""
    return INTERPRETED or all(tensor is None or tensor.is_cuda for tensor in tensors)


def programs(like: Tensor, per_multiprocessor: int) -> int:
    """Programs of a persistent kernel on the device of ``like``: fixed for a device, so its sums are bit-equal."""
    return per_multiprocessor * _multiprocessors(like.device.index or 0) if like.is_cuda else 2


def cover(count: int, limit: int) -> int:
    """The power of two that covers ``count``, at most ``limit`` (itself a power of two)."""
    return min(1 << (max(count, 1) - 1).bit_length(), limit)


@functools.cache
def _multiprocessors(index: int) -> int:
    return torch.cuda.get_device_properties(index).multi_processor_count
