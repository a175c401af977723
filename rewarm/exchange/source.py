"""A checkpoint to be read, wherever it lies: brought here, verified, with what is known of its run."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rewarm.buckets.bucket import Bucket, is_bucket
from rewarm.config.errors import DamagedFile, UserError
from rewarm.config.load import read_settings
from rewarm.config.schema import RunConfig
from rewarm.formats.checkpoint import NAME, STATE_FILE
from rewarm.formats.checkpoint_place import complete_below, find_checkpoint, find_root, run_folder_of
from rewarm.formats.tokenizer_folder import RUN_TOKENIZER, TOKENIZER_FILES
from rewarm.resume.bucket_place import download_checkpoint, find_in_bucket
from rewarm.resume.checkpoint import Checkpoint, open_checkpoint
from rewarm.resume.pins import name_checkpoint

__all__ = ['Source', 'list_checkpoints', 'open_source']

RUN_FILES = ('config.yaml', 'evals.jsonl', *(f'{RUN_TOKENIZER}/{name}' for name in TOKENIZER_FILES))
"""What is brought of a run that lies in a bucket."""

LARGEST_BYTES = 1 << 28


@dataclass(frozen=True)
class Source:
    """A checkpoint that has been verified.

    Args:
        place (str): Where the user has it.
        checkpoint (Checkpoint): It, on this machine.
        run (Path | None): Its run folder, or what was brought of one in a bucket; ``None`` if it lies far from its run.
        run_place (str): Where the user has that.
    """

    place: str
    checkpoint: Checkpoint
    run: Path | None
    run_place: str

    def settings(self, named: Path | None = None) -> RunConfig | None:
        """The run's settings, whatever became of its data.

        Args:
            named (Path | None): The run file, if the user names one.

        Returns:
            RunConfig | None: ``None`` where there is no run file that can be read.

        Raises:
            UserError: If the one that is named cannot be read.
        """
        if named is not None:
            return read_settings(named)
        if self.run is None or not (self.run / 'config.yaml').is_file():
            return None
        try:
            return read_settings(self.run / 'config.yaml')
        except UserError:
            return None


@contextmanager
def open_source(place: str, *, optimizer: bool = True) -> Iterator[Source]:
    """Opens the checkpoint that a user means.

    Args:
        place (str): A checkpoint, a run folder for its newest complete one, its ``checkpoints`` or ``latest``; here or in
            a bucket.
        optimizer (bool): Whether the optimizer's state is needed.

    Yields:
        Source: It. One from a bucket is gone afterwards.

    Raises:
        UserError: If there is none, it is damaged, or the bucket cannot be read.
    """
    if not is_bucket(place):
        folder = find_checkpoint(place)
        opened, run = open_checkpoint(folder), run_folder_of(folder)
        yield Source(str(folder), opened, run, str(run))
        return
    found = find_in_bucket(place)
    url = found.checkpoint(place)
    with tempfile.TemporaryDirectory(prefix='rewarm-') as temporary:
        name = url.rpartition('/')[2]
        folder = Path(temporary, 'checkpoints', name if NAME.fullmatch(name) else 'checkpoint')
        opened = _opened(download_checkpoint(found.bucket, url, folder, optimizer=optimizer), url)
        if found.run is not None:
            _bring_run(found.bucket, found.run, Path(temporary))
        yield Source(url, opened, None if found.run is None else Path(temporary), found.run or '')


def list_checkpoints(place: str, step: str) -> list[str]:
    """The checkpoints of a run that a step means.

    Args:
        place (str): A run folder, its ``checkpoints`` or ``latest``, here or in a bucket.
        step (str): ``all`` for every complete one; or a batch such as ``1200``, a name, or ``latest``.

    Returns:
        list[str]: For :func:`open_source`, oldest first.

    Raises:
        UserError: If there are none, or ``place`` is one checkpoint.
    """
    if is_bucket(place):
        found = find_in_bucket(place)
        root, complete = found.url, found.names
    else:
        folder = find_root(Path(place).expanduser())
        root, complete = str(folder), None if folder is None else complete_below(folder)
    if complete is None:
        raise UserError(f'{place} is no run folder, so --step cannot choose there; name the run, or leave --step out')
    names = complete
    if step != 'all':
        name = complete[-1] if step == 'latest' and complete else name_checkpoint(root, step)
        names = [each for each in complete if each == name]
    if not names:
        there = ', '.join(complete[-5:]) or 'none'
        raise UserError(f'{root}: no complete checkpoint for --step {step}; there are {there}')
    return [f'{root}/{name}' for name in names]


def _opened(folder: Path, url: str) -> Checkpoint:
    """What was downloaded, each file hashed on the way; it may lack the optimizer's state."""
    try:
        opened = Checkpoint.trusted(folder)
    except DamagedFile as error:
        raise UserError(f'{url} is no complete checkpoint: {Path(error.where).name}: {error.what}') from None
    for name, sha256 in (opened.saved.tensors or {}).items():
        if name not in opened.manifest.files or opened.manifest.files[name].sha256 != sha256:
            raise UserError(f'{url}: {name} is not the one that {STATE_FILE} was written with')
    return opened


def _bring_run(bucket: Bucket, run: str, folder: Path) -> None:
    for name in RUN_FILES:
        data = bucket.read(f'{run}/{name}', largest_bytes=LARGEST_BYTES)
        if data is not None:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
