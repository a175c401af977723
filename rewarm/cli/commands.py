"""All commands, in the order in which ``rewarm --help`` shows them."""

import sys
from typing import NoReturn

import typer

from rewarm import terminal
from rewarm.cli.data import convert, verify
from rewarm.cli.doctor import doctor
from rewarm.cli.exchange import export_checkpoint, import_checkpoint
from rewarm.cli.failure import tell
from rewarm.cli.pinning import pin
from rewarm.cli.planning import plan, ranks, schema
from rewarm.cli.training import train
from rewarm.cli.watching import report, status
from rewarm.config.errors import UserError

__all__ = ['app', 'main']

app = typer.Typer(
    help='Continual pre-training that survives machines vanishing: convert text, plan a run, train it, report on it.',
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for command in (convert, plan, train, status, report, pin, verify):
    app.command()(command)
app.command('export')(export_checkpoint)
app.command('import')(import_checkpoint)
for command in (ranks, schema, doctor):
    app.command()(command)


def main() -> NoReturn:
    """Runs the command line; errors of the user's input are printed without a traceback and leave with code 2."""
    terminal.take_over()
    try:
        app(standalone_mode=True)
    except (UserError, terminal.OutputError) as error:
        sys.exit(tell(error))
    sys.exit(0)
