"""Checkpoints: seconds and memory to write, verify and load one, at the real size of Pythia-410M, on the CPU.

One process writes a checkpoint at once; a second one saves three times in the background, as a run does, while it
multiplies matrices in the place of training; a third one verifies the last and loads it into a new model and optimizer, as the
next start does. Between them the files are dropped from the page cache, so `verify` reads the disk; `load` reads what
verifying has brought in. Of writing, `files` is safetensors writing its files, `hash` the manifest, `flush` the fsyncs.

Memory is that of the whole process, interpreter and libraries included, at its peak:

    peak_rss        VmHWM, the kernel's own peak of all resident pages (getrusage's ru_maxrss)
    peak_anonymous  RssAnon, memory that is the process's own (looked at every 5 ms)
    peak_file       RssFile, resident pages of mapped files: libraries, and a checkpoint if one is mapped; not the same instant

The bar is peak_rss <= model + optimizer + 1 GB, and as much again for the copy that the background writes from.
`stall` is how long training stands still for a save, `stall_share` that over the whole save (the bar is 0.1), and
`training_speed` the products a second during a save over those without one, on as many threads. `mapped_after` counts the checkpoint's bytes that are
still mapped when everything is loaded; none should be.

    python scripts/bench/checkpoint.py      about three minutes, 15 GB of disk, 12 GB of memory

Prints one line of JSON for each process.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from _common import circumstances

from rewarm.config.schema import MODEL_SHAPES, ModelShape, OptimizerConfig

SIZES = {
    **MODEL_SHAPES,
    'tiny': ModelShape(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128, vocab_size=512
    ),
}
ALLOWED = 1e9  # bytes besides the tensors: the interpreter and its libraries take most of it
LOOK_EVERY = 0.005


def main() -> None:
    """Writes in one process, loads in another, and prints what each took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--size', choices=SIZES, default='pythia-410m', help='model (default: pythia-410m)')
    parser.add_argument('--folder', help='where to write, to choose the disk (default: the temporary folder)')
    parser.add_argument('--process', nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.process:
        what, root = options.process
        found = {'write': _write, 'background': _save_in_background, 'load': _load}[what](
            Path(root), SIZES[options.size]
        )
        print(json.dumps(found))
        return
    around = circumstances('torch', 'safetensors')
    with tempfile.TemporaryDirectory(prefix='rewarm-bench-', dir=options.folder) as root:
        for what in ('write', 'background', 'load'):
            found = _watch([sys.executable, __file__, '--size', options.size, '--process', what, root])
            found['within_bar'] = found['memory']['peak_rss'] <= found['bar']
            print(
                json.dumps({'bench': 'checkpoint', 'process': what, 'size': options.size, **found, **around}),
                flush=True,
            )


def _write(root: Path, shape: ModelShape) -> dict[str, Any]:
    """One save, which the process waits for."""
    from rewarm.resume import checkpoint
    from rewarm.resume.state import optimizer_tensors

    memory = {'after_imports': _resident()['VmRSS']}
    model, optimizer = _trained(shape)
    memory['before_saving'] = _resident()['VmRSS']
    seconds: defaultdict[str, float] = defaultdict(float)
    for name, what in (('save_file', 'files'), ('describe_file', 'hash'), ('flush', 'flush')):
        setattr(checkpoint, name, _timed(getattr(checkpoint, name), seconds, what))
    with _time(seconds, 'total'):
        path = checkpoint.write(
            root, batch=1, model=model.state_dict(), optimizer=optimizer_tensors(model, optimizer), state={}
        )
    _drop_from_page_cache(path)
    return _figures(path, model, optimizer, seconds, memory)


def _save_in_background(root: Path, shape: ModelShape) -> dict[str, Any]:
    """Three saves while the process goes on computing, as a run saves."""
    import torch
    from composer.utils import dist, get_device

    from rewarm.resume.saving import BackgroundSaver

    dist.initialize_dist(get_device('cpu'))
    memory = {'after_imports': _resident()['VmRSS']}
    model, optimizer = _trained(shape)
    memory['before_saving'] = _resident()['VmRSS']
    records: list[dict[str, Any]] = []
    saver = BackgroundSaver(
        root,
        model=model,
        optimizer=optimizer,
        before_publishing=lambda: None,
        after_publishing=lambda path, record: records.append({**record, 'path': path}),
    )
    matrix = torch.randn(512, 512)

    def products_per_second(while_: Callable[[], bool]) -> float:
        started, count = time.perf_counter(), 0
        while while_():
            torch.mm(matrix, matrix)
            count += 1
        return count / (time.perf_counter() - started)

    saver.snapshot_ready()
    until = time.perf_counter() + 5
    alone = products_per_second(lambda: time.perf_counter() < until)
    beside = []
    for batch in (2, 3, 4):
        saver.begin({'batch': batch, 'tokens': 0, 'stage': 'bench'}, {})
        beside.append(products_per_second(lambda: saver.busy))
        saver.finish()
    saver.close()
    path = records[-1]['path']
    _drop_from_page_cache(path)
    seconds = {'total': sum(record['seconds'] for record in records) / len(records)}
    return {
        **_figures(path, model, optimizer, seconds, memory, copies=2),
        'stall_seconds': [record['stall_seconds'] for record in records],
        'save_seconds': [record['seconds'] for record in records],
        'stall_share': round(max(record['stall_seconds'] / record['seconds'] for record in records), 4),
        'training_speed': [round(speed / alone, 3) for speed in beside],
        'torch_threads': torch.get_num_threads(),
    }


def _trained(shape: ModelShape) -> tuple[Any, Any]:
    """A model, and an optimizer with moments in every parameter's state."""
    import torch

    from rewarm.model.optimizer import build_optimizer
    from rewarm.model.pythia import Pythia

    model = Pythia(shape, gelu='tanh')
    optimizer = build_optimizer(model, OptimizerConfig(), lr=1e-3)
    with torch.no_grad():
        for parameter in model.parameters():  # filled in place: a step would need gradients, which are not counted here
            optimizer.state[parameter] = {
                'step': torch.tensor(1.0),
                'exp_avg': torch.randn_like(parameter.normal_()),
                'exp_avg_sq': torch.rand_like(parameter),
            }
    return model, optimizer


def _drop_from_page_cache(folder: Path) -> None:
    for file in folder.iterdir():
        with file.open('rb') as handle:
            os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _load(root: Path, shape: ModelShape) -> dict[str, Any]:
    """The process that starts again: verifies the checkpoint, builds a model and an optimizer, fills both."""
    from rewarm.model.optimizer import build_optimizer
    from rewarm.model.pythia import Pythia
    from rewarm.resume.checkpoint import find_newest_valid
    from rewarm.resume.state import load_model, load_optimizer

    memory = {'after_imports': _resident()['VmRSS']}
    seconds: defaultdict[str, float] = defaultdict(float)
    with _time(seconds, 'verify'):
        checkpoint = find_newest_valid(root, print)
    assert checkpoint is not None
    with _time(seconds, 'build'):
        model = Pythia(shape, gelu='tanh')
        optimizer = build_optimizer(model, OptimizerConfig(), lr=1e-3)
    with _time(seconds, 'load'):
        load_model(model, checkpoint)
        load_optimizer(model, optimizer, checkpoint)
    figures = _figures(checkpoint.path, model, optimizer, seconds, memory)
    return {**figures, 'mapped_after': _mapped(checkpoint.path)}


def _figures(
    path: Path, model: Any, optimizer: Any, seconds: dict[str, float], memory: dict[str, int], copies: int = 1
) -> dict[str, Any]:
    from rewarm.resume.state import optimizer_tensors

    on_disk = sum(file.stat().st_size for file in path.iterdir())
    tensors = {
        'model': sum(tensor.nbytes for tensor in model.state_dict().values()),
        'optimizer': sum(tensor.nbytes for tensor in optimizer_tensors(model, optimizer).values()),
    }
    return {
        'seconds': {what: round(value, 2) for what, value in seconds.items()},
        'mb_per_second': {what: round(on_disk / value / 1e6) for what, value in seconds.items() if what != 'build'},
        'bytes_on_disk': on_disk,
        'bytes_of_tensors': tensors,
        'bar': copies * sum(tensors.values()) + int(ALLOWED),
        'memory': {**memory, 'peak_rss': _resident()['VmHWM']},
    }


@contextlib.contextmanager
def _time(seconds: dict[str, float], what: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    seconds[what] += time.perf_counter() - started


def _timed(function: Callable[..., Any], seconds: dict[str, float], what: str) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        with _time(seconds, what):
            return function(*args, **kwargs)

    return run


def _watch(command: list[str]) -> dict[str, Any]:
    """Runs one of the processes, looking at its memory from outside, where nothing it does can hold up the looking."""
    peaks = {'RssAnon': 0, 'RssFile': 0}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        while process.poll() is None:
            now = _resident(process.pid)
            peaks = {name: max(peak, now.get(name, 0)) for name, peak in peaks.items()}
            time.sleep(LOOK_EVERY)
    finally:
        process.kill()  # does nothing to one that has ended
        output, _ = process.communicate()
    if process.returncode:
        sys.exit(f'{" ".join(command)} ended with {process.returncode}')
    found = json.loads(output)
    found['memory'] |= {'peak_anonymous': peaks['RssAnon'], 'peak_file': peaks['RssFile']}
    return found


def _resident(pid: int | str = 'self') -> dict[str, int]:
    """The process's memory in bytes, by the kernel's names; empty if it has ended."""
    try:
        lines = Path(f'/proc/{pid}/status').read_text().splitlines()
    except OSError:
        return {}
    return {
        line.split(':')[0]: int(line.split()[1]) * 1024 for line in lines if line.startswith(('VmHWM', 'VmRSS', 'Rss'))
    }


def _mapped(folder: Path) -> int:
    """Bytes of the address space that are files of this folder, whether they still have a name or not."""
    total = 0
    for line in Path('/proc/self/maps').read_text().splitlines():
        if str(folder) in line:
            start, end = line.split()[0].split('-')
            total += int(end, 16) - int(start, 16)
    return total


if __name__ == '__main__':
    main()
