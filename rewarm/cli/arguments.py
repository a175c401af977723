"""Arguments that several commands have."""

from pathlib import Path
from typing import Annotated

import typer

__all__ = ['AsJson', 'Overrides', 'RunFile', 'RunFolder']

RunFile = Annotated[Path, typer.Argument(metavar='RUN.yaml', help='The run file; see yamls/ for complete examples.')]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar='[KEY=VALUE]...', help='Settings to override, such as stages.0.schedule.lr=1e-4.'),
]
RunFolder = Annotated[
    str, typer.Argument(metavar='RUN_FOLDER', help='A run folder, also s3://, of a run going on or not.')
]
AsJson = Annotated[bool, typer.Option('--json', help='Print JSON.')]
