"""Kernels compile for GPUs that are not here, without spills and with wide loads, and what is worse than that is said."""

import json
import os
import subprocess
import sys
from pathlib import Path

import aot
import pytest

KERNELS = Path(__file__).parents[2] / 'kernels'
GOOD = {
    **{'triton': '3.7.1', 'target': 'sm_90', 'kernel': 'adamw', 'case': 'step', 'constants': 'BLOCK=1024', 'warps': 4},
    **{'registers': 40, 'stack': 0, 'stl': 0, 'ldl': 0, 'shared': 0, 'ldg': 9, 'ldg128': 8, 'stg': 6, 'stg128': 6},
    **{'atomics': 0, 'dots': 0, 'mma': 0},
}


def run(cache: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Compiles from nothing, without the interpreter."""
    environment = {name: value for name, value in os.environ.items() if name != 'TRITON_INTERPRET'}
    environment |= {'TRITON_CACHE_DIR': str(cache), 'PYTHONPATH': str(KERNELS)}
    return subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.proof('aot')
def test_each_kernel_passes_the_gate_and_none_is_worse_than_the_table(tmp_path):
    done = run(tmp_path, str(KERNELS / 'aot.py'), '--check', '--jobs', '2')
    assert done.returncode == 0, done.stdout + done.stderr
    assert 'all pass' in done.stdout


TRIAL = """
import json

import torch
import triton
import triton.language as tl
from aot import NARROW, Variant, problems
from aot_worker import measure, on_a_gpu


@triton.jit
def _wide(x_ptr, y_ptr, WIDTH: tl.constexpr, ROW: tl.constexpr):
    at = tl.program_id(0) * ROW + tl.arange(0, WIDTH)
    x = tl.load(x_ptr + at).to(tl.float32)
    tl.store(y_ptr + at, (x / tl.sum(x)).to(tl.bfloat16))


@triton.jit
def _atomic(x_ptr, y_ptr, WIDTH: tl.constexpr):
    at = tl.arange(0, WIDTH)
    tl.atomic_add(y_ptr + at, tl.load(x_ptr + at))


@triton.jit
def _product(x_ptr, y_ptr, PRECISION: tl.constexpr):
    at = tl.arange(0, 32)[:, None] * 32 + tl.arange(0, 32)[None, :]
    x = tl.load(x_ptr + at)
    tl.store(y_ptr + at, tl.dot(x, x, input_precision=PRECISION))


found = {}
with on_a_gpu('sm_90') as launches:
    x, y = torch.empty(2, 65536, dtype=torch.bfloat16)
    a, b = torch.empty(2, 1024)
    for name, launch in {
        'good': lambda: _wide[(64,)](x, y, WIDTH=1024, ROW=1024),
        'spilling': lambda: _wide[(64,)](x, y, WIDTH=8192, ROW=8192, num_warps=1),
        'narrow row': lambda: _wide[(64,)](x, y, WIDTH=1024, ROW=1025),
        'narrow start': lambda: _wide[(63,)](x[1:], y[8:], WIDTH=1024, ROW=1024),
        'atomic': lambda: _atomic[(1,)](a, b, WIDTH=1024),
        'product': lambda: _product[(1,)](a, b, PRECISION='tf32'),
        'plain product': lambda: _product[(1,)](a, b, PRECISION='ieee'),
    }.items():
        launch()
        found[name] = launches[-1]
for name, launched in found.items():
    NARROW.clear()
    row = measure(Variant('sm_90', launched.name, name), launched)
    print(json.dumps({'name': name, 'row': row, 'problems': problems(row)}))
"""


def test_spills_narrow_loads_atomics_and_plain_products_are_seen_in_compiled_code(tmp_path):
    (tmp_path / 'trial.py').write_text(TRIAL)
    done = run(tmp_path / 'cache', str(tmp_path / 'trial.py'))
    assert done.returncode == 0, done.stderr
    found = {line['name']: line for line in map(json.loads, done.stdout.splitlines())}
    said = {name: ' and '.join(line['problems']) for name, line in found.items()}
    assert said['good'] == ''
    assert found['good']['row']['constants'] == 'WIDTH=1024 ROW=1024'
    assert said['spilling'].startswith('spills: ')
    assert 'loads have less than 128 bits, at most 0 may' in said['narrow row']
    assert 'loads have less than 128 bits' in said['narrow start']
    assert 'stores' not in said['narrow start']
    assert 'atomics' in said['atomic']
    assert said['product'] == ''
    assert found['product']['row']['mma'] > 0
    assert said['plain product'].endswith('1 tl.dot without tensor cores')


@pytest.mark.parametrize(
    ('change', 'said'),
    [
        ({}, []),
        ({'stack': 8, 'stl': 2}, ['spills: 8 bytes of stack, 2 stores, 0 loads']),
        ({'registers': 128, 'warps': 16}, []),
        ({'registers': 129, 'warps': 16}, ['136 registers x 512 threads are more than 65,536']),
        ({'shared': 232_449}, ['232,449 bytes of shared memory, 232,448 are to be had']),
        ({'shared': 232_448, 'target': 'sm_80'}, ['232,448 bytes of shared memory, 166,912 are to be had']),
        ({'ldg128': 7}, ['2 of 9 loads have less than 128 bits, at most 1 may']),
        ({'stg128': 5}, ['1 of 6 stores have less than 128 bits, at most 0 may']),
        ({'failed': 'the compiler died'}, ['the compiler died']),
    ],
)
def test_the_gate(change, said):
    assert aot.problems(GOOD | change) == said


def test_regressions_against_the_table():
    old = {name: str(value) for name, value in GOOD.items()}  # as a CSV gives it
    assert aot.regressions([GOOD], [old]) == []
    assert aot.regressions([GOOD | {'registers': 200}], [old]) == []
    narrower = aot.regressions([GOOD | {'ldg': 10}], [old])
    assert narrower == ['sm_90 adamw (step): 2 of 10 loads have less than 128 bits, 1 of 9 in the table']
    (launch,) = aot.regressions([GOOD | {'warps': 8}], [old])
    assert launch.startswith(
        'sm_90 adamw (step) is launched with BLOCK=1024 in 8 warps, in the table with BLOCK=1024 in 4'
    )
    new, gone = aot.regressions([GOOD | {'case': 'clipped step'}], [old])
    assert new.startswith('sm_90 adamw (clipped step) is not in the table')
    assert gone.startswith('sm_90 adamw (step) is in the table and launched no more')
    assert aot.regressions([GOOD], [old | {'kernel': 'rotate'}, old]) == []  # of a kernel that was not compiled
    assert aot.regressions([{**GOOD, 'failed': 'the compiler died'}], [old]) == []  # the gate says that
    assert aot.regressions([GOOD], []) == []


def test_changes_against_the_table():
    old = {name: str(value) for name, value in GOOD.items()}
    assert aot.changes([GOOD], [old]) == []
    changed = aot.changes([GOOD | {'registers': 48, 'shared': 16}], [old])
    assert changed == ['sm_90 adamw (step): registers 48 (was 40), shared 16 (was 0)']
    assert aot.changes([GOOD | {'case': 'clipped step'}], [old]) == []


MORTAL = """
import json, os, sys
print(json.dumps({'variants': [['sm_90', 'adamw', str(case)] for case in range(5)], 'never': ['forgotten']}), flush=True)
for line in sys.stdin:
    target, kernel, case = json.loads(line)
    if case == '2':
        print('LLVM ERROR: no such target', file=sys.stderr, flush=True)
        os.abort()
    print(json.dumps(ROW | {'case': case}), flush=True)
"""


def test_a_compiler_that_dies_fails_its_variant_and_no_other(tmp_path):
    (tmp_path / 'worker.py').write_text(f'ROW = {GOOD!r}\n{MORTAL}')
    shown = []
    rows, never = aot.run_all([sys.executable, str(tmp_path / 'worker.py')], 2, [], shown.append)
    assert [row['case'] for row in rows] == list('01234')
    assert [row['case'] for row in rows if 'failed' in row] == ['2']
    assert rows[2]['failed'] == 'the compiler died: LLVM ERROR: no such target (exit status -6)'
    assert never == ['forgotten']
    assert len(shown) == 5
