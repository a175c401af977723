"""One process group per run folder."""

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rewarm.config.errors import UserError

__all__ = ['run_lock']


@contextmanager
def run_lock(run_folder: Path) -> Iterator[None]:
    """Holds the run folder for this process, until the block or the process ends.

    A POSIX record lock: the kernel gives it back however the process dies, and loader workers that outlive their
    parent do not hold it (as they would a ``flock``).

    Raises:
        UserError: If another process holds it, naming the owner and since when.
    """
    path = run_folder / 'run.lock'
    with path.open('a+') as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(
                f'{run_folder} is in use by {_owner(path)}. Wait for it or stop it (SIGTERM saves and exits 75); '
                'or choose another `run_folder`.'
            ) from None
        file.truncate(0)
        json.dump({'pid': os.getpid(), 'host': socket.gethostname(), 'since': time.time()}, file)
        file.flush()
        yield


def _owner(path: Path) -> str:
    try:
        owner = json.loads(path.read_text())
        minutes = (time.time() - owner['since']) / 60
        return f'process {owner["pid"]} on {owner["host"]}, for {minutes:.0f} minutes'
    except (OSError, ValueError, KeyError):
        return 'another process'
