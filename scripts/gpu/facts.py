"""What the device can do: bandwidth of a copy, rate of the model's matrix products, and what our products rely on."""

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import torch
from bench_cases import FULL, TINY, Sizes
from bench_measure import Records, arguments, begin, copy_bandwidth, relative_error, seconds
from torch import Tensor

__all__ = ['main']

LOSS_ROWS = 4096
"""Rows of the vocabulary projection at once, as linear_cross_entropy makes them."""


def main() -> int:
    """Measures all of it; returns whether something failed."""
    options = arguments(__doc__).parse_args()
    records, device = begin('facts', options)
    sizes = TINY if options.dry else FULL
    with records.attempt('device'):
        records.add('device', **_device(device))
    with records.attempt('copy'):
        for megabytes in (134, 805, 2147):  # one hidden tensor, add_dual_layer_norm's traffic, and more than any cache
            bandwidth = copy_bandwidth(device, megabytes * 500_000)
            records.add('copy', f'{megabytes} MB', gb_per_second=bandwidth / 1e9)
    _products(records, sizes, device)
    with records.attempt('fp32 products'):
        records.add('fp32 products', **_fp32_products(device))
    return records.failed


def _device(device: torch.device) -> dict[str, Any]:
    if device.type == 'cpu':
        return {'cpus': os.cpu_count()}
    properties = torch.cuda.get_device_properties(device)
    query = 'clocks.sm,clocks.max.sm,clocks.mem,power.draw,power.limit,temperature.gpu,memory.used'
    command = ['nvidia-smi', f'--query-gpu={query}', '--format=csv,noheader']
    try:
        now = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError) as error:
        now = f'unknown: {error}'
    return {
        'capability': f'{properties.major}.{properties.minor}',
        'multiprocessors': properties.multi_processor_count,
        'memory_gb': properties.total_memory / 1e9,
        'l2_mb': getattr(properties, 'L2_cache_size', 0) / 1e6,
        'cpus': os.cpu_count(),
        query.replace(',', ' '): now,
        'arch_list': ' '.join(torch.cuda.get_arch_list()),
        'fp32_matmul': torch.get_float32_matmul_precision(),
    }


def _products(records: Records, sizes: Sizes, device: torch.device) -> None:
    """Rates of a step's products, and the time of all of them: what no fusion of elementwise work can save."""
    d, f, v, n = sizes.width, sizes.mlp_width, sizes.vocabulary, sizes.rows
    chunk = min(LOSS_ROWS, n)
    shapes = {'qkv': (n, d, 3 * d), 'dense': (n, d, d), 'fc1': (n, d, f), 'fc2': (n, f, d), 'head': (chunk, d, v)}
    total = 0.0
    for name, (rows, inner, columns) in shapes.items():
        with records.attempt(f'product {name}'):
            taken = {way: seconds(call, device) for way, call in _passes(rows, inner, columns, device).items()}
            flops = 2 * rows * inner * columns
            rates: dict[str, Any] = {f'tflops_{way}': flops / time / 1e12 for way, time in taken.items()}
            records.add(f'product {name}', rows=rows, inner=inner, columns=columns, **rates)
            calls = n // chunk if name == 'head' else sizes.layers
            total += calls * (taken['forward'] + taken['dx'] + taken['dw_fp32'])
    records.add('products of a step', ms=total * 1e3, tokens=n)
    side = 8192 if device.type == 'cuda' else 64
    with records.attempt('product square'):
        a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
        records.add('product square', side=side, tflops=2 * side**3 / seconds(lambda: a @ b, device) / 1e12)


def _passes(rows: int, inner: int, columns: int, device: torch.device) -> dict[str, Callable[[], Tensor]]:
    from rewarm_kernels.matmul import mm_fp32

    x = torch.randn(rows, inner, device=device, dtype=torch.bfloat16)
    weight = torch.randn(columns, inner, device=device, dtype=torch.bfloat16) / inner**0.5
    dy = torch.randn(rows, columns, device=device, dtype=torch.bfloat16)
    bias = torch.randn(columns, device=device, dtype=torch.bfloat16)
    return {
        'forward': lambda: x @ weight.T,
        'forward_bias': lambda: torch.addmm(bias, x, weight.T),
        'dx': lambda: dy @ weight,
        'dw': lambda: dy.T @ x,
        'dw_fp32': lambda: mm_fp32(dy.T, x),
    }


def _fp32_products(device: torch.device) -> dict[str, Any]:
    """Whether products of bf16 factors with fp32 results are right, also when added to a total in place."""
    from rewarm_kernels.matmul import add_mm_fp32_, mm_fp32

    a = torch.randn(512, 304, device=device, dtype=torch.bfloat16)
    b = torch.randn(304, 256, device=device, dtype=torch.bfloat16)
    start = torch.randn(512, 256, device=device)
    product = a.double() @ b.double()
    errors = {
        'mm_fp32': relative_error(mm_fp32(a, b), product),
        'add_mm_fp32_': relative_error(add_mm_fp32_(start.clone(), a, b), start.double() + product),
        'bf16': relative_error(a @ b, product),
    }
    return {**errors, 'ok': max(errors['mm_fp32'], errors['add_mm_fp32_']) < 1e-4}  # bf16 rounds at 4e-3


if __name__ == '__main__':
    sys.exit(main())
