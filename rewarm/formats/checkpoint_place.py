"""Which checkpoint a user means: one folder, a run's newest, or what ``latest`` says. For every command and key alike.

A folder in a bucket is looked for in the same way (``rewarm/resume/bucket_place.py``).
"""

import os
from collections.abc import Sequence
from pathlib import Path

from rewarm.config.errors import DamagedFile, UserError
from rewarm.formats.checkpoint import (
    LATEST_FILE,
    MANIFEST_FILE,
    MODEL_FILE,
    NAME,
    STATE_FILE,
    read_latest,
    read_manifest,
)
from rewarm.formats.files import regular_files

__all__ = [
    'CHECKPOINTS',
    'choose',
    'complete_below',
    'find_checkpoint',
    'find_root',
    'is_complete',
    'names_below',
    'run_folder_of',
]

CHECKPOINTS = 'checkpoints'
"""The folder in a run folder."""


def find_checkpoint(path: str | Path) -> Path:
    """The checkpoint folder that a path on this machine means.

    Args:
        path (str | Path): A checkpoint; a run folder or its ``checkpoints``, for the newest complete one; or the file
            ``latest`` there.

    Returns:
        Path: The folder; that it is complete is certain only where it was chosen.

    Raises:
        UserError: If there is none.
    """
    path = Path(os.path.expanduser(path))
    root = find_root(path)
    if root is None:
        if not path.is_dir():
            raise UserError(f'{path}: no such checkpoint folder')
        return path
    complete = complete_below(root)
    if path.name == LATEST_FILE and (named := read_latest(root)) in complete:
        return root / str(named)
    return root / choose(complete, path)


def find_root(path: Path) -> Path | None:
    """The folder of checkpoints that a path leads to; ``None`` if the path is itself a checkpoint, or nothing.

    A folder that lacks its manifest is a checkpoint still, and a damaged one.
    """
    if path.name == LATEST_FILE and not path.is_dir():
        return path.parent if names_below(path.parent) else None
    if any((path / name).exists() for name in (MANIFEST_FILE, STATE_FILE, MODEL_FILE)):
        return None
    return next((root for root in (path / CHECKPOINTS, path) if names_below(root)), None)


def choose(complete: Sequence[str], where: object) -> str:
    """The newest of a run's complete checkpoints.

    Args:
        complete (Sequence[str]): Their names, oldest first.
        where (object): What the user named, for the message.

    Raises:
        UserError: If there is none.
    """
    if not complete:
        raise UserError(f'{where}: there is no complete checkpoint; `rewarm verify {where}` says what is there')
    return complete[-1]


def complete_below(root: Path) -> list[str]:
    """Names of the checkpoints that are complete by their sizes, oldest first."""
    return [name for name in names_below(root) if is_complete(root / name, links=True)]


def names_below(root: Path) -> list[str]:
    """What is called like a checkpoint, oldest first, whatever it is; nothing where ``root`` is not there."""
    try:
        return sorted(name for name in os.listdir(root) if NAME.fullmatch(name))
    except OSError:
        return []


def is_complete(path: Path, *, links: bool = False) -> bool:
    """Whether a checkpoint is there by the sizes in its manifest; nothing is hashed.

    Args:
        path (Path): The folder.
        links (bool): Whether a link to one is one.
    """
    try:
        there = path.is_dir() and (links or not path.is_symlink())
        return there and not read_manifest(path).wrong_sizes(regular_files(path))
    except (OSError, DamagedFile):
        return False


def run_folder_of(checkpoint: Path) -> Path | None:
    """The run folder in which a checkpoint lies, also by way of a link; ``None`` if it is far from its run."""
    for path in (Path(os.path.abspath(checkpoint)), checkpoint.resolve()):
        if path.parent.name == CHECKPOINTS or (path.parent.parent / 'config.yaml').is_file():
            return path.parent.parent
    return None
