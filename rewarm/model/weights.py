"""Weights in and out of Hugging Face folders, with every key accounted for.

A folder holds ``config.json`` and the weights: ``model.safetensors`` or ``pytorch_model.bin``, whole or in shards with an
index. Nothing is downloaded, and nothing pickled is run: ``.bin`` files are read with ``weights_only=True``.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rewarm.config.errors import UserError
from rewarm.config.schema import ModelShape
from rewarm.model.pythia import Pythia, hf_name

__all__ = ['HFConfig', 'Imported', 'export_hf', 'find_hf_folder', 'load_hf', 'read_hf_config']

Gelu = Literal['tanh', 'erf']

_WEIGHT_FILES = (
    'model.safetensors',
    'model.safetensors.index.json',
    'pytorch_model.bin',
    'pytorch_model.bin.index.json',
)
_GELUS: dict[str, Gelu] = {
    'gelu': 'erf',
    'gelu_python': 'erf',
    'gelu_new': 'tanh',
    'gelu_fast': 'tanh',
    'gelu_python_tanh': 'tanh',
    'gelu_pytorch_tanh': 'tanh',
}
_HIDDEN_ACT: dict[Gelu, str] = {'erf': 'gelu', 'tanh': 'gelu_pytorch_tanh'}
"""What `transformers` 4.53 and 5 both know and compute with PyTorch's own GELU."""

_END_OF_DOCUMENT = '<|endoftext|>'


@dataclass(frozen=True)
class HFConfig:
    """What a folder's ``config.json`` says of the model.

    Args:
        shape (ModelShape): Sizes and switches.
        gelu (str): ``tanh`` or ``erf``: how ``transformers`` would evaluate it, not how it was trained.
    """

    shape: ModelShape
    gelu: Gelu


@dataclass(frozen=True)
class Imported:
    """What an import did; log it.

    Args:
        folder (Path): Where the weights came from.
        num_tensors (int): Tensors copied, which is all the model has.
        skipped (tuple[str, ...]): Keys that hold no weights: buffers of old releases.
        notes (tuple[str, ...]): What a user may want to know, a sentence each.
    """

    folder: Path
    num_tensors: int
    skipped: tuple[str, ...]
    notes: tuple[str, ...]


def find_hf_folder(source: str) -> Path:
    """Finds a Hugging Face folder on this disk.

    Args:
        source (str): A folder, or the id of a model in the local cache, such as ``EleutherAI/pythia-410m`` or, for the
            branch of a training step, ``EleutherAI/pythia-410m@step10000``.

    Returns:
        Path: The folder.

    Raises:
        UserError: If it is neither.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download

    model_id, _, revision = source.partition('@')
    try:
        return Path(snapshot_download(model_id, revision=revision or None, local_files_only=True))
    except (OSError, ValueError) as error:
        download = f'hf download {model_id}' + (f' --revision {revision}' if revision else '')
        raise UserError(
            f'`hf:{source}` is neither a folder nor a model in the local Hugging Face cache, and nothing is downloaded '
            f'during a run. Get it first with `{download}`, or write the path of its folder.'
        ) from error


def read_hf_config(folder: Path) -> HFConfig:
    """Reads the shape of a model from a folder's ``config.json``, written by any release of ``transformers``.

    Args:
        folder (Path): The folder.

    Returns:
        HFConfig: Shape and activation.

    Raises:
        UserError: If there is no such file, or it describes something else than a GPT-NeoX that this project computes.
    """
    path = folder / 'config.json'
    config = _read_json(path)
    rope = config.get('rope_parameters') or config.get('rope_scaling') or {}
    values = {
        'rotary_pct': rope.get('partial_rotary_factor'),  # transformers 5
        'rotary_emb_base': rope.get('rope_theta'),
    } | {key: value for key, value in config.items() if value is not None}
    problems = []
    if config.get('model_type') != 'gpt_neox':
        problems.append(f'`model_type` is {config.get("model_type")!r}, and only gpt_neox can be loaded')
    if config.get('attention_bias') is False:
        problems.append('`attention_bias` is false, and this model has these biases')
    rope_type = rope.get('rope_type', rope.get('type', 'default'))
    if rope_type != 'default':
        problems.append(f'rotary embeddings are scaled (`rope_type: {rope_type}`), which is not supported')
    act = config.get('hidden_act', 'gelu')
    if act not in _GELUS:
        problems.append(f'`hidden_act` is {act!r}; known are {", ".join(_GELUS)}')
    sizes: dict[str, Any] = {}
    for field in dataclasses.fields(ModelShape):
        value = values.get(field.name)
        if value is not None:
            sizes[field.name] = float(value) if field.type in (float, 'float') else value
        elif field.default is dataclasses.MISSING or field.name == 'vocab_size':
            problems.append(f'`{field.name}` is missing')
    if problems:
        raise UserError('\n'.join(f'{path}: {problem}' for problem in problems))
    return HFConfig(ModelShape(**sizes), _GELUS[act])


def load_hf(model: Pythia, source: str) -> Imported:
    """Copies the weights of a Hugging Face folder into a model, whatever floating-point dtype they are stored in, as fp32.

    Args:
        model (Pythia): The model, of the shape that the folder's ``config.json`` must have too. After an error its
            parameters are undefined.
        source (str): A folder, or the id of a model in the local cache; see :func:`find_hf_folder`.

    Returns:
        Imported: What was done.

    Raises:
        UserError: If the shapes differ, or a key is missing, unexpected, there twice, of another shape, or not finite.
    """
    folder = find_hf_folder(source)
    config = read_hf_config(folder)
    notes = _compare_configs(model, config, folder)
    parameters = dict(model.named_parameters())
    seen: set[str] = set()
    skipped, problems = [], []
    for key, tensor in _read_tensors(folder):
        name = hf_name(key)
        if name is None:
            skipped.append(key)
        elif name not in parameters:
            problems.append(f'unexpected `{key}` of shape {list(tensor.shape)}')
        elif name in seen:
            problems.append(f'`{name}` is there twice')
        else:
            seen.add(name)
            problems += _copy(name, tensor, parameters[name])
    problems += [f'missing `{name}` of shape {list(parameters[name].shape)}' for name in parameters if name not in seen]
    if problems:
        raise UserError(f'{folder}: these are not the weights of this model:\n' + '\n'.join(f'  {p}' for p in problems))
    return Imported(folder, len(seen), tuple(skipped), notes)


def export_hf(
    state_dict: Mapping[str, Tensor], *, shape: ModelShape, gelu: Gelu, tokenizer_path: Path, out_dir: Path
) -> Path:
    """Writes a folder that ``transformers``' ``AutoModelForCausalLM`` and ``AutoTokenizer`` load, with equal logits.

    The weights stay fp32. ``hidden_act`` says the activation that the model was trained with here, so a model trained
    with ``gelu: tanh`` is evaluated with it too (EleutherAI's own folders say ``gelu``, the exact one).

    Args:
        state_dict (Mapping[str, Tensor]): A :class:`Pythia`'s ``state_dict()``, or the ``model.safetensors`` of a checkpoint.
        shape (ModelShape): Its shape.
        gelu (str): ``tanh`` or ``erf``.
        tokenizer_path (Path): The ``tokenizer.json`` of the training data.
        out_dir (Path): The folder to make; it appears when it is whole.

    Returns:
        Path: ``out_dir``.

    Raises:
        UserError: If the folder exists, the weights are not of this shape, or the tokenizer has more ids than the model.
    """
    if out_dir.exists():
        raise UserError(f'{out_dir} exists already; remove it, or write another folder')
    _check_state(state_dict, shape)
    tokenizer = _read_json(tokenizer_path)
    end_id = _end_of_document(tokenizer, shape, tokenizer_path)
    temporary = out_dir.with_name(f'.{out_dir.name}.writing-{os.getpid()}')
    temporary.mkdir(parents=True)
    try:
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state_dict.items()}
        save_file(tensors, temporary / 'model.safetensors', metadata={'format': 'pt'})
        shutil.copyfile(tokenizer_path, temporary / 'tokenizer.json')
        for name, contents in _descriptions(shape, gelu, end_id).items():
            (temporary / name).write_text(json.dumps(contents, indent=2) + '\n', encoding='utf-8')
        shutil.copymode(temporary / 'config.json', temporary / 'model.safetensors')  # safetensors makes it private
        temporary.rename(out_dir)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return out_dir


def _descriptions(shape: ModelShape, gelu: Gelu, end_id: int | None) -> dict[str, dict[str, Any]]:
    """The JSON files beside the weights, under the keys that `transformers` 4.53 and 5 both read."""
    ends = {'bos_token_id': end_id, 'eos_token_id': end_id}
    names: dict[str, str] = (
        {} if end_id is None else dict.fromkeys(('bos_token', 'eos_token', 'unk_token'), _END_OF_DOCUMENT)
    )
    config = {
        'architectures': ['GPTNeoXForCausalLM'],
        'model_type': 'gpt_neox',
        **dataclasses.asdict(shape),
        'hidden_act': _HIDDEN_ACT[gelu],
        'attention_bias': True,
        'attention_dropout': 0.0,
        'hidden_dropout': 0.0,
        'torch_dtype': 'float32',
        **ends,
    }
    tokenizer = {
        'tokenizer_class': 'PreTrainedTokenizerFast',
        'model_max_length': shape.max_position_embeddings,
        **names,
    }
    return {
        'config.json': config,
        'generation_config.json': {'_from_model_config': True, **ends},
        'tokenizer_config.json': tokenizer | {'clean_up_tokenization_spaces': False},
        'special_tokens_map.json': names,
    }


def _end_of_document(tokenizer: dict[str, Any], shape: ModelShape, path: Path) -> int | None:
    try:
        ids = {token['content']: token['id'] for token in tokenizer['added_tokens']}
        num_ids = 1 + max([*ids.values(), *tokenizer['model']['vocab'].values()])
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f'{path} is not a tokenizer.json with a vocabulary') from error
    if num_ids > shape.vocab_size:
        raise UserError(f'{path} has ids up to {num_ids - 1}, and the model has a vocabulary of {shape.vocab_size}')
    return ids.get(_END_OF_DOCUMENT)


def _check_state(state_dict: Mapping[str, Tensor], shape: ModelShape) -> None:
    with torch.device('meta'):
        expected = {name: tensor.shape for name, tensor in Pythia(shape, gelu='tanh').state_dict().items()}
    problems = [f'missing `{name}`' for name in expected if name not in state_dict]
    problems += [f'unexpected `{name}`' for name in state_dict if name not in expected]
    for name, tensor in state_dict.items():
        if name in expected and tensor.shape != expected[name]:
            problems.append(f'`{name}` has shape {list(tensor.shape)} where {list(expected[name])} belongs')
    if problems:
        raise UserError(
            'these are not the weights of this model:\n' + '\n'.join(f'  {problem}' for problem in problems)
        )


def _compare_configs(model: Pythia, config: HFConfig, folder: Path) -> tuple[str, ...]:
    ours, theirs = dataclasses.asdict(model.shape), dataclasses.asdict(config.shape)
    differences = [
        f'  `{key}`: the run has {ours[key]}, the folder {theirs[key]}' for key in ours if ours[key] != theirs[key]
    ]
    if differences:
        raise UserError(f'{folder}/config.json describes another model than the run:\n' + '\n'.join(differences))
    if model.gelu == config.gelu:
        return ()
    return (f'this run computes the {model.gelu} GELU, and the folder asks for the {config.gelu} one',)


def _copy(name: str, tensor: Tensor, parameter: torch.nn.Parameter) -> list[str]:
    if tensor.shape != parameter.shape:
        return [f'`{name}` has shape {list(tensor.shape)} where {list(parameter.shape)} belongs']
    if not tensor.is_floating_point():
        return [f'`{name}` is stored as {tensor.dtype}, which holds no weights']
    if not tensor.isfinite().all():
        return [f'`{name}` has values that are infinite or no number']
    with torch.no_grad():
        parameter.copy_(tensor)
    return []


def _read_tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Yields every stored tensor; a sharded model is read one file at a time."""
    name = next((name for name in _WEIGHT_FILES if (folder / name).is_file()), None)
    if name is None:
        raise UserError(f'{folder} has no weights: none of {", ".join(_WEIGHT_FILES)}')
    files = [name]
    if name.endswith('.index.json'):
        files = sorted(set(_read_json(folder / name).get('weight_map', {}).values()))
        absent = [file for file in files if not (folder / file).is_file()]
        if absent or not files:
            raise UserError(f'{folder / name} names files that are not there: {", ".join(absent) or "none at all"}')
    for file in files:
        path = folder / file
        try:
            if path.suffix == '.safetensors':
                with safe_open(path, framework='pt') as tensors:
                    for key in tensors.keys():
                        yield key, tensors.get_tensor(key)
            else:
                yield from torch.load(path, map_location='cpu', weights_only=True).items()
        except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, AttributeError) as error:
            raise UserError(f'{path} cannot be read as weights: {str(error).partition(chr(10))[0]}') from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        contents = json.loads(path.read_text(encoding='utf-8'))
    except FileNotFoundError as error:
        raise UserError(f'{path} does not exist') from error
    except (OSError, ValueError) as error:
        raise UserError(f'{path} cannot be read as JSON: {error}') from error
    if not isinstance(contents, dict):
        raise UserError(f'{path} must hold a JSON object')
    return contents
