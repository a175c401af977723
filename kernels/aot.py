"""Compiles every kernel for GPUs that are not here, and reads the machine code for what makes a kernel slow or wrong.

    python kernels/aot.py                  compile all, write kernels/results/aot.csv, fail if the gate does
    python kernels/aot.py --check          compile all, compare with the table, fail on a regression
    python kernels/aot.py --check adamw    only kernels with this in their name

What is compiled is what a training step launches, and is listed nowhere: each case of aot_cases.py calls operators,
forward and backward, at the size of Pythia-410M, on tensors without memory that say they are on a GPU. Their launches
are recorded, and Triton's own launch code makes of the recorded arguments what it makes of them on a GPU: constants,
types, and which pointers and integers are divisible by 16, without which there are no 128-bit loads. A kernel in
rewarm_kernels that no case launches is an error.

The gate, for each kernel and target:

    no stack, no spills (STL, LDL)          a spilled register is a trip to memory in the inner loop
    registers x threads <= 65,536           else it cannot be launched
    shared memory within the target's       else it cannot be launched
    no atomics                              a sum in another order each time: runs would not be bit-equal
    128-bit loads and stores                all of them, but for what NARROW lists with its reason
    tensor cores where there is a tl.dot    else it falls back to plain multiplications

And against the table: no more loads or stores of less than 128 bits, and the same launches. Other figures that changed are
told and fail nothing. The same kernel can spill with one triton and not with the next, so rows belong to a version; for one
without rows the gate alone decides.
"""

import argparse
import csv
import json
import os
import queue
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

__all__ = [
    'COLUMNS',
    'NARROW',
    'TARGETS',
    'Narrow',
    'Row',
    'Target',
    'Variant',
    'changes',
    'main',
    'problems',
    'regressions',
    'run_all',
]

WORKER = Path(__file__).with_name('aot_worker.py')
TABLE = Path(__file__).parent / 'results' / 'aot.csv'

SECONDS = 300
"""A compilation that takes longer than this is ended and fails; the longest we know takes 5 on a quiet machine."""


@dataclass(frozen=True)
class Target:
    """A kind of GPU.

    Args:
        multiprocessors (int): On the largest one sold; persistent kernels are sized by it.
        shared (int): Bytes of shared memory a program can have.
    """

    multiprocessors: int
    shared: int


TARGETS = {
    'sm_80': Target(multiprocessors=108, shared=163 * 1024),  # A100
    'sm_90': Target(multiprocessors=132, shared=227 * 1024),  # H100, H200
    'sm_100': Target(multiprocessors=148, shared=227 * 1024),  # B200
}

COLUMNS = (
    *('triton', 'target', 'kernel', 'case', 'constants', 'warps', 'registers', 'stack', 'stl', 'ldl', 'shared'),
    *('ldg', 'ldg128', 'stg', 'stg128', 'atomics', 'dots', 'mma'),
)

Row = dict[str, Any]
"""One line of the table: texts and numbers by column."""


class Narrow(NamedTuple):
    """Loads and stores of a kernel that may have less than 128 bits: most of each, in the code, and why."""

    loads: int
    stores: int
    reason: str


NARROW = {
    'adamw': Narrow(1, 0, 'the norm of the gradient, one number'),
    'add_dual_layer_norm_forward': Narrow(0, 2, 'mean and rstd, one number a row'),
    'add_dual_layer_norm_backward': Narrow(6, 0, 'mean and rstd, one number a row, in each of 3 stages'),
    'cross_entropy': Narrow(2, 1, 'the label, its logit and the loss, one number a row'),
    'squared_norm': Narrow(0, 1, 'the sum, one number a program'),
}
"""What is not here accesses memory by 128 bits only."""


class Variant(NamedTuple):
    """What is compiled: a kernel as a case launches it, for a target."""

    target: str
    kernel: str
    case: str

    def __str__(self) -> str:
        return f'{self.target} {self.kernel} ({self.case})'


def _narrow(row: Mapping[str, Any], access: str) -> int:
    """Accesses of less than 128 bits."""
    return int(row[access]) - int(row[f'{access}128'])


def problems(row: Mapping[str, Any]) -> list[str]:
    """What the gate says against a line; the top of this file says why."""
    if 'failed' in row:
        return [row['failed']]
    found = []
    if row['stack'] or row['stl'] or row['ldl']:
        found.append(f'spills: {row["stack"]} bytes of stack, {row["stl"]} stores, {row["ldl"]} loads')
    threads = 32 * row['warps']
    allocated = -(-row['registers'] // 8) * 8  # in eights
    if allocated * threads > 65536:
        found.append(f'{allocated} registers x {threads} threads are more than 65,536')
    if row['shared'] > TARGETS[row['target']].shared:
        found.append(f'{row["shared"]:,} bytes of shared memory, {TARGETS[row["target"]].shared:,} are to be had')
    if row['atomics']:
        found.append(f'{row["atomics"]} atomics')
    loads, stores, _ = NARROW.get(row['kernel'], Narrow(0, 0, ''))
    for name, access, most in (('loads', 'ldg', loads), ('stores', 'stg', stores)):
        if _narrow(row, access) > most:
            found.append(f'{_narrow(row, access)} of {row[access]} {name} have less than 128 bits, at most {most} may')
    if row['dots'] and not row['mma']:
        found.append(f'{row["dots"]} tl.dot without tensor cores')
    return found


def regressions(rows: list[Row], before: list[Row]) -> list[str]:
    """What is worse, or not the same launch, than in the table's rows of the same triton; nothing if there are none."""
    if not before:
        return []
    update = 'run kernels/aot.py without --check and commit the table with its cause'
    found = []
    table = {_variant(old): old for old in before}
    for row in rows:
        old = table.pop(_variant(row), None)
        if old is None:
            found.append(f'{_variant(row)} is not in the table: {update}')
            continue
        if 'failed' in row:
            continue
        for name, access in (('loads', 'ldg'), ('stores', 'stg')):
            if _narrow(row, access) > _narrow(old, access):
                now, then = (f'{_narrow(each, access)} of {each[access]}' for each in (row, old))
                found.append(f'{_variant(row)}: {now} {name} have less than 128 bits, {then} in the table')
        if (row['constants'], str(row['warps'])) != (old['constants'], str(old['warps'])):
            now, then = (f'{each["constants"]} in {each["warps"]} warps' for each in (row, old))
            found.append(f'{_variant(row)} is launched with {now}, in the table with {then}: {update}')
    kernels = {row['kernel'] for row in rows}
    gone = [variant for variant in table if variant.kernel in kernels]
    return found + [f'{variant} is in the table and launched no more: {update}' for variant in gone]


def changes(rows: list[Row], before: list[Row]) -> list[str]:
    """Figures that are not those of the table, for better or for worse."""
    table = {_variant(old): old for old in before}
    found = []
    for row in rows:
        old = table.get(_variant(row), {})
        differing = [name for name in COLUMNS if name in old and name in row and str(row[name]) != str(old[name])]
        if differing:
            figures = ', '.join(f'{name} {row[name]} (was {old[name]})' for name in differing)
            found.append(f'{_variant(row)}: {figures}')
    return found


def _variant(row: Mapping[str, Any]) -> Variant:
    return Variant(row['target'], row['kernel'], row['case'])


class _Worker:
    """A process that compiles, and a new one after each that died."""

    def __init__(self, command: list[str]) -> None:
        self.errors = tempfile.TemporaryFile('w+')
        environment = {name: value for name, value in os.environ.items() if name != 'TRITON_INTERPRET'}
        self.process = subprocess.Popen(
            command, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors
        )
        self.hello = self._reply()

    def ask(self, variant: Variant) -> Row:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(variant) + '\n')
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # it is dead, and there will be no reply
        return self._reply() or variant._asdict() | {'failed': f'the compiler died: {self.last_words()}'}

    def _reply(self) -> dict[str, Any] | None:
        assert self.process.stdout is not None
        timer = threading.Timer(SECONDS, self.process.kill)
        timer.start()
        line = self.process.stdout.readline()
        timer.cancel()
        return json.loads(line) if line else None

    def last_words(self) -> str:
        status = self.process.wait()
        self.errors.seek(0)
        lines = self.errors.read().strip().splitlines() or ['said nothing']
        return f'{lines[-1]} (exit status {status})'

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()
        self.errors.close()


def run_all(
    command: list[str], jobs: int, names: list[str], show: Callable[[str], None]
) -> tuple[list[Row], list[str]]:
    """Compiles all variants in ``jobs`` processes; returns their lines in a fixed order, and kernels never launched.

    Args:
        command (list[str]): Starts a worker.
        jobs (int): Processes at a time.
        names (list[str]): Only kernels with one of these in their name; all if empty.
        show (Callable): Is told each result.

    Returns:
        tuple[list[Row], list[str]]: A line for each variant (with ``failed`` where there was none), and names.
    """
    first = _Worker(command)
    if first.hello is None:
        raise SystemExit(f'the launches could not be recorded: {first.last_words()}')
    variants = [Variant(*each) for each in first.hello['variants']]
    variants = [each for each in variants if not names or any(name in each.kernel for name in names)]
    todo: queue.SimpleQueue[Variant] = queue.SimpleQueue()
    for variant in variants:
        todo.put(variant)
    rows: dict[Variant, Row] = {}

    def work(started: _Worker | None) -> None:
        while True:
            try:
                variant = todo.get_nowait()
            except queue.Empty:
                break
            started = started or _Worker(command)
            rows[variant] = row = started.ask(variant)
            show(f'[{len(rows):3} of {len(variants)}] {variant}: {_described(row)}')
            if started.process.poll() is not None or 'died' in row.get('failed', ''):
                started.close()
                started = None
        if started is not None:
            started.close()

    threads = [threading.Thread(target=work, args=(first if index == 0 else None,)) for index in range(jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [rows[variant] for variant in variants], first.hello['never']


def _described(row: Row) -> str:
    if found := problems(row):
        return 'FAILS: ' + '; '.join(found)
    loads, stores = (f'{row[f"{access}128"]}/{row[access]}' for access in ('ldg', 'stg'))
    return f'{row["registers"]} registers, {loads} loads and {stores} stores of 128 bits'


def _read_table(path: Path) -> list[Row]:
    if not path.exists():
        return []
    with path.open(newline='') as file:
        return list(csv.DictReader(file))


def _write_table(path: Path, rows: list[Row], committed: list[Row]) -> None:
    """Replaces the lines of the rows' version and kernels."""
    kernels = {row['kernel'] for row in rows}
    kept = [old for old in committed if old['triton'] != rows[0]['triton'] or old['kernel'] not in kernels]

    def order(row: Row) -> tuple[Any, ...]:  # in a kernel, as they were compiled
        return [-int(number) for number in re.findall(r'\d+', row['triton'])], row['kernel']

    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open('w', newline='') as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator='\n')
        writer.writeheader()
        writer.writerows(sorted([*rows, *kept], key=order))


def main(arguments: list[str] | None = None) -> int:
    """Compiles, shows, and writes or compares; returns the exit status: 1 if anything is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('kernels', nargs='*', metavar='KERNEL', help='part of the name of a kernel; default: all')
    parser.add_argument('--check', action='store_true', help='compare with the table instead of writing it')
    parser.add_argument(
        '--jobs', type=int, default=len(os.sched_getaffinity(0)), help='processes (default: a core each)'
    )
    parser.add_argument('--table', type=Path, default=TABLE, help='default: kernels/results/aot.csv')
    options = parser.parse_args(arguments)

    def show(line: str) -> None:
        print(line + '\n', end='', flush=True)  # in one piece: threads show, too

    committed = _read_table(options.table)
    rows, never = run_all([sys.executable, str(WORKER)], options.jobs, options.kernels, show)
    if not rows:
        raise SystemExit(f'no kernel has one of these in its name: {", ".join(options.kernels)}')
    wrong = [f'{_variant(row)}: {problem}' for row in rows for problem in problems(row)]
    wrong += [f'{name} is launched by no case of aot_cases.py: add one' for name in never]
    if options.check:
        before = [old for old in committed if old['triton'] == version('triton')]
        wrong += regressions(rows, before)
        for line in changes(rows, before):
            show(f'changed: {line}')
        if not before:
            show(f'The table has no rows of triton {version("triton")}: the gate alone decides.')
    elif compiled := [row for row in rows if 'failed' not in row]:
        _write_table(options.table, compiled, committed)
        show(f'Wrote {len(compiled)} rows to {options.table}.')
    for line in wrong:
        show(f'FAILS: {line}')
    show(
        f'{len(rows)} variants with triton {version("triton")}: {"all pass" if not wrong else f"{len(wrong)} failures"}.'
    )
    return 1 if wrong else 0


if __name__ == '__main__':
    sys.exit(main())
