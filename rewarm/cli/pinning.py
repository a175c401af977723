"""Checkpoints that no run deletes: ``rewarm pin``."""

from pathlib import Path
from typing import Annotated

import typer

from rewarm import terminal
from rewarm.cli.arguments import AsJson, RunFolder
from rewarm.cli.output import print_json
from rewarm.config.errors import UserError
from rewarm.formats.checkpoint import NAME

__all__ = ['pin']


def pin(
    run: RunFolder,
    checkpoint: Annotated[
        str | None,
        typer.Argument(metavar='CHECKPOINT', help='Such as ba00001200, 1200 or latest. Default: list what is pinned.'),
    ] = None,
    remove: Annotated[bool, typer.Option('--remove', help='Take the pin away.')] = False,
    as_json: AsJson = False,
) -> None:
    """Keeps a checkpoint from being deleted by its run, which may be going on. Without one: what is pinned."""
    from rewarm.resume.pins import find_pins, name_checkpoint

    if remove and checkpoint is None:
        raise UserError('--remove: name the checkpoint too, such as rewarm pin RUN_FOLDER ba00001200 --remove')
    copy = _copy_in_bucket(run)
    name = None if checkpoint is None else name_checkpoint(run, checkpoint)
    if name is not None:
        _change(run, name, copy, remove=remove)
    pinned = find_pins(run)
    if as_json:
        print_json({'run_folder': terminal.printable(run), 'checkpoint': name, 'pinned': pinned})
    elif name is not None:
        now = 'is not pinned any more' if remove else 'is pinned: no run deletes it'
        print(terminal.printable(f'{name} of {run} {now}.'))
    else:
        print('\n'.join(pinned) or terminal.printable(f'No checkpoint of {run} is pinned.'))


def _change(run: str, name: str, copy: str | None, *, remove: bool) -> None:
    """Pins or unpins in the folder, and in the bucket that it is the working copy of."""
    from rewarm.resume import pins

    if remove:
        pins.unpin(run, name)
        if copy is not None and name in pins.find_pins(copy):
            pins.unpin(copy, name)
    else:
        pins.pin(run, name)
        if copy is not None and pins.is_there(copy, name):  # else its upload takes the pin along
            pins.pin(copy, name)


def _copy_in_bucket(run: str) -> str | None:
    """Where the run of a folder has its bucket, if it has one.

    Raises:
        UserError: If it is no run folder.
    """
    from rewarm.buckets.bucket import is_bucket
    from rewarm.report.run_folder import read_run

    folder = Path(run)
    if NAME.fullmatch(folder.name) and folder.parent.name == 'checkpoints':
        top = run.rstrip('/').removesuffix(f'/checkpoints/{folder.name}')
        raise UserError(f'{run} is a checkpoint; name its run first: rewarm pin {top} {folder.name}')
    if is_bucket(run):
        return None
    written = read_run(run, last_batches=1).config.run_folder
    return written if written is not None and is_bucket(written) else None
