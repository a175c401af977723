"""Weights & Biases: all stages and starts are one W&B run."""

import os
from pathlib import Path
from typing import Any

from composer.loggers import WandBLogger

from rewarm.loggers.destination import NOTHING, Destination
from rewarm.loggers.rows import Row
from rewarm.loggers.wandb_files import newest_batch

__all__ = ['WeightsAndBiases']

STEP = 'time/batch'
"""The x axis of every chart; W&B's own step only grows, and an evaluation that was made up for comes late."""


class WeightsAndBiases(Destination, WandBLogger):
    """Composer's logger on the ``Run`` that ``wandb.init`` returns, instead of on the module's globals.

    Composer's own ``init`` calls ``Run.get_url``, which W&B 0.29 has removed, and a collective.

    Args:
        run_name (str): The run's.
        run_id (str): What W&B is to know it by.
        folder (Path): The run folder: W&B's files go into its ``wandb``, unless ``WANDB_DIR`` or ``init_kwargs`` say another.
        arguments (Any): Composer's.
    """

    def __init__(self, run_name: str, run_id: str, folder: Path, **arguments: Any) -> None:
        given = dict(arguments.pop('init_kwargs', None) or {})
        settings = given.pop('settings', None) or {}
        # W&B would put itself between the run and its terminal, and write through a socket that may block.
        given['settings'] = {'console': 'off', **settings} if isinstance(settings, dict) else settings
        if 'WANDB_DIR' not in os.environ:
            given.setdefault('dir', str(folder))
        super().__init__(init_kwargs={'name': run_name, 'id': run_id, 'resume': 'allow', **given}, **arguments)
        self._files = Path(str(self._init_kwargs.get('dir', os.environ.get('WANDB_DIR', '.')))) / 'wandb'
        self._run: Any = None
        self._next_step = 0

    def open(self) -> int | None:
        """Starts or resumes the W&B run. Its server knows the newest batch that it has; offline, the files here do."""
        import wandb  # pyright: ignore[reportMissingImports]

        earlier = newest_batch(self._files, str(self._init_kwargs['id']), STEP)
        self._run = run = wandb.init(**self._init_kwargs)
        run.define_metric(STEP, hidden=True)
        run.define_metric('*', step_metric=STEP)
        self._next_step = run.step
        if run.disabled:
            return None
        if run.offline:
            return NOTHING if earlier is None else earlier
        if not run.resumed:
            return NOTHING
        newest = run.summary.get(STEP)
        return int(newest) if isinstance(newest, int | float) else None

    def log_row(self, row: Row) -> None:
        """Logs a batch as one step of W&B's, of the batch's number where W&B still takes that."""
        step = row.batch if row.batch >= self._next_step else None
        self._run.log(dict(row.metrics), step=step, commit=True)
        self._next_step = (self._next_step if step is None else step) + 1

    def log_hyperparameters(self, hyperparameters: dict[str, Any]) -> None:
        """Adds to the configuration; another machine's are other ones."""
        self._run.config.update(hyperparameters, allow_val_change=True)

    def finish(self, *, failed: bool) -> None:
        """Waits until W&B has all, and says how the run ended."""
        self._run.finish(exit_code=1 if failed else 0)
