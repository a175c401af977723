"""A second reader of the pipe that standard output goes to: whoever else writes there must not die with the first one."""

import contextlib
import os
import select
import subprocess
import threading

__all__ = ['SpareReader']


class SpareReader:
    """Holds an unnamed pipe open for reading, and reads it only once nobody else does.

    Ctrl-C ends the `tee` that a run's output goes to at once. The next words of the ``composer`` launcher, which writes
    to the same pipe, would break it off before its ranks have saved, or end it with 120 instead of their code; and a
    compiler that prints a warning there would be killed. None of it happens while this process holds the pipe, nor
    after its end, since a `cat` that lives as long as anybody writes takes its place.

    Args:
        number (int): A file descriptor of this process.

    Raises:
        OSError: If it is no unnamed pipe (one with a name may find a reader again), or belongs to somebody else.
    """

    def __init__(self, number: int) -> None:
        self._number = number
        self._path = f'/proc/self/fd/{number}'
        if not os.readlink(self._path).startswith('pipe:'):
            raise OSError(f'{number} is no unnamed pipe')
        self._lock = threading.Lock()
        self._end = os.open(self._path, os.O_RDONLY)
        self._successor: subprocess.Popen[bytes] | None = None

    def is_alone(self) -> bool:
        """Whether the pipe has lost its reader. For a moment nobody holds it, which is the only way to see that."""
        with self._lock:
            self._hold(os.devnull)
            readers = select.poll()
            readers.register(self._number, 0)
            alone = bool(readers.poll(0))
            self._hold(self._path)
            return alone

    def _hold(self, path: str) -> None:
        """Under the same number at any instant, which a forked child closes."""
        opened = os.open(path, os.O_RDONLY)
        os.dup2(opened, self._end, inheritable=False)
        os.close(opened)

    def read_on(self) -> None:
        """Has everything read and thrown away until the last writer is gone."""
        null = subprocess.DEVNULL
        with self._lock, contextlib.suppress(OSError):  # no cat here: the pipe is held to this process's end
            if self._successor is None:
                command = ['cat']
                self._successor = subprocess.Popen(
                    command, stdin=self._end, stdout=null, stderr=null, start_new_session=True
                )

    def close(self) -> None:
        """Lets go of it, in a forked child: the parent could not see any more whether it is alone."""
        os.close(self._end)
