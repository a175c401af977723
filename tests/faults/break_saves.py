"""Strikes a run at one file-system call of its folder after another, and starts it again each time.

Run as a script. A dry run lists the calls that saving, deleting, recording and starting really make, however they are
written; then each chosen call is a fault in a run of its own. It imports everything once and forks a process for each
start. Faults: the machine vanishes before the call (``kill``), the disk is full from the call on (``full``), the device
fails at it (``broken``), a write takes half of its bytes (``short``).

Usage: break_saves.py DATA OUT [--seed 1] [--kill 30] [--full 12] [--broken 12] [--short all]
"""

import argparse
import errno
import gc
import random
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import composer.algorithms  # noqa: F401  # what a start imports, imported once
from composer.utils.collect_env import get_cpu_model

from rewarm import cli, train  # noqa: F401
from rewarm.resume.checkpoint import problems
from tests.end_to_end.conftest import Run
from tests.faults.layer import (
    CHANGES_NOTHING,
    Call,
    Decide,
    Done,
    disk_full_from,
    fail_at,
    kill_at,
    run,
    short_write_at,
)


class TinyRun(Run):
    """A run with fewer batches of evaluations, which take most of a tiny run's time."""

    def __init__(self, path: Path, data: Path) -> None:
        super().__init__(path, data)
        self.log = path / 'log'
        self.overrides = [
            'device_train_microbatch_size=8',
            'eval.interval=1000ba',
            f'eval.sets=[{{name: old, local: {data}/old-val, role: upstream}}]',
        ]


def kind_of(call: Call) -> tuple[str, str]:
    """Calls that do the same to different checkpoints are of one kind."""
    return call.name, re.sub(r'\d+|\.tmp\w+', '#', call.path)


def worth_striking(calls: list[Call]) -> list[Call]:
    """All calls; of a row of equal ones, as a file written in pieces makes, the first, the middle and the last."""
    rows: list[list[Call]] = []
    for call in calls:
        if rows and (rows[-1][-1].name, rows[-1][-1].path) == (call.name, call.path):
            rows[-1].append(call)
        else:
            rows.append([call])
    return [call for row in rows for call in {row[k].number: row[k] for k in (0, len(row) // 2, -1)}.values()]


def sample(calls: list[Call], count: int, seed: int) -> list[Call]:
    """One call of each kind, then a second of each and so on, until there are ``count``; by chance among its kind."""
    chance, kinds = random.Random(seed), {}
    for call in calls:
        kinds.setdefault(kind_of(call), []).append(call)
    for group in kinds.values():
        chance.shuffle(group)
    order = list(kinds.values())
    chance.shuffle(order)
    turns = [group[turn] for turn in range(max(map(len, order))) for group in order if turn < len(group)]
    return sorted(turns[:count], key=lambda call: call.number)


FAULTS: dict[str, tuple[Callable[[int], Decide], Callable[[Call], bool]]] = {
    'kill': (kill_at, lambda call: call.name not in CHANGES_NOTHING),
    'full': (disk_full_from, lambda call: call.name not in CHANGES_NOTHING),
    'broken': (lambda number: fail_at(number, errno.EIO), lambda call: True),
    'short': (short_write_at, lambda call: call.name == 'write'),
}


def start(a_run: TinyRun, decide: Decide = lambda call: None) -> Done:
    """Starts the run as ``rewarm train`` does, in a forked process."""

    def program() -> int:
        sys.argv = ['rewarm', 'train', str(a_run.file), *a_run.overrides]
        try:
            cli.main()
        except SystemExit as leaving:
            return int(leaving.code or 0)

    return run(program, a_run.folder, decide, log=a_run.log)


def strike(a_run: TinyRun, unbroken: TinyRun, fault: str, decide: Decide) -> tuple[str, list[str]]:
    """Starts a run with a fault and again without; returns how the first start ended and what is not as it should be."""
    struck = start(a_run, decide)
    said = a_run.log.read_text()
    torn = [path.name for path in (a_run.folder / 'checkpoints').glob('ba????????') if problems(path)]
    again = start(a_run)
    how = f'{struck.struck[0]}, exit {struck.code}' if struck.struck else 'the call did not come'
    begun = [event['stage'] for event in a_run.lines('events') if event['event'] == 'stage_start']
    allowed = {'kill': {-9}, 'full': {2}, 'broken': {2, 0}, 'short': {0}}[fault]
    checks = {
        'the exit code': not struck.struck or struck.code in allowed,
        'words instead of a traceback': 'Traceback' not in said,
        'no torn checkpoint has its name': not torn,
        'the second start finishes': again.code == 0,
        'metrics': a_run.losses() == unbroken.losses(),
        'evaluations': sorted(a_run.evals()) == sorted(unbroken.evals()),
        'weights': again.code == 0 and a_run.weights() == unbroken.weights(),
        'each stage begins once': begun == ['first', 'second'],
        'nothing half written is left': not list((a_run.folder / 'checkpoints').glob('.writing-*')),
    }
    return how, [check for check, good in checks.items() if not good]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument('data', type=Path)
    parser.add_argument('out', type=Path)
    parser.add_argument('--seed', type=int, default=1)
    for fault in FAULTS:
        parser.add_argument(f'--{fault}', default='0', help='how many calls to strike so, or all')
    options = parser.parse_args()
    get_cpu_model()  # cached for the children: Composer asks for it at each start, and it takes a second
    gc.collect()
    gc.freeze()

    unbroken = TinyRun(options.out / 'unbroken', options.data)
    dry = start(unbroken)
    assert dry.code == 0, unbroken.log.read_text()
    print(f'seed {options.seed}; a run makes {len(dry.calls)} calls of {len(set(map(kind_of, dry.calls)))} kinds')
    wrong = 0
    for fault, (decide_at, possible) in FAULTS.items():
        calls = [call for call in worth_striking(dry.calls) if possible(call)]
        count = getattr(options, fault)
        chosen = calls if count == 'all' else sample(calls, int(count), options.seed)
        for call in chosen:
            a_run = TinyRun(options.out / f'{fault}-{call.number}', options.data)
            how, failed = strike(a_run, unbroken, fault, decide_at(call.number))
            wrong += bool(failed)
            print(f'{fault}: {how}: {"not equal: " + ", ".join(failed) if failed else "equal"}', flush=True)
            if failed:
                print(a_run.log.read_text()[-2000:], flush=True)
            else:
                shutil.rmtree(a_run.folder.parent)
    print(f'{wrong} faults not survived')
    sys.exit(bool(wrong))


if __name__ == '__main__':
    main()
