"""The processes that a run was made of: when each began, trained its first batch, and ended, and by what.

Events are in the order in which they were written. What a background thread records (a save, an upload) may come later
than batches that followed it, and belongs to the process that wrote it; a checkpoint that is set aside is recorded by
the next process before it says that it has started.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from rewarm.report.run_folder import Event

__all__ = ['Start', 'find_starts', 'stall_seconds']

BEGINNINGS = ('resume', 'stage_start', 'first_batch')
"""Events that tell that a process which started is training, or about to."""

ENDS = {'finished': 'finished', 'preempted': 'preempted', 'rank_lost': 'lost a rank', 'hang': 'hung'}
"""Events that tell why a process ended, with the word for it; without one it was killed, or goes on."""

BEFORE_START = ('fallback',)
"""Events that a process writes before its ``run_start``."""


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
    rolled_back: int
    """Batches that it set back itself, after a spike."""
    idle: bool
    """It found the run finished, and had nothing to do."""

    @property
    def end(self) -> str | None:
        """``finished``, ``preempted``, ``lost a rank``, ``hung``; ``None`` if it was killed, or goes on."""
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
    boundary = 'run_start' if any(event.event == 'run_start' for event in events) else 'resume'
    records_first_batch = any(event.event == 'first_batch' for event in events)
    edges = [0]
    for index, event in enumerate(events):
        if event.event == boundary and index:
            while index > edges[-1] and events[index - 1].event in BEFORE_START:
                index -= 1
            if index > edges[-1]:
                edges.append(index)
    groups = [events[begin:end] for begin, end in zip(edges, [*edges[1:], len(events)], strict=True)]
    starts: list[Start] = []
    for group in groups if events else []:
        before = next((each for each in reversed(starts) if not each.idle), None)
        finished = before is not None and before.end == 'finished'
        starts.append(_start(group, records_first_batch, finished_before=finished))
    return starts


def stall_seconds(save: Event) -> float:
    """How long training stood still for a save; of old runs, which saved in the foreground, all of it."""
    value = save.fields.get('stall_seconds', save.fields.get('seconds'))
    return float(value) if isinstance(value, int | float) else 0.0


def _start(events: Sequence[Event], records_first_batch: bool, *, finished_before: bool) -> Start:
    first = _first(events, 'first_batch')
    resume = _first(events, 'resume')
    trained = not records_first_batch or _first(events, *PROOFS) is not None
    began = next((event.time for event in events if event.time is not None), None)
    if first is not None and first.time is not None and isinstance(age := first.fields.get('seconds'), int | float):
        began = min(began or first.time, first.time - timedelta(seconds=age))
    lost = resume.fields.get('lost_batches') if resume else None
    ending = _first(list(reversed(events)), *ENDS)
    return Start(
        events=tuple(events),
        began=began,
        origin=resume or next((event for event in events if event.batch is not None), None),
        training=first or (_first(events, *BEGINNINGS, 'finished') if trained else None),
        last=max((event.time for event in events if event.time is not None), default=None),
        ending=ending,
        lost_batches=lost if isinstance(lost, int) else None,
        rolled_back=sum(_rolled_back(event) for event in events if event.event == 'rollback'),
        idle=finished_before and _first(events, 'stage_start', *PROOFS) is None,
    )


def _first(events: Sequence[Event], *names: str) -> Event | None:
    return next((event for event in events if event.event in names), None)


def _rolled_back(event: Event) -> int:
    """Batches between a rollback and where it went, which is given as a number or as a checkpoint's name."""
    number = re.search(r'(\d+)$', str(event.fields.get('to', '')))
    return max(0, event.batch - int(number[1])) if number and event.batch is not None else 0
