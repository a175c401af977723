"""What became of runs: ``rewarm report`` and ``rewarm status``."""

from pathlib import Path
from typing import Annotated

import typer

from rewarm.cli.arguments import AsJson, RunFolder

Price = Annotated[float | None, typer.Option(min=0, max=1e12, help='Price of one GPU for an hour, for the cost.')]

__all__ = ['report', 'status']


def report(
    runs: Annotated[
        list[str], typer.Argument(metavar='RUN_FOLDER...', help='Run folders, also s3://; several are compared.')
    ],
    out: Annotated[Path, typer.Option(help='The page to write.')] = Path('report.html'),
    price: Price = None,
) -> None:
    """Writes one self-contained HTML page about a run. Losses, rates, forgetting, recovery, preemptions, cost, what ran."""
    from rewarm.report.page import write_page

    print(write_page(runs, out, price=price))


def status(
    run: RunFolder,
    price: Price = None,
    as_json: AsJson = False,
) -> None:
    """Says where a run is. Who holds it, its last save, stops and goodput, when it ends, and what a start would do."""
    from rewarm.report.show_status import status_command

    status_command(run, as_json=as_json, price=price)
