"""One process group per run folder."""

import fcntl
import json
import os
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rewarm.config.errors import DamagedFile, UserError, disk_error
from rewarm.formats.owner import HELD, LOCK_FILE, NO_LOCKS, read_holder

__all__ = ['run_lock']


@contextmanager
def run_lock(run_folder: Path) -> Iterator[None]:
    """Holds the run folder for this process, until the block or the process ends.

    A POSIX record lock: the kernel gives it back however the process dies, and loader workers that outlive their
    parent do not hold it (as they would a ``flock``). Where a file system has none nothing else is as safe: a file that
    says who is there outlives a dead machine, and stale ones would have to be judged by clocks.

    Raises:
        UserError: If another process holds it, naming the owner and since when; if the file system has no locks; or if
            ``run.lock`` is not a file that can be locked.
    """
    path = run_folder / LOCK_FILE
    handle = _open(path)
    with os.fdopen(handle, 'r+') as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise _in_words(error, run_folder, path) from None
        file.truncate(0)
        json.dump({'pid': os.getpid(), 'host': socket.gethostname(), 'since': time.time()}, file)
        file.flush()
        yield


def _open(path: Path) -> int:
    """Opens the file, through no link; nobody else may write to one that is made, and ``rewarm status`` may read it."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        handle = os.open(path, flags, 0o644)
    except OSError:
        if path.is_symlink() or (path.exists() and not path.is_file()):
            raise _no_file(path) from None
        raise
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise _no_file(path)
    return handle


def _no_file(path: Path) -> UserError:
    what = 'a link' if path.is_symlink() else 'a folder' if path.is_dir() else 'no regular file'
    return UserError(f'{path} is {what}, and nothing is written to it. Move it away: the lock of the run has this name')


def _in_words(error: OSError, run_folder: Path, path: Path) -> UserError:
    """What a lock that was refused means."""
    if error.errno in HELD:
        return UserError(
            f'{run_folder} is in use by {_owner(path)}. Wait for it or stop it (SIGTERM saves and exits 75); '
            'or choose another `run_folder`.'
        )
    if error.errno in NO_LOCKS:
        return UserError(
            f'{run_folder}: its file system gives no locks ({error.strerror}), and without one two processes could train '
            'into the same folder. Write another `run_folder`: on a local disk, or s3://bucket/prefix, which keeps a copy '
            'of a local one. Or have it mounted with locks (Lustre: `-o flock`; NFS: without `nolock`, with its lock service)'
        )
    error.filename = str(path)
    return disk_error(error, str(run_folder)) or UserError(
        f'{path}: cannot be locked ({error.strerror}). The device or its file server fails: see the system log'
    )


def _owner(path: Path) -> str:
    try:
        holder = read_holder(path)
    except (FileNotFoundError, DamagedFile):
        return 'another process'
    minutes = max(0.0, time.time() - holder.since) / 60
    return f'process {holder.pid} on {holder.host}, for {minutes:.0f} minutes'
