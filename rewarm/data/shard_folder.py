"""What lies in a folder of shards: listed once for all of them, and tidied of nothing but their own leftovers."""

import contextlib
import os
import re
from collections.abc import Collection
from pathlib import Path

from rewarm.formats.shards import TEMPORARY_SUFFIX

__all__ = ['files_there', 'remove_half_fetched']

_HALF_FETCHED = re.compile(rf'(.+)\.(\d+){re.escape(TEMPORARY_SUFFIX)}')


def files_there(folder: Path, names: Collection[str]) -> set[str]:
    """Which of some names below a folder are regular files, or links to such; each folder is listed once."""
    there: set[str] = set()
    for inside in {name.rpartition('/')[0] for name in names}:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder / inside) as entries:
            there.update(f'{inside}/{entry.name}' if inside else entry.name for entry in entries if _is_file(entry))
    return there.intersection(names)


def remove_half_fetched(folder: Path, names: Collection[str]) -> None:
    """Removes what a killed process had begun to fetch of some files below a folder; a living one's is left alone."""
    for inside in {name.rpartition('/')[0] for name in names}:
        where = folder / inside
        if where != folder and where.resolve() != folder.resolve() / inside:
            continue  # through a link nothing is deleted
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            for entry in os.listdir(where):
                match = _HALF_FETCHED.fullmatch(entry)
                of = match and (f'{inside}/{match[1]}' if inside else match[1])
                if match and of in names and not Path('/proc', match[2]).exists():
                    (where / entry).unlink(missing_ok=True)


def _is_file(entry: os.DirEntry[str]) -> bool:
    with contextlib.suppress(OSError):  # such as a link to itself
        return entry.is_file()
    return False
