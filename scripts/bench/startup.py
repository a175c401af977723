"""Start-up: seconds from starting `rewarm train` to its first batch, and how long `rewarm plan` and `--help` take.

A tiny model on one process, so that what is measured is the start itself: `new` begins a run, `resumed` goes on from a
checkpoint, and `resumed_cold` does so on a machine that has read nothing yet: all files of Python, of its packages and of
the run are put out of the kernel's page cache before each start, as far as no other process has them mapped. The marks, in
seconds since the process was started, are medians of `--repeat` starts:

    run_start     Python, torch, Composer and Streaming imported, the run folder taken, its newest checkpoint verified
    batch_begun   model, optimizer and Trainer built, the checkpoint loaded, the loader's processes started
    batch_done    the first batch trained and recorded
    ended         the process gone, after two batches (new) or one (resumed) and their saves

`imports` is where the seconds before run_start go: each package's own time by `python -X importtime`, which slows imports down
a little, without what it imports from others.

    python scripts/bench/startup.py     about 3 minutes

Prints one line of JSON for each figure.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import Any

from _common import ROOT, SIZES, circumstances, rewarm, watch, write_run, write_shards

RUN_FILE = ROOT / 'yamls' / 'pythia-410m' / 'rewarm.yaml'
NAMED = ('torch', 'composer', 'streaming', 'transformers', 'rewarm')
BIGGEST = 12


def main() -> None:
    """Measures one thing after another."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--repeat', type=int, default=5, help='times that each thing is started (default: 5)')
    parser.add_argument('--workers', type=int, default=4, help="loader processes; rewarm's own default (default: 4)")
    options = parser.parse_args()
    around = circumstances('torch', 'mosaicml', 'mosaicml-streaming', 'transformers', 'pydantic', 'typer')
    for name, arguments in (('plan', ('plan', RUN_FILE)), ('help', ('--help',))):
        seconds = [_process(rewarm(*arguments)) for _ in range(options.repeat)]
        _tell(name, {'seconds': round(statistics.median(seconds), 3), 'all': seconds, **around})
    for kind, marks in _starts(options).items():
        _tell(kind, {**_medians(marks), **around})
    _tell('imports', {**_imports(), **around})


def _tell(figure: str, found: dict[str, Any]) -> None:
    print(json.dumps({'bench': 'startup', 'figure': figure, **found}), flush=True)


def _process(command: list[str]) -> float:
    """Wall seconds of a command."""
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=ROOT)
    return round(time.perf_counter() - started, 3)


def _starts(options: argparse.Namespace) -> dict[str, list[dict[str, float]]]:
    """Begins a run of two batches that saves after each, and takes it back to the first for each other kind of start."""
    found: dict[str, list[dict[str, float]]] = {'new': [], 'resumed': [], 'resumed_cold': []}
    with tempfile.TemporaryDirectory(prefix='rewarm-bench-') as name:
        folder = Path(name)
        write_shards(folder, SIZES['tiny'], batches=2)
        run = write_run(folder, SIZES['tiny'], batches=2, workers=options.workers, save_every=1)
        for number in range(options.repeat):
            place = folder / f'run-{number}'
            found['new'].append(_marks(run, place, batch=1))
            for kind in ('resumed', 'resumed_cold'):
                shutil.rmtree(place / 'checkpoints' / 'ba00000002')
                records = (place / 'metrics.jsonl').read_text().splitlines(keepends=True)
                (place / 'metrics.jsonl').write_text(records[0])
                if kind == 'resumed_cold':
                    _forget(folder, ROOT, Path(sys.prefix), Path(sysconfig.get_paths()['stdlib']))
                found[kind].append(_marks(run, place, batch=2))
    return found


def _forget(*folders: Path) -> None:
    """Puts all files below some folders out of the page cache."""
    os.sync()  # what is not written yet stays
    for path in (Path(base) / name for folder in folders for base, _, names in os.walk(folder) for name in names):
        if path.is_file() and not path.is_symlink():
            descriptor = os.open(path, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def _marks(run: Path, folder: Path, *, batch: int) -> dict[str, float]:
    """Starts the run once and says when it came where; ``batch`` is the first one it trains."""
    watched = watch(rewarm('train', run, f'run_folder={folder}'), folder / 'metrics.jsonl', {})
    events = [json.loads(line) for line in (folder / 'events.jsonl').read_text().splitlines()]
    begun = [event['time'] for event in events if event['event'] == 'run_start'][-1]
    records = [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]
    seconds = next(record['seconds'] for record in records if record['batch'] == batch)
    return {
        'run_start': datetime.fromisoformat(begun).timestamp() - watched.started_at,
        'batch_begun': watched.batches[batch] - seconds,
        'batch_done': watched.batches[batch],
        'ended': watched.ended,
    }


def _medians(starts: list[dict[str, float]]) -> dict[str, Any]:
    middle = {name: round(statistics.median(start[name] for start in starts), 2) for name in starts[0]}
    return {**middle, 'all_batch_done': [round(start['batch_done'], 2) for start in starts]}


def _imports() -> dict[str, Any]:
    """Seconds that the modules of each package take by themselves when `rewarm train` imports all it needs."""
    command = [sys.executable, '-X', 'importtime', '-c', 'import rewarm.train']
    text = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stderr
    own: Counter[str] = Counter()
    for line in text.splitlines():
        if line.startswith('import time:') and line.split('|')[0].split()[-1].isdigit():
            microseconds, _, module = line.removeprefix('import time:').split('|')
            own[module.strip().partition('.')[0]] += int(microseconds)
    others = [package for package, _ in own.most_common() if package not in NAMED]
    shown = [*NAMED, *others[:BIGGEST]]
    return {
        'total': round(own.total() / 1e6, 2),
        'seconds': {package: round(own[package] / 1e6, 2) for package in shown},
        'all_others': round(sum(own[package] for package in others[BIGGEST:]) / 1e6, 2),
    }


if __name__ == '__main__':
    main()
