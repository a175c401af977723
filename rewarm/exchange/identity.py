"""What a checkpoint is of: its model's shape and its tokenizer, by its own word, its run's, or the user's."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from rewarm.config.errors import DamagedFile, UserError
from rewarm.config.schema import RunConfig
from rewarm.config.shapes import ModelShape
from rewarm.data.tokens import find_tokenizer
from rewarm.exchange.source import Source
from rewarm.formats.saved_model import read_saved_model
from rewarm.formats.tokenizer import tokenizer_hash
from rewarm.formats.tokenizer_folder import RUN_TOKENIZER, TOKENIZER_FILE
from rewarm.model.pythia import shape_problem

__all__ = ['find_model', 'find_own_tokenizer']


def find_model(source: Source, settings: RunConfig | None) -> tuple[ModelShape, Literal['tanh', 'erf']]:
    """The model's shape and activation.

    Args:
        source (Source): The checkpoint.
        settings (RunConfig | None): Its run's; for weights that an earlier version has imported, which do not say it.

    Raises:
        UserError: If nothing says it, or it is no model that is computed here.
    """
    saved = read_saved_model(source.checkpoint.path, source.checkpoint.saved)
    if saved is not None:
        shape = ModelShape(**saved.shape)
        if (problem := shape_problem(shape)) is not None:
            raise DamagedFile(source.place, place='state.json', what=problem)
        return shape, saved.gelu
    if settings is not None:
        return settings.model.shape, settings.model.gelu
    raise UserError(
        f'{source.place} does not say what model it is of: an earlier version wrote it. Name a run file of this model with '
        '--config RUN.yaml'
    )


def find_own_tokenizer(source: Source, settings: RunConfig | None, named: str | None) -> tuple[Path, str | None]:
    """The tokenizer of a checkpoint's data.

    Args:
        source (Source): The checkpoint.
        settings (RunConfig | None): Its run's.
        named (str | None): The one that the user names.

    Returns:
        tuple[Path, str | None]: Its ``tokenizer.json``, and what the user may want to know of it.

    Raises:
        UserError: If it is nowhere.
    """
    began = source.checkpoint.saved.tokenizer_hash
    if named is not None:
        path = find_tokenizer(named)
        own = began or _hash_of(source.checkpoint.path / TOKENIZER_FILE) or _hash_of(_of_run(source))
        return path, _difference(path, named, own)
    for path in (source.checkpoint.path / TOKENIZER_FILE, _of_run(source)):
        if path is not None and path.is_file() and began in (None, tokenizer_hash(path)):
            return path, None
    if settings is None:
        raise UserError(
            f'{source.place} holds no tokenizer, and no run folder is around it. Name it with --tokenizer PATH'
        )
    try:
        path = find_tokenizer(settings.tokenizer)
    except UserError as error:
        raise UserError(f'{error}\nThe run file names it; if it lies elsewhere now: --tokenizer PATH') from None
    if (problem := _difference(path, settings.tokenizer, began)) is not None:
        raise UserError(f'{problem}. Name the right one with --tokenizer PATH')
    return path, None


def _of_run(source: Source) -> Path | None:
    return None if source.run is None else source.run / RUN_TOKENIZER / TOKENIZER_FILE


def _hash_of(path: Path | None) -> str | None:
    return tokenizer_hash(path) if path is not None and path.is_file() else None


def _difference(path: Path, named: str, began: str | None) -> str | None:
    now = tokenizer_hash(path)
    if began is None or now == began:
        return None
    return (
        f"{named} is another tokenizer ({now[:19]}...) than that of the checkpoint's training data ({began[:19]}...): the "
        'model reads its tokens as other ones'
    )
