"""Trains a run with three loggers, killed at several batches, and compares what they hold with the run's records.

Called as: killed_run.py DATA FOLDER LOGGER... A script, since what it imports is imported once for all starts.
"""

import json
import os
import signal
import sys
from pathlib import Path

from rewarm.loggers.wandb_files import offline_files, read_rows
from tests.end_to_end.conftest import Run
from tests.end_to_end.forked import Ranks
from tests.loggers.read_back import mlflow_points, tensorboard

KILLS = (3, 7, 9)
ARGUMENTS = {
    'tensorboard': 'loggers.tensorboard={}',
    'wandb': 'loggers.wandb.project=p',
    'mlflow': 'loggers.mlflow.log_system_metrics=false',
}


def train_and_kill(run: Run, folder: Path, overrides: list[str]) -> None:
    """Starts the run, kills it with SIGKILL at each of the batches, and lets it finish."""
    for number, batches in enumerate((*KILLS, 100)):
        log = folder / f'log-{number}'
        ranks = Ranks(run.file, overrides, count=1, log=log)
        ranks.wait_while_it_moves(
            lambda: len(run.lines('metrics')), 60, until=lambda batches=batches: len(run.lines('metrics')) >= batches
        )
        if batches < 100:
            ranks.send(0, signal.SIGKILL)
        ranks.wait(60)
    assert ranks.codes == {0: 0}, log.read_text()


def check_tensorboard(run: Run, losses: list[tuple[int, float]], evaluated: list[int]) -> None:
    folder = run.folder / 'tensorboard' / 'tiny'
    files = sorted(run.folder.joinpath('tensorboard').rglob('events*'))
    assert len(files) == len(KILLS) + 1, files  # one for each start
    assert {file.parent for file in files} == {folder}
    shown = tensorboard(folder)
    for tag in ('train/loss', 'loss/train/total'):
        assert [step for step, _ in shown[tag]] == [batch for batch, _ in losses], (tag, shown[tag])
        assert all(abs(value - loss) < 1e-5 for (_, value), (_, loss) in zip(shown[tag], losses)), tag
    assert [step for step, _ in shown['metrics/old/loss']] == evaluated, shown['metrics/old/loss']
    assert shown['time/token'] == [(batch, 256.0 * batch) for batch in range(13)]


def check_wandb(run: Run, losses: list[tuple[int, float]], evaluated: list[int]) -> None:
    identity = json.loads((run.folder / 'identity.json').read_text())['id']
    files = offline_files(run.folder / 'wandb', identity)
    assert len(files) == len(KILLS) + 1 == len(list((run.folder / 'wandb').glob('offline-run-*'))), files
    rows = [row for file in files for row in read_rows(file)]
    assert [(row['time/batch'], row['train/loss']) for row in rows if 'train/loss' in row] == losses
    assert [row['time/batch'] for row in rows if 'metrics/old/loss' in row] == evaluated
    assert [row['_step'] for row in rows] == list(range(13))


def check_mlflow(run: Run, losses: list[tuple[int, float]], evaluated: list[int]) -> None:
    (points,) = mlflow_points((run.folder / 'mlruns').absolute().as_uri())
    assert sorted(points['train/loss']) == losses
    assert sorted(step for step, _ in points['metrics/old/loss']) == evaluated


def main(data: Path, folder: Path, names: list[str]) -> None:
    """Checks each logger and says so in a line."""
    os.environ |= {'WANDB_MODE': 'offline', 'OMP_NUM_THREADS': '1', 'MLFLOW_ALLOW_FILE_STORE': 'true'}
    for name in names:
        __import__(name)  # once for all starts
    run = Run(folder, data)
    train_and_kill(run, folder, [ARGUMENTS[name] for name in names])
    losses = [(line['batch'], line['loss']) for line in run.lines('metrics')]
    evaluated = sorted({line['batch'] for line in run.lines('evals')})
    assert [batch for batch, _ in losses] == list(range(1, 13))
    failed = [event for event in run.lines('events') if event['event'].startswith('logger')]
    assert not failed, failed
    checks = {'tensorboard': check_tensorboard, 'wandb': check_wandb, 'mlflow': check_mlflow}
    for name in names:
        checks[name](run, losses, evaluated)
        print(f'{name}: equal', flush=True)


if __name__ == '__main__':
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
