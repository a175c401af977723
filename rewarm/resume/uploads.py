"""What waits for its upload, and the thread that tries until it is done: training asks and never waits."""

import random
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import NamedTuple

from rewarm.buckets.errors import BucketError
from rewarm.resume.archive import batch_of

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


@dataclass(eq=False)
class Job:
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

    @property
    def is_stage_end(self) -> bool:
        """Whether a stage ends with it."""
        return batch_of(self.name) in self.stage_ends


class Uploads:
    """A queue of checkpoints and the daemon thread that empties it.

    Of the ordinary checkpoints that wait only the newest is kept; stage ends all are. One of which part is in the
    bucket is finished first, or a slow link would never finish any.

    Args:
        upload (Callable[[Job], None]): Uploads a checkpoint, its records included; what it has sent it does not send
            again. A ``BucketError`` is tried again for ever; an ``OSError``, about local files, ends the job; any other
            error ends the uploads.
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
        self._queue: list[Job] = []
        self._records_due = self._hurry = self._closing = self._is_behind = False
        self._absent: list[tuple[str, float]] = []  # published and not in the bucket, with the time
        self._newest: str | None = None
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name='uploads', daemon=True)

    def start(self, newest: str | None) -> None:
        """Begins, with the name of the newest checkpoint that is in the bucket already."""
        self._newest = newest
        self._thread.start()

    def add(self, job: Job) -> None:
        """Puts a checkpoint into the queue, and drops older ones that need not go any more."""
        with self._changed:
            if self._failure is not None:
                return
            waiting = [each for each in self._queue[1:] if each.is_stage_end and each.name != job.name]
            self._queue = [*self._queue[:1], *waiting, job]  # the first is at work
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

    def flush(self, timeout_seconds: float) -> bool:
        """Waits until the queue is empty and the records are uploaded, and shortens the pauses between attempts."""
        with self._changed:
            self._records_due = self._hurry = True
            self._changed.notify_all()
            done = self._changed.wait_for(
                lambda: self._failure is not None or not (self._queue or self._records_due), timeout_seconds
            )
            self._hurry = False
            return done and self._failure is None

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

    def _work(self) -> None:
        try:
            while self._wait_for_work():
                job = self._queue[0] if self._queue else None
                self._try(job)
        except BaseException as error:
            with self._changed:
                if not self._closing:
                    self._failure = error
                self._queue.clear()
                self._changed.notify_all()

    def _wait_for_work(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._closing or self._queue or self._records_due)
            return not self._closing

    def _try(self, job: Job | None) -> None:
        """Uploads one checkpoint, or the records, until it is done, need not be done any more, or cannot be."""
        attempt, said = 0, ''
        while True:
            attempt += 1
            try:
                self._upload(job) if job else self._upload_records()
                if said:
                    self._say(f'{self._url} answers again.')
                break
            except BucketError as error:
                if self._closing:
                    return
                wait = min(FIRST_WAIT_SECONDS * 2 ** (attempt - 1), LONGEST_WAIT_SECONDS) * random.uniform(0.5, 1)
                reason = str(error)
                if reason != said or attempt & (attempt - 1) == 0:  # the 1st, 2nd, 4th, 8th ...
                    self._record('upload_failed', reason=reason, attempt=attempt, retry_in_seconds=round(wait, 2))
                if not said:
                    self._say(f'Upload failed and is tried again; training goes on. {reason}')
                said = reason
            except OSError as error:
                self._record('upload_failed', reason=str(error), attempt=attempt, retry_in_seconds=None)
                self._say(f'{job.name if job else "The records"} cannot be uploaded: {error}')
                break
            if not self._pause(wait):
                return
            if job and job is not self._queue[-1] and not (job.begun or job.is_stage_end):
                break
        with self._changed:
            if job is None:
                self._records_due = False
            self._queue = [each for each in self._queue if each is not job]
            self._changed.notify_all()

    def _pause(self, seconds: float) -> bool:
        """Waits for the next attempt; False if there must be none."""
        with self._changed:
            if self._hurry:
                self._changed.wait_for(lambda: self._closing, min(seconds, HURRIED_WAIT_SECONDS))
            else:
                self._changed.wait_for(lambda: self._closing or self._hurry, seconds)
            return not self._closing
