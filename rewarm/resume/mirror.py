"""The copy of a run folder in a bucket, kept by a background thread; training works on a local folder and never waits.

``s3://`` is tested against two real servers; ``gs://`` and ``az://`` only as far as `rewarm/buckets/cloud.py` says.
"""

import functools
import hashlib
import os
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TypeVar

from rewarm.buckets.bucket import open_bucket
from rewarm.buckets.errors import BucketError, Unreachable
from rewarm.config.errors import DamagedFile, UserError
from rewarm.formats.checkpoint import NAME
from rewarm.formats.files import private_folder
from rewarm.resume.archive import Archive
from rewarm.resume.fetching import EVENTS, RECORDS, Fetched, fetch, fetch_identity
from rewarm.resume.ownership import Ownership
from rewarm.resume.refusals import Refusals, Refused
from rewarm.resume.uploads import Job, Lag, Uploads
from rewarm.resume.verification import damage

__all__ = ['Fetched', 'Lag', 'Mirror', 'local_folder']

PATIENCE_SECONDS = 120.0
"""How long a start waits for a bucket that does not answer."""

Result = TypeVar('Result')


class Mirror:
    """A run folder's copy in a bucket. Only global rank 0 uses it, but for :meth:`fetch`, one rank of each node.

    Args:
        folder (Path): The local run folder.
        url (str): The bucket's, such as ``s3://bucket/run``.
        record (Callable): Called as ``record('upload', path=..., ...)``, from a background thread too.
        say (Callable): Tells the user something, likewise.
        patience_seconds (float): How long a start waits for a bucket that does not answer.

    Raises:
        UserError: If the package that speaks to the store is not installed.
    """

    def __init__(
        self,
        folder: Path,
        url: str,
        *,
        record: Callable[..., None],
        say: Callable[[str], None],
        patience_seconds: float = PATIENCE_SECONDS,
    ) -> None:
        self.folder = folder
        self.url = url.rstrip('/')
        self._record = record
        self._say = say
        self._patience_seconds = patience_seconds
        self._bucket = open_bucket(self.url)
        self._archive = Archive(self._bucket, f'{self.url}/checkpoints')
        self._owner = Ownership(self._bucket, self.url)
        self._refusals = Refusals(self._owner.renew, self._tell_refusal)
        self._uploads = Uploads(self._upload, self._upload_without_checkpoint, url=self.url, record=record, say=say)
        self._in_bucket: dict[Path, tuple[int, int]] = {}  # size and time of files when they were uploaded

    def start(self) -> None:
        """Takes the run over, which proves that the bucket can be written, and lets uploads begin.

        Raises:
            UserError: If keys, bucket or server are wrong, or the server does not answer for a while.
        """
        self._patiently(self._owner.claim)
        names = self._patiently(self._archive.complete_names)
        self._uploads.start(names[-1] if names else None)

    def fetch(self, name: str | None = None, *, trained: bool = False) -> Fetched | None:
        """Brings the newest whole checkpoint to the local folder, unless one as new is there, with its records.

        Call it before leftovers are removed: what an earlier try has downloaded is used.

        Args:
            name (str | None): The only one that will do: the one that rank 0 has, for other nodes. Default: the newest.
            trained (bool): Whether a run must be able to go on from it.

        Returns:
            Fetched | None: Which one is in place and where it was; None where none was ever finished.

        Raises:
            UserError: If there are checkpoints and none is whole, the bucket cannot be read or the disk is full.
        """
        found = self._patiently(
            lambda: fetch(self._archive, self.folder, record=self._record, say=self._say, wanted=name, trained=trained)
        )
        if name is None:
            self._patiently(lambda: fetch_identity(self._archive, self.folder))
        return found

    def publish(self, name: str, *, keep: int, stage_ends: Collection[int]) -> None:
        """Asks for the upload of a checkpoint and its records, and returns at once.

        An older one that waits is dropped, unless a stage ends with it or part of it is in the bucket. After the upload
        the bucket keeps the newest ``keep`` and all stage ends, by what is there.

        Args:
            name (str): Its folder's name.
            keep (int): How many to keep in the bucket besides stage ends; at least 1.
            stage_ends (Collection[int]): Batches at which a stage ends.
        """
        self._uploads.add(Job(name, keep, stage_ends))

    def catch_up(self, *, keep: int, stage_ends: Collection[int]) -> None:
        """Asks for what earlier starts left on this disk: the newest checkpoint, already verified, and stage ends."""
        there = sorted(p.name for p in (self.folder / 'checkpoints').glob('ba*') if NAME.fullmatch(p.name))
        for name in there:
            job = Job(name, keep, stage_ends, verify=name != there[-1])
            if job.is_stage_end or name == there[-1]:
                self._uploads.add(job)

    def in_use(self) -> set[str]:
        """Checkpoints that wait for their upload or are in it: the local ones must stay."""
        return self._uploads.names()

    def lag(self) -> Lag:
        """How far the bucket is behind."""
        return self._uploads.lag()

    def failure(self) -> BaseException | None:
        """What ended the uploads for good, to be raised at the next batch's edge: another start took the run over."""
        return self._uploads.failure

    def refusal(self) -> UserError | None:
        """Which object that a resume needs the bucket refused for good in the last :meth:`flush`, in words."""
        error = self._uploads.refusal
        return error and UserError(
            f'{error}\nThe bucket does not take this object, which a resume on another machine needs. All is in '
            f'{self.folder} on this machine. When the bucket takes it, start the same command again here: it sends the rest'
        )

    def flush(self, timeout_seconds: float) -> bool:
        """Waits until all that is to be there is in the bucket, but not for what the bucket refuses for good.

        Args:
            timeout_seconds (float): How long at most.

        Returns:
            bool: Whether all that a resume needs is there: the newest checkpoint and its records; what is not is said.
        """
        done = self._uploads.flush(timeout_seconds)
        if not done:
            left = ', '.join(sorted(self.in_use())) or 'the latest records'
            self._say(f'Not in {self.url}: {left}. It is in {self.folder}, and a start on this machine uploads it.')
        return done

    def close(self) -> None:
        """Ends the uploads, wherever they are; a later start on this disk goes on with them."""
        self._uploads.close(self._bucket.close)

    def _upload(self, job: Job) -> None:
        path, started, sent = self.folder / 'checkpoints' / job.name, time.monotonic(), self._bucket.bytes_sent
        if job.verify and (found := damage(path)):
            raise OSError(f'{path} is not whole: {"; ".join(found)}')
        url, new = f'{self._archive.url}/{job.name}', False

        def upload() -> None:
            nonlocal new
            new = self._archive.upload(
                path,
                refusals=self._refusals,
                sent=job.sent,
                before_write=self._owner.check,
                before_manifest=self._upload_records_first,
            )

        try:
            self._refusals.require(url, upload)
        except DamagedFile as error:
            raise OSError(str(error)) from error
        finally:
            job.begun = job.begun or self._bucket.bytes_sent > sent
        self._uploads.arrived(job.name)
        if new:
            self._record(
                'upload',
                path=str(path),
                bytes=sum(file.stat().st_size for file in path.iterdir()),
                sent_bytes=self._bucket.bytes_sent - sent,
                seconds=round(time.monotonic() - started, 3),
                url=url,
            )
        try:  # the checkpoint is safe; what fails from here on waits for the next one
            for name in self._archive.retain(
                keep=job.keep, stage_ends=job.stage_ends, refusals=self._refusals, before_write=self._owner.check
            ):
                self._record('delete', path=f'{self._archive.url}/{name}')
            self._upload_others()
        except BucketError as error:
            self._record('upload_failed', reason=str(error), attempt=1, retry_in_seconds=None)

    def _upload_without_checkpoint(self) -> None:
        refused = self._upload_records()
        self._upload_others()
        if refused is not None:
            raise refused

    def _upload_records_first(self) -> None:
        """The manifest waits for the records, unless they are refused for good: a gap in them costs less than a checkpoint."""
        refused = self._upload_records()
        if refused is not None and not refused.for_good:
            raise refused

    def _upload_records(self) -> Refused | None:
        self._upload_files([self.folder / name for name in (*RECORDS, EVENTS)])
        return self._refusals.error(f'{self.url}/{name}' for name in RECORDS)

    def _upload_others(self) -> None:
        """Settings and what loggers wrote, for people to read; only the run's identity is ever fetched. ``latest`` goes last."""
        top = {'checkpoints', *RECORDS, EVENTS}
        paths = [path for path in self.folder.rglob('*') if path.relative_to(self.folder).parts[0] not in top]
        hidden = [path for path in paths if any(part.startswith('.') for part in path.relative_to(self.folder).parts)]
        passing = [path for path in paths if path.suffix in ('.lock', '.part', '.tmp')]
        self._upload_files(sorted({*paths} - {*hidden, *passing}))
        self._refusals.attempt(f'{self._archive.url}/latest', self._archive.point_latest)

    def _upload_files(self, paths: list[Path]) -> None:
        """Uploads regular files that are new or have changed since this start uploaded them; one refused holds up none."""
        self._owner.check()
        for path in paths:
            if path.is_file() and not path.is_symlink():
                stat = path.stat()
                now = (stat.st_size, stat.st_mtime_ns)
                url = f'{self.url}/{path.relative_to(self.folder).as_posix()}'
                if self._in_bucket.get(path) != now:
                    if self._refusals.attempt(url, functools.partial(self._bucket.upload, path, url)):
                        self._in_bucket[path] = now

    def _tell_refusal(self, url: str, reason: str | None) -> None:
        if reason is None:
            self._say(f'{url} was refused and is taken now.')
        else:
            self._record('upload_failed', reason=reason, url=url, attempt=1, retry_in_seconds=None)
            self._say(f'{reason}. The bucket takes other objects; this one is tried again.')

    def _patiently(self, function: Callable[[], Result]) -> Result:
        """Calls a function again while the bucket does not answer, for a while."""
        deadline, said = time.monotonic() + self._patience_seconds, False
        while True:
            try:
                return function()
            except Unreachable as error:
                if said and time.monotonic() >= deadline:
                    raise
                if not said:
                    self._say(f'Waiting for the bucket, {self._patience_seconds:.0f} s at most. {error}')
                said = True
                time.sleep(min(2.0, self._patience_seconds))


def local_folder(url: str, run_name: str) -> Path:
    """The folder in which a run works whose folder is in a bucket; made if it is not there.

    Args:
        url (str): The run's folder in the bucket.
        run_name (str): The run's name.

    Returns:
        Path: ``$TMPDIR/rewarm-<user's id>/<run_name>-<hash of the URL>``, the same at each start on this machine.

    Raises:
        UserError: If it cannot be made, or another user may have prepared it.
    """
    digest = hashlib.sha256(url.rstrip('/').encode()).hexdigest()[:16]
    return private_folder(f'rewarm-{os.getuid()}', f'{run_name}-{digest}')
