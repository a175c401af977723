"""``rewarm demo``: forgetting and recovery on real text, without a GPU or a download."""

from pathlib import Path
from typing import Annotated

import typer

from rewarm.cli.arguments import complete_folders, local_path

__all__ = ['demo']


def demo(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar='[DIR]',
            help='The folder that everything goes into.',
            autocompletion=complete_folders,
            parser=local_path,
        ),
    ] = Path('rewarm-demo'),
    full: Annotated[
        bool, typer.Option('--full', help='All five runs instead of the two-stage run alone: 5 minutes.')
    ] = False,
    figure: Annotated[
        Path | None,
        typer.Option(metavar='FILE', help="Also draw the README's figure (.svg or .png).", parser=local_path),
    ] = None,
) -> None:
    """Shows forgetting and recovery on a CPU core in two minutes. Text of this Python's own library, a real SIGTERM, a report."""
    from rewarm.demo.run import run_demo

    run_demo(folder, full=full, figure=figure)
