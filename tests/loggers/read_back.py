"""Reads what loggers wrote, with their own readers where they have one."""

from pathlib import Path


def tensorboard(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """The points of each tag, as TensorBoard shows them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={'scalars': 0})
    events.Reload()
    return {tag: [(each.step, each.value) for each in events.Scalars(tag)] for tag in events.Tags()['scalars']}


def mlflow_points(uri: str) -> list[dict[str, list[tuple[int, float]]]]:
    """The points of each MLflow run of a store."""
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    found = []
    for experiment in client.search_experiments():
        for run in client.search_runs([experiment.experiment_id]):
            history = {key: client.get_metric_history(run.info.run_id, key) for key in run.data.metrics}
            found.append({key: [(each.step, each.value) for each in values] for key, values in history.items()})
    return found
