"""One whole training step: tokens a second, memory, and where the time goes.

    python -m scripts.gpu.step triton        (or torch, hf, hf-amp, each also with -compiled)

Forward, backward, clipping and AdamW on 32 sequences of 2,048 tokens. Where they do not fit in memory at once they come in
microbatches, as large as fit: the record says so.
"""

import statistics
import sys
import time
from itertools import pairwise
from typing import Any

import torch
from bench_cases import Sizes
from bench_measure import Records, arguments, begin, free, kernel_spans

from scripts.gpu.breakdown import breakdown
from scripts.gpu.models import Trainee, build, flops_per_token, optimizer_for, shape_of, sizes_of, tokens, train

__all__ = ['PEAK_FLOPS', 'main', 'measure_step', 'speeds']

PEAK_FLOPS = 989e12
"""Of dense bf16 products on an H100 or H200, by the data sheet; MFU is a share of it."""
STEPS = 10


def main() -> int:
    """Measures one way; returns whether it failed."""
    parser = arguments(__doc__)
    parser.add_argument('way', help='which model, as in scripts/gpu/models.py')
    options = parser.parse_args()
    records, device = begin('step', options)
    sizes = sizes_of(options.dry)
    with records.attempt('410M', options.way):
        if options.way.startswith('hf'):
            import transformers  # noqa: F401 - a missing package is said before anything is built
        trainee = build(options.way, sizes, device)
        measure_step(records, options.way, trainee, sizes, device)
    return records.failed


def measure_step(records: Records, way: str, trainee: Trainee, sizes: Sizes, device: torch.device) -> dict[str, Any]:
    """Times steps of a model and takes one apart.

    Args:
        records (Records): Where to.
        way (str): The model's name in the record.
        trainee (Trainee): The model.
        sizes (Sizes): Batch and length of sequences.
        device (torch.device): Where.

    Returns:
        dict[str, Any]: What was recorded.
    """
    optimizer = optimizer_for(trainee.model)
    ids, labels = tokens(sizes, sizes.batch, device)
    microbatch, first = sizes.batch, 0.0
    while True:
        try:
            if device.type == 'cuda':
                torch.cuda.reset_peak_memory_stats()
            began = time.perf_counter()
            loss = train(trainee, optimizer, ids, labels, microbatch).item()
            first = time.perf_counter() - began
            break
        except torch.OutOfMemoryError:
            if microbatch == 1:
                raise
        # Outside of the handler, whose exception holds on to tensors.
        microbatch //= 2
        optimizer.zero_grad(set_to_none=True)
        free()
    times = step_times(
        lambda: train(trainee, optimizer, ids, labels, microbatch), device, 1 if device.type == 'cpu' else STEPS
    )
    values = {
        'sequences': sizes.batch,
        'microbatch': microbatch,
        'loss': loss,
        **speeds(times, sizes),
        'peak_gb': torch.cuda.max_memory_allocated() / 1e9 if device.type == 'cuda' else 0.0,
        'first_step_seconds': first,
        **_estimate(way, sizes, microbatch),
        'computed_by': trainee.description,
    }
    records.add('410M', way, **values)
    with records.attempt('breakdown', way):
        records.need(3)
        spans = kernel_spans(lambda: train(trainee, optimizer, ids, labels, microbatch), device)
        parts, longest = breakdown(spans)
        records.add('breakdown', way, **parts, kernels=longest)
    return values


def _estimate(way: str, sizes: Sizes, microbatch: int) -> dict[str, float]:
    """What `rewarm plan` says of the memory that ours need."""
    from rewarm.config.memory import estimate_memory

    kernels = way.partition('-')[0]
    if kernels not in ('triton', 'torch'):
        return {}
    memory = estimate_memory(shape_of(sizes), microbatch, sizes.tokens, 'bf16', fused=kernels == 'triton')
    return {'estimated_gb': memory.total / 1e9, 'estimated_gb_a_layer': memory.layer / 1e9}


def step_times(step: Any, device: torch.device, steps: int) -> list[float]:
    """Seconds from the end of each step to the end of the next, on the device."""
    if device.type == 'cpu':
        began = time.perf_counter()
        step()
        return [time.perf_counter() - began]
    step()
    step()
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(steps + 1)]
    marks[0].record()
    for mark in marks[1:]:
        step()
        mark.record()
    torch.cuda.synchronize()
    return [sooner.elapsed_time(later) / 1e3 for sooner, later in pairwise(marks)]


def speeds(times: list[float], sizes: Sizes) -> dict[str, float]:
    """What the times of steps mean.

    Args:
        times (list[float]): Seconds of each step.
        sizes (Sizes): The model, and the tokens of a step.

    Returns:
        dict[str, float]: Median, shortest and longest in ``ms``, tokens a second, and MFU in percent by three conventions.
    """
    rate = sizes.rows / statistics.median(times)
    return {
        'ms': statistics.median(times) * 1e3,
        'ms_shortest': min(times) * 1e3,
        'ms_longest': max(times) * 1e3,
        'tokens_per_second': rate,
        **{f'mfu_{name}': 100 * rate * flops / PEAK_FLOPS for name, flops in flops_per_token(sizes).items()},
    }


if __name__ == '__main__':
    sys.exit(main())
