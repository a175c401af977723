"""``rewarm examples``: the run files and launch recipes that come with the package."""

from pathlib import Path
from typing import Annotated

import typer

from rewarm.cli.arguments import complete_folders, local_path

__all__ = ['examples']


def examples(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar='DIR', help='The folder to write to.', autocompletion=complete_folders, parser=local_path
        ),
    ],
) -> None:
    """Writes complete run files (yamls/) and launch recipes (scripts/launch/) into a folder. Nothing is overwritten."""
    from rewarm.shipped import write_shipped

    written = write_shipped(folder)
    longest = max(len(str(path)) for path, _ in written)
    for path, what in written:
        print(f'{path!s:{longest}}  {what}')
