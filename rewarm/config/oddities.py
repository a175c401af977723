"""Settings that can be run and that hardly anybody means: a slip of the pen, shown by ``rewarm plan`` and when training starts."""

import os
from collections.abc import Iterator
from typing import Any

from rewarm.config.data_cards import local_folder
from rewarm.config.limits import places
from rewarm.config.located import dotted
from rewarm.config.loggers import missing_client, untried_client
from rewarm.config.paths import is_url
from rewarm.config.schema import RunConfig
from rewarm.config.secrets import REDACTED, is_secret_name, without_secrets
from rewarm.formats.shards import INDEX_NAME
from rewarm.formats.tokenizer_files import is_in_hub_cache

LARGEST_RATE = 1.0
"""AdamW moves each weight by about the rate in a batch, and weights are about 0.02."""

LARGEST_EPS = 1e-3
LARGEST_WEIGHT_DECAY = 1.0
SMALLEST_GRAD_NORM, LARGEST_GRAD_NORM = 1e-4, 1000.0
WORKERS_PER_CORE = 4

SECRET_VARIABLES = {
    'wandb': '`WANDB_API_KEY`',
    'neptune': '`NEPTUNE_API_TOKEN`',
    'comet_ml': '`COMET_API_KEY`',
    'mlflow': '`MLFLOW_TRACKING_USERNAME` and `MLFLOW_TRACKING_PASSWORD`, or `MLFLOW_TRACKING_TOKEN`',
}
"""The variables that each logger reads its secret from."""


def find_oddities(config: RunConfig) -> Iterator[str]:
    """Finds what is allowed and is probably a slip.

    Args:
        config (RunConfig): The settings.

    Yields:
        str: A warning, with what is usual.
    """
    yield from _odd_training(config)
    yield from _odd_workers(config)
    for name, arguments in config.loggers.items():
        if problem := untried_client(name):
            yield f'`loggers.{name}`: {problem}'
        for key in _secrets(arguments, ''):
            where = SECRET_VARIABLES.get(name, 'an environment variable that the logger reads')
            yield f'`loggers.{name}.{key}` is a secret in the run file. Put it into {where}, and remove it there'


def find_missing(config: RunConfig) -> Iterator[str]:
    """Finds what a run needs and is not on this machine: paths that it would read, and clients of its loggers.

    Args:
        config (RunConfig): The settings.

    Yields:
        str: A warning.
    """
    read = [(f'{dotted(at)}.local', each.local) for at, each in places(config) if each.remote is None]
    read += [(f'{dotted(at)}.remote', each.remote) for at, each in places(config)]
    kind, _, source = config.model.init_from.partition(':')
    read.append(('tokenizer', config.tokenizer if is_path(config.tokenizer) else None))
    read.append(('model.init_from', source if kind == 'checkpoint' or is_path(source) else None))
    for key, path in read:
        if path and not is_url(path) and not os.path.exists(path):
            yield f'`{key}`: {path} is not on this machine; it must be where the run is started'
    yield from _missing_datasets(config)
    for name in config.loggers:
        if problem := missing_client(name):
            yield f'`loggers.{name}`: {problem}'
    for key, model_id in (('tokenizer', config.tokenizer), ('model.init_from', source if kind == 'hf' else '')):
        if model_id and not is_path(model_id) and not os.path.exists(model_id) and not is_in_hub_cache(model_id):
            command = f'hf download {model_id}' + (
                ' tokenizer.json tokenizer_config.json' if key == 'tokenizer' else ''
            )
            yield f"`{key}`: {model_id} is not in this machine's Hugging Face cache; where the run is started: {command}"


def _missing_datasets(config: RunConfig) -> Iterator[str]:
    """Folders that are there and hold no dataset, such as the one above ``train`` and ``val``."""
    for at, item in places(config):
        if item.local is not None and item.remote is not None:
            continue  # a cache, which may be empty
        folder = local_folder(item)
        if folder is not None and not (folder / INDEX_NAME).exists():
            below = sorted(path.parent.name for path in folder.glob(f'*/{INDEX_NAME}'))
            hint = f'; it has {", ".join(below[:5])} below: name one of them' if below else ''
            yield f'`{dotted(at)}`: {folder} holds no dataset (no {INDEX_NAME}){hint}'


def _odd_training(config: RunConfig) -> Iterator[str]:
    for stage in config.stages:
        if isinstance(stage.schedule.lr, float) and stage.schedule.lr > LARGEST_RATE:
            yield (
                f'stage `{stage.name}`: `schedule.lr` is {stage.schedule.lr:g}; learning rates of AdamW are around 3.0e-4, '
                f'and above {LARGEST_RATE:g} nothing is learnt'
            )
    optimizer = config.optimizer
    if optimizer.eps > LARGEST_EPS:
        yield f'`optimizer.eps` is {optimizer.eps:g}; 1.0e-8 is usual, and above {LARGEST_EPS:g} small gradients move nothing'
    if optimizer.weight_decay > LARGEST_WEIGHT_DECAY:
        yield f'`optimizer.weight_decay` is {optimizer.weight_decay:g}; 0.1 is usual, and it is multiplied with the rate'
    if config.max_grad_norm > LARGEST_GRAD_NORM:
        yield f'`max_grad_norm` is {config.max_grad_norm:g}; 1.0 is usual, and above {LARGEST_GRAD_NORM:g} nothing is clipped'
    if config.max_grad_norm < SMALLEST_GRAD_NORM:
        yield f'`max_grad_norm` is {config.max_grad_norm:g}; 1.0 is usual, and below {SMALLEST_GRAD_NORM:g} nothing is learnt'


def _odd_workers(config: RunConfig) -> Iterator[str]:
    text = os.environ.get('LOCAL_WORLD_SIZE', '1')
    ranks = int(text) if text.isascii() and text.isdecimal() and len(text) < 6 else 1
    cores = os.cpu_count() or 1
    if config.data.num_workers * max(1, ranks) > WORKERS_PER_CORE * cores:
        each = f' on each of {ranks} ranks' if ranks > 1 else ''
        yield (
            f'`data.num_workers` is {config.data.num_workers}{each}, and this machine has {cores} cores: more than '
            f'{WORKERS_PER_CORE} loader processes a core only wait for each other'
        )


def _secrets(arguments: Any, way: str) -> Iterator[str]:
    """The dotted keys of a logger's arguments that hold a secret."""
    items: list[tuple[str, Any]] = []
    if isinstance(arguments, dict):
        items = [(str(key), item) for key, item in arguments.items()]  # pyright: ignore
    elif isinstance(arguments, list):
        items = [(str(index), item) for index, item in enumerate(arguments)]  # pyright: ignore
    for key, item in items:
        here = f'{way}.{key}' if way else key
        if isinstance(item, dict | list):
            yield from _secrets(item, here)
        elif item not in (None, '', True, False) and REDACTED not in str(item):
            if is_secret_name(here) or without_secrets(str(item)) != str(item):
                yield here


def is_path(text: str) -> bool:
    """Whether this can only be a path, and no Hugging Face id."""
    return text.startswith(('/', './', '../')) or text.endswith('.json') or text.count('/') > 1
