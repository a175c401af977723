"""Measures kernels on a GPU, at the sizes of Pythia-410M and 65,536 tokens.

    python kernels/bench.py                     every op, then every attention backend
    python kernels/bench.py bias_gelu mlp       ops whose names hold one of these words
    python kernels/bench.py attention           the attention backends alone
    python kernels/bench.py --dry               toy sizes on a CPU, interpreted: shows that it runs

For each op: ours, PyTorch's eager definition, the same under torch.compile, Liger Kernel if it is importable; forward and
backward (both passes minus the forward). Memory-bound ops in GB/s of the bytes that the op has to move, and in percent of
a copy measured in the same run; the others in TFLOP/s. Needs torch and triton only.
"""

import sys
from argparse import Namespace
from collections.abc import Callable
from typing import Any

import torch
from bench_attention import measure_attention
from bench_cases import CASES, FULL, TINY, Case, Sizes
from bench_measure import Records, arguments, begin, copy_bandwidth, seconds
from torch import Tensor

__all__ = ['main', 'measure_case', 'measure_ops']


def main(words: list[str] | None = None) -> bool:
    """Measures what the command line names.

    Args:
        words (list[str] | None): The command line; ``None`` takes this process's.

    Returns:
        bool: Whether anything failed.
    """
    parser = arguments(__doc__)
    parser.add_argument('words', nargs='*', help='parts of names of ops, or `ops`, or `attention`')
    options = parser.parse_args(words)
    return _attention(options) | _ops(options)


def _attention(options: Namespace) -> bool:
    if options.words and 'attention' not in options.words:
        return False
    records, device = begin('attention', options)
    measure_attention(records, TINY if options.dry else FULL, device)
    return records.failed


def _ops(options: Namespace) -> bool:
    if options.words == ['attention']:
        return False
    words = [word for word in options.words if word not in ('attention', 'ops')]
    names = [name for name in CASES if not words or any(word in name for word in words)]
    if not names:
        sys.exit(f'no op has {" or ".join(words)} in its name: {", ".join(CASES)}')
    records, device = begin('ops', options)
    measure_ops(records, names, TINY if options.dry else FULL, device)
    return records.failed


def measure_ops(records: Records, names: list[str], sizes: Sizes, device: torch.device) -> None:
    """Measures ops in every way; what has to be compiled first comes last, since that takes long.

    Args:
        records (Records): Where to.
        names (list[str]): Of :data:`bench_cases.CASES`.
        sizes (Sizes): How large.
        device (torch.device): Where.
    """
    copy = copy_bandwidth(device)
    records.add('copy', gb_per_second=copy / 1e9)
    for is_compiled in (False, True):
        for name in names:
            with records.attempt(name, 'compile' if is_compiled else ''):
                case = CASES[name](sizes, device)
                for way in (way for way in case.ways if (way == 'compile') is is_compiled):
                    with records.attempt(name, way):
                        records.need(10 if is_compiled else 2)
                        function = _compiled(case.ways[way], device) if is_compiled else case.ways[way]
                        records.add(name, way, **measure_case(case, function, copy, device))


def _compiled(function: Callable[..., Any], device: torch.device) -> Callable[..., Any]:
    torch.compiler.reset()
    return torch.compile(function, dynamic=False, backend='inductor' if device.type == 'cuda' else 'aot_eager')


def measure_case(case: Case, function: Callable[..., Any], copy: float, device: torch.device) -> dict[str, float]:
    """Times one way to compute an op.

    Args:
        case (Case): The op.
        function (Callable): The way.
        copy (float): Bandwidth of a copy, in bytes a second.
        device (torch.device): Where.

    Returns:
        dict[str, float]: ``ms_<pass>`` of the passes ``forward``, ``backward`` and ``both``; with ``gb_per_second_`` and
        ``percent_of_copy_`` or ``tflops_`` of those whose work is known; ``extra_gb``, memory needed beyond the inputs.
    """
    leaves = [value for value in case.inputs.values() if isinstance(value, Tensor) and value.requires_grad]

    def forward() -> list[Tensor]:
        outputs = function(**case.inputs)
        return [x for x in (outputs if isinstance(outputs, (tuple, list)) else [outputs]) if x is not None]

    upstream = [torch.randn_like(out) if out.ndim else torch.ones_like(out) for out in forward() if out.requires_grad]

    def both() -> None:
        torch.autograd.grad([out for out in forward() if out.requires_grad], leaves, upstream)

    before = _memory(device)
    taken = {'forward': seconds(forward, device)}
    if leaves:
        taken['both'] = seconds(both, device)
        taken['backward'] = taken['both'] - taken['forward']
    values = {f'ms_{name}': time * 1e3 for name, time in taken.items()}
    for name, count in case.moved.items():
        values[f'gb_per_second_{name}'] = count / taken[name] / 1e9
        values[f'percent_of_copy_{name}'] = 100 * count / taken[name] / copy
    values |= {f'tflops_{name}': count / taken[name] / 1e12 for name, count in case.flops.items()}
    return values | {'extra_gb': (_memory(device, peak=True) - before) / 1e9}


def _memory(device: torch.device, *, peak: bool = False) -> int:
    """Bytes allocated now, from when on the peak counts; or at that peak."""
    if device.type == 'cpu':
        return 0
    if peak:
        return torch.cuda.max_memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


if __name__ == '__main__':
    sys.exit(main())
