"""Lost time: how long a run stood still between a stop and the next start, and how many batches it did twice."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from rewarm.report.run_folder import Event, Run

__all__ = ['Interruption', 'Throughput', 'interruptions', 'throughput']

BEGINNINGS = ('resume', 'stage_start', 'first_batch')
"""Events that tell that a process which started is training again."""


@dataclass(frozen=True)
class Interruption:
    """A stop of the run and its next start."""

    kind: str
    """``preempted`` if a signal or notice was answered with a save, else ``killed``."""
    batch: int | None
    """Batches of the run that were kept."""
    tokens: int | None
    """Tokens of the run that were kept."""
    seconds: float | None
    """From the stop to the first batch after it; ``None`` where a time is missing."""
    at_most: bool
    """The stop itself left no event, so ``seconds`` counts from the last event before it."""
    lost_batches: int | None
    """Batches that had to be done again; ``None`` if not known."""


@dataclass(frozen=True)
class Throughput:
    """How fast a run was, and what was lost."""

    tokens_per_second: float | None
    """Median over batches."""
    training_seconds: float
    """Sum of the durations of the batches that count."""
    wall_seconds: float | None
    """From the first event to the last one."""
    idle_seconds: float
    """Sum over interruptions, where known."""
    repeated_batches: int
    repeated_seconds: float
    """Repeated batches times the median duration of a batch."""
    saves: int
    save_seconds: float


def interruptions(events: Sequence[Event]) -> list[Interruption]:
    """Finds stops and starts in the events of a run.

    A stage that was appended to a finished run and then begun is no interruption.

    Args:
        events (Sequence[Event]): In the order of ``events.jsonl``.
    """
    found: list[Interruption] = []
    boundary = 'run_start' if any(event.event == 'run_start' for event in events) else 'resume'
    stop: Event | None = None
    for index, event in enumerate(events):
        # Starts that came to nothing (another start before any batch) belong to the stop before them.
        if event.event == boundary and index and stop is None and events[index - 1].event != 'finished':
            stop = _stop(events[:index])
        if stop is not None and event.event in BEGINNINGS:
            found.append(_interruption(stop, event, _first_batch(events[index:]) or event))
            stop = None
    return found


def throughput(run: Run) -> Throughput:
    """Speed and losses of a run, from its metrics and events."""
    seconds = [line.seconds for line in run.batches if math.isfinite(line.seconds)]
    speeds = [line.tokens_per_second for line in run.batches if math.isfinite(line.tokens_per_second)]
    times = [event.time for event in run.events if event.time is not None]
    stops = interruptions(run.events)
    repeated = sum(stop.lost_batches or 0 for stop in stops)
    saves = [event.fields.get('seconds') for event in run.events if event.event == 'save']
    return Throughput(
        tokens_per_second=statistics.median(speeds) if speeds else None,
        training_seconds=sum(seconds),
        wall_seconds=(max(times) - min(times)).total_seconds() if times else None,
        idle_seconds=sum(stop.seconds or 0.0 for stop in stops),
        repeated_batches=repeated,
        repeated_seconds=repeated * statistics.median(seconds) if seconds else 0.0,
        saves=len(saves),
        save_seconds=sum(value for value in saves if isinstance(value, int | float)),
    )


def _stop(before: Sequence[Event]) -> Event:
    """The event that stands for the end of the process before: its preemption, else the last thing it recorded."""
    last = next((event for event in reversed(before) if event.event in ('preempted', *BEGINNINGS)), None)
    return last if last is not None and last.event == 'preempted' else before[-1]


def _first_batch(events: Sequence[Event]) -> Event | None:
    """The event of the first batch of the process that begins here, if the run records it."""
    for event in events[1:]:
        if event.event == 'first_batch':
            return event
        if event.event == 'run_start':
            return None
    return None


def _interruption(stop: Event, start: Event, begun: Event) -> Interruption:
    preempted = stop.event == 'preempted'
    lost = start.fields.get('lost_batches')
    known = stop.time is not None and begun.time is not None
    return Interruption(
        kind='preempted' if preempted else 'killed',
        batch=start.batch,
        tokens=start.tokens,
        seconds=max(0.0, (begun.time - stop.time).total_seconds()) if known else None,  # type: ignore[operator]
        at_most=not preempted,
        lost_batches=lost if isinstance(lost, int) else None,
    )
