"""Weights from elsewhere to a checkpoint: ``rewarm import``."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

from torch import Tensor

from rewarm.config.errors import UserError
from rewarm.config.shapes import ModelShape
from rewarm.exchange.places import told
from rewarm.formats.tokenizer_folder import TOKENIZER_FILE, TokenizerFiles, read_tokenizer_files
from rewarm.model.base import Base, find_base
from rewarm.model.neox_checkpoint import read_neox_checkpoint
from rewarm.model.neox_files import find_neox_files
from rewarm.model.weights import find_hf_folder, import_hf
from rewarm.resume.checkpoint import write
from rewarm.resume.state import state_without_training

__all__ = ['import_command']


@dataclass(frozen=True)
class Imported:
    """What a source holds: all that a checkpoint without training has."""

    shape: ModelShape
    gelu: Literal['tanh', 'erf']
    model: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]
    """AdamW's, as checkpoints have it; empty if the source has none."""
    tokenizer: TokenizerFiles | None
    base: Base
    notes: tuple[str, ...]


def import_command(source: str, checkpoint: str | Path) -> tuple[str, ...]:
    """Makes a checkpoint of weights from elsewhere.

    Args:
        source (str): A Hugging Face folder, an id in the local cache, or the folder of a GPT-NeoX checkpoint, whose
            optimizer state comes along.
        checkpoint (str | Path): The folder to make.

    Returns:
        tuple[str, ...]: What a user may want to know, a sentence each.

    Raises:
        UserError: If the source holds no Pythia, or ``checkpoint`` is there or cannot be written.
    """
    target = Path(checkpoint)
    if os.path.lexists(target):
        raise UserError(f'{target} exists already; name a new folder')
    read = _read(source)
    state = state_without_training(source) | {
        'model': {'gelu': read.gelu, **dataclasses.asdict(read.shape)},
        'base': read.base.to_json(),
    }
    with told(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            written = write(
                Path(folder), batch=0, model=read.model, optimizer=read.optimizer, state=state, tokenizer=read.tokenizer
            )
            written.rename(target)
    return read.notes


def _read(source: str) -> Imported:
    folder = find_hf_folder(source)
    tokenizer, notes = _read_tokenizer(folder)
    base = find_base(source, folder)
    if (files := find_neox_files(folder)) is not None:
        neox = read_neox_checkpoint(files)
        if not neox.optimizer:
            notes = (*notes, f'{folder} holds no optimizer state, so neither does the checkpoint')
        return Imported(neox.shape, neox.gelu, neox.model, neox.optimizer, tokenizer, base, notes)
    model, imported = import_hf(str(folder))
    gelu = cast("Literal['tanh', 'erf']", model.gelu)
    weights = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    return Imported(model.shape, gelu, weights, {}, tokenizer, base, (*notes, *imported.notes))


def _read_tokenizer(folder: Path) -> tuple[TokenizerFiles | None, tuple[str, ...]]:
    if (folder / TOKENIZER_FILE).exists():
        return read_tokenizer_files(folder / TOKENIZER_FILE), ()
    return None, (f'{folder} holds no {TOKENIZER_FILE}, so the checkpoint has none: `rewarm export` will ask for it',)
