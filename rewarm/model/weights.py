"""Weights in and out of Hugging Face folders, with every key accounted for.

A folder holds ``config.json`` and the weights: ``model.safetensors`` or ``pytorch_model.bin``, whole or in shards with an
index. Nothing is downloaded, and nothing pickled is run (see ``weight_files.py``).
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from rewarm.config.errors import UserError
from rewarm.config.paths import is_url
from rewarm.config.secrets import without_secrets
from rewarm.config.shapes import SHAPE_KEYS, ModelShape, count_parameters
from rewarm.formats.hugging_face import CONFIG_NAME, read_neox_config
from rewarm.model.export import export_hf
from rewarm.model.pythia import Pythia, hf_name, shape_problem
from rewarm.model.weight_files import find_weight_files, listed, read_tensors

__all__ = ['HFConfig', 'Imported', 'export_hf', 'find_hf_folder', 'import_hf', 'load_hf', 'read_hf_config']

Gelu = Literal['tanh', 'erf']

_GELUS: dict[str, Gelu] = {
    'gelu': 'erf',
    'gelu_python': 'erf',
    'gelu_new': 'tanh',
    'gelu_fast': 'tanh',
    'gelu_python_tanh': 'tanh',
    'gelu_pytorch_tanh': 'tanh',
}
_MODEL_ID = re.compile(r'[\w.-]+(/[\w.-]+)?')
_HUB_PAGE = re.compile(
    r'(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/([\w.-]+/[\w.-]+)/?(?:(?:tree|blob|resolve)/([\w.-]+).*)?'
)

_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
"""Smaller ones are quantized: they need a scale, which this model has no place for."""

_MOST_PARAMETERS = 1 << 35


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
    folder = os.path.expanduser(source)
    if os.path.isdir(folder):
        return Path(folder)
    if os.path.exists(folder):
        raise UserError(f'`hf:{source}` is a file; name the folder that holds it')
    if page := _HUB_PAGE.fullmatch(source.strip()):
        better = page[1] + (f'@{page[2]}' if page[2] else '')
        raise UserError(
            f'`hf:{source}` is the address of a page, and nothing is downloaded during a run; {_how_to_get(better)}'
        )
    if is_url(source):
        raise UserError(f'{without_secrets(source)} is not on this machine; bring it into a folder, and name that')
    from huggingface_hub import snapshot_download

    model_id, _, revision = source.partition('@')
    try:
        return Path(snapshot_download(model_id, revision=revision or None, local_files_only=True))
    except (OSError, ValueError) as error:
        neither = f'`hf:{source}` is neither a folder nor a model in the local Hugging Face cache'
        if not _MODEL_ID.fullmatch(model_id):
            raise UserError(
                f'{neither}; write the path of its folder, or an id such as hf:EleutherAI/pythia-410m'
            ) from error
        raise UserError(
            f'{neither}, and nothing is downloaded during a run: {_how_to_get(source)}, or write the path of its folder'
        ) from error


def _how_to_get(model: str) -> str:
    model_id, _, revision = model.partition('@')
    if not revision:
        return f'get it first with `hf download {model_id}`, and write hf:{model_id}'
    return f'get it first with `hf download {model_id} --revision {revision}`, and write hf:{model}'


def read_hf_config(folder: Path) -> HFConfig:
    """Reads the shape of a model from a folder's ``config.json``, written by any release of ``transformers``.

    Args:
        folder (Path): The folder.

    Returns:
        HFConfig: Shape and activation.

    Raises:
        UserError: If there is no such file, or it describes something else than a GPT-NeoX that this project computes.
    """
    path = folder / CONFIG_NAME
    if not path.exists() and (found := _folders_inside(folder)):
        raise UserError(f'{path} does not exist; name the folder that holds one: {", ".join(found)}')
    config = read_neox_config(path)
    problems = []
    if config.attention_bias is False:
        problems.append('`attention_bias` is false, and this model has these biases')
    if config.quantization_config is not None:
        problems.append('its weights are quantized (`quantization_config`); load the model they were made from')
    if config.hidden_act not in _GELUS:
        problems.append(f'`hidden_act` is {config.hidden_act!r:.60}; known are {", ".join(_GELUS)}')
    given = {name: value for name in SHAPE_KEYS if (value := getattr(config, name)) is not None}
    for rope in filter(None, (config.rope_scaling, config.rope_parameters)):
        rope_type = rope.rope_type or rope.type or 'default'
        if rope_type != 'default':
            problems.append(f'rotary embeddings are scaled (`rope_type: {rope_type:.60}`), which is not supported')
        for name, value in (('rotary_pct', rope.partial_rotary_factor), ('rotary_emb_base', rope.rope_theta)):
            if value is not None and given.setdefault(name, value) != value:
                problems.append(f'`{name}` is {given[name]} in one place and {value} in another')
    shape = ModelShape(**given)
    parameters = count_parameters(shape)
    if (problem := shape_problem(shape)) is not None:
        problems.append(problem)
    if parameters > _MOST_PARAMETERS:
        problems.append(f'its sizes make {parameters:,} parameters, more than {_MOST_PARAMETERS:,}')
    if problems:
        raise UserError('\n'.join(f'{path}: {problem}' for problem in problems))
    return HFConfig(shape, _GELUS[config.hidden_act or ''])


def _folders_inside(folder: Path) -> list[str]:
    """Folders below that hold a model, as the cache of `huggingface_hub` has them: ``snapshots/COMMIT``."""
    return sorted(
        str(path.parent) for pattern in ('*', 'snapshots/*') for path in folder.glob(f'{pattern}/{CONFIG_NAME}')
    )[:5]


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
    notes = _compare_configs(model, read_hf_config(folder), folder)
    parameters = dict(model.named_parameters())
    seen: set[str] = set()
    skipped, unexpected, problems = [], [], []
    for file in find_weight_files(folder):
        for key, tensor in read_tensors(file):
            name = hf_name(key)
            if name is None:
                skipped.append(key)
            elif name not in parameters:
                unexpected.append(key)
                problems.append(f'unexpected `{key:.200}` of shape {list(tensor.shape)}')
            elif name in seen:
                problems.append(f'`{name}` is there twice')
            else:
                seen.add(name)
                problems += _copy(name, tensor, parameters[name])
    if prefix := _prefix(unexpected, parameters):
        problems.insert(0, f'the names begin with `{prefix}`, which a wrapper puts there: save the model inside it')
    problems += [f'missing `{name}` of shape {list(parameters[name].shape)}' for name in parameters if name not in seen]
    if problems:
        raise UserError(f'{folder}: these are not the weights of this model:\n{listed(problems)}')
    return Imported(folder, len(seen), tuple(skipped), notes)


def import_hf(source: str) -> tuple[Pythia, Imported]:
    """Builds the model that a Hugging Face folder describes, with its weights.

    Args:
        source (str): See :func:`find_hf_folder`.

    Returns:
        tuple[Pythia, Imported]: The model on the CPU, and what was done.

    Raises:
        UserError: As :func:`load_hf`, or if the folder's files, or this machine, are too small for such a model.
    """
    folder = find_hf_folder(source)
    config = read_hf_config(folder)
    parameters, stored_bytes = count_parameters(config.shape), sum(f.stat().st_size for f in find_weight_files(folder))
    if stored_bytes < 2 * parameters:  # before memory is taken for what only config.json promises
        raise UserError(
            f'{folder}: its config.json describes {parameters:,} parameters, and its weights have {stored_bytes:,} bytes'
        )
    try:
        model = Pythia(config.shape, gelu=config.gelu)
    except RuntimeError:
        raise UserError(f'{folder}: not enough memory for {4 * parameters:,} bytes of parameters') from None
    return model, load_hf(model, str(folder))


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
    if tensor.dtype not in _FLOATS:
        return [f'`{name}` is stored as {tensor.dtype}, which holds no weights']
    with torch.no_grad():
        parameter.copy_(tensor)
    if not parameter.isfinite().all():  # as fp32, which ends before fp64 does
        return [f'`{name}` has values that are infinite or no number']
    return []


def _prefix(unexpected: list[str], parameters: Mapping[str, object]) -> str | None:
    """What stands before the names of parameters, such as ``module.``."""
    ends = ((key, hf_name(key.partition('.')[2])) for key in unexpected)
    return next((f'{key.partition(".")[0]}.' for key, name in ends if name in parameters), None)
