"""A run struck at any file-system call that it makes ends as the run that was never struck."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.syscalls import SUPPORTED

pytestmark = pytest.mark.skipif(not SUPPORTED, reason='the numbers of system calls are those of Linux on x86-64')

COUNTS = {'kill': 26, 'full': 10, 'broken': 10, 'short': 4}


@pytest.mark.slow
def test_killed_full_broken_or_short_at_a_sample_of_all_calls_it_equals_the_unbroken_run(data, tmp_path):
    # All of them, for an hour: --kill all --full all --broken all --short all.
    script = Path(__file__).with_name('break_saves.py')
    counts = [word for fault, count in COUNTS.items() for word in (f'--{fault}', str(count))]
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', str(script), str(data), str(tmp_path), '--seed', '1', *counts],
        capture_output=True,
        text=True,
        timeout=540,
        env={**os.environ, 'OMP_NUM_THREADS': '1'},
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    for fault, count in COUNTS.items():
        lines = [line for line in done.stdout.splitlines() if line.startswith(f'{fault}: call')]
        assert len(lines) >= count - 2, done.stdout  # another order of threads may have fewer calls
        assert all(line.endswith(': equal') for line in lines)
