"""Two minutes of random faults; REWARM_SOAK_MINUTES and REWARM_SOAK_SEED choose others."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_a_run_broken_at_random_for_two_minutes_equals_the_unbroken_run(capsys):
    minutes, seed = os.environ.get('REWARM_SOAK_MINUTES', '2'), os.environ.get('REWARM_SOAK_SEED', '1')
    script = Path(__file__).with_name('soak.py')
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', str(script), '--minutes', minutes, '--seed', seed],
        capture_output=True,
        text=True,
        env={**os.environ, 'OMP_NUM_THREADS': '1'},
    )
    with capsys.disabled():
        print(f'\n{done.stdout[-2500:]}')
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    assert 'faults survived in' in done.stdout
