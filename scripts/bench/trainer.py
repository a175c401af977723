"""The Trainer's overhead: tokens/s of a whole `rewarm train` against a bare PyTorch loop over tokens held in memory.

Both sides train the same model on the same batches in the same order with the same optimizer, clipping and microbatches,
each in a process of its own; their losses must agree. They take turns, so that whatever else the machine does slows down
both. A batch of `rewarm train` lasts from one line of metrics.jsonl to the next: waiting for data, records, callbacks and
everything in between included. Nothing is evaluated, and saved only at the end.

    python scripts/bench/trainer.py     2 to 3 minutes on 2 cores

Prints one line of JSON: medians over the batches of all rounds, and `ratio` (1.05: `rewarm train` takes 5 % longer). Where
`ratio_of_each_round` scatters, the machine was busy; `cpu_ratio` compares processor time, of the main process without the
loader's, which other work disturbs less and which knows nothing of waiting.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from _common import SIZES, circumstances, rewarm, watch, write_run, write_shards

BAR = 1.10
LEAST_STEP_MS = 100
LARGEST_DIFFERENCE = 1e-4  # of a batch's loss, in nats


def main() -> None:
    """Runs both sides in turn and prints how they compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--size', choices=SIZES, default='standard', help='model and batch (default: standard)')
    parser.add_argument('--rounds', type=int, default=4, help='times that each side runs (default: 4)')
    parser.add_argument('--batches', type=int, default=50, help='batches of a side in a round (default: 50)')
    parser.add_argument('--warm-up', type=int, default=10, help='the first of these do not count (default: 10)')
    parser.add_argument('--threads', type=int, default=1, help='of each side; 1 leaves a core to the loader (default)')
    parser.add_argument('--workers', type=int, default=1, help='loader processes of `rewarm train` (default: 1)')
    parser.add_argument('--bare', nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.bare:
        _bare(Path(options.bare[0]), Path(options.bare[1]))
        return
    if not 0 < options.warm_up < options.batches:
        sys.exit(f'--warm-up {options.warm_up}: at least 1, and less than the {options.batches} of --batches')
    with tempfile.TemporaryDirectory(prefix='rewarm-bench-') as folder:
        print(json.dumps(_compare(Path(folder), options)), flush=True)


def _compare(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    size, around = SIZES[options.size], circumstances('torch', 'mosaicml', 'mosaicml-streaming', 'numpy')
    write_shards(folder, size, batches=options.batches)
    run = write_run(folder, size, batches=options.batches, workers=options.workers, save_every=options.batches)
    environment = {'OMP_NUM_THREADS': str(options.threads)}
    seconds: dict[str, list[list[float]]] = {'rewarm': [], 'bare': []}
    cpu: dict[str, list[float]] = {'rewarm': [], 'bare': []}
    difference = 0.0
    for number in range(options.rounds):
        metrics = folder / f'run-{number}' / 'metrics.jsonl'
        watched = watch(rewarm('train', run, f'run_folder={metrics.parent}'), metrics, environment)
        marks = [watched.batches[batch] for batch in range(options.warm_up, options.batches + 1)]
        seconds['rewarm'].append([later - sooner for sooner, later in pairwise(marks)])
        out = folder / 'bare.json'
        command = [sys.executable, __file__, '--bare', str(run), str(out)]
        other = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=False)
        if other.returncode:
            sys.exit(f'{other.stderr}\n{" ".join(command)} ended with {other.returncode}')
        bare = json.loads(out.read_text())
        seconds['bare'].append(bare['seconds'][options.warm_up :])
        cpu['rewarm'].append(watched.cpu[options.batches] - watched.cpu[options.warm_up])
        cpu['bare'].append(sum(bare['cpu_seconds'][options.warm_up :]))
        losses = [json.loads(line)['loss'] for line in metrics.read_text().splitlines()]
        difference = max(difference, *(abs(one - other) for one, other in zip(losses, bare['losses'], strict=True)))
    if difference > LARGEST_DIFFERENCE:
        sys.exit(f'the two sides do not train the same: a loss differs by {difference:.2g}')
    medians = {side: statistics.median(sum(rounds, [])) for side, rounds in seconds.items()}
    pairs = [statistics.median(one) / statistics.median(other) for one, other in zip(*seconds.values(), strict=True)]
    if medians['bare'] * 1e3 < LEAST_STEP_MS:
        print(f'A step took less than {LEAST_STEP_MS} ms: the ratio says nothing about a real model.', file=sys.stderr)
    ratio = medians['rewarm'] / medians['bare']
    return {
        'bench': 'trainer',
        'ratio': round(ratio, 3),
        'bar': BAR,
        'within_bar': ratio <= BAR,
        'cpu_ratio': round(sum(cpu['rewarm']) / sum(cpu['bare']), 3),
        'ratio_of_each_round': [round(pair, 3) for pair in pairs],
        'overhead_ms': round((medians['rewarm'] - medians['bare']) * 1e3, 1),
        'step_ms': {side: round(median * 1e3, 1) for side, median in medians.items()},
        'tokens_per_second': {side: round(size.batch * size.seq_len / median) for side, median in medians.items()},
        'largest_loss_difference': difference,
        'size': vars(size),
        'rounds': options.rounds,
        'batches_of_a_round': options.batches - options.warm_up,
        'threads': options.threads,
        'workers': options.workers,
        **around,
    }


def _bare(run: Path, out: Path) -> None:
    """The other side: what one would write without a Trainer. Writes seconds and loss of each batch to ``out``."""
    import torch
    from composer.utils import dist, get_device

    from rewarm.build import build_model
    from rewarm.config.load import load
    from rewarm.config.plan import make_plan
    from rewarm.data.stream import build_train_loader, release
    from rewarm.model.optimizer import build_optimizer

    config = load(run, ['data.num_workers=0'])
    stage = make_plan(config).stages[0]
    dist.initialize_dist('cpu')  # Streaming asks for it
    samples = stage.batches * config.global_train_batch_size
    train = build_train_loader(config.stages[0], config=config, start_sample=0, total_samples=samples)
    batches = list(train.spec.dataloader)
    release([train.dataset])

    model = build_model(config, get_device('cpu'), initialise=True)
    pythia = model.pythia
    optimizer = build_optimizer(pythia, config.optimizer, lr=stage.lr(0))
    micro = config.device_train_microbatch_size

    losses, marks, cpu = [], [time.perf_counter()], [time.process_time()]
    for batch in batches:
        total = torch.zeros(())
        for inputs, labels in zip(batch['input_ids'].split(micro), batch['labels'].split(micro)):
            part = {'input_ids': inputs, 'labels': labels}
            loss = model.loss(model(part), part) * (len(inputs) / len(batch['labels']))
            loss.backward()
            total += loss.detach()
        torch.nn.utils.clip_grad_norm_(pythia.parameters(), config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total)
        marks.append(time.perf_counter())
        cpu.append(time.process_time())
    seconds, cpu_seconds = ([later - sooner for sooner, later in pairwise(times)] for times in (marks, cpu))
    found = {'seconds': seconds, 'cpu_seconds': cpu_seconds, 'losses': [loss.item() for loss in losses]}
    out.write_text(json.dumps(found))


if __name__ == '__main__':
    main()
