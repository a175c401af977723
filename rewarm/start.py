"""What a start writes, says and agrees on before the first batch."""

import functools
import importlib.metadata
import json
import platform
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from composer.devices import Device
from composer.utils import dist
from tqdm import tqdm

from rewarm import terminal
from rewarm.checkout import find_commit
from rewarm.config.errors import UserError, disk_error
from rewarm.config.load import dump
from rewarm.config.plan import Plan
from rewarm.config.schema import RunConfig
from rewarm.config.secrets import redacted
from rewarm.formats.files import write_whole
from rewarm.terminal import printable

__all__ = [
    'VERSIONS_OF',
    'announce',
    'announce_alone',
    'on_each_node',
    'on_rank_zero',
    'version_of',
    'warn',
    'write_start_files',
]

VERSIONS_OF = ('rewarm', 'torch', 'triton', 'mosaicml', 'mosaicml-streaming', 'transformers', 'tokenizers', 'numpy')

Result = TypeVar('Result')


def announce(text: str) -> None:
    """Says something once, on rank 0's standard error, above a progress bar if there is one."""
    if dist.get_global_rank() == 0:
        tqdm.write(printable(text), file=sys.stderr)


def announce_alone(text: str) -> None:
    """Says what a rank found alone: on any of them, with its number if it is not rank 0."""
    if (rank := dist.get_global_rank()) == 0:
        announce(text)
    else:
        terminal.say(f'rank {rank}: {text}')


@functools.cache
def warn(text: str) -> None:
    """Warns as ``rewarm plan`` does; once in a process, however often the run goes back."""
    announce(f'warning: {text}')


def on_rank_zero(function: Callable[[], Result]) -> Result:
    """Runs a function on global rank 0 and gives its result, or its UserError, to every rank.

    Returns:
        Result: What it returned; must pickle.

    Raises:
        UserError: On every rank, so that all leave with the same code; for a disk that fails too.
    """
    outcome: list[Any] = [None]
    if dist.get_global_rank() == 0:
        outcome = [_attempt(function)]
    dist.broadcast_object_list(outcome, src=0)
    value, problem = outcome[0]
    if problem is not None:
        raise UserError(problem)
    return value


def on_each_node(function: Callable[[], object]) -> None:
    """Runs a function on one rank of each node.

    Raises:
        UserError: On every rank, with what the first node that failed says.
    """
    problem = _attempt(function)[1] if dist.get_local_rank() == 0 else None
    if problems := [each for each in dist.all_gather_object(problem) if each is not None]:
        raise UserError(problems[0])


def _attempt(function: Callable[[], Result]) -> tuple[Result | None, str | None]:
    """The function's result, or what the user has to know."""
    try:
        return function(), None
    except UserError as error:
        return None, str(error)
    except OSError as error:
        words = disk_error(error, 'the disk')
        if words is None:
            raise
        return None, str(words)


def write_start_files(folder: Path, config: RunConfig, plan: Plan, device: Device) -> None:
    """Writes ``config.yaml`` (as resolved), ``plan.json`` and ``environment.json``, each whole or not at all."""
    environment = {
        'versions': {name: version_of(name) for name in VERSIONS_OF},
        'python': platform.python_version(),
        'host': socket.gethostname(),
        'device': torch.cuda.get_device_name() if device.name == 'gpu' else platform.processor() or platform.machine(),
        'device_kind': device.name,
        'world_size': dist.get_world_size(),
        'threads': torch.get_num_threads(),
        'command': redacted(sys.argv),
        'commit': find_commit(),
    }
    texts = {
        'config.yaml': dump(config),
        'plan.json': json.dumps(plan.to_json(), indent=1),
        'environment.json': json.dumps(environment, indent=1),
    }
    for name, text in texts.items():
        write_whole(folder / name, text.encode())


def version_of(package: str) -> str | None:
    """The installed version of a package, or ``None``."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
