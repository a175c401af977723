"""A run that is killed on the GPU and started again gives the losses of a run that never was, bit for bit.

A model of Pythia-14m's shape in bf16 with our kernels, on the standard library's text, saved every few batches. One run
goes through; another gets a SIGKILL between two saves, which costs it the batches since the last, and is started again.
"""

import sys
import tempfile
import time
from pathlib import Path

import torch
from bench_measure import Records, arguments, begin

from scripts.gpu.runs import Training, need, prepare

__all__ = ['main']

KEYS = ('batch', 'lr', 'loss', 'grad_norm', 'sample_ids_crc32')


def main() -> int:
    """Runs both; returns whether they differ."""
    options = arguments(__doc__).parse_args()
    records, device = begin('resume', options)
    with records.attempt('killed'):
        need()
        with tempfile.TemporaryDirectory(prefix='rewarm-gpu-resume-') as folder:
            _compare(records, Path(folder), device, dry=options.dry)
    return records.failed


def _compare(records: Records, folder: Path, device: torch.device, *, dry: bool) -> None:
    from rewarm.model.attention_choice import choose_backend
    from scripts.bench._common import Size

    size = Size(width=128, layers=6, heads=4, vocabulary=512, seq_len=256, batch=16, microbatch=8)
    batches, save_every, kill_at = 16, 4, 7
    if dry:
        size = Size(width=32, layers=1, heads=2, vocabulary=512, seq_len=16, batch=2, microbatch=1)
        batches, save_every, kill_at = 5, 2, 3
    run = prepare(folder, size, batches=batches, save_every=save_every)
    overrides = ['precision=bf16', 'model.kernels=triton']
    if device.type == 'cuda':  # two that choose at once may choose differently, by the times they measure
        shape = size.microbatch, size.heads, size.seq_len, size.width // size.heads
        overrides.append(f'model.attention={choose_backend("auto", device, shape=shape, dtype=torch.bfloat16).backend}')
    until = time.monotonic() + records.left()
    whole, broken = (Training(run, folder / name, *overrides) for name in ('whole', 'broken'))
    started = [whole, broken]
    try:
        if not broken.wait(kill_at, until):
            raise TimeoutError(f'only {len(broken.lines())} of {kill_at} batches before the kill')
        broken.kill()
        killed_after = len(broken.lines())
        again = Training(run, folder / 'broken', *overrides)
        started.append(again)
        again.finish(until)
        whole.finish(until)
    finally:
        for training in started:
            training.kill()
    different = [
        (one['batch'], key)
        for one, other in zip(whole.lines(), again.lines(), strict=True)
        for key in KEYS
        if one[key] != other[key]
    ]
    weights = [
        next((folder / name / 'checkpoints').glob(f'ba{batches:08}/model.safetensors')) for name in ('whole', 'broken')
    ]
    records.add(
        'killed',
        batches=len(again.lines()),
        killed_after=killed_after,
        saved_every=save_every,
        different=different[:8],
        weights_equal=weights[0].read_bytes() == weights[1].read_bytes(),
        ok=not different and weights[0].read_bytes() == weights[1].read_bytes(),
        losses=[line['loss'] for line in again.lines()],
        computed_by=again.said('Attention:'),
    )


if __name__ == '__main__':
    sys.exit(main())
