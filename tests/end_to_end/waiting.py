"""Waiting for what a run does, never for ever."""

import fcntl
import time


def wait_for(condition, seconds=90):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, 'timed out'
        time.sleep(0.01)


def wait_until_free(run):
    """The ranks live in sessions of their own; they end when their peers or the launcher are gone."""
    lock = (run.folder / 'run.lock').open('a')

    def free() -> bool:
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        fcntl.lockf(lock, fcntl.LOCK_UN)
        return True

    wait_for(free)
