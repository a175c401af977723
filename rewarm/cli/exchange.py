"""Checkpoints to Hugging Face folders and back: ``rewarm export`` and ``rewarm import``."""

from pathlib import Path
from typing import Annotated

import typer

from rewarm import terminal

__all__ = ['export_checkpoint', 'import_checkpoint']


def export_checkpoint(
    checkpoint: Annotated[Path, typer.Argument(help='A checkpoint folder, such as runs/NAME/checkpoints/ba00001200.')],
    out: Annotated[Path, typer.Argument(help='The Hugging Face folder to write; must not exist.')],
    tokenizer: Annotated[
        str | None,
        typer.Option(help="tokenizer.json, its folder, or an id in the local cache. Default: the run file's."),
    ] = None,
) -> None:
    """Writes a checkpoint as a folder that transformers loads."""
    from rewarm.exchange import export_command

    print(export_command(checkpoint, out, tokenizer=tokenizer))


def import_checkpoint(
    source: Annotated[str, typer.Argument(help='A Hugging Face folder, or an id in the local cache.')],
    checkpoint: Annotated[Path, typer.Argument(help='The checkpoint folder to write; must not exist.')],
) -> None:
    """Makes a checkpoint of Hugging Face weights. For `init_from: checkpoint:FOLDER`; it holds no optimizer state."""
    from rewarm.exchange import import_command

    for note in import_command(source, checkpoint):
        print(terminal.printable(note))
    print(checkpoint)
