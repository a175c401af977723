"""Kills a training process at one chosen instant after another, and starts it again each time.

Run as a script. It imports everything once and forks a real process for each start, so that a kill point costs a
second or two; the faults are put in here, in the child, and nowhere in the product. Usage: kill_points.py DATA OUT [WORDS], where
WORDS picks the points whose names hold them.
"""

import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parent))

from composer.utils.collect_env import get_cpu_model
from conftest import Run

from rewarm import train
from rewarm.config.load import load
from rewarm.model.clip import ClipGradients
from rewarm.report.metrics import EvalRecords, TrainRecords
from rewarm.resume import checkpoint


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def tell() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def after(owner: object, name: str, count: int, what: Callable[[], None] = die) -> Callable[[], None]:
    """A fault: die, or be told to go, once ``owner.name`` has returned for the ``count``-th time."""

    def install() -> None:
        original, calls = getattr(owner, name), [0]

        def replacement(*args, **kwargs):
            result = original(*args, **kwargs)
            calls[0] += 1
            if calls[0] == count:
                what()
            return result

        setattr(owner, name, replacement)

    return install


def poison(count: int) -> Callable[[], None]:
    """A fault: a gradient of the ``count``-th batch is no number, this once."""

    def install() -> None:
        original, calls = ClipGradients.apply, [0]

        def replacement(self, *args):
            calls[0] += 1
            if calls[0] == count:
                next(iter(self.model.parameters())).grad.fill_(float('nan'))
            return original(self, *args)

        ClipGradients.apply = replacement

    return install


POINTS = {
    'before the first batch': after(TrainRecords, 'fit_start', 1),
    **{f'at the end of batch {k}': after(TrainRecords, 'batch_end', k) for k in range(1, 13)},
    **{f'after save {k}': after(checkpoint, 'publish', k) for k in (1, 3, 6)},
    **{f'in the first save, flush {k}': after(checkpoint, 'flush', k) for k in (1, 3, 5, 8)},
    **{f'in a later save, flush {k}': after(checkpoint, 'flush', k) for k in (17, 21, 24)},
    'in a save, model written': after(checkpoint, 'save_file', 3),
    'in a save, optimizer written': after(checkpoint, 'save_file', 4),
    'in a deletion': after(checkpoint.shutil, 'rmtree', 1),
    'after the evaluation before a stage': after(EvalRecords, 'write', 1),
    'after the evaluation in a stage': after(EvalRecords, 'write', 2),
    # Batches 3, 6 and 12 end with an evaluation, which a run that is told to go leaves to its next start.
    **{f'told to go in batch {k}': after(TrainRecords, 'batch_start', k, tell) for k in (1, 3, 6, 12)},
    # One evaluation has two sets; the first comes before the first batch, the second after batch 3.
    'told to go in the evaluation before the first batch': after(EvalRecords, 'eval_end', 1, tell),
    'told to go in the evaluation after batch 3': after(EvalRecords, 'eval_end', 3, tell),
    'rolled back from the first batch': poison(1),
    'rolled back from batch 5, in the first stage': poison(5),
    'rolled back from batch 9, in the second stage': poison(9),
    'before the first batch of the second stage': after(TrainRecords, 'fit_start', 2),
}


def start(run: Run, fault: Callable[[], None] | None = None) -> int:
    """Runs training in a forked process; returns its wait status as an exit code, negative for a signal."""
    child = os.fork()
    if child == 0:
        log = os.open(run.folder.parent / 'log', os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        code = 1
        try:
            if fault is not None:
                fault()
            code = train.run(load(run.file))
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main(data: Path, out: Path, words: str = '') -> None:
    get_cpu_model()  # cached for the children: Composer asks for it at each start, and it takes a second
    unbroken = Run(out / 'unbroken', data)
    assert start(unbroken) == 0, (unbroken.folder.parent / 'log').read_text()
    wrong = 0
    for number, (name, fault) in enumerate((n, f) for n, f in POINTS.items() if words in n):
        run = Run(out / f'killed-{number}', data)
        killed = start(run, fault)
        again = start(run)
        begun = [event['stage'] for event in run.lines('events') if event['event'] == 'stage_start']
        checks = {
            'it ended as it should': killed == {'told': 75, 'rolled': 0}.get(name.split()[0], -signal.SIGKILL),
            'the second start finishes': again == 0,
            'metrics': run.losses() == unbroken.losses(),
            'evaluations': sorted(run.evals()) == sorted(unbroken.evals()),
            'weights': again == 0 and run.weights() == unbroken.weights(),
            'each stage begins once': begun == ['first', 'second'],
        }
        failed = [check for check, good in checks.items() if not good]
        wrong += bool(failed)
        print(f'{name}: {"not equal: " + ", ".join(failed) if failed else "equal"}', flush=True)
        if failed and again != 0:
            print((run.folder.parent / 'log').read_text()[-3000:], flush=True)
    print(f'{wrong} kill points not equal')
    sys.exit(bool(wrong))


if __name__ == '__main__':
    main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
