"""What a save costs training on the GPU, at 410M: the time that the loop and the GPU stand still, and the whole save.

The parameters and moments of one rank are copied into page-locked memory and written by a thread, as a run does it. The
stall is the longer of the host's time and the GPU's; at most 0.3 s are allowed, and it is not a fault to take longer.
"""

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from bench_measure import Records, arguments, begin

from scripts.gpu.models import shape_of, sizes_of

__all__ = ['main']

BAR_SECONDS = 0.3
SAVES = 2


def main() -> int:
    """Saves; returns whether that failed, not whether the bar is met."""
    options = arguments(__doc__).parse_args()
    records, device = begin('save', options)
    with records.attempt('background'):
        from composer.utils import dist, get_device

        dist.initialize_dist(get_device('gpu' if device.type == 'cuda' else 'cpu'))
        with tempfile.TemporaryDirectory(prefix='rewarm-gpu-save-') as folder:
            _save(records, Path(folder), device, dry=options.dry)
    return records.failed


def _save(records: Records, folder: Path, device: torch.device, *, dry: bool) -> None:
    from rewarm.config.schema import OptimizerConfig
    from rewarm.model.optimizer import build_optimizer
    from rewarm.model.pythia import Pythia
    from rewarm.resume.checkpoint import problems
    from rewarm.resume.saving import BackgroundSaver

    model = Pythia(shape_of(sizes_of(dry)), gelu='tanh').to(device)
    optimizer = build_optimizer(model, OptimizerConfig(), lr=1e-3)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()  # the moments are made here
    optimizer.zero_grad(set_to_none=True)
    saved: list[dict[str, Any]] = []
    began = time.perf_counter()
    saver = BackgroundSaver(
        folder,
        model=model,
        optimizer=optimizer,
        before_publishing=lambda: None,
        after_publishing=lambda path, record: saved.append({**record, 'problems': problems(path)}),
    )
    saver.snapshot_ready()
    ready_seconds = time.perf_counter() - began
    stalls = []
    for batch in range(1, SAVES + 1):
        began = time.perf_counter()
        saver.begin({'batch': batch, 'tokens': 0, 'stage': 'save'}, {})
        if device.type == 'cuda':
            torch.cuda.synchronize()
        stalls.append(time.perf_counter() - began)
        saver.finish()
    saver.close()
    records.add(
        'background',
        stall_seconds=max(stalls),
        bar_seconds=BAR_SECONDS,
        within_bar=max(stalls) <= BAR_SECONDS,
        save_seconds=max(each['seconds'] for each in saved),
        memory_ready_seconds=ready_seconds,
        bytes=saved[-1]['bytes'],
        saves=SAVES,
        ok=len(saved) == SAVES and not any(each['problems'] for each in saved),
    )


if __name__ == '__main__':
    sys.exit(main())
