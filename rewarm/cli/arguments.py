"""Arguments that several commands have."""

import os
from pathlib import Path
from typing import Annotated

import typer

from rewarm.config.paths import is_url
from rewarm.config.secrets import without_secrets

__all__ = ['AsJson', 'Overrides', 'RunFile', 'RunFolder', 'complete_folders', 'complete_run_files', 'local_path']


def complete_run_files(incomplete: str) -> list[str]:
    """What a shell offers for a run file: YAML files, and the folders on the way to one."""
    return [path for path in _below(incomplete) if path.endswith(('.yaml', '.yml')) or os.path.isdir(path)]


def complete_folders(incomplete: str) -> list[str]:
    """What a shell offers for a run folder, or for one to write: folders."""
    return [path for path in _below(incomplete) if os.path.isdir(path)]


def _below(incomplete: str) -> list[str]:
    """Paths that begin as typed; folders end with a slash. Hidden ones are offered where a dot was typed."""
    folder, name = os.path.split(incomplete)
    try:
        with os.scandir(os.path.expanduser(folder) or '.') as entries:
            there = sorted((entry.name, entry.is_dir()) for entry in entries)
    except OSError:
        return []
    fitting = [each for each in there if each[0].startswith(name) and (name or not each[0].startswith('.'))]
    return [os.path.join(folder, name) + '/' * is_folder for name, is_folder in fitting]


def local_path(text: str | Path) -> Path:
    """Reads a path of this machine; every argument that a ``Path`` comes of is read by it, or it would garble a URL.

    Raises:
        typer.BadParameter: If it is a URL.
    """
    if is_url(str(text)):
        raise typer.BadParameter(
            f'{without_secrets(str(text))} is not on this machine; a file or folder here is needed'
        )
    return Path(os.path.expanduser(text))


RunFile = Annotated[
    Path,
    typer.Argument(
        metavar='RUN.yaml',
        help='The run file; `rewarm examples` writes complete ones.',
        autocompletion=complete_run_files,
        parser=local_path,
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar='[KEY=VALUE]...', help='Settings to override, such as stages.0.schedule.lr=1e-4.'),
]
RunFolder = Annotated[
    str,
    typer.Argument(
        metavar='RUN_FOLDER',
        help='A run folder, also s3://, of a run going on or not.',
        autocompletion=complete_folders,
    ),
]
AsJson = Annotated[bool, typer.Option('--json', help='Print JSON.')]
