"""Where a run is now, how it has fared, and what would happen if it were started: from its files alone, within a second."""

from __future__ import annotations

import itertools
import math
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from rewarm.formats.files import read_bytes
from rewarm.formats.records import LONGEST_SECONDS
from rewarm.report.checkpoints import Saved, find_saved
from rewarm.report.interruptions import Interruption, interruptions
from rewarm.report.owner import Owner, find_claim, find_owner
from rewarm.report.run_folder import Batch, Event, Run, read_run
from rewarm.report.starts import Start, find_starts

__all__ = ['Lag', 'Status', 'find_status']

RECENT_BATCHES = 100
"""Speed is the median of the last so many batches."""
BATCH_SECONDS = rb'"seconds": ([0-9]{1,9}(?:\.[0-9]{1,20})?(?:e-[0-9]{1,3})?)[,}]'


@dataclass(frozen=True)
class Lag:
    """How far the bucket is behind the disk."""

    newest: str | None
    """The newest checkpoint in the bucket, by name."""
    uploaded_at: datetime | None
    waiting: int
    """Newer checkpoints, on the disk only."""
    waiting_bytes: int
    failure: Event | None
    """The last failed upload, if none has succeeded since."""


@dataclass(frozen=True)
class Status:
    """A run at a glance."""

    run: Run
    place: str
    """The run folder, as it was given."""
    now: datetime
    planned_batches: int
    planned_tokens: int
    last: Batch | None
    """The newest batch."""
    tokens_per_second: float | None
    """Median of the last batches."""
    owner: Owner | None
    """Who holds the run; in a bucket, who took it over last."""
    last_batch_at: datetime | None
    last_sign_at: datetime | None
    """The newest batch or event."""
    checkpoint: Saved | None
    """The newest one that can be whole."""
    saved_at: datetime | None
    lag: Lag | None
    """``None`` if nothing was ever uploaded, or tried."""
    stops: tuple[Interruption, ...]
    goodput: float | None
    """Time in batches that count, over the time from the first start until now, or the last sign of life if nobody runs."""
    ending: Event | None
    """Why the newest process ended; ``None`` if it left no word, or is there."""
    finished: bool
    next_start: str
    """What would happen if it were started now."""

    @property
    def in_bucket(self) -> bool:
        """Whether this is what the bucket knows, which is as of its last upload."""
        return '://' in self.place

    @property
    def batch(self) -> int:
        """Batches behind the run."""
        return self.last.batch if self.last else 0

    @property
    def state(self) -> str:
        """``running``, ``finished``, ``stopped``, ``not started``; of a bucket that cannot tell, ``running or killed``."""
        if self.owner and not self.in_bucket:
            return 'running'
        if self.finished:
            return 'finished'
        if self.in_bucket and self.owner and self.ending is None:
            return 'running or killed'
        return 'stopped' if self.run.events or self.last else 'not started'

    @property
    def reason(self) -> str:
        """Why a stopped run stopped, as far as it said."""
        if self.ending is None:
            return 'killed without a word, or its machine is gone'
        if self.ending.event == 'finished':
            return 'finished once, but its last checkpoint is not here'
        said = self.ending.fields
        rank = f'rank {said["rank"]}' + (f' on {said["host"]}' if said.get('host') else '') if 'rank' in said else None
        detail = said.get('signal') or rank or said.get('reason')
        return self.ending.event.replace('_', ' ') + (f': {detail}' if detail else '')

    @property
    def eta_seconds(self) -> float | None:
        """Wall-clock time to the end at the speed and goodput so far, from now or from the next start."""
        left = self.planned_tokens - (self.last.tokens if self.last else 0)
        if self.finished or left <= 0 or not self.tokens_per_second or not self.goodput:
            return None
        seconds = left / self.tokens_per_second / self.goodput
        return seconds if seconds < LONGEST_SECONDS else None


def find_status(folder: str | Path, *, now: datetime | None = None) -> Status:
    """Looks at a run folder; the run may be going on, and nothing is touched.

    Args:
        folder (str | Path): The run folder, here or in a bucket.
        now (datetime | None): The time to count ages from. Default: the clock's.

    Returns:
        Status: As of ``now``.

    Raises:
        UserError: If it is no run folder, or the bucket cannot be read.
    """
    place = str(folder)
    if '://' not in place:
        return _find_status(Path(folder), place, now or datetime.now(UTC))
    from rewarm.report.shadow import shadow

    with shadow(place) as copy:
        return _find_status(copy, place, now or datetime.now(UTC))


def _find_status(folder: Path, place: str, now: datetime) -> Status:
    run = read_run(folder, last_batches=RECENT_BATCHES)
    in_bucket = '://' in place
    owner = find_claim(run.folder) if in_bucket else find_owner(run.folder)
    metrics = run.folder / 'metrics.jsonl'
    last = run.batches[-1] if run.batches else None
    last_batch_at = (last.time or _changed_at(metrics)) if last else None
    times = [event.time for event in run.events if event.time is not None]
    signs = times if last_batch_at is None else [*times, last_batch_at]
    last_sign_at = max(signs) if signs else None
    starts = [start for start in find_starts(run.events) if not start.idle]
    planned = sum(stage.batches or 0 for stage in run.plan.stages)
    saved = find_saved(run.folder)
    whole = next((each for each in saved if each.problem is None and not each.set_aside), None)
    finished = whole is not None and 0 < planned <= whole.batch
    speeds = [line.tokens_per_second for line in run.batches[-RECENT_BATCHES:] if math.isfinite(line.tokens_per_second)]
    return Status(
        run=run,
        place=place,
        now=now,
        planned_batches=planned,
        planned_tokens=sum(stage.tokens or 0 for stage in run.plan.stages),
        last=last,
        tokens_per_second=statistics.median(speeds) if speeds else None,
        owner=owner,
        last_batch_at=last_batch_at,
        last_sign_at=last_sign_at,
        checkpoint=whole,
        saved_at=_saved_at(run, whole),
        lag=None if in_bucket else _find_lag(run.events),
        stops=tuple(interruptions(run.events)),
        goodput=_goodput(starts, metrics, now if owner and not in_bucket else last_sign_at),
        ending=starts[-1].ending if starts else None,
        finished=finished,
        next_start=_next_start(owner, saved, finished=finished, batch=last.batch if last else 0, in_bucket=in_bucket),
    )


def _next_start(owner: Owner | None, saved: Sequence[Saved], *, finished: bool, batch: int, in_bucket: bool) -> str:
    alone = _without_owner(saved, finished=finished, batch=batch)
    if owner is None or (in_bucket and finished):
        return alone
    if in_bucket:
        return f'{alone}, and take the run over from {owner}, which stops if it is still there'
    return f'it would refuse, since {owner} holds the run folder. Killed now and started again, {alone}'


def _without_owner(saved: Sequence[Saved], *, finished: bool, batch: int) -> str:
    """What a start would do; it takes checkpoints as :func:`rewarm.resume.checkpoint.find_newest_valid` does."""
    if finished:
        return 'it would do nothing: the run is finished. Append a stage to its run file to go on'
    damaged = ''
    for each in saved:
        if each.set_aside:
            continue
        if each.problem is None:
            repeated = f', repeating {batch - each.batch:,} batches' if batch > each.batch else ''
            return f'it would {damaged}go on from {each.name}{repeated}'
        damaged += f'set {each.name} aside ({each.problem}) and '
    if saved:
        reasons = '; '.join(f'{each.name}: {each.problem or "was set aside earlier"}' for each in saved)
        return f'it would refuse: there are checkpoints and none is whole ({reasons}). Bring back a good copy of one'
    return 'it would begin at the beginning' + (f', repeating {batch:,} batches' if batch else '')


def _saved_at(run: Run, saved: Saved | None) -> datetime | None:
    if saved is None:
        return None
    for event in reversed(run.events):
        if event.event == 'save' and _name(event) == saved.name and event.time is not None:
            return event.time
    return _changed_at(run.folder / 'checkpoints' / saved.name)


def _changed_at(path: Path) -> datetime | None:
    """When a file was changed; ``None`` if it is gone, or its time is in no calendar."""
    try:
        return datetime.fromtimestamp(path.stat().st_mtime, UTC)
    except (OSError, OverflowError, ValueError):
        return None


def _find_lag(events: Sequence[Event]) -> Lag | None:
    uploads = [event for event in events if event.event in ('upload', 'upload_failed')]
    if not uploads:
        return None
    done = [event for event in uploads if event.event == 'upload' and _name(event)]
    newest = max(done, key=lambda event: _name(event) or '', default=None)
    deleted = {_name(event) for event in events if event.event == 'delete'}
    known = {_name(event) for event in done} | deleted
    sizes = {_name(event): event.fields.get('bytes') for event in events if event.event == 'save'}
    behind = [size for name, size in sizes.items() if name and name not in known]
    return Lag(
        newest=_name(newest) if newest else None,
        uploaded_at=newest.time if newest else None,
        waiting=len(behind),
        waiting_bytes=sum(size for size in behind if isinstance(size, int)),
        failure=uploads[-1] if uploads[-1].event == 'upload_failed' else None,
    )


def _name(event: Event) -> str | None:
    """The checkpoint that an event is about; uploads are of other files too."""
    found = re.search(r'\bba\d{8}\b', str(event.fields.get('path', '')))
    return found[0] if found else None


def _goodput(starts: Sequence[Start], metrics: Path, until: datetime | None) -> float | None:
    """As :attr:`rewarm.report.timeline.Timeline.goodput`, without parsing hundreds of thousands of lines."""
    began = min((start.began for start in starts if start.began is not None), default=None)
    if began is None or until is None or not metrics.is_file():
        return None
    text = read_bytes(metrics)
    trained = sum(map(float, re.findall(BATCH_SECONDS, text)))
    trained -= sum(map(float, re.findall(BATCH_SECONDS + rb'[^\n]*"skipped": true', text)))
    waited = sum(
        (after.began - before.last).total_seconds()
        for before, after in itertools.pairwise(starts)
        if before.end == 'finished' and before.last is not None and after.began is not None
    )
    wall = (until - began).total_seconds() - waited
    return max(0.0, min(1.0, trained / wall)) if wall > 0 else None
