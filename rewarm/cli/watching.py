"""What became of runs: ``rewarm report`` and ``rewarm status``."""

from pathlib import Path
from typing import Annotated

import typer

from rewarm.cli.arguments import AsJson, RunFolder, local_path

Price = Annotated[float | None, typer.Option(min=0, max=1e12, help='Price of one GPU for an hour, for the cost.')]
Watch = Annotated[
    bool, typer.Option('--watch', help='Go on showing it, until Ctrl-C; in a pipe a block for each change.')
]
Every = Annotated[
    float | None, typer.Option(metavar='SECONDS', help='The same, so often. Default: 5 s, in a bucket 60 s.')
]

__all__ = ['report', 'runs', 'status']


def report(
    runs: Annotated[
        list[str], typer.Argument(metavar='RUN_FOLDER...', help='Run folders, also s3://; several are compared.')
    ],
    out: Annotated[Path, typer.Option(metavar='FILE', help='The page to write.', parser=local_path)] = Path(
        'report.html'
    ),
    price: Price = None,
    opening: Annotated[bool, typer.Option('--open', help='Show the page in a browser, if there is one.')] = False,
    as_json: AsJson = False,
) -> None:
    """Writes one self-contained HTML page about a run. Losses, rates, forgetting, recovery, preemptions, cost, what ran."""
    from rewarm.report.show_report import report_command

    report_command(runs, out, price=price, as_json=as_json, opening=opening)


def status(
    run: RunFolder,
    watch: Watch = False,
    every: Every = None,
    price: Price = None,
    as_json: AsJson = False,
) -> None:
    """Says where a run is. Who holds it, its last save, stops and goodput, when it ends, and what a start would do."""
    from rewarm.report.show_status import status_command

    status_command(run, as_json=as_json, price=price, watching=watch or every is not None, every=every)


def runs(
    folder: Annotated[
        str, typer.Argument(metavar='FOLDER', help='Where run folders are, also s3://BUCKET/PREFIX.')
    ] = 'runs',
    watch: Watch = False,
    every: Every = None,
    as_json: AsJson = False,
) -> None:
    """Lists runs, a line each. State, stage, batch, losses, last sign of life, and what needs attention."""
    from rewarm.report.show_runs import runs_command

    runs_command(folder, as_json=as_json, watching=watch or every is not None, every=every)
