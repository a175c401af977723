"""What Composer costs: the whole `rewarm train` against the bare step, at 410M and 65,536 tokens a batch.

`rewarm train` reads shards through Streaming, records each batch, and is timed by the clock on the wall from the record
of one batch to that of another, waiting for data included. Then the same model trains on a batch that lies in memory,
with nothing around the step. At most 2 % are allowed. The run is killed before it saves: a checkpoint is no part of this.
"""

import sys
import tempfile
import time
from pathlib import Path

import torch
from bench_measure import Records, arguments, begin

from scripts.gpu.models import optimizer_for, our_model, set_weights, sizes_of, tokens, train
from scripts.gpu.runs import Training, need, prepare

__all__ = ['main']

BAR_PERCENT = 2.0


def main() -> int:
    """Times both; returns whether one of them failed, not whether the bar is met."""
    options = arguments(__doc__).parse_args()
    records, device = begin('trainer', options)
    with records.attempt('overhead'):
        need()
        with tempfile.TemporaryDirectory(prefix='rewarm-gpu-trainer-') as folder:
            _compare(records, Path(folder), device, dry=options.dry)
    return records.failed


def _compare(records: Records, folder: Path, device: torch.device, *, dry: bool) -> None:
    from scripts.bench._common import Size

    sizes = sizes_of(dry)
    size = Size(sizes.width, sizes.layers, sizes.heads, 512, sizes.tokens, sizes.batch, sizes.batch)
    skip, count = (1, 2) if dry else (6, 20)
    run = prepare(folder, size, batches=10_000, save_every=10_000)
    changes = (f'model.vocab_size={sizes.vocabulary}', 'model.gelu=erf', 'model.kernels=triton', 'precision=bf16')
    training = Training(run, folder / 'run', *changes, f'model.intermediate_size={sizes.mlp_width}')
    try:
        if not training.wait(skip + count, time.monotonic() + records.left() - (1 if dry else 20)):
            raise TimeoutError(f'only {len(training.lines())} batches: {training.tail()}')
    finally:
        training.kill()
    composer = (training.appeared[skip + count - 1] - training.appeared[skip - 1]) / count
    trainee = our_model('triton', sizes, device, torch.bfloat16)
    set_weights(trainee.model)
    optimizer = optimizer_for(trainee.model)
    ids, labels = tokens(sizes, sizes.batch, device)
    marks = []
    for step in range(skip + count):
        train(trainee, optimizer, ids, labels, sizes.batch)
        if step in (skip - 1, skip + count - 1):
            if device.type == 'cuda':
                torch.cuda.synchronize()
            marks.append(time.perf_counter())
    bare = (marks[1] - marks[0]) / count
    percent = 100 * (composer / bare - 1)
    records.add(
        'overhead',
        ms_rewarm_train=composer * 1e3,
        ms_bare=bare * 1e3,
        tokens_per_second=sizes.rows / composer,
        percent_slower=percent,
        bar_percent=BAR_PERCENT,
        within_bar=percent <= BAR_PERCENT,
        batches=count,
        computed_by=training.said('Attention:'),
    )


if __name__ == '__main__':
    sys.exit(main())
