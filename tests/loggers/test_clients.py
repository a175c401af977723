"""Loggers on their real clients, offline; skipped where a client is not installed."""

import pytest

from rewarm.loggers.destination import NOTHING
from rewarm.loggers.rows import Row
from rewarm.loggers.wandb_files import newest_batch, offline_files, read_rows
from tests.loggers.read_back import mlflow_points

IDENTITY = '0123456789abcdef' * 2


def row(batch: int, trained: bool = True, **metrics: float) -> Row:
    return Row(batch, 10 * batch, {'time/batch': batch, **(metrics or {'train/loss': 1.0 * batch})}, trained)


@pytest.mark.slow
def test_parts_of_a_wandb_run_have_one_id_and_follow_each_other(tmp_path, monkeypatch):
    wandb = pytest.importorskip('wandb')
    from rewarm.loggers.weights_and_biases import WeightsAndBiases

    monkeypatch.setenv('WANDB_MODE', 'offline')
    monkeypatch.setenv('WANDB_SILENT', 'true')
    first = WeightsAndBiases('name', IDENTITY, tmp_path, project='p')
    assert first.open() == NOTHING
    first.log_hyperparameters({'node_name': 'a'})
    for batch in (1, 2):
        first.log_row(row(batch))
    first.log_row(row(2, trained=False, **{'metrics/old/loss': 3.0}))  # W&B's own step cannot go back
    first.log_row(row(3))
    first.log_hyperparameters({'node_name': 'b'})
    first.finish(failed=False)
    wandb.teardown()  # as the end of a process does: all is on the disk then
    second = WeightsAndBiases('name', IDENTITY, tmp_path, project='p')
    assert second.open() == 3
    second.log_row(row(4))
    second.finish(failed=True)
    wandb.teardown()
    files = offline_files(tmp_path / 'wandb', IDENTITY)
    rows = [row for file in files for row in read_rows(file)]
    assert len(files) == len(list((tmp_path / 'wandb').glob('offline-run-*'))) == 2
    assert [(each['time/batch'], each['_step']) for each in rows] == [(1, 1), (2, 2), (2, 3), (3, 4), (4, 4)]
    torn = tmp_path / 'torn' / files[0].parent.name / files[0].name
    torn.parent.mkdir(parents=True)
    whole = files[0].read_bytes()
    for size in range(0, len(whole), 37):
        torn.write_bytes(whole[:size])
        assert newest_batch(tmp_path / 'torn', IDENTITY, 'time/batch') in (None, 1, 2, 3)


@pytest.mark.slow
def test_starts_of_an_mlflow_run_are_one_and_runs_of_one_name_are_two(tmp_path, monkeypatch):
    pytest.importorskip('mlflow')
    from rewarm.loggers.mlflow_run import MLflow

    monkeypatch.delenv('MLFLOW_TRACKING_URI', raising=False)
    monkeypatch.setenv('MLFLOW_ALLOW_FILE_STORE', 'true')
    for identity, held, host in ((IDENTITY, NOTHING, 'a'), (IDENTITY, 2, 'b'), ('f' * 32, NOTHING, 'a')):
        logger = MLflow('name', identity, tmp_path, log_system_metrics=False)
        assert logger.open() == held
        logger.log_hyperparameters({'node_name': host, f'num_{host}': 1})  # MLflow refuses to change one
        for batch in (1, 2) if held == NOTHING else (3,):
            logger.log_row(row(batch))
        logger.finish(failed=False)
    points = mlflow_points((tmp_path / 'mlruns').absolute().as_uri())
    assert sorted(len(each['train/loss']) for each in points) == [2, 3]
