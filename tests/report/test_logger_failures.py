"""Which loggers fail, told from a run's events."""

from datetime import UTC, datetime

from rewarm.formats.records import Event
from rewarm.report.logger_failures import LoggerFailure, failure_text, find_logger_failures

WHEN = datetime(2026, 11, 2, 9, 30, tzinfo=UTC)


def event(name: str, **fields: object) -> Event:
    return Event(name, WHEN, 5, 50, 's', fields)  # type: ignore[arg-type]


def test_calls_are_summed_over_starts_and_the_newest_reason_is_told():
    events = [
        event('run_start'),
        event('logger_failed', logger='wandb', reason='old'),
        event('logger_lost', logger='wandb', calls=1),
        event('logger_lost', logger='wandb', calls=9),
        event('logger_failed', logger='mlflow', reason='gone'),
        event('run_start'),
        event('logger_failed', logger='wandb', reason='new'),
        event('logger_lost', logger='wandb', calls=1),
    ]
    mlflow, wandb = find_logger_failures(events)
    assert mlflow == LoggerFailure('mlflow', 'gone', WHEN, 0, is_new=False)
    assert wandb == LoggerFailure('wandb', 'new', WHEN, 11, is_new=True)
    assert failure_text(mlflow) == 'mlflow failed in an earlier start (gone)'
    assert failure_text(wandb) == 'wandb fails since 2026-11-02 09:30 UTC (new); 11 calls failed or were dropped'


def test_a_rollback_is_no_new_start():
    events = [event('run_start'), event('logger_failed', logger='wandb'), event('rollback'), event('run_start')]
    (failure,) = find_logger_failures(events)
    assert failure.is_new
    assert failure.reason == 'no reason given'
    (failure,) = find_logger_failures([*events, event('run_start')])
    assert not failure.is_new


def test_events_of_no_logger_are_no_failures():
    assert find_logger_failures([event('logger_failed'), event('logger_lost', logger='x', calls=3)]) == ()
