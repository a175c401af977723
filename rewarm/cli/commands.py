"""All commands, in the order in which ``rewarm --help`` shows them."""

import sys
from typing import Annotated, NoReturn

import typer

from rewarm import __version__, terminal
from rewarm.cli.data import convert, verify
from rewarm.cli.demo import demo
from rewarm.cli.doctor import doctor
from rewarm.cli.examples import examples
from rewarm.cli.exchange import export_checkpoint, import_checkpoint
from rewarm.cli.failure import tell
from rewarm.cli.new import new
from rewarm.cli.pinning import pin
from rewarm.cli.planning import plan, ranks, schema
from rewarm.cli.training import train
from rewarm.cli.watching import report, runs, status
from rewarm.config.errors import UserError

__all__ = ['app', 'main']

app = typer.Typer(
    no_args_is_help=True,
    context_settings={'help_option_names': ['-h', '--help']},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for command in (demo, convert, new, plan, train, status, runs, report, pin, verify):
    app.command()(command)
app.command('export')(export_checkpoint)
app.command('import')(import_checkpoint)
for command in (ranks, schema, doctor, examples):
    app.command()(command)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f'rewarm {__version__}')
        raise typer.Exit


@app.callback()
def _options_of_all(
    version: Annotated[
        bool, typer.Option('--version', callback=_show_version, is_eager=True, help='Print the version and exit.')
    ] = False,
) -> None:
    """Continual pre-training that survives machines vanishing: convert text, plan a run, train it, report on it."""


def main() -> NoReturn:
    """Runs the command line; errors of the user's input are printed without a traceback and leave with code 2."""
    terminal.take_over()
    try:
        app(standalone_mode=True)
    except (UserError, terminal.OutputError) as error:
        sys.exit(tell(error))
    sys.exit(0)
