"""Where the wall-clock time of a run went: training, repeating, standing still for saves, starting, stopped.

Everything between the first start and the last sign of life is given to one kind, so the kinds add up to it. What a kill
cost is not recorded by the process that died: its lost batches are counted by the next one, and their time is that
count times the median time of a batch.
"""

from __future__ import annotations

import bisect
import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from rewarm.formats.records import LONGEST_SECONDS
from rewarm.report.run_folder import Batch, Run
from rewarm.report.starts import Start, find_starts, stall_seconds

__all__ = ['KINDS', 'Life', 'Timeline', 'find_timeline']

KINDS = {
    'training': 'training batches that count',
    'repeating': 'training batches that were lost, repeated or skipped',
    'saving': 'standing still for saves',
    'starting': 'starting, to the first batch',
    'stopped': 'stopped: no process',
    'other': 'evaluations and the rest',
    'waiting': 'finished, before a stage was appended',
}
"""What time can go to, and what the report calls it."""


@dataclass(frozen=True)
class Life:
    """One process on the clock."""

    start: Start
    began: datetime
    running: datetime
    """When its first batch began; its end if there was none."""
    ended: datetime
    """Its last sign of life; where it was killed, as far as the batches tell that were lost with it."""
    seconds: dict[str, float]
    """Seconds by kind, of its whole life."""
    kept: Sequence[Batch]
    """The batches it trained that count."""
    lost_batches: int
    """Batches it trained that were lost."""


@dataclass(frozen=True)
class Timeline:
    """All of a run on the clock."""

    lives: tuple[Life, ...]
    seconds: dict[str, float]
    """Seconds by kind; every kind is there."""

    @property
    def wall_seconds(self) -> float:
        """From the first start to the last sign of life."""
        return (self.lives[-1].ended - self.lives[0].began).total_seconds() if self.lives else 0.0

    @property
    def goodput(self) -> float | None:
        """Time in batches that count, over the time from the first start to the last sign of life.

        Without the time in which the run was finished and waited for another stage.
        """
        available = self.wall_seconds - self.seconds['waiting']
        return self.seconds['training'] / available if available > 0 else None


def find_timeline(run: Run) -> Timeline:
    """Works out where the time went.

    Args:
        run (Run): Finished or not; of a run that is going on, up to its last sign of life.

    Returns:
        Timeline: Empty for a run that recorded no times.
    """
    starts = [start for start in find_starts(run.events) if start.began is not None and not start.idle]
    median = statistics.median([line.seconds for line in run.batches if math.isfinite(line.seconds)] or [0.0])
    numbers = [line.batch for line in run.batches]
    total = dict.fromkeys(KINDS, 0.0)
    lives: list[Life] = []
    lowest_after = [*itertools.accumulate((start.from_batch for start in reversed(starts[1:])), min)][::-1]
    for index, start in enumerate(starts):
        after = starts[index + 1 : index + 2]
        until = lowest_after[index] if after else math.inf
        kept = run.batches[bisect.bisect_right(numbers, start.from_batch) : bisect.bisect_right(numbers, until)]
        lost = _lost(start, after[0], len(kept)) if after else 0
        life = _life(start, kept, lost, median, after=lives[-1] if lives else None, limit=after)
        if lives:
            gap = 'waiting' if lives[-1].start.end == 'finished' else 'stopped'
            total[gap] += (life.began - lives[-1].ended).total_seconds()
        for kind, seconds in life.seconds.items():
            total[kind] += seconds
        lives.append(life)
    return Timeline(tuple(lives), total)


def _lost(start: Start, following: Start, kept: int) -> int:
    """Batches that a process trained and that do not count: those up to where the next one cut the records back."""
    reached = following.from_batch + (following.lost_batches or 0)
    return max(0, reached - start.from_batch - kept)


def _life(
    start: Start, kept: Sequence[Batch], lost: int, median: float, *, after: Life | None, limit: Sequence[Start]
) -> Life:
    """Places a process between the one before and the one after, and gives its time to what it did."""
    assert start.began is not None
    wanted = {
        'training': sum(_finite(line.seconds) for line in kept if not line.skipped),
        'repeating': sum(_finite(line.seconds) for line in kept if line.skipped) + lost * median,
        'saving': sum(map(stall_seconds, start.events_named('save'))),
    }
    began = start.began
    if after is not None:
        began = after.ended if start.same_process else max(began, after.ended)
    running = max(began, start.last or began)
    if kept and kept[0].time is not None:
        running = max(began, kept[0].time - _duration(kept[0].seconds))
    elif start.training is not None and start.training.time is not None:
        first = _finite(kept[0].seconds) if kept and start.training.event == 'first_batch' else 0.0
        running = max(began, start.training.time - _duration(first))
    last_kept = kept[-1].time if kept else None
    ended = max(running, start.last or running, last_kept or running)
    if start.ending is None and limit:  # killed without a word, after batches that were lost with it
        alone = running + _duration(wanted['training'])
        until = kept[-1].batch if kept and last_kept else -1
        stalls = sum(stall_seconds(save) for save in start.events_named('save') if (save.batch or 0) >= until)
        ended = max(ended, (last_kept or alone) + _duration(stalls + lost * median))
    if limit and limit[0].began is not None:
        ended = max(running, min(ended, limit[0].began))
    seconds = {'starting': (running - began).total_seconds()}
    left = (ended - running).total_seconds()
    for kind, value in wanted.items():  # by clocks of several machines and estimates, and no more than there is
        seconds[kind] = min(value, left)
        left -= seconds[kind]
    return Life(start, began, running, ended, {**seconds, 'other': left}, kept, lost)


def _duration(seconds: float) -> timedelta:
    """A time that can be added to any of a run's: sums and estimates over damaged records may be of any size."""
    return timedelta(seconds=min(_finite(seconds), LONGEST_SECONDS))


def _finite(seconds: float) -> float:
    return seconds if math.isfinite(seconds) else 0.0
