"""TensorBoard: one folder of event files, in which each point is shown once whatever was trained again."""

from pathlib import Path
from typing import Any

from composer.loggers import TensorboardLogger

from rewarm.loggers.destination import NOTHING, Destination
from rewarm.loggers.rows import Row

__all__ = ['TensorBoard']

NEVER_SECONDS = 1e9
"""Between flushes of the writer's own: rows are flushed as a whole."""


class TensorBoard(Destination, TensorboardLogger):
    """One event file for each start. A start, and a rollback, hides what earlier ones have of the batches that it repeats.

    Composer's logger closes its file at each flush and opens another, and adds a run ``NAME/NAME`` of hyperparameters at each
    evaluation.

    Args:
        run_name (str): The run's; the folder in ``log_dir``.
        arguments (Any): Composer's.
    """

    buffers = True

    def __init__(self, run_name: str, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._run_name = run_name
        self._rows_since_flush = 0

    def open(self) -> int | None:
        """Makes the event file; what earlier ones hold is not read."""
        from torch.utils.tensorboard import SummaryWriter

        folder = Path(self.log_dir or 'tensorboard_logs') / self._run_name
        is_new = not any(folder.glob('events.out.tfevents.*'))
        self.writer = SummaryWriter(log_dir=str(folder), flush_secs=int(NEVER_SECONDS))
        return NOTHING if is_new else None

    def go_back(self, batch: int) -> bool:
        """Hides all points after the batch from TensorBoard's readers."""
        from tensorboard.compat.proto import event_pb2

        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)  # pyright: ignore[reportAttributeAccessIssue]
        event = event_pb2.Event(step=batch + 1, session_log=start)  # pyright: ignore[reportAttributeAccessIssue]
        if self.writer is None:
            self.open()
        assert self.writer is not None
        file = self.writer._get_file_writer()
        assert file is not None
        # What SummaryWriter's purge_step writes, at the beginning of a file only.
        file.add_event(event, step=batch + 1)
        return True

    def log_row(self, row: Row) -> None:
        """Adds the points of a batch; after a failure to another file, since a writer that has failed stays so."""
        if self.writer is None:
            self.open()
            self.go_back(row.batch - 1)
        try:
            super().log_row(row)
        except Exception:
            self.writer = None
            raise
        self._rows_since_flush += 1
        if self._rows_since_flush >= self.flush_interval:
            self.flush()

    def log_hyperparameters(self, hyperparameters: dict[str, Any]) -> None:
        """Leaves them out: TensorBoard shows them as a run of its own."""

    def flush(self) -> None:
        """Writes the points to the file."""
        if self.writer is not None:
            try:
                self.writer.flush()
            except Exception:
                self.writer = None
                raise
            self._rows_since_flush = 0

    def finish(self, *, failed: bool) -> None:
        """Closes the file."""
        if self.writer is not None:
            self.writer.close()
            self.writer = None
