"""Checkpoints to Hugging Face folders and back: ``rewarm export`` and ``rewarm import``."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from rewarm import terminal
from rewarm.cli.arguments import AsJson, local_path
from rewarm.cli.output import print_json

__all__ = ['export_checkpoint', 'import_checkpoint']


def export_checkpoint(
    checkpoint: Annotated[
        str,
        typer.Argument(
            help='A checkpoint, or a run folder for its newest: such as runs/NAME, runs/NAME/checkpoints/ba00001200, '
            'runs/NAME/checkpoints/latest; also s3://.'
        ),
    ],
    out: Annotated[Path, typer.Argument(help='The Hugging Face folder to write; must not exist.', parser=local_path)],
    tokenizer: Annotated[
        str | None,
        typer.Option(help="tokenizer.json, its folder, or an id in the local cache. Default: the checkpoint's own."),
    ] = None,
    step: Annotated[
        str | None,
        typer.Option(help='Of a run folder: a batch such as 1200, latest, or all for a folder OUT/ba... of each.'),
    ] = None,
    dtype: Annotated[
        Literal['float32', 'bfloat16', 'float16'], typer.Option(help='How to store the weights; float32 loses nothing.')
    ] = 'float32',
    config: Annotated[
        Path | None,
        typer.Option(
            metavar='RUN.yaml',
            help='A run file of this model, for a checkpoint that an earlier version imported: it does not say its model.',
            parser=local_path,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Writes a checkpoint as a folder that transformers loads, with a model card."""
    from rewarm.exchange import export_command

    made = export_command(checkpoint, out, tokenizer=tokenizer, step=step, dtype=dtype, config=config)
    if as_json:
        folders = sorted(made.glob('ba*/')) if step == 'all' else [made]
        print_json({'checkpoint': terminal.printable(checkpoint), 'exported': [str(folder) for folder in folders]})
    else:
        print(made)


def import_checkpoint(
    source: Annotated[
        str, typer.Argument(help='A Hugging Face folder, an id in the local cache, or a GPT-NeoX checkpoint.')
    ],
    checkpoint: Annotated[
        Path, typer.Argument(help='The checkpoint folder to write; must not exist.', parser=local_path)
    ],
    as_json: AsJson = False,
) -> None:
    """Makes a checkpoint of weights from elsewhere. For `init_from: checkpoint:FOLDER`."""
    from rewarm.exchange import import_command

    notes = import_command(source, checkpoint)
    if as_json:
        print_json({'source': terminal.printable(source), 'checkpoint': str(checkpoint), 'notes': notes})
        return
    for note in notes:
        print(terminal.printable(note))
    print(checkpoint)
