"""What every logger of a run can do, beyond Composer's own."""

from types import SimpleNamespace
from typing import Any

from composer.core import Timestamp
from composer.loggers import LoggerDestination

from rewarm.loggers.rows import Row

__all__ = ['NOTHING', 'Destination', 'snapshot']

NOTHING = -1
"""Held by a logger that has no row of the run yet, not even the evaluation of its starting weights."""


class Destination(LoggerDestination):
    """A logger of Composer's that lives as long as the process, on a thread of its own.

    Composer would make one for each Trainer, so for each stage and after each rollback, and call it while training waits.
    Nothing in it may call a collective: the other ranks would wait for it.
    """

    buffers = False
    """Whether rows may be lost until :meth:`flush` has returned."""

    def open(self) -> int | None:
        """Connects.

        Returns:
            int | None: The newest batch of which it holds the row, ``NOTHING``, or None if it cannot be asked.

        Raises:
            Exception: If that cannot be done.
        """
        return None

    def log_row(self, row: Row) -> None:
        """Logs what there is of a batch."""
        self.log_metrics(row.metrics, step=row.batch)

    def go_back(self, batch: int) -> bool:
        """Takes back what it holds of later batches, which the run repeats.

        Returns:
            bool: Whether it has; what comes again is not given to it otherwise.
        """
        return False

    def flush(self) -> None:
        """Writes what it keeps in memory. Called whenever nothing more waits."""

    def finish(self, *, failed: bool) -> None:
        """Ends its part of the run."""
        self.post_close()


def snapshot(run_name: str, batch: int = 0, tokens: int = 0) -> Any:
    """What Composer's loggers read of a Trainer's state; the state itself changes while their thread reads it."""
    return SimpleNamespace(run_name=run_name, timestamp=Timestamp(batch=batch, token=tokens))
