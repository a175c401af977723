"""Composer's loggers: their names, their arguments, and the releases of their clients that work, all without importing one."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast

from rewarm.config.errors import UserError

__all__ = [
    'CLIENTS',
    'KINDS',
    'LOGGERS',
    'PATHS',
    'Client',
    'check_client',
    'is_local',
    'missing_client',
    'odd_client',
    'refuse_odd_clients',
    'untried_client',
    'wrong_type',
]

LOGGERS: dict[str, dict[str, str]] = {
    'tensorboard': {'log_dir': 'text', 'flush_interval': 'count', 'rank_zero_only': 'flag'},
    'wandb': {
        'project': 'text',
        'group': 'text',
        'name': 'text',
        'entity': 'text',
        'tags': 'texts',
        'log_artifacts': 'flag',
        'rank_zero_only': 'flag',
        'init_kwargs': 'keys',
    },
    'mlflow': {
        'experiment_name': 'text',
        'run_name': 'text',
        'tags': 'keys',
        'tracking_uri': 'text',
        'rank_zero_only': 'flag',
        'flush_interval': 'count',
        'model_registry_prefix': 'text',
        'model_registry_uri': 'text',
        'synchronous': 'flag',
        'log_system_metrics': 'flag',
        'rename_metrics': 'keys',
        'ignore_metrics': 'texts',
        'ignore_hyperparameters': 'texts',
        'run_group': 'text',
        'resume': 'flag',
        'logging_buffer_seconds': 'count',
        'log_duplicated_metric_every_n_steps': 'count',
    },
    'neptune': {
        'project': 'text',
        'api_token': 'text',
        'rank_zero_only': 'flag',
        'upload_checkpoints': 'flag',
        'base_namespace': 'text',
        'mode': 'text',
        # Of `neptune.Run`:
        'with_id': 'text',
        'custom_run_id': 'text',
        'name': 'text',
        'description': 'text',
        'tags': 'texts',
        'source_files': 'texts',
        'capture_stdout': 'flag',
        'capture_stderr': 'flag',
        'capture_hardware_metrics': 'flag',
        'fail_on_exception': 'flag',
        'monitoring_namespace': 'text',
        'flush_period': 'number',
        'proxies': 'keys',
        'capture_traceback': 'flag',
        'git_ref': 'flag',
        'dependencies': 'text',
        'async_lag_threshold': 'number',
        'async_no_progress_threshold': 'number',
    },
    'comet_ml': {
        'workspace': 'text',
        'project_name': 'text',
        'log_code': 'flag',
        'log_graph': 'flag',
        'name': 'text',
        'rank_zero_only': 'flag',
        'exp_kwargs': 'keys',
    },
    'file': {
        'capture_stdout': 'flag',
        'capture_stderr': 'flag',
        'buffer_size': 'count',
        'log_traces': 'flag',
        'flush_interval': 'count',
    },
    'in_memory': {},
}
"""For each logger the arguments it takes, each with its kind in ``KINDS``. A test compares them with Composer's.

The run names the files of `file` itself, since Composer 0.32.1 overwrites a file that is there whatever its `overwrite` says."""

KINDS = {
    'text': 'text',
    'texts': 'a list of texts',
    'flag': 'true or false',
    'keys': 'a group of keys',
    'count': 'a whole number above 0',
    'number': 'a number above 0',
}
"""The kinds of arguments, in words. Composer's loggers divide by a count, or count up to it, after the first batch."""

PATHS = ('log_dir',)
"""Arguments that are paths on this machine."""

LARGEST_COUNT = 1 << 31


@dataclass(frozen=True)
class Client:
    """The package that a logger speaks through.

    Args:
        packages (tuple[str, ...]): Names of distributions, any of which will do.
        least (str): The first release that works.
        below (str): The first one that was not tried.
        install (str): What to give to `pip install`.
    """

    packages: tuple[str, ...]
    least: str
    below: str
    install: str

    @property
    def supported(self) -> str:
        """The releases that work, in words."""
        return f'{self.packages[0]} {self.least} up to, not including, {self.below}'

    def installed(self) -> tuple[str, str] | None:
        """The name and version of the package that is here."""
        import importlib.metadata  # 20 ms, and most run files need none of it

        for name in self.packages:
            try:
                return name, importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                continue
        return None


CLIENTS = {
    # Older ones do not import beside protobuf 7 (W&B), or lack what Composer calls.
    'wandb': Client(('wandb',), '0.26', '0.32', 'rewarm[wandb]'),
    'mlflow': Client(('mlflow-skinny', 'mlflow'), '2.14.1', '4', 'rewarm[mlflow]'),
    'neptune': Client(('neptune',), '1.6.2', '2', 'neptune>=1.6.2,<2'),
    'comet_ml': Client(('comet_ml',), '3.43.2', '4', 'comet_ml>=3.43.2,<4'),
}


def is_local(name: str) -> bool:
    """Whether a logger writes on this machine alone."""
    return name not in CLIENTS


def check_client(name: str) -> None:
    """Checks that the package a logger needs is here, in a release that works.

    Args:
        name (str): The logger's, as in the run file.

    Raises:
        UserError: If not, with the command that installs it.
    """
    if (problem := missing_client(name) or odd_client(name)) is not None:
        raise UserError(problem)


def refuse_odd_clients(names: Iterable[str]) -> None:
    """Checks the releases that are installed here.

    Args:
        names (Iterable[str]): Loggers, as in the run file.

    Raises:
        UserError: If one does not work, with the command that installs one that does.
    """
    if found := [f'loggers.{name}: {problem}' for name in names if (problem := odd_client(name)) is not None]:
        raise UserError('\n'.join(found))


def missing_client(name: str) -> str | None:
    """What to install for a logger, in words; None if it needs nothing more."""
    client = CLIENTS.get(name)
    if client is None or client.installed() is not None:
        return None
    return f"{client.packages[0]} is not installed here. Run: pip install '{client.install}'"


def odd_client(name: str) -> str | None:
    """What is wrong with the release that is installed, in words; None if nothing is known to be."""
    client = CLIENTS.get(name)
    found = client and client.installed()
    if client is None or found is None or _release(found[1]) >= _release(client.least):
        return None
    return f"{found[0]} {found[1]} does not work here; {client.supported}, does. Run: pip install '{client.install}'"


def untried_client(name: str) -> str | None:
    """A warning about a release that is newer than those that were tried."""
    client = CLIENTS.get(name)
    found = client and client.installed()
    if client is None or found is None or _release(found[1]) < _release(client.below):
        return None
    return f"{found[0]} {found[1]} is newer than what was tried: {client.supported}. To have one of these: pip install '{client.install}'"


def wrong_type(kind: str, value: Any) -> bool:
    """Whether a value is none of a kind; a logger's default can be written as null where it is no number and no flag."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    match kind:
        case 'flag':
            return not isinstance(value, bool)
        case 'count':
            return not is_number or not isinstance(value, int) or not 0 < value < LARGEST_COUNT
        case 'number':
            return not is_number or not 0 < value < LARGEST_COUNT
        case 'text':
            return not isinstance(value, str | None)
        case 'texts':
            return value is not None and not (
                isinstance(value, list) and all(isinstance(each, str) for each in cast('list[Any]', value))
            )
        case _:
            return not isinstance(value, dict | None)


def _release(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r'[0-9]+', version.split('+')[0])[:3]))
