"""Loggers that write nowhere else: a text file for each start, and memory."""

from collections.abc import Callable
from typing import Any

from composer.loggers import FileLogger, InMemoryLogger

from rewarm.loggers.destination import Destination, snapshot
from rewarm.loggers.rows import Row

__all__ = ['InMemory', 'TextLog']


class TextLog(Destination, FileLogger):
    """Composer's file logger, whose file is written on the logger's thread: what is printed does not wait for it.

    Args:
        run_name (str): The run's.
        arguments (Any): Composer's.
    """

    def __init__(self, run_name: str, **arguments: Any) -> None:
        self.pass_on: Callable[[Callable[[Destination], object]], object] = lambda _: None
        super().__init__(**arguments)
        self._trained_name = run_name

    def open(self) -> int | None:
        """Makes the file."""
        self.init(snapshot(self._trained_name), None)  # pyright: ignore[reportArgumentType]
        return None

    def log_row(self, row: Row) -> None:
        """Writes a batch's lines, and forces them to the disk at the interval asked for."""
        super().log_row(row)
        if row.batch % self.flush_interval == 0:
            self._flush_file(_NoUploads)  # pyright: ignore[reportArgumentType]

    def flush(self) -> None:
        """Hands the lines to the system."""
        if self.file is not None:
            self.file.flush()

    def finish(self, *, failed: bool) -> None:
        """Closes the file."""
        self.close(None, _NoUploads)  # pyright: ignore[reportArgumentType]

    def _get_new_writer(self, prefix: str, original_writer: Callable[[str], int]) -> Any:
        def write(s: str) -> int:
            if not self._closed:
                self.pass_on(lambda _: self.write(prefix, s))
            return original_writer(s)

        return write


class InMemory(Destination, InMemoryLogger):
    """Composer's logger for notebooks.

    Args:
        run_name (str): The run's.
    """

    def __init__(self, run_name: str) -> None:
        super().__init__()
        self._trained_name = run_name

    def log_row(self, row: Row) -> None:
        """Keeps a batch's values with its time."""
        self.state = snapshot(self._trained_name, row.batch, row.tokens)
        super().log_row(row)


class _NoUploads:
    """Stands for Composer's ``Logger``, through which the file would be given to the other loggers."""

    @staticmethod
    def upload_file(*_: Any, **__: Any) -> None:
        """Does nothing."""
