"""What TensorBoard's own reader shows of event files that several starts, and a rollback, have written."""

import json
import time
from pathlib import Path

import pytest

from rewarm.loggers import guard as guards
from rewarm.loggers.destination import NOTHING
from rewarm.loggers.failures import Failures
from rewarm.loggers.guard import Guard
from rewarm.loggers.held import HeldFile
from rewarm.loggers.rows import Row
from rewarm.loggers.tensorboard import TensorBoard
from tests.loggers.read_back import tensorboard


class BrokenDisk:
    """Lets flushes fail for a while, after what was written is lost."""

    def __init__(self, logger: TensorBoard) -> None:
        self.logger, self.broken = logger, False
        self.flush = logger.flush
        logger.flush = self  # type: ignore[method-assign]

    def __call__(self) -> None:
        if self.broken:
            assert self.logger.writer is not None
            file = self.logger.writer.file_writer.event_writer  # type: ignore[union-attr]
            file._async_writer._worker.exception = OSError(28, 'No space left on device')  # as its thread finds it
        self.flush()


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


@pytest.mark.slow
def test_a_disk_that_was_full_leaves_no_gap(tmp_path, monkeypatch):
    monkeypatch.setattr(guards, 'FIRST_PAUSE_SECONDS', 1.1)  # files of one second are not read in their order
    lines = [
        {'stage': 's', 'batch': b, 'tokens': 10 * b, 'stage_tokens': 10 * b, 'lr': 0.1, 'loss': 1.0 * b}
        for b in range(1, 31)
    ]
    (tmp_path / 'metrics.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))
    disks: list[BrokenDisk] = []

    def build() -> TensorBoard:
        logger = TensorBoard('run', log_dir=str(tmp_path))
        disks.append(BrokenDisk(logger))
        return logger

    said: list[str] = []
    failures = Failures('tensorboard', record=lambda *_, **__: None, say=said.append)
    held = HeldFile(tmp_path / 'held.json')
    guard = Guard('tensorboard', build, folder=tmp_path, held=held, failures=failures)
    guard.start(0)
    assert guard.refusal(time.monotonic() + 60) is None
    for batch in range(1, 31):
        disks[0].broken = 10 <= batch < 20
        guard.put_row(Row(batch, 10 * batch, {'train/loss': 1.0 * batch}, True))
        time.sleep(0.02)
    time.sleep(1.1)
    guard.begin_to_close(failed=False)
    assert guard.wait_until_closed(time.monotonic() + 30)
    assert [step for step, _ in tensorboard(tmp_path / 'run')['train/loss']] == list(range(1, 31))
    assert len(said) == 1
    assert 'No space left on device' in said[0]
