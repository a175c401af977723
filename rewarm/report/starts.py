"""The processes that a run was made of: when each began, trained its first batch, and ended, and by what.

Events are in the order in which they were written. What a background thread records (a save, an upload) may come later
than batches that followed it, and belongs to the process that wrote it. A process that starts writes some before its
``run_start``: it sets checkpoints aside, and its uploads begin. A rollback starts over in the same process.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from rewarm.report.run_folder import Event

__all__ = ['PROOFS', 'Start', 'find_starts', 'stall_seconds']

BEGINNINGS = ('resume', 'stage_start', 'first_batch')
"""Events that tell that a process which started is training, or about to."""

ENDS = {
    'finished': 'finished',
    'preempted': 'preempted',
    'rank_lost': 'lost a rank',
    'hang': 'hung',
    'rollback': 'rolled back',
}
"""Events that tell why a process ended, with the word for it; without one it was killed, or goes on."""

BEFORE_START = ('fallback',)
"""Events that only a process that starts writes, before its ``run_start``."""


PROOFS = ('first_batch', 'save', 'stage_end', 'preempted', 'finished')
"""Events without which a process trained nothing, where the run records first batches."""


@dataclass(frozen=True)
class Start:
    """One process, by what it wrote into the run's events."""

    events: tuple[Event, ...]
    began: datetime | None
    """When the process began, imports included, as far as it is known; else its first event."""
    origin: Event | None
    """The event that says where it began."""
    training: Event | None
    """The event of its first batch; where that is not recorded, of whatever told that it was about to train."""
    last: datetime | None
    """Its last event."""
    ending: Event | None
    """The event that tells why it ended; ``None`` if it left no word."""
    lost_batches: int | None
    """Batches of processes before it that it had to do again; ``None`` if not known."""
    same_process: bool
    """It is the process before it, which rolled back and started over."""
    idle: bool
    """It found the run finished, and had nothing to do."""

    @property
    def end(self) -> str | None:
        """``finished``, ``preempted``, ``lost a rank``, ``hung`` or ``rolled back``; ``None`` if it was killed, or goes on."""
        return None if self.ending is None else ENDS[self.ending.event]

    @property
    def from_batch(self) -> int:
        """Batches of the run that were behind it when it began."""
        return (self.origin.batch or 0) if self.origin else 0

    def events_named(self, *names: str) -> list[Event]:
        """Its events of some kinds, in order."""
        return [event for event in self.events if event.event in names]


def find_starts(events: Sequence[Event]) -> list[Start]:
    """Divides the events of a run into those of its processes.

    Args:
        events (Sequence[Event]): In the order of ``events.jsonl``.

    Returns:
        list[Start]: In order; also processes that ended before their first batch.
    """
    if not events:
        return []
    boundary = 'run_start' if any(event.event == 'run_start' for event in events) else 'resume'
    records_first_batch = any(event.event == 'first_batch' for event in events)
    said = [index for index, event in enumerate(events) if event.event == boundary]
    edges = [0]
    for index, end in itertools.pairwise([*said, len(events)]):
        rolled_back = index > 0 and events[index - 1].event == 'rollback'
        began = None if _is_same_process(rolled_back, events[index:end]) else _began(events[index:end])
        while index > edges[-1] and _is_of_next(events[index - 1], began):
            index -= 1
        if index > edges[-1]:
            edges.append(index)
    groups = [events[begin:end] for begin, end in itertools.pairwise([*edges, len(events)])]
    starts: list[Start] = []
    for group in groups:
        before = next((each for each in reversed(starts) if not each.idle), None)
        starts.append(_start(group, before.end if before else None, records_first_batch=records_first_batch))
    return starts


def stall_seconds(save: Event) -> float:
    """How long training stood still for a save; of old runs, which saved in the foreground, all of it."""
    value = save.fields.get('stall_seconds', save.fields.get('seconds'))
    return float(value) if isinstance(value, int | float) else 0.0


def _start(events: Sequence[Event], end_before: str | None, *, records_first_batch: bool) -> Start:
    again = _is_same_process(end_before == 'rolled back', events)
    first = _first(events, 'first_batch')
    resume = _first(events, 'resume')
    trained = again or not records_first_batch or _first(events, *PROOFS) is not None
    times = [event.time for event in events if event.time is not None]
    lost = resume.fields.get('lost_batches') if resume else None
    return Start(
        events=tuple(events),
        began=(None if again else _began(events)) or (times[0] if times else None),
        origin=resume or next((event for event in events if event.batch is not None), None),
        training=first or (_first(events, *BEGINNINGS, 'finished') if trained else None),
        last=max(times, default=None),
        ending=_first(list(reversed(events)), *ENDS),
        lost_batches=lost if isinstance(lost, int) else None,
        same_process=again,
        idle=end_before == 'finished' and _first(events, 'stage_start', *PROOFS) is None,
    )


def _began(events: Sequence[Event]) -> datetime | None:
    """When a process began, by its age at the first event that tells it."""
    for event in events:
        age = event.fields.get('seconds') if event.event in ('run_start', 'first_batch') else None
        if event.time is not None and isinstance(age, int | float):
            return event.time - timedelta(seconds=age)
    return None


def _is_same_process(after_rollback: bool, events: Sequence[Event]) -> bool:
    """Whether a start is a rollback's and no new process, which would tell its first batch."""
    return after_rollback and _first(events, 'first_batch') is None


def _is_of_next(event: Event, began: datetime | None) -> bool:
    """Whether an event before a ``run_start`` is of the process that this starts, which began at ``began``."""
    if event.event in BEFORE_START:
        return True
    return began is not None and event.time is not None and event.time >= began and event.event not in ENDS


def _first(events: Sequence[Event], *names: str) -> Event | None:
    return next((event for event in events if event.event in names), None)
