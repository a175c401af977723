"""``rewarm new``: writes a run file for the user's data, by asking or from options."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from rewarm import terminal
from rewarm.cli.arguments import complete_folders
from rewarm.config.errors import UserError

__all__ = ['new']

EXIT_STOPPED = 130


def new(
    name: Annotated[str, typer.Argument(metavar='NAME', help='Name of the run; NAME.yaml is written here.')],
    data: Annotated[
        list[str] | None,
        typer.Option(
            metavar='[NAME=]DIR',
            help='New data: what `rewarm convert` wrote, or s3://. Several are mixed by size.',
            autocompletion=complete_folders,
        ),
    ] = None,
    replay: Annotated[
        list[str] | None,
        typer.Option(metavar='[NAME=]DIR[:SHARE]', help='Old data to mix in, such as pile=data/pile:0.05.'),
    ] = None,
    evals: Annotated[
        list[str] | None,
        typer.Option('--eval', metavar='[NAME=]DIR:ROLE', help='Validation data, ROLE old or new. DIR/val is found.'),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help='pythia-14m to pythia-1.4b, a Hugging Face folder or id, or checkpoint:PATH.'),
    ] = None,
    budget: Annotated[
        str | None, typer.Option(help='10Btok, 5000ba, or 2ep: passes over the new data. Default: 1ep.')
    ] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate. Default: pre-training's.")] = None,
    curve: Annotated[
        str, typer.Option(help='Its curve: constant, linear, cosine, neox_clipped_cosine or wsd.')
    ] = 'cosine',
    gpus: Annotated[int | None, typer.Option(min=1, max=100_000, help='GPUs it will run on. Default: 1.')] = None,
    global_batch_size: Annotated[
        int | None,
        typer.Option(min=1, help='Sequences in a step. Default: 2 million tokens, or what gives 1,000 steps.'),
    ] = None,
    seq_len: Annotated[int | None, typer.Option(min=1, help='For data that does not say its own.')] = None,
    tokenizer: Annotated[str | None, typer.Option(help="Default: the model's.")] = None,
    run_folder: Annotated[str, typer.Option(help='Where the run writes: a folder or s3://.')] = 'runs/${run_name}',
    force: Annotated[bool, typer.Option('--force', help='Replace NAME.yaml if it is there.')] = False,
) -> None:
    """Writes a run file for your data. Asks, in a terminal, for what is not given."""
    from rewarm.new.answers import Answers
    from rewarm.new.ask import ask
    from rewarm.new.request import check_name
    from rewarm.new.write import draft, publish, refuse_to_overwrite

    name = check_name(name.removesuffix('.yaml'))
    given = Answers(
        name=name,
        data=data,
        replay=replay,
        evals=evals,
        model=model,
        budget=budget,
        lr=lr,
        curve=curve,
        gpus=gpus,
        global_batch_size=global_batch_size,
        seq_len=seq_len,
        tokenizer=tokenizer,
        run_folder=run_folder,
    )
    path = Path(f'{name}.yaml')
    if not force:
        refuse_to_overwrite(path)
    if not (data and model):
        if not sys.stdin.isatty():
            raise UserError(
                f'rewarm new {name} needs at least --data DIR (what `rewarm convert` wrote) and --model, such as '
                '--model pythia-410m; rewarm new -h names the rest. In a terminal it asks'
            )
        try:
            given = ask(given)
        except (typer.Abort, KeyboardInterrupt):
            print('\nStopped. Nothing is written.', file=sys.stderr)
            raise typer.Exit(EXIT_STOPPED) from None
    ready = draft(given.request())
    publish(ready, path, force=force)
    for line in ready.say(path):
        print(terminal.printable(line))
