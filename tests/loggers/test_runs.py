"""Real runs with real loggers, killed and started again."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.end_to_end.conftest import data  # noqa: F401  the fixture

INSTALLED = [name for name in ('tensorboard', 'wandb', 'mlflow') if importlib.util.find_spec(name)]


def run_script(name: str, *arguments: str) -> str:
    command = [sys.executable, '-W', 'ignore', str(Path(__file__).with_name(name)), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, 'OMP_NUM_THREADS': '1'})
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


@pytest.mark.slow
def test_a_run_that_is_killed_is_one_run_without_gaps_and_without_doubles(data, tmp_path):  # noqa: F811
    said = run_script('killed_run.py', str(data), str(tmp_path), *INSTALLED)
    assert [line for line in said.splitlines() if line.endswith('equal')] == [f'{name}: equal' for name in INSTALLED]


@pytest.mark.slow
def test_a_logger_that_cannot_be_had_is_refused_at_first_and_costs_a_trained_run_nothing(data, tmp_path):  # noqa: F811
    assert 'told and trained' in run_script('failing_run.py', str(data), str(tmp_path))
