"""The runs of a folder, here or in a bucket, each at a glance: only the ends of files are read."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from rewarm.buckets.bucket import Entry, is_bucket, open_bucket
from rewarm.buckets.parallel import in_parallel
from rewarm.config.errors import UserError
from rewarm.report.run_folder import RUN_FILES, NoRunYet, is_run_folder
from rewarm.report.status import Status, find_status

__all__ = ['Glance', 'find_runs']

DEEPEST = 3
"""Levels of folders in which runs are looked for: runs/NAME, runs/MONTH/NAME ..."""
THREADS = 4
"""Runs of a bucket that are looked at beside each other; each has threads of its own."""


@dataclass(frozen=True)
class Glance:
    """One run."""

    name: str
    """Its folder, relative to the one that was looked through."""
    place: str
    """Its folder or URL."""
    status: Status | None
    """Where it is; ``None`` if its files cannot be read."""
    problem: str | None
    """Why they cannot."""

    @property
    def last_sign_at(self) -> datetime | None:
        """Its newest batch or event."""
        return self.status.last_sign_at if self.status else None


def find_runs(top: str, *, now: datetime | None = None) -> list[Glance]:
    """All runs below a folder, the one that gave a sign of life last first. What is no run is passed over.

    Args:
        top (str): The folder, here or in a bucket; a run folder is its own only run.
        now (datetime | None): The time to count ages from. Default: the clock's.

    Raises:
        UserError: If there is no such folder, or the bucket cannot be read.
    """
    now = now or datetime.now(UTC)
    if is_bucket(top):
        url = top.rstrip('/')
        listed = _runs_of(open_bucket(url).list(url))
        if not listed:
            raise NoRunYet(f'{url}: there is no run')
        glance = partial(_glance, url, now)
        found = in_parallel(lambda item: glance(item[0], listed=item[1]), listed.items(), THREADS)
    else:
        if not Path(top).is_dir():
            raise NoRunYet(f'{top}: no such folder; name the one that your run folders are in: rewarm runs FOLDER')
        found = [_glance(top, now, name) for name in _below(Path(top), '', DEEPEST)]
    never = datetime.min.replace(tzinfo=UTC)
    return sorted(sorted(found, key=lambda each: each.name), key=lambda each: each.last_sign_at or never, reverse=True)


def _glance(top: str, now: datetime, name: str, *, listed: Collection[Entry] | None = None) -> Glance:
    place = f'{top}/{name}' if name else top
    shown = name or Path(place).name
    try:
        return Glance(shown, place, find_status(place, now=now, brief=True, listed=listed), None)
    except (UserError, OSError) as error:  # of one run; the others are told all the same
        return Glance(shown, place, None, str(error))


def _below(top: Path, name: str, levels: int) -> Iterator[str]:
    """Names of run folders in and below a folder; into a run, a hidden folder, or through a link is not looked for more."""
    folder = top / name
    if is_run_folder(folder):
        yield name
    elif levels and not (name and folder.is_symlink()):
        try:
            inside = sorted(each.name for each in folder.iterdir() if each.is_dir() and not each.name.startswith('.'))
        except OSError:  # somebody else's
            return
        for each in inside:
            yield from _below(top, f'{name}/{each}' if name else each, levels - 1)


def _runs_of(entries: Collection[Entry]) -> dict[str, list[Entry]]:
    """The objects of each run of a listing, by its name; with names relative to the run."""
    folders = {entry.name.rpartition('/')[0] for entry in entries if entry.name.rpartition('/')[2] in RUN_FILES}
    runs = {name for name in folders if not any(_is_in(name, other) for other in folders - {name})}
    found: dict[str, list[Entry]] = {name: [] for name in sorted(runs)}
    for entry in entries:
        for name in runs:
            if _is_in(entry.name, name):
                found[name].append(entry._replace(name=entry.name[len(name) + bool(name) :]))
    return found


def _is_in(name: str, folder: str) -> bool:
    return not folder or name.startswith(f'{folder}/')
