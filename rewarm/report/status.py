"""Where a run is now, how it has fared, and what would happen if it were started: from its files alone, within a second."""

from __future__ import annotations

import itertools
import math
import re
import statistics
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from rewarm.buckets.bucket import Entry
from rewarm.formats.files import read_bytes
from rewarm.formats.records import LONGEST_SECONDS
from rewarm.report.checkpoints import Saved, find_saved
from rewarm.report.interruptions import Interruption, interruptions
from rewarm.report.next_start import describe_next_start
from rewarm.report.owner import Owner, find_claim, find_owner
from rewarm.report.position import Position, find_position
from rewarm.report.run_folder import Batch, Event, Run, is_run_folder, no_run_there, read_run
from rewarm.report.spending import device_hours_so_far
from rewarm.report.starts import PROOFS, Start, find_starts

__all__ = ['Lag', 'Status', 'find_status']

RECENT_BATCHES = 100
"""Speed is the median of the last so many batches."""
TAIL_BYTES = 1 << 16
"""Of a brief look: a line has some hundreds."""
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
    position: Position | None
    """Where the newest batch is; ``None`` before the first."""
    owner: Owner | None
    """Who holds the run; in a bucket, who took it over last."""
    last_batch_at: datetime | None
    last_sign_at: datetime | None
    """The newest batch or event."""
    checkpoint: Saved | None
    """The newest one that can be whole."""
    saved_at: datetime | None
    pinned: tuple[str, ...]
    """Names of the checkpoints that no run deletes, newest first."""
    lag: Lag | None
    """``None`` if nothing was ever uploaded, or tried."""
    stops: tuple[Interruption, ...]
    """Also the last one, if nobody has gone on since."""
    device_hours: float | None
    """Hours that processes were there, times the devices of each; ``None`` where no times were recorded."""
    goodput: float | None
    """Time in batches that count, over the time from the first start until now, or the last sign of life if nobody runs."""
    is_starting: bool
    """Whether the newest process has trained no batch yet."""
    evaluating: Event | None
    """The event of an evaluation that is under way."""
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
    def said_it_stopped(self) -> bool:
        """Whether the newest process left a word when it stopped, and nobody has taken the run over since."""
        return _said_it_stopped(self.ending, self.owner)

    @property
    def checkpoint_position(self) -> Position | None:
        """Where the newest checkpoint is; ``None`` if there is none."""
        if self.checkpoint is None:
            return None
        return find_position(self.run.plan, self.checkpoint.batch)

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
        if self.in_bucket and self.owner and not self.said_it_stopped:
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

    @property
    def device_hours_to_come(self) -> float | None:
        """Hours of as many devices as now, to the end."""
        eta = self.eta_seconds
        return None if eta is None else eta / 3600 * (self.run.environment.world_size or 1)


def find_status(
    folder: str | Path,
    *,
    now: datetime | None = None,
    brief: bool = False,
    listed: Collection[Entry] | None = None,
) -> Status:
    """Looks at a run folder; the run may be going on, and nothing is touched.

    Args:
        folder (str | Path): The run folder, here or in a bucket.
        now (datetime | None): The time to count ages from. Default: the clock's.
        brief (bool): Whether to read no more than the ends of files: what is derived from all of them is not known then.
        listed (Collection[Entry] | None): Of a bucket: the objects there, if they are known.

    Returns:
        Status: As of ``now``.

    Raises:
        UserError: If it is no run folder, or the bucket cannot be read.
    """
    place = str(folder)
    if '://' not in place:
        return _find_status(Path(folder), place, now or datetime.now(UTC), brief=brief)
    from rewarm.report.shadow import shadow

    with shadow(place, listed=listed, tail_bytes=TAIL_BYTES if brief else None) as copy:
        if not is_run_folder(copy):
            raise no_run_there(place, ())
        return _find_status(copy, place, now or datetime.now(UTC), brief=brief)


def _find_status(folder: Path, place: str, now: datetime, *, brief: bool) -> Status:
    run = read_run(folder, last_batches=RECENT_BATCHES, tail_bytes=TAIL_BYTES if brief else None)
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
    ending = starts[-1].ending if starts else None
    held = owner is not None and not (in_bucket and _said_it_stopped(ending, owner))
    batch = last.batch if last else 0
    speeds = [line.tokens_per_second for line in run.batches[-RECENT_BATCHES:] if math.isfinite(line.tokens_per_second)]
    return Status(
        run=run,
        place=place,
        now=now,
        planned_batches=planned,
        planned_tokens=sum(stage.tokens or 0 for stage in run.plan.stages),
        last=last,
        tokens_per_second=statistics.median(speeds) if speeds else None,
        position=find_position(run.plan, last.batch, last.stage) if last else None,
        owner=owner,
        last_batch_at=last_batch_at,
        last_sign_at=last_sign_at,
        checkpoint=whole,
        saved_at=_saved_at(run, whole),
        pinned=tuple(each.name for each in saved if each.pinned),
        lag=None if in_bucket else _find_lag(run.events),
        stops=tuple(interruptions(run.events, ended=not (held or finished))),
        device_hours=None
        if brief
        else device_hours_so_far(run, starts, now if held and not in_bucket else last_sign_at),
        goodput=None if brief else _goodput(starts, metrics, now if owner and not in_bucket else last_sign_at),
        is_starting=bool(starts) and held and _has_trained_nothing(starts[-1], last_batch_at),
        evaluating=_evaluating(starts[-1]) if starts and held else None,
        ending=ending,
        finished=finished,
        next_start=describe_next_start(
            owner if held else None, saved, finished=finished, batch=batch, in_bucket=in_bucket
        ),
    )


def _has_trained_nothing(start: Start, last_batch_at: datetime | None) -> bool:
    """Whether a process has neither said that it trained, nor is the newest batch of its time."""
    if start.same_process or start.events_named(*PROOFS):
        return False
    return last_batch_at is None or (start.began is not None and last_batch_at < start.began)


def _evaluating(start: Start) -> Event | None:
    """The evaluation that a process has begun and not ended."""
    newest = start.events_named('eval_start', 'eval_end')[-1:]
    return newest[0] if newest and newest[0].event == 'eval_start' else None


def _said_it_stopped(ending: Event | None, owner: Owner | None) -> bool:
    """Of a bucket: an owner that came after the last word has not said anything yet."""
    if ending is None or ending.event == 'rollback':
        return False
    return owner is None or owner.since is None or ending.time is None or owner.since <= ending.time.timestamp()


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
