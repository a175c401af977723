"""What waits for its upload, and the thread that tries until it is done: training asks and never waits."""

import random
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import NamedTuple

from rewarm.buckets.errors import BucketError, Unreachable
from rewarm.formats.checkpoint import batch_of
from rewarm.resume.refusals import Refused

__all__ = ['Job', 'Lag', 'Uploads']

FIRST_WAIT_SECONDS = 1.0
LONGEST_WAIT_SECONDS = 60.0
HURRIED_WAIT_SECONDS = 0.5

SAVES_BEHIND = 2
"""Saves that the bucket may be behind before it is said."""


class Lag(NamedTuple):
    """How far the bucket is behind."""

    newest: str | None
    """The newest checkpoint in the bucket."""
    batches: int
    """Batches between it and the newest one published."""
    seconds: float
    """Time since the first one that is not in the bucket was published; 0 if all are."""


@dataclass(eq=False, kw_only=True)
class Work:
    """Something to upload, with its own attempts."""

    attempts: int = 0
    due: float = 0.0
    """When it may be tried, by the monotonic clock."""
    refused: bool = False
    """Whether its last attempt ended with an object that the bucket refuses, though it takes others."""
    given_up: BucketError | None = None
    """Why a flush does not wait for it any more."""


@dataclass(eq=False)
class Job(Work):
    """A checkpoint to upload."""

    name: str
    """Its folder's name."""
    keep: int
    """How many to keep in the bucket besides stage ends."""
    stage_ends: Collection[int]
    """Batches at which a stage ends."""
    verify: bool = False
    """Whether its files must be hashed first, since neither this start nor its search for the newest did."""
    begun: bool = False
    """Whether part of it is in the bucket."""
    sent: set[str] = field(default_factory=set)
    """Its files that are there, sent by this process."""

    @property
    def is_stage_end(self) -> bool:
        """Whether a stage ends with it."""
        return batch_of(self.name) in self.stage_ends


class Uploads:
    """A queue of checkpoints and the daemon thread that empties it.

    Of the ordinary checkpoints that wait only the newest is kept; stage ends all are. One of which part is in the
    bucket is finished first, or a slow link would never finish any; one of which the bucket refuses an object waits for
    its next attempt while the others go.

    Args:
        upload (Callable[[Job], None]): Uploads a checkpoint, its records included; what it has sent it does not send
            again. A ``Refused`` concerns that checkpoint alone, any other ``BucketError`` the bucket; both are tried
            again for ever. An ``OSError``, about local files, ends the job; any other error ends the uploads.
        upload_records (Callable[[], None]): Uploads the records alone.
        url (str): Where to, for words.
        record (Callable): Called as ``record('upload_failed', ...)``, from the thread.
        say (Callable): Tells the user something, likewise.
    """

    def __init__(
        self,
        upload: Callable[[Job], None],
        upload_records: Callable[[], None],
        *,
        url: str,
        record: Callable[..., None],
        say: Callable[[str], None],
    ) -> None:
        self._upload = upload
        self._upload_records = upload_records
        self._url = url
        self._record = record
        self._say = say
        self._changed = threading.Condition()
        self._queue: list[Job] = []  # in the order in which they were published
        self._records = Work()
        self._records_due = self._hurry = self._closing = self._is_behind = False
        self._last: Job | None = None
        self._at_work: Work | None = None
        self._away = ''  # why the bucket as a whole took nothing at the last attempt
        self._absent: list[tuple[str, float]] = []  # published and not in the bucket, with the time
        self._newest: str | None = None
        self._failure: BaseException | None = None
        self._patience_seconds = 0.0  # of a flush, with an object that is refused
        self._refusal: BucketError | None = None
        self._thread = threading.Thread(target=self._run, name='uploads', daemon=True)

    def start(self, newest: str | None) -> None:
        """Begins, with the name of the newest checkpoint that is in the bucket already."""
        self._newest = newest
        self._thread.start()

    def add(self, job: Job) -> None:
        """Puts a checkpoint into the queue, and drops older ones that need not go any more."""
        with self._changed:
            if self._failure is not None:
                return
            first = [each for each in self._queue[:1] if not each.refused]  # at work, or about to be
            waiting = [
                each
                for each in self._queue
                if each is self._at_work or each in first or (each.is_stage_end and each.name != job.name)
            ]
            self._queue, self._last = [*waiting, job], job
            if self._newest is None or job.name > self._newest:
                self._absent = [each for each in self._absent if each[0] != job.name]
                self._absent.append((job.name, time.monotonic()))
            say = len(self._absent) > SAVES_BEHIND and not self._is_behind
            self._is_behind = self._is_behind or say
            self._changed.notify_all()
        if say:
            lag = self.lag()
            self._say(
                f'{self._url} is {lag.batches:,} batches behind: its newest checkpoint is {lag.newest}. '
                'Training goes on; a machine lost now loses what is not there.'
            )

    def arrived(self, name: str) -> None:
        """Notes that a checkpoint is in the bucket."""
        with self._changed:
            self._newest = max(self._newest or name, name)
            self._absent = [each for each in self._absent if each[0] > self._newest]
            caught_up, self._is_behind = self._is_behind and not self._absent, self._is_behind and bool(self._absent)
        if caught_up:
            self._say(f'{self._url} has caught up: its newest checkpoint is {name}.')

    def names(self) -> set[str]:
        """Checkpoints that wait or are at work."""
        with self._changed:
            return {job.name for job in self._queue}

    def lag(self) -> Lag:
        """How far the bucket is behind."""
        with self._changed:
            newest, absent = self._newest, list(self._absent)
        if not absent:
            return Lag(newest, 0, 0.0)
        batches = batch_of(absent[-1][0]) - (batch_of(newest) if newest else 0)
        return Lag(newest, batches, time.monotonic() - absent[0][1])

    @property
    def failure(self) -> BaseException | None:
        """What ended the uploads for good."""
        return self._failure

    @property
    def refusal(self) -> BucketError | None:
        """Why the last flush did not wait for something that a resume needs; None if it did not give up."""
        return self._refusal

    def flush(self, timeout_seconds: float) -> bool:
        """Waits until the checkpoints and the records are uploaded, and shortens the pauses between attempts.

        It gives up what the bucket refuses at once and for all, or for a minute or half the time while it takes others.

        Returns:
            bool: Whether the newest checkpoint and the records are in the bucket.
        """
        with self._changed:
            self._records_due = self._hurry = True
            self._patience_seconds = timeout_seconds / 2
            for work in self._pending():
                work.due, work.given_up = 0.0, None
            self._changed.notify_all()
            self._changed.wait_for(
                lambda: self._failure is not None or all(work.given_up for work in self._pending()), timeout_seconds
            )
            self._hurry = False
            left = [work for work in self._pending() if not (work.given_up and self._is_spare(work))]
            self._refusal = next((work.given_up for work in left if work.given_up), None)
            for work in self._pending():
                work.given_up = None
            return self._failure is None and not left and not self._absent

    def close(self, stop: Callable[[], None]) -> None:
        """Ends the thread, or leaves it behind after two seconds, in a request that hangs.

        Args:
            stop (Callable): Makes all further requests fail.
        """
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        stop()
        if self._thread.is_alive():
            self._thread.join(2)

    def _run(self) -> None:
        try:
            while (work := self._next()) is not None:
                self._try(work)
        except BaseException as error:
            with self._changed:
                if not self._closing:
                    self._failure = error
                self._queue.clear()
                self._changed.notify_all()

    def _pending(self) -> list[Work]:
        return [*self._queue, *([self._records] if self._records_due else [])]

    def _is_spare(self, work: Work) -> bool:
        """Whether a resume does not need it: an older checkpoint than the newest one in the bucket."""
        return isinstance(work, Job) and work is not self._last and work.name < (self._newest or '')

    def _next(self) -> Work | None:
        """Waits for something that is due, checkpoints first; None if there must be no more."""
        with self._changed:
            self._at_work = None
            while not self._closing:
                waiting, now = [work for work in self._pending() if work.given_up is None], time.monotonic()
                for work in waiting:
                    if work.due <= now:
                        self._at_work = work
                        return work
                self._changed.wait(min((work.due - now for work in waiting), default=None))
            return None

    def _try(self, work: Work) -> None:
        """Makes one attempt: then it is done, is due again later, or need not or cannot be done any more."""
        work.attempts += 1
        try:
            self._upload(work) if isinstance(work, Job) else self._upload_records()
        except BucketError as error:
            self._postpone(work, error)
        except OSError as error:
            self._record('upload_failed', reason=str(error), attempt=work.attempts, retry_in_seconds=None)
            self._say(f'{work.name if isinstance(work, Job) else "The records"} cannot be uploaded: {error}')
            self._remove(work)
        else:
            if self._away:
                self._say(f'{self._url} answers again.')
            self._away = ''
            self._remove(work)

    def _postpone(self, work: Work, error: BucketError) -> None:
        if self._closing:
            return
        reason, attempt, is_refusal = str(error), work.attempts, isinstance(error, Refused)
        wait = min(FIRST_WAIT_SECONDS * 2 ** (attempt - 1), LONGEST_WAIT_SECONDS) * random.uniform(0.5, 1)
        is_new = not is_refusal and reason != self._away  # a refusal is told with its object
        if is_new or (attempt > 1 and attempt & (attempt - 1) == 0):  # the 2nd, 4th, 8th ...
            self._record('upload_failed', reason=reason, attempt=attempt, retry_in_seconds=round(wait, 2))
        if not is_refusal:
            if not self._away:
                self._say(f'Upload failed and is tried again; training goes on. {reason}')
            self._away = reason
        with self._changed:
            work.refused = is_refusal
            if self._hurry:
                wait = min(wait, HURRIED_WAIT_SECONDS)
                if _is_final(error, self._patience_seconds):
                    work.given_up = error
            # A bucket that is away takes nothing: all wait. One object that is refused holds up its own work alone.
            for each in [work] if is_refusal else self._pending():
                each.due = time.monotonic() + wait
            if isinstance(work, Job) and self._gives_way(work):
                self._queue = [each for each in self._queue if each is not work]
            self._changed.notify_all()

    def _gives_way(self, job: Job) -> bool:
        """Whether a newer checkpoint makes this one needless."""
        return job is not self._queue[-1] and not job.is_stage_end and (job.refused or not job.begun)

    def _remove(self, work: Work) -> None:
        with self._changed:
            if work is self._records:
                self._records, self._records_due = Work(), False
            self._queue = [each for each in self._queue if each is not work]
            self._changed.notify_all()


def _is_final(error: BucketError, patience_seconds: float) -> bool:
    """Whether a flush need not ask again."""
    if isinstance(error, Refused):
        return error.for_good or error.seconds >= patience_seconds
    return not isinstance(error, Unreachable)
