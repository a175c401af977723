"""Checkpoints, runs and datasets looked over: ``rewarm verify``."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from rewarm.buckets.bucket import is_bucket
from rewarm.config.errors import DamagedFile, UserError
from rewarm.data.verify import foreign_datasets, verify_dataset
from rewarm.formats.checkpoint import LATEST_FILE, MODEL_FILE, NAME, STATE_FILE, read_state
from rewarm.formats.checkpoint_place import find_checkpoint, find_root, names_below
from rewarm.formats.shards import INDEX_NAME
from rewarm.formats.tokenizer import tokenizer_hash
from rewarm.formats.tokenizer_folder import RUN_TOKENIZER, TOKENIZER_FILE
from rewarm.resume.bucket_place import download_checkpoint, find_in_bucket, unlisted
from rewarm.resume.verification import problems

__all__ = ['Verified', 'verify_command']


@dataclass(frozen=True)
class Verified:
    """One thing that was looked at.

    Args:
        place (str): Where the user has it.
        problems (list[str]): What is wrong with it; empty if it is complete.
        note (str | None): What could not be checked.
    """

    place: str
    problems: list[str]
    note: str | None = None

    @property
    def text(self) -> str:
        """What to print."""
        head = [] if self.note is None else [self.note]
        if not self.problems:
            return '\n'.join([*head, f'{self.place} is complete.'])
        verdict = (
            'is damaged' if self.note is None else 'has problems'
        )  # of what others made it is not known what it was
        return '\n'.join([*head, f'{self.place} {verdict}:', *(f'  {line}' for line in self.problems)])


def verify_command(place: str | Path) -> Iterator[Verified]:
    """Checks a checkpoint, all of a run, or a dataset.

    Args:
        place (str | Path): A checkpoint, a run folder or its ``checkpoints``, ``latest``; here or in a bucket. Or a
            dataset on this machine.

    Yields:
        Verified: What was found, of one thing after the other.

    Raises:
        UserError: If there is nothing of the kind, or the bucket cannot be read.
    """
    text = str(place)
    if is_bucket(text):
        yield from _in_bucket(text)
        return
    path = Path(text).expanduser()
    if path.name == LATEST_FILE and not path.is_dir():
        yield _checkpoint(find_checkpoint(path))
    elif (root := find_root(path)) is not None:
        for name in tqdm(names_below(root), desc='verify', unit='checkpoint', disable=None, leave=False):
            yield _checkpoint(root / name)
        if root != path:
            yield from _tokenizer(path, root)
    elif any((path / name).exists() for name in ('manifest.json', STATE_FILE, MODEL_FILE)):
        yield _checkpoint(path)
    else:
        yield from _datasets(path)


def _checkpoint(path: Path) -> Verified:
    return Verified(str(path), [*problems(path), *_strange_tokenizer(path)])


def _strange_tokenizer(path: Path) -> Iterator[str]:
    try:
        began = read_state(path)[0].tokenizer_hash
        if began is not None and tokenizer_hash(path / TOKENIZER_FILE) != began:
            yield f'{TOKENIZER_FILE} is not the one that {STATE_FILE} was written with'
    except (FileNotFoundError, DamagedFile, UserError):
        return  # `problems` says so


def _tokenizer(run: Path, root: Path) -> Iterator[Verified]:
    """The tokenizer that a run folder holds, against that of its newest checkpoint."""
    own = run / RUN_TOKENIZER / TOKENIZER_FILE
    began = None
    for name in names_below(root):
        try:
            began = read_state(root / name)[0].tokenizer_hash or began
        except (FileNotFoundError, DamagedFile):
            continue
    if began is None:
        return
    try:
        same = tokenizer_hash(own) == began
    except UserError as error:
        yield Verified(str(own.parent), [str(error)])
        return
    yield Verified(
        str(own.parent), [] if same else [f'it is not the tokenizer that the run was trained with ({began})']
    )


def _in_bucket(url: str) -> Iterator[Verified]:
    found = find_in_bucket(url)
    latest = url.rstrip('/').endswith(f'/{LATEST_FILE}')
    names = (
        None
        if latest or found.names is None
        else sorted({each.name.partition('/')[0] for each in found.bucket.list(found.url)})
    )
    places = (
        [found.checkpoint(url)] if names is None else [f'{found.url}/{each}' for each in names if NAME.fullmatch(each)]
    )
    for each in tqdm(places, desc='verify', unit='checkpoint', disable=None, leave=False):
        with tempfile.TemporaryDirectory(prefix='rewarm-verify-') as temporary:
            name = each.rpartition('/')[2]
            folder = Path(temporary, name if NAME.fullmatch(name) else 'checkpoint')
            try:
                download_checkpoint(found.bucket, each, folder)
                wrong = [*_checkpoint(folder).problems, *unlisted(found.bucket, each)]
            except UserError as error:
                wrong = [str(error)]
        yield Verified(each, wrong)


def _datasets(path: Path) -> Iterator[Verified]:
    if not path.is_dir():
        raise UserError(f'{path}: there is no such folder')
    if not (path / INDEX_NAME).exists() and not list(path.glob(f'*/{INDEX_NAME}')):
        raise UserError(
            f'{path} is no checkpoint (no manifest.json), no run folder (no checkpoints) and no dataset (no {INDEX_NAME} here or '
            'one level below)'
        )
    foreign = ', '.join(str(each) for each in foreign_datasets(path))
    note = (
        foreign
        and f'{foreign}: no dataset card, another program made it. Its tokenizer and its counts could not be checked.'
    )
    yield Verified(str(path), verify_dataset(path), note or None)
