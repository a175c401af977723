"""Which process holds a run folder now, found out without touching its lock; or which one took it over in a bucket."""

from __future__ import annotations

import fcntl
import os
import struct
import sys
from dataclasses import dataclass
from pathlib import Path

from rewarm.config.errors import DamagedFile
from rewarm.formats.files import open_regular, read_bytes
from rewarm.formats.owner import LARGEST_OWNER_BYTES, LOCK_FILE, NO_LOCKS, parse_claim, read_holder

__all__ = ['Owner', 'find_claim', 'find_owner']

FLOCK = 'hhqqi4x'
"""``struct flock`` of 64-bit Linux: type, whence, start, length, process."""


@dataclass(frozen=True)
class Owner:
    """A process that trains in a run folder."""

    pid: int | None
    host: str | None
    since: float | None
    """Seconds since the epoch."""

    def __str__(self) -> str:
        """The process as people name it."""
        if self.pid is None:
            return 'a process'
        return f'process {self.pid}' + (f' on {self.host}' if self.host else '')


def find_owner(run_folder: Path) -> Owner | None:
    """Asks the kernel who holds the record lock on ``run.lock``; what the file says is believed only if someone does.

    Never call it in the process that trains: closing the file would give back its own lock.

    Args:
        run_folder (Path): A folder on a local or shared file system.

    Returns:
        Owner | None: ``None`` if nobody holds it, or the folder was never started.

    Raises:
        DamagedFile: If ``run.lock`` is no regular file, or the disk fails.
    """
    path = run_folder / LOCK_FILE
    if sys.platform != 'linux':  # nothing trains elsewhere
        return None
    try:
        file = open_regular(path)
    except FileNotFoundError:
        return None
    with file:
        wanted = struct.pack(FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        try:
            kind, _, _, _, pid = struct.unpack(FLOCK, fcntl.fcntl(file, fcntl.F_GETLK, wanted))
        except OSError as error:
            if error.errno in NO_LOCKS:  # no run starts there
                return None
            raise DamagedFile(path, what=f'who holds it cannot be asked ({error.strerror})') from None
        if kind == fcntl.F_UNLCK:
            return None
        try:
            holder = read_holder(path)
        except (FileNotFoundError, DamagedFile):  # it has taken the lock and not signed yet
            return Owner(pid if pid > 0 else None, None, None)
        return Owner(holder.pid, holder.host, holder.since)


def find_claim(run_folder: Path) -> Owner | None:
    """Who took a run in a bucket over last; a bucket has no lock that tells whether it is still there.

    Args:
        run_folder (Path): A copy of the bucket's run folder.

    Returns:
        Owner | None: ``None`` if nobody did.
    """
    path = run_folder / 'owner.json'
    try:
        claim = parse_claim(read_bytes(path, largest_bytes=LARGEST_OWNER_BYTES), path)
    except (FileNotFoundError, DamagedFile):
        return None
    return Owner(claim.pid, claim.host, claim.since.timestamp())
