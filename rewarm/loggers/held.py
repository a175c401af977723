"""Remembers, beside a run's records, the newest batch of which a logger holds the row."""

import os
from pathlib import Path

from rewarm.formats.logger_files import read_held

__all__ = ['HeldFile']


class HeldFile:
    """A small file that is written over in place, so that a full disk does not keep it from being right.

    Args:
        path (Path): The file; its folder is made at the first write.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle: int | None = None
        self._written: int | None = None

    def read(self) -> int | None:
        """The batch; None if none was written yet."""
        return read_held(self.path)

    def write(self, batch: int) -> None:
        """Writes it, if it is another one.

        Raises:
            OSError: If the disk fails.
        """
        if batch == self._written or batch < 0:
            return
        if self._handle is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            self._handle = os.open(self.path, flags, 0o666)
        os.pwrite(self._handle, f'{{"batch": {batch:<20}}}\n'.encode(), 0)
        self._written = batch

    def close(self) -> None:
        """Gives the file back."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None
