"""Checkpoints to folders that `transformers` loads: ``rewarm export``."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from tqdm import tqdm

from rewarm.config.errors import UserError
from rewarm.exchange.identity import find_model, find_own_tokenizer
from rewarm.exchange.model_card import write_card
from rewarm.exchange.places import told
from rewarm.exchange.source import list_checkpoints, open_source
from rewarm.model.export import DType, export_hf
from rewarm.model.weight_files import read_tensors
from rewarm.terminal import printable

__all__ = ['export_command']


def export_command(
    checkpoint: str | Path,
    out: Path,
    *,
    tokenizer: str | None = None,
    step: str | None = None,
    dtype: DType = 'float32',
    config: Path | None = None,
) -> Path:
    """Writes a checkpoint, or each of a run, as a folder that transformers loads.

    Args:
        checkpoint (str | Path): A checkpoint, or a run folder; here or in a bucket.
        out (Path): The folder to make; with ``step='all'``, one that has a folder for each checkpoint.
        tokenizer (str | None): Instead of its own.
        step (str | None): Which checkpoint of a run: its batch, its name, ``latest`` or ``all``. Default: the newest.
        dtype (str): How to store the weights.
        config (Path | None): The run file, for a checkpoint that does not say what model it is of.

    Returns:
        Path: ``out``.

    Raises:
        UserError: If the checkpoint is damaged, its model or tokenizer is not known, the tokenizer does not fit, or
            ``out`` cannot be written.
    """
    place = str(checkpoint)
    places = [place] if step is None else list_checkpoints(place, step)
    if step != 'all':
        _export(places[0], out, tokenizer, dtype, config)
        return out
    there = [each for each in places if (out / _name(each) / 'config.json').is_file()]
    for each in there:
        _say(f'{out / _name(each)} is there already and stays as it is')
    for each in tqdm([each for each in places if each not in there], desc='export', unit='checkpoint', disable=None):
        _export(each, out / _name(each), tokenizer, dtype, config)
    return out


def _export(place: str, out: Path, tokenizer: str | None, dtype: DType, config: Path | None) -> None:
    if os.path.lexists(out):
        raise UserError(f'{out} exists already; remove it, or write another folder')
    with open_source(place, optimizer=False) as source:
        settings = source.settings(config)
        shape, gelu = find_model(source, settings)
        path, note = find_own_tokenizer(source, settings, tokenizer)
        if note is not None:
            _say(f'warning: {note}')
        card = write_card(source, settings, shape, dtype)
        weights = dict(read_tensors(source.checkpoint.model_file))
        with told(out):
            export_hf(weights, shape=shape, gelu=gelu, tokenizer_path=path, out_dir=out, dtype=dtype, card=card)


def _name(place: str) -> str:
    return place.rpartition('/')[2]


def _say(text: str) -> None:
    tqdm.write(printable(text), file=sys.stderr)
