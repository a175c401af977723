"""What TensorBoard's own reader shows of event files that several starts, and a rollback, have written."""

from pathlib import Path

import pytest

from rewarm.loggers.destination import NOTHING
from rewarm.loggers.rows import Row
from rewarm.loggers.tensorboard import TensorBoard
from tests.loggers.read_back import tensorboard


def start(folder: Path, batch: int) -> TensorBoard:
    logger = TensorBoard('run', log_dir=str(folder))
    assert logger.open() == (NOTHING if batch == 0 else None)
    logger.go_back(batch)
    return logger


def log(logger: TensorBoard, batches: range, value: float) -> None:
    for batch in batches:
        logger.log_row(Row(batch, 10 * batch, {'train/loss': value + batch}, True))
    logger.flush()


@pytest.mark.slow
def test_what_is_trained_again_is_shown_once_and_as_it_was_trained_last(tmp_path):
    first = start(tmp_path, 0)
    log(first, range(1, 8), 0.0)  # killed at 7: nothing is closed
    second = start(tmp_path, 4)
    log(second, range(5, 10), 100.0)
    second.go_back(6)  # the spike guard
    log(second, range(7, 12), 200.0)
    second.finish(failed=False)
    third = start(tmp_path, 11)
    log(third, range(12, 14), 300.0)
    third.finish(failed=False)
    shown = tensorboard(tmp_path / 'run')['train/loss']
    expected = [*((b, b) for b in range(1, 5)), *((b, 100 + b) for b in (5, 6)), *((b, 200 + b) for b in range(7, 12))]
    assert shown == [*expected, (12, 312.0), (13, 313.0)]
    assert len(list(tmp_path.rglob('events*'))) == 3
