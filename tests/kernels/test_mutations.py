"""Wrong formulas of gradients are seen by the tests, and what is not seen is said."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

KERNELS = Path(__file__).parents[2] / 'kernels'


def run(*command: str) -> tuple[int, str]:
    environment = os.environ | {'PYTHONPATH': str(KERNELS), 'OMP_NUM_THREADS': '1'}
    done = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.proof('mutations')
def test_each_wrong_formula_is_seen():
    status, output = run(str(KERNELS / 'mutate.py'), '--jobs', '2')
    assert status == 0, output
    assert 'all seen' in output


TRIAL = """
import mutate

if __name__ == '__main__':
    test = 'test_linear.py::test_values_and_both_gradients[shape1-5-dtype0]'
    mutate.MUTATIONS = {
        'wrong': mutate.Mutation('linear.py', 'return dy @', 'return -dy @', test),
        'equal': mutate.Mutation('linear.py', 'return dy @', 'return 1 * dy @', test),
        'absent': mutate.Mutation('linear.py', 'return dy -', 'return dy +', test),
        'broken': mutate.Mutation('linear.py', 'return dy @', 'return dx @', test),
        'untested': mutate.Mutation('linear.py', 'return dy @', 'return -dy @', 'test_linear.py::test_nothing'),
    }
    raise SystemExit(mutate.main(['--jobs', '2']))
"""


def test_what_is_not_seen_is_said(tmp_path):
    (tmp_path / 'trial.py').write_text(TRIAL)
    status, output = run(str(tmp_path / 'trial.py'))
    assert status == 1, output
    said = dict(re.findall(r'^\[ ?\d of 6\] (?:FAILS: )?(.+?): (.*)$', output, re.MULTILINE))
    assert re.match(
        r'seen by test_values_and_both_gradients\[shape1-5-dtype0\]: AssertionError: dx: 2.00', said['wrong']
    )
    assert said['equal'] == 'SURVIVES: its test passes'
    assert said['absent'] == "ValueError: linear.py has 0 times 'return dy -', not once"
    assert 'dies of something else: ' in said['broken']
    assert said['untested'] == 'its test does not run:'
    assert said['test_linear.py as it is'] == 'its tests fail without a mutation:'
    assert output.endswith('5 mutations: 5 failures.\n')
