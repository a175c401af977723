"""A logger that raises, blocks or is not there: training never notices, and what it lacks comes later."""

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from rewarm.loggers import guard as guards
from rewarm.loggers.destination import NOTHING, Destination
from rewarm.loggers.failures import Failures
from rewarm.loggers.guard import Guard
from rewarm.loggers.held import HeldFile
from rewarm.loggers.rows import Row


class Spy(Destination):
    """Remembers what it gets; does what a test wants first."""

    def __init__(self, holds: int | None = NOTHING, *, rewinds: bool = False) -> None:
        self.rows: list[Row] = []
        self.holds, self.rewinds = holds, rewinds
        self.before: Any = lambda row: None
        self.finished: list[bool] = []

    def open(self) -> int | None:
        return self.holds

    def go_back(self, batch: int) -> bool:
        return self.rewinds

    def log_row(self, row: Row) -> None:
        self.before(row)
        self.rows.append(row)

    def finish(self, *, failed: bool) -> None:
        self.finished.append(failed)

    @property
    def batches(self) -> list[int]:
        return [row.batch for row in self.rows]


class Told:
    """What a guard tells."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.events: list[tuple[str, dict[str, Any]]] = []

    def record(self, event: str, **fields: Any) -> None:
        self.events.append((event, fields))

    def reasons(self) -> list[str]:
        return [fields['reason'] for event, fields in self.events if event == 'logger_failed']

    def lost(self) -> int:
        return sum(fields['calls'] for event, fields in self.events if event == 'logger_lost')


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def make_guard(tmp_path: Path, told: Told):
    def make(build: Any, batch: int = 0) -> Guard:
        failures = Failures('spy', record=told.record, say=told.said.append)
        guard = Guard(
            'spy', build, folder=tmp_path, held=HeldFile(tmp_path / 'loggers' / 'spy.json'), failures=failures
        )
        guard.start(batch)
        return guard

    return make


def row(batch: int, trained: bool = True) -> Row:
    return Row(batch, 10 * batch, {'train/loss': 1.0 * batch}, trained)


def write_records(folder: Path, batches: int) -> None:
    """As a run does: before it logs."""
    lines = [
        {
            'stage': 's',
            'batch': b,
            'tokens': 10 * b,
            'stage_tokens': 10 * b,
            'lr': 0.1,
            'loss': 1.0 * b,
            'grad_norm': 2.0,
        }
        for b in range(1, batches + 1)
    ]
    (folder / 'metrics.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))


def close(guard: Guard, seconds: float = 10, *, failed: bool = False) -> bool:
    guard.begin_to_close(failed=failed)
    return guard.wait_until_closed(time.monotonic() + seconds)


def test_rows_come_once_and_in_order(make_guard, told):
    spy = Spy()
    guard = make_guard(lambda: spy)
    for batch in range(1, 6):
        guard.put_row(row(batch))
    assert close(guard)
    assert spy.batches == [1, 2, 3, 4, 5]
    assert (spy.finished, told.said, told.events) == ([False], [], [])


def test_rows_that_come_again_after_a_rollback_are_left_out_unless_the_logger_took_them_back(make_guard):
    for rewinds, expected in ((False, [1, 2, 3, 4]), (True, [1, 2, 3, 2, 3, 4])):
        spy = Spy(rewinds=rewinds)
        guard = make_guard(lambda spy=spy: spy)
        for batch in (1, 2, 3):
            guard.put_row(row(batch))
        guard.go_back(1)
        for batch in (2, 3, 4):
            guard.put_row(row(batch))
        assert close(guard)
        assert spy.batches == expected


def test_an_evaluation_that_is_made_up_for_is_no_repetition(make_guard):
    spy = Spy(holds=5)
    guard = make_guard(lambda: spy, batch=5)
    guard.put_row(row(5, trained=False))
    guard.put_row(row(6))
    assert close(guard)
    assert spy.batches == [5, 6]


def test_the_evaluation_of_the_starting_weights_comes_once_though_it_is_recorded_before_it_is_logged(
    make_guard, tmp_path
):
    line = {'stage': 's', 'batch': 0, 'tokens': 0, 'stage_tokens': 0, 'set': 'old', 'role': 'upstream', 'when': 'start'}
    line |= {'loss': 3.0, 'perplexity': 20.0, 'bits_per_byte': None, 'tokens_evaluated': 9}
    (tmp_path / 'evals.jsonl').write_text(json.dumps(line) + '\n')
    spy = Spy()
    guard = make_guard(lambda: spy)
    guard.put_row(Row(0, 0, {'metrics/old/loss': 3.0}, trained=False))
    guard.put_row(row(1))
    assert close(guard)
    assert [(each.batch, each.metrics.get('metrics/old/loss')) for each in spy.rows] == [(0, 3.0), (1, None)]


@pytest.mark.parametrize(('holds', 'missing'), [(NOTHING, [1, 2, 3, 4]), (2, [3, 4]), (4, []), (None, [])])
def test_what_a_logger_lacks_comes_from_the_records(make_guard, tmp_path, holds, missing):
    write_records(tmp_path, 5)
    spy = Spy(holds)
    guard = make_guard(lambda: spy, batch=4)
    guard.put_row(row(5))
    assert close(guard)
    assert spy.batches == [*missing, 5]
    if missing:
        values = {'train/loss': missing[0], 'loss/train/total': missing[0], 'train/lr': 0.1, 'train/grad_norm': 2.0}
        assert spy.rows[0].metrics == {**values, 'time/batch': missing[0], 'time/token': 10 * missing[0]}


def test_one_that_cannot_be_asked_remembers_it_beside_the_run(make_guard, tmp_path):
    write_records(tmp_path, 6)
    first, second = Spy(None), Spy(None)
    guard = make_guard(lambda: first)
    for batch in (1, 2, 3):
        guard.put_row(row(batch))
    assert close(guard)
    guard = make_guard(lambda: second, batch=5)  # a checkpoint at 5, and rows 4 and 5 were lost with the machine
    guard.put_row(row(6))
    assert close(guard)
    assert (first.batches, second.batches) == ([1, 2, 3], [4, 5, 6])


@pytest.mark.parametrize('error', [OSError(28, 'No space left on device'), ValueError('wrong key'), SystemExit(3)])
def test_a_logger_that_raises_is_told_once_and_gets_what_it_missed(make_guard, told, tmp_path, monkeypatch, error):
    monkeypatch.setattr(guards, 'FIRST_PAUSE_SECONDS', 0.05)
    write_records(tmp_path, 40)
    spy, broken = Spy(), threading.Event()

    def fail(row: Row) -> None:
        if broken.is_set():
            raise error

    spy.before = fail
    guard = make_guard(lambda: spy)
    for batch in range(1, 40):
        if batch == 10:
            while len(spy.rows) < 9:
                time.sleep(0.001)
            broken.set()
        if batch == 30:
            time.sleep(0.02)
            broken.clear()
        guard.put_row(row(batch))
    time.sleep(0.5)  # longer than the pause that has come to be
    guard.put_row(row(40))
    assert close(guard)
    assert spy.batches == list(range(1, 41))
    assert len(told.said) == 1 and 'Training goes on' in told.said[0]  # noqa: PT018
    assert len(told.reasons()) == 1
    assert told.lost() == guard.failures.calls > 0


def test_a_row_that_a_logger_cannot_take_is_passed_over(make_guard, told, tmp_path, monkeypatch):
    monkeypatch.setattr(guards, 'FIRST_PAUSE_SECONDS', 0.001)
    write_records(tmp_path, 60)
    spy = Spy()

    def fail(row: Row) -> None:
        if row.batch == 2:
            raise ValueError('this value is none')

    spy.before = fail
    guard = make_guard(lambda: spy)
    for batch in range(1, 61):
        guard.put_row(row(batch))
        time.sleep(0.005)
    assert close(guard)
    assert spy.batches == [1, *range(3, 61)]
    assert told.reasons() == ['this value is none']


def test_a_logger_that_blocks_holds_up_nothing_and_is_left(make_guard, told, tmp_path, monkeypatch):
    monkeypatch.setattr(guards, 'MOST_WAITING', 5)
    monkeypatch.setattr(guards, 'STUCK_SECONDS', 0.05)
    write_records(tmp_path, 30)
    spy, free = Spy(), threading.Event()
    spy.before = lambda _: free.wait(20)
    guard = make_guard(lambda: spy)
    started = time.monotonic()
    for batch in range(1, 30):
        guard.put_row(row(batch))
    time.sleep(0.1)
    guard.put_row(row(30))
    assert time.monotonic() - started < 2
    assert not close(guard, 0.1)
    assert told.lost() == guard.failures.calls > 15
    assert len(told.said) == 1
    free.set()
    guard._thread.join(10)
    assert spy.batches == list(range(1, 31))  # what was dropped is in the records


def test_one_that_does_not_come_back_is_told_before_anything_is_dropped(make_guard, told, monkeypatch):
    monkeypatch.setattr(guards, 'STUCK_SECONDS', 0.05)
    spy, free = Spy(), threading.Event()
    spy.before = lambda _: free.wait(20)
    guard = make_guard(lambda: spy)
    guard.put_row(row(1))
    time.sleep(0.2)
    guard.put_row(row(2))
    assert told.reasons() == ['it has not come back from a call for 0 s']
    assert told.lost() == 0
    free.set()
    assert close(guard)


def test_one_that_cannot_connect_is_tried_again_and_gets_all(make_guard, told, tmp_path, monkeypatch):
    write_records(tmp_path, 20)
    spy, tries = Spy(), []

    def build() -> Spy:
        tries.append(1)
        if len(tries) < 3:
            raise ConnectionError('the network is away; token=abcdefgh12345678')
        return spy

    monkeypatch.setattr(guards, 'FIRST_PAUSE_SECONDS', 0.01)
    guard = make_guard(build)
    for batch in range(1, 20):
        guard.put_row(row(batch))
        time.sleep(0.01)
    guard.put_row(row(20))
    assert close(guard)
    assert spy.batches == list(range(1, 21))
    assert told.reasons() == ['the network is away; token=REDACTED']


def test_the_first_failure_can_be_asked_for_instead_of_told(make_guard, told):
    def build() -> Spy:
        raise ValueError('wrong key')

    guard = make_guard(build)
    error = guard.refusal(time.monotonic() + 5)
    assert str(error) == 'wrong key'
    assert told.said == []
