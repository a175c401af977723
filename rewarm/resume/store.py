"""Where a run lives: a folder, and for a run in a bucket the copy there of a folder here."""

import socket
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from composer.utils import dist

from rewarm.config.errors import UserError
from rewarm.config.schema import RunConfig
from rewarm.formats.checkpoint import read_latest
from rewarm.resume.checkpoint import Checkpoint, find_newest_valid, remove_leftovers, retain
from rewarm.resume.lock import run_lock
from rewarm.resume.mirror import Mirror, local_folder

__all__ = ['FINAL_UPLOAD_SECONDS', 'RunStore', 'working_folder']

FINAL_UPLOAD_SECONDS = 600
"""How long a finished run waits for its bucket before it asks to be started again."""


def working_folder(config: RunConfig) -> Path:
    """The folder on this node that a run works in: its own, or the one that its bucket's copy is made of."""
    return local_folder(config.run_folder, config.run_name) if _in_bucket(config) else Path(config.run_folder)


def _in_bucket(config: RunConfig) -> bool:
    return '://' in config.run_folder


class RunStore:
    """A run's folder on this node, and its mirror if the run is in a bucket.

    Args:
        folder (Path): From :func:`working_folder`.
        config (RunConfig): The run file.
        record (Callable): Writes an event.
        say (Callable[[str], None]): Tells the user something, once.
    """

    def __init__(
        self, folder: Path, config: RunConfig, *, record: Callable[..., None], say: Callable[[str], None]
    ) -> None:
        self.folder = folder
        self.checkpoints = folder / 'checkpoints'
        self.keep = config.checkpoints.keep
        self.record = record
        self.mirror = Mirror(folder, config.run_folder, record=record, say=say) if _in_bucket(config) else None
        self.stage_ends: Collection[int] = ()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Holds the run for this process, here and in the bucket; for global rank 0.

        Raises:
            UserError: If another process has it, or the folder or the bucket cannot be written.
        """
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f'run_folder: {self.checkpoints} cannot be made: {error.strerror}') from error
        with run_lock(self.folder):
            if self.mirror is None:
                yield
                return
            self.mirror.start()
            try:
                yield
            finally:
                self.mirror.close()

    def newest(self) -> tuple[Checkpoint, str] | None:
        """Finds the newest whole checkpoint, and clears what a kill left; for the rank that holds the run.

        Returns:
            tuple[Checkpoint, str] | None: On this node's disk now, and where it was: ``disk`` or ``bucket``.

        Raises:
            UserError: If there are checkpoints and none is whole, or the bucket cannot be read.
        """
        fetched = None if self.mirror is None else self.mirror.fetch(trained=True)
        remove_leftovers(self.checkpoints)
        hashed = None if fetched is None else fetched.name
        found = find_newest_valid(self.checkpoints, self.record, hashed=hashed, trained=True)
        if found is None:
            return None
        from_bucket = fetched is not None and (fetched.name, fetched.where) == (found.path.name, 'bucket')
        return found, 'bucket' if from_bucket else 'disk'

    def latest(self) -> str | None:
        """The newest checkpoint's name, as the last save or start left it."""
        return read_latest(self.checkpoints)

    def begin(self, stage_ends: Collection[int]) -> bool:
        """Lets the bucket catch up with what earlier starts left here; for the rank that holds the run.

        Args:
            stage_ends (Collection[int]): Batches at which a stage ends; those checkpoints are kept.

        Returns:
            bool: Whether other nodes, if there are any, can have the newest checkpoint.

        Raises:
            UserError: If the bucket refuses it for good.
        """
        self.stage_ends = stage_ends
        if self.mirror is None:
            return True
        self.mirror.catch_up(keep=self.keep, stage_ends=stage_ends)
        alone = dist.get_world_size() == dist.get_local_world_size()
        there = alone or self.flush(FINAL_UPLOAD_SECONDS)
        if not there and (refusal := self.refusal()) is not None:
            raise refusal
        return there

    def bring(self, checkpoint: Checkpoint | None) -> None:
        """Sees to it that this node has the run folder and a checkpoint that was found on the first node.

        Raises:
            UserError: If it cannot have them.
        """
        if dist.get_global_rank() == 0:
            return
        if self.mirror is not None and checkpoint is not None:
            self.mirror.fetch(checkpoint.path.name, trained=True)
        if self.mirror is None and not (self.checkpoints if checkpoint is None else checkpoint.path).is_dir():
            raise UserError(
                f'run_folder: {self.folder} of the first node is not there on {socket.gethostname()}. A run on several '
                'nodes needs a folder on a shared file system, or s3://bucket/prefix'
            )

    def after_saving(self, path: Path, record: dict[str, Any]) -> None:
        """Records a checkpoint, sends it to the bucket and makes room for the next; on the saving thread."""
        self.record('save', **record)
        if self.mirror is not None:
            self.mirror.publish(path.name, keep=self.keep, stage_ends=self.stage_ends)
        in_use = frozenset() if self.mirror is None else self.mirror.in_use()
        for gone in retain(self.checkpoints, keep=self.keep, stage_ends=self.stage_ends, in_use=in_use):
            self.record('delete', path=str(gone))

    def failure(self) -> BaseException | None:
        """What makes going on pointless, such as another start that took the run over."""
        return None if self.mirror is None else self.mirror.failure()

    def refusal(self) -> BaseException | None:
        """What the bucket refused for good in the last :meth:`flush` of what a resume needs."""
        return None if self.mirror is None else self.mirror.refusal()

    def flush(self, timeout_seconds: float) -> bool:
        """Waits until the bucket has everything that it takes, within bounds; for the rank that holds the run.

        Returns:
            bool: Whether it has all that a resume needs.
        """
        return self.mirror is None or self.mirror.flush(timeout_seconds)
