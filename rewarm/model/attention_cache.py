"""What trying attention kernels gave, kept on disk for the next start."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from rewarm.model.attention_trials import Trial, first_line

__all__ = ['cache_file', 'describe_conditions', 'recall_or_try']

_PROBE_VERSION = 1
"""Part of the key: raise it when what is tried or how it is called changes."""
_DISTRIBUTIONS = ('flash-attn-3', 'flash-attn-4')


def cache_file() -> Path:
    """Where measurements are kept: ``rewarm/attention.json`` in ``$XDG_CACHE_HOME``, by default ``~/.cache``."""
    return Path(os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')) / 'rewarm' / 'attention.json'


def recall_or_try(
    cache: Path | None, conditions: str, run: Callable[[], dict[str, Trial]]
) -> tuple[dict[str, Trial], str, list[str]]:
    """Gives what was measured under these conditions, at an earlier start or now; a cache that fails stops nobody.

    Args:
        cache (Path | None): The file; ``None``: measure now and keep nothing.
        conditions (str): What :func:`describe_conditions` says.
        run (Callable): Tries each candidate.

    Returns:
        tuple: Trial by backend, where they are from in words, and what was wrong with the cache.
    """
    kept, problems = ({}, []) if cache is None else _read(cache)
    if conditions in kept:
        return kept[conditions], f'as measured at an earlier start, from {cache}', problems
    trials, origin = run(), 'as measured now'
    # Memory that another process took may be free at the next start.
    if cache is None or any('out of memory' in (trial.out or '') for trial in trials.values()):
        return trials, origin, problems
    if failure := _write(cache, {**kept, conditions: trials}):
        return trials, origin, [*problems, failure]
    return trials, f'{origin} and kept in {cache}', problems


def describe_conditions(
    candidates: tuple[str, ...], device: torch.device, shape: tuple[int, int, int, int], dtype: torch.dtype
) -> str:
    """Everything that a measurement depends on, in one line that a person can read."""
    on_gpu = device.type == 'cuda'
    parts = [
        torch.cuda.get_device_name(device) if on_gpu else f'{platform.machine()}, {torch.get_num_threads()} threads',
        f'torch {torch.__version__}',
        f'cuDNN {torch.backends.cudnn.version() if on_gpu else None}',
        *(f'{name} {_version(name)}' for name in _DISTRIBUTIONS),
        f'{" x ".join(map(str, shape))} {str(dtype).removeprefix("torch.")}',
        ' '.join(candidates),
        f'deterministic {torch.are_deterministic_algorithms_enabled()}',
        f'probe {_PROBE_VERSION}',
    ]
    return ' | '.join(parts)


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _read(path: Path) -> tuple[dict[str, dict[str, Trial]], list[str]]:
    """What is kept, and what was wrong with it if it could not be read."""
    try:
        return {
            conditions: {name: _trial(**fields) for name, fields in trials.items()}
            for conditions, trials in json.loads(path.read_text())['trials'].items()
        }, []
    except FileNotFoundError:
        return {}, []
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        return {}, [f'{path} could not be read and was ignored ({type(error).__name__}: {first_line(error)})']


def _trial(milliseconds: float | None, repeats: bool, out: str | None) -> Trial:
    """From a file, in which anything may be."""
    return Trial(
        None if milliseconds is None else float(milliseconds), bool(repeats), None if out is None else str(out)
    )


def _write(path: Path, kept: Mapping[str, Mapping[str, Trial]]) -> str:
    """Writes all of it or nothing; returns what was wrong if it could not."""
    trials = {conditions: {name: vars(trial) for name, trial in each.items()} for conditions, each in kept.items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix='.attention-')
        with os.fdopen(handle, 'w') as file:
            json.dump({'trials': trials}, file, indent=1)
        os.replace(temporary, path)
    except OSError as error:
        return f'The measurement could not be kept in {path} ({first_line(error)})'
    return ''
