"""Checkpoints to Hugging Face folders and back: ``rewarm export`` and ``rewarm import``."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from rewarm.config.errors import UserError
from rewarm.config.load import load
from rewarm.data.tokens import find_tokenizer
from rewarm.model.weight_files import read_tensors
from rewarm.model.weights import export_hf, import_hf
from rewarm.resume.checkpoint import open_checkpoint, write
from rewarm.resume.state import state_without_training

__all__ = ['export_command', 'import_command']


def export_command(checkpoint: Path, out: Path, *, tokenizer: str | None = None) -> Path:
    """Writes a checkpoint as a folder that transformers loads.

    Args:
        checkpoint (Path): A checkpoint in its run folder, which says model and tokenizer.
        out (Path): The folder to make.
        tokenizer (str | None): Instead of the run file's, whose path may be relative to another folder.

    Returns:
        Path: ``out``.

    Raises:
        UserError: If the checkpoint is damaged, the tokenizer is not there or does not fit, or ``out`` cannot be written.
    """
    if not (checkpoint / 'manifest.json').is_file() and (words := _which_checkpoint(checkpoint)) is not None:
        raise UserError(words)
    opened = open_checkpoint(checkpoint)
    run_file = checkpoint.resolve().parent.parent / 'config.yaml'
    if not run_file.is_file():
        raise UserError(
            f'{run_file} does not exist, and it says what model {checkpoint} is of: name the checkpoint where its run made '
            "it, RUN/checkpoints/ba..., or copy the run's config.yaml there"
        )
    config = load(run_file, world_size=1)
    try:
        found = find_tokenizer(tokenizer or config.tokenizer)
    except UserError as error:
        if tokenizer:
            raise
        raise UserError(f'{error}\nThe run file names it; if it lies elsewhere now: --tokenizer PATH') from None
    with _written(out):
        return export_hf(
            dict(read_tensors(opened.model_file)),
            shape=config.model.shape,
            gelu=config.model.gelu,
            tokenizer_path=found,
            out_dir=out,
        )


def import_command(source: str, checkpoint: Path) -> tuple[str, ...]:
    """Makes a checkpoint of Hugging Face weights, without optimizer state.

    Args:
        source (str): A Hugging Face folder, or an id in the local cache.
        checkpoint (Path): The folder to make.

    Returns:
        tuple[str, ...]: What a user may want to know, a sentence each.

    Raises:
        UserError: If the folder holds no Pythia, or ``checkpoint`` is there or cannot be written.
    """
    if os.path.lexists(checkpoint):
        raise UserError(f'{checkpoint} exists already; name a new folder')
    model, imported = import_hf(source)
    with _written(checkpoint):
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=checkpoint.parent) as folder:
            written = write(
                Path(folder), batch=0, model=model.state_dict(), optimizer={}, state=state_without_training(source)
            )
            written.rename(checkpoint)
    return imported.notes


def _which_checkpoint(path: Path) -> str | None:
    """For a run folder, its ``checkpoints`` or the file ``latest``: which checkpoints there are to name."""
    if path.is_file():
        folder = path.parent
    else:
        folder = next((each for each in (path / 'checkpoints', path) if each.is_dir()), path)
    names = sorted(each.parent.name for each in folder.glob('ba*/manifest.json'))
    return f'{path} is no checkpoint; name one of {folder}: {", ".join(names[-3:])}' if names else None


@contextlib.contextmanager
def _written(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f'{error.filename or folder}: cannot be written ({error.strerror or error})') from error
