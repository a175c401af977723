"""Checkpoint folders renamed and removed: never through a link, and never what somebody else put there."""

import os
import shutil
import stat
from collections.abc import Collection
from pathlib import Path

from rewarm.config.errors import DamagedFile, UserError
from rewarm.formats.checkpoint import (
    BROKEN_SUFFIX,
    GONE_PREFIX,
    LATEST_FILE,
    MANIFEST_FILE,
    NAME,
    PIN_FILE,
    TEMPORARY_PREFIX,
    batch_of,
    read_manifest,
)
from rewarm.formats.checkpoint_place import names_below
from rewarm.formats.files import flush, write_whole
from rewarm.resume.verification import is_complete

__all__ = [
    'clear_way',
    'is_pinned',
    'make_draft',
    'names_below',
    'point_latest',
    'remove_leftovers',
    'retain',
    'set_aside',
]


def make_draft(path: Path) -> None:
    """Makes a folder to write into, if it is not there; a link or a file in its place is removed.

    Raises:
        OSError: If it cannot be made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if os.path.lexists(path) and not _is_folder(path):
        path.unlink(missing_ok=True)
    path.mkdir(exist_ok=True)


def set_aside(path: Path) -> Path:
    """Renames what cannot be used, link or not, to the first free name ``NAME.broken``, ``NAME.2.broken`` ...

    Returns:
        Path: What it is called now.

    Raises:
        UserError: If it cannot be renamed.
    """
    number, aside = 1, path.with_name(path.name + BROKEN_SUFFIX)
    while os.path.lexists(aside):
        number += 1
        aside = path.with_name(f'{path.name}.{number}{BROKEN_SUFFIX}')
    try:
        path.rename(aside)
    except OSError as error:
        raise UserError(
            f'{path} cannot be used and not be renamed to {aside.name} ({error.strerror}). Move it away, and start the '
            'same command again'
        ) from None
    return aside


def clear_way(path: Path) -> None:
    """Frees the name of a checkpoint that is written again: ours is removed, pinned or not, anything else set aside."""
    if not os.path.lexists(path):
        return
    if _is_folder(path) and _holds_nothing_else(path, but=PIN_FILE):
        shutil.rmtree(_rename_away(path))
    else:
        set_aside(path)


def point_latest(root: Path, name: str) -> None:
    """Writes ``latest``, which is for people and scripts; a link there is replaced, and a folder set aside.

    Raises:
        OSError: If the disk is full or not writable.
    """
    temporary = root / (TEMPORARY_PREFIX + LATEST_FILE)
    for path in (root / LATEST_FILE, temporary):
        if _is_folder(path):  # somebody's; no file can replace it
            set_aside(path)
    write_whole(root / LATEST_FILE, f'{name}\n'.encode(), temporary=temporary)
    flush(root)


def remove_leftovers(root: Path) -> None:
    """Removes half-written folders that a kill left behind. Call it only while holding the run's lock.

    One that was pinned while it was removed gets its name back.
    """
    for path in root.glob(TEMPORARY_PREFIX + '*'):
        name = path.name.removeprefix(GONE_PREFIX)
        if NAME.fullmatch(name) and is_pinned(path) and not os.path.lexists(root / name):
            path.rename(root / name)
        else:
            shutil.rmtree(path) if _is_folder(path) else path.unlink()


def retain(root: Path, *, keep: int, stage_ends: Collection[int], in_use: Collection[str] = frozenset()) -> list[Path]:
    """Deletes all but the newest ``keep`` checkpoints, by what is on disk.

    Only those that are complete count, and only older ones than those are deleted. Never a stage's end, one that is
    pinned, a link, nor a folder that holds anything that its manifest does not list: somebody else put it there.

    Args:
        root (Path): The run's ``checkpoints`` folder.
        keep (int): How many to keep besides stage ends and pinned ones; at least 1.
        stage_ends (Collection[int]): Batches at which a stage ends.
        in_use (Collection[str]): Names of checkpoints that are being read, such as for an upload; they stay this time.

    Returns:
        list[Path]: The folders deleted.

    Raises:
        OSError: If the disk fails.
    """
    paths = [root / name for name in names_below(root) if batch_of(name) not in stage_ends]
    ordinary = [path for path in paths if not is_pinned(path)]
    complete = [path for path in ordinary if is_complete(path)]
    if len(complete) < keep:
        return []
    older = ordinary[: ordinary.index(complete[-keep])]
    doomed = [path for path in older if path.name not in in_use and _is_folder(path) and _holds_nothing_else(path)]
    return [path for path in doomed if _remove(path)]


def is_pinned(path: Path) -> bool:
    """Whether a checkpoint folder holds a pin."""
    return os.path.lexists(path / PIN_FILE)


def _is_folder(path: Path) -> bool:
    """Whether a folder is there, and no link to one."""
    try:
        return stat.S_ISDIR(path.lstat().st_mode)
    except OSError:
        return False


def _holds_nothing_else(path: Path, but: str = MANIFEST_FILE) -> bool:
    """Whether a folder is a checkpoint's, and all in it is of that checkpoint, ``but`` for one more file."""
    try:
        listed = read_manifest(path).files
    except (OSError, DamagedFile):
        return False
    return set(os.listdir(path)) <= {*listed, MANIFEST_FILE, but}


def _remove(path: Path) -> bool:
    """Deletes a checkpoint, unless it is pinned in this moment: whoever pins looks for it afterwards under its name."""
    gone = _rename_away(path)
    if is_pinned(gone):
        gone.rename(path)
        return False
    shutil.rmtree(gone)
    return True


def _rename_away(path: Path) -> Path:
    """Renames what is to be deleted, so that a kill in the middle leaves a leftover and not a torn checkpoint."""
    gone = path.with_name(GONE_PREFIX + path.name)
    if os.path.lexists(gone):
        shutil.rmtree(gone) if _is_folder(gone) else gone.unlink()
    return path.rename(gone)
