"""MLflow: all stages and starts are one MLflow run, found again by a tag."""

import os
from pathlib import Path
from typing import Any

from composer.loggers import MLFlowLogger

from rewarm.loggers.destination import NOTHING, Destination

__all__ = ['TAG', 'MLflow']

TAG = 'rewarm.identity'
"""The tag by which a run's MLflow run is found: MLflow draws the ids of its runs itself."""

STEP = 'time/batch'


class MLflow(Destination, MLFlowLogger):
    """Composer's logger, which would make an MLflow run for each stage and start, or join all of the same name.

    Args:
        run_name (str): The run's.
        run_id (str): What its MLflow run is tagged with.
        folder (Path): The run folder: without a tracking server, MLflow's files go into its ``mlruns``.
        arguments (Any): Composer's.
    """

    def __init__(self, run_name: str, run_id: str, folder: Path, **arguments: Any) -> None:
        self._identity = run_id
        self._trained_name = run_name
        if not any(name in os.environ for name in ('MLFLOW_TRACKING_URI', 'DATABRICKS_TOKEN')):
            arguments.setdefault('tracking_uri', str(folder / 'mlruns'))
        uri = str(arguments.get('tracking_uri') or '')
        if uri.startswith('file:') or (uri and '://' not in uri and uri != 'databricks'):
            if '://' not in uri and not uri.startswith('file:'):
                arguments['tracking_uri'] = Path(uri).absolute().as_uri()
            os.environ.setdefault('MLFLOW_ALLOW_FILE_STORE', 'true')  # a folder was asked for
        # MLflow's own queue would lose its failures; on a thread of ours nobody waits.
        super().__init__(**{'run_name': run_name, 'synchronous': True, 'resume': True, **arguments})

    def open(self) -> int | None:
        """Finds or makes the MLflow run, which knows the newest batch it has."""
        found = self._find_run() if self.resume else None
        self.tags = {**self.tags, 'run_name': self._trained_name, TAG: self._identity}
        if found is None:
            found = self._mlflow_client.create_run(
                experiment_id=str(self._experiment_id), run_name=self.run_name, tags=self.tags
            )
        self._run_id = found.info.run_id
        self._params = dict(found.data.params)
        self._start(found.info.run_id)
        newest = found.data.metrics.get(STEP)
        return NOTHING if newest is None else int(newest)

    def log_hyperparameters(self, hyperparameters: dict[str, Any]) -> None:
        """Logs what the run does not have yet: MLflow's parameters cannot change, and another machine's are other ones."""
        new = {key: value for key, value in hyperparameters.items() if key not in self._params}
        if new:
            super().log_hyperparameters(new)
            self._params.update(dict.fromkeys(new, ''))

    def finish(self, *, failed: bool) -> None:
        """Says how the run ended; a later start opens it again."""
        import mlflow  # pyright: ignore[reportMissingImports]

        mlflow.flush_async_logging()
        mlflow.end_run('FAILED' if failed else 'FINISHED')

    def _find_run(self) -> Any:
        filter_string = f"tags.`{TAG}` = '{self._identity}'"
        found = self._mlflow_client.search_runs([str(self._experiment_id)], filter_string=filter_string, max_results=1)
        return found[0] if found else None

    def _start(self, run_id: str) -> None:
        import mlflow  # pyright: ignore[reportMissingImports]

        tags = {**self.tags, **({'run_group': self.run_group} if self.run_group else {})}
        mlflow.start_run(run_id=run_id, tags=tags, log_system_metrics=self.log_system_metrics)
