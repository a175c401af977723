"""Neptune: all stages and starts are one Neptune run."""

from typing import Any

from composer.loggers import NeptuneLogger

from rewarm.loggers.destination import Destination, snapshot

__all__ = ['Neptune']


class Neptune(Destination, NeptuneLogger):
    """Composer's logger with the run's identity as its ``custom_run_id``, which Neptune joins by.

    Args:
        run_name (str): The run's.
        run_id (str): Its identity.
        arguments (Any): Composer's, and those of ``neptune.Run``.
    """

    def __init__(self, run_name: str, run_id: str, **arguments: Any) -> None:
        joined = {} if 'with_id' in arguments else {'custom_run_id': run_id}
        super().__init__(**{**joined, **arguments})
        self._trained_name = run_name

    def open(self) -> int | None:
        """Starts or joins the run."""
        self.init(snapshot(self._trained_name), None)  # pyright: ignore[reportArgumentType]
        return None
