"""Which of a run's loggers fail, since when, and what they lost: from its events."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from rewarm.report.run_folder import Event

__all__ = ['LoggerFailure', 'failure_text', 'find_logger_failures']


@dataclass(frozen=True)
class LoggerFailure:
    """A logger that has failed in at least one start."""

    name: str
    reason: str
    """Of its newest failure."""
    since: datetime | None
    """When that began."""
    calls: int = 0
    """That failed or were dropped, in all starts; what is lost in a start that is killed counts from 1, 10, 100 ... on."""
    is_new: bool = True
    """Whether it is of the newest start."""


def find_logger_failures(events: Sequence[Event]) -> tuple[LoggerFailure, ...]:
    """Finds them, by name.

    Args:
        events (Sequence[Event]): In the order of ``events.jsonl``.
    """
    found: dict[str, LoggerFailure] = {}
    rolled_back = False
    for event in events:
        name = event.fields.get('logger') or ''
        if event.event == 'rollback':
            rolled_back = True
        elif event.event == 'run_start':
            if not rolled_back:  # else it is the same process, which has told already
                found = {key: replace(each, is_new=False) for key, each in found.items()}
            rolled_back = False
        elif event.event == 'logger_failed' and name:
            calls = found[name].calls if name in found else 0
            reason = str(event.fields.get('reason', 'no reason given'))
            found[name] = LoggerFailure(name, reason, event.time, calls)
        elif event.event == 'logger_lost' and name in found:
            found[name] = replace(found[name], calls=found[name].calls + (event.fields.get('calls') or 0))
    return tuple(found[name] for name in sorted(found))


def failure_text(failure: LoggerFailure) -> str:
    """A failure in a line."""
    since = f' since {failure.since:%Y-%m-%d %H:%M} UTC' if failure.since else ''
    verb = f'fails{since}' if failure.is_new else 'failed in an earlier start'
    calls = f'; {failure.calls:,} calls failed or were dropped' if failure.calls else ''
    return f'{failure.name} {verb} ({failure.reason}){calls}'
