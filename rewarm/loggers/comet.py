"""Comet: all stages and starts are one experiment."""

import inspect
from typing import Any

from composer.loggers import CometMLLogger

from rewarm.loggers.destination import Destination

__all__ = ['Comet']


class Comet(Destination, CometMLLogger):
    """Composer's logger on ``comet_ml.start``, which joins an experiment of the same key; Composer's makes a new one.

    Args:
        run_name (str): The run's.
        run_id (str): The experiment's key.
        arguments (Any): Composer's; ``exp_kwargs`` are arguments of ``comet_ml.start`` and ``comet_ml.ExperimentConfig``.
    """

    def __init__(self, run_name: str, run_id: str, **arguments: Any) -> None:
        # Not Composer's constructor, which connects.
        self.name = arguments.get('name') or run_name
        self._enabled = True
        self._rank_zero_only = arguments.get('rank_zero_only', True)
        self._exp_kwargs = {
            'experiment_key': run_id,
            'workspace': arguments.get('workspace'),
            'project': arguments.get('project_name'),
            'log_code': arguments.get('log_code', False),
            'log_graph': arguments.get('log_graph', False),
            **(arguments.get('exp_kwargs') or {}),
        }
        self.experiment = None

    def open(self) -> int | None:
        """Starts or joins the experiment; with ``COMET_START_ONLINE=0`` a part of it that is sent later."""
        import comet_ml  # pyright: ignore[reportMissingImports]

        known = inspect.signature(comet_ml.start).parameters
        own = {key: value for key, value in self._exp_kwargs.items() if key in known}
        rest = {key: value for key, value in self._exp_kwargs.items() if key not in known}
        config = comet_ml.ExperimentConfig(**rest)
        self.experiment = comet_ml.start(**{'mode': 'get_or_create', **own}, experiment_config=config)
        self.experiment.log_other('Created from', 'mosaicml-composer')
        self.experiment.set_name(self.name)
        return None
