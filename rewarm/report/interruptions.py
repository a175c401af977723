"""Lost time: how long a run stood still between a stop and the next start, and how many batches it did twice."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from rewarm.report.run_folder import Event, Run
from rewarm.report.starts import Start, find_starts, stall_seconds

__all__ = ['Interruption', 'Throughput', 'interruptions', 'throughput']


@dataclass(frozen=True)
class Interruption:
    """A stop of the run and its next start, if there was one that trained."""

    kind: str
    """``preempted`` if a signal or notice was answered with a save, ``lost a rank``, ``hung``, ``rolled back``
    after a spike, else ``killed``."""
    batch: int | None
    """Batches of the run that were kept; ``None`` until it goes on."""
    tokens: int | None
    """Tokens of the run that were kept; ``None`` until it goes on."""
    seconds: float | None
    """From the stop to the first batch after it; ``None`` until it goes on, and where a time is missing."""
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
    stall_seconds: float
    """Sum of the times that training stood still for a save."""


def interruptions(events: Sequence[Event], *, ended: bool = False) -> list[Interruption]:
    """Finds stops and starts in the events of a run.

    A stop counts at once if its process said so. A stage that was appended to a finished run and then begun is no
    interruption.

    Args:
        events (Sequence[Event]): In the order of ``events.jsonl``.
        ended (bool): Whether nobody runs now and the run is not finished, so that a last process without a word was killed.
    """
    found: list[Interruption] = []
    stopped: Start | None = None
    lost: list[int | None] = []
    starts = [start for start in find_starts(events) if not start.idle]
    for before, start in itertools.pairwise(starts):
        # Starts that came to nothing (another start before any batch) belong to the stop before them.
        if stopped is None and before.end != 'finished':
            stopped, lost = before, []
        lost.append(start.lost_batches)
        if stopped is not None and start.training is not None:
            found.append(_interruption(stopped, start, lost))
            stopped = None
    if starts and stopped is None and (ended if starts[-1].end is None else starts[-1].end != 'finished'):
        stopped, lost = starts[-1], []
    if stopped is not None:
        found.append(_interruption(stopped, None, lost))
    return found


def throughput(run: Run) -> Throughput:
    """Speed and losses of a run, from its metrics and events."""
    seconds = [line.seconds for line in run.batches if math.isfinite(line.seconds)]
    speeds = [line.tokens_per_second for line in run.batches if math.isfinite(line.tokens_per_second)]
    times = [event.time for event in run.events if event.time is not None]
    stops = interruptions(run.events)
    repeated = sum(stop.lost_batches or 0 for stop in stops)
    saves = [event for event in run.events if event.event == 'save']
    return Throughput(
        tokens_per_second=statistics.median(speeds) if speeds else None,
        training_seconds=sum(seconds),
        wall_seconds=(max(times) - min(times)).total_seconds() if times else None,
        idle_seconds=sum(stop.seconds or 0.0 for stop in stops),
        repeated_batches=repeated,
        repeated_seconds=repeated * statistics.median(seconds) if seconds else 0.0,
        saves=len(saves),
        stall_seconds=sum(map(stall_seconds, saves)),
    )


def _interruption(stopped: Start, start: Start | None, lost: Sequence[int | None]) -> Interruption:
    """A stop, and the start that went on, if one has."""
    end = stopped.last if stopped.ending is None else stopped.ending.time
    begun = start.training.time if start and start.training else None
    origin = start.origin if start else None
    known = [batches for batches in lost if batches is not None]
    return Interruption(
        kind=stopped.end or 'killed',
        batch=origin.batch if origin else None,
        tokens=origin.tokens if origin else None,
        seconds=None if end is None or begun is None else max(0.0, (begun - end).total_seconds()),
        at_most=stopped.ending is None,
        lost_batches=sum(known) if known else None,
    )
