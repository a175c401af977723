"""Weights to a folder that `transformers` loads, with equal logits."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from rewarm.config.errors import UserError
from rewarm.config.shapes import ModelShape
from rewarm.formats.tokenizer import read_tokenizer_file
from rewarm.formats.tokenizer_folder import (
    CONFIG_FILE,
    TOKENIZER_FILE,
    read_settings,
    read_special_tokens,
    read_tokenizer_files,
)
from rewarm.model.pythia import Pythia
from rewarm.model.weight_files import listed

__all__ = ['DTYPES', 'DType', 'export_hf']

DType = Literal['float32', 'bfloat16', 'float16']

DTYPES: dict[DType, torch.dtype] = {
    'float32': torch.float32,
    'bfloat16': torch.bfloat16,
    'float16': torch.float16,
}
"""How weights can be stored."""

_HIDDEN_ACT = {'erf': 'gelu', 'tanh': 'gelu_pytorch_tanh'}
"""What `transformers` 4.53 and 5 both know and compute with PyTorch's own GELU."""

_KEPT_SETTINGS = {'clean_up_tokenization_spaces': bool, 'padding_side': str, 'truncation_side': str}
"""Of a ``tokenizer_config.json``; all else in it may name code, or is about the class that made it."""


def export_hf(
    state_dict: Mapping[str, Tensor],
    *,
    shape: ModelShape,
    gelu: Literal['tanh', 'erf'],
    tokenizer_path: Path,
    out_dir: Path,
    dtype: DType = 'float32',
    card: str | None = None,
) -> Path:
    """Writes a folder that ``transformers``' ``AutoModelForCausalLM`` and ``AutoTokenizer`` load, with equal logits.

    ``hidden_act`` says the activation that the model was trained with here, so a model trained with ``gelu: tanh`` is
    evaluated with it too (EleutherAI's own folders say ``gelu``, the exact one).

    Args:
        state_dict (Mapping[str, Tensor]): A :class:`Pythia`'s ``state_dict()``, or the ``model.safetensors`` of a checkpoint.
        shape (ModelShape): Its shape.
        gelu (str): ``tanh`` or ``erf``.
        tokenizer_path (Path): The ``tokenizer.json`` of the training data; what lies beside it says which tokens are special.
        out_dir (Path): The folder to make; it appears when it is complete.
        dtype (str): How to store the weights; ``float32`` loses nothing.
        card (str | None): The folder's ``README.md``.

    Returns:
        Path: ``out_dir``.

    Raises:
        UserError: If the folder exists, the weights are not of this shape or too large for ``dtype``, or the tokenizer has
            more ids than the model.
        OSError: If the disk is full or not writable.
    """
    if os.path.lexists(out_dir):
        raise UserError(f'{out_dir} exists already; remove it, or write another folder')
    _check_state(state_dict, shape)
    texts = _descriptions(shape, gelu, dtype, tokenizer_path)
    if card is not None:
        texts['README.md'] = card.encode()
    _remove_leftovers(out_dir)
    temporary = out_dir.with_name(f'.{out_dir.name}.writing-{os.getpid()}')
    temporary.mkdir(parents=True)
    try:
        tensors = {name: _stored(name, tensor, dtype) for name, tensor in state_dict.items()}
        save_file(tensors, temporary / 'model.safetensors', metadata={'format': 'pt'})
        for name, text in texts.items():
            (temporary / name).write_bytes(text)
        shutil.copymode(temporary / 'config.json', temporary / 'model.safetensors')  # safetensors makes it private
        temporary.rename(out_dir)
    except SafetensorError as error:
        raise OSError(f'{out_dir}: {error}') from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return out_dir


def _remove_leftovers(out_dir: Path) -> None:
    """Removes what an export to this folder left that was killed."""
    for path in out_dir.parent.glob(f'.{out_dir.name}.writing-*'):
        if not Path('/proc', path.name.rpartition('-')[2]).exists():
            shutil.rmtree(path, ignore_errors=True)


def _stored(name: str, tensor: Tensor, dtype: DType) -> Tensor:
    stored = tensor.detach().cpu().to(DTYPES[dtype]).contiguous()
    if dtype != 'float32' and not stored.isfinite().all():
        raise UserError(f'`{name}` has values that {dtype} cannot hold; write --dtype float32 or bfloat16')
    return stored


def _descriptions(
    shape: ModelShape, gelu: Literal['tanh', 'erf'], dtype: DType, tokenizer_path: Path
) -> dict[str, bytes]:
    """The files beside the weights, under the keys that `transformers` 4.53 and 5 both read."""
    tokenizer, ids = _check_tokenizer(tokenizer_path, shape)
    names = read_special_tokens(tokenizer, ids)
    ends = {'bos_token_id': ids.get(names.get('bos_token', '')), 'eos_token_id': ids.get(names.get('eos_token', ''))}
    config = {
        'architectures': ['GPTNeoXForCausalLM'],
        'model_type': 'gpt_neox',
        **dataclasses.asdict(shape),
        'hidden_act': _HIDDEN_ACT[gelu],
        'attention_bias': True,
        'attention_dropout': 0.0,
        'hidden_dropout': 0.0,
        'torch_dtype': dtype,
        **ends,
    }
    described: dict[str, dict[str, Any]] = {
        'config.json': config,
        'generation_config.json': {'_from_model_config': True, **ends},
        CONFIG_FILE: {
            'tokenizer_class': 'PreTrainedTokenizerFast',
            'model_max_length': shape.max_position_embeddings,
            'model_input_names': ['input_ids', 'attention_mask'],
            'clean_up_tokenization_spaces': False,
            **names,
            **read_settings(tokenizer, _KEPT_SETTINGS),
        },
        'special_tokens_map.json': names,
    }
    texts = {name: (json.dumps(content, indent=2) + '\n').encode() for name, content in described.items()}
    return {TOKENIZER_FILE: tokenizer[TOKENIZER_FILE], **texts}


def _check_tokenizer(path: Path, shape: ModelShape) -> tuple[Mapping[str, bytes], dict[str, int]]:
    tokenizer = read_tokenizer_file(path)
    if tokenizer.num_ids > shape.vocab_size:
        raise UserError(
            f'{path} has ids up to {tokenizer.num_ids - 1}, and the model has a vocabulary of {shape.vocab_size}'
        )
    return read_tokenizer_files(path).files, tokenizer.ids


def _check_state(state_dict: Mapping[str, Tensor], shape: ModelShape) -> None:
    with torch.device('meta'):
        expected = {name: tensor.shape for name, tensor in Pythia(shape, gelu='tanh').state_dict().items()}
    problems = [f'missing `{name}`' for name in expected if name not in state_dict]
    problems += [f'unexpected `{name}`' for name in state_dict if name not in expected]
    for name, tensor in state_dict.items():
        if name in expected and tensor.shape != expected[name]:
            problems.append(f'`{name}` has shape {list(tensor.shape)} where {list(expected[name])} belongs')
    if problems:
        raise UserError(f'these are not the weights of this model:\n{listed(problems)}')
