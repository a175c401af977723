"""Hugging Face folders of GPT-NeoX models: ``config.json`` and the index of a model in several files.

Key names are those of `transformers`; each release has left out or moved some. Sizes are bounded, since a model is built
of them before its weights are looked at.
"""

from pathlib import Path
from typing import Annotated, Any, cast

from pydantic import Field

from rewarm.config.errors import DamagedFile, UserError
from rewarm.formats.files import read_bytes
from rewarm.formats.names import check_names
from rewarm.formats.strict_json import Record, as_record, parse_json, parse_record
from rewarm.formats.tokenizer import LARGEST_VOCABULARY

__all__ = ['CONFIG_NAME', 'NeoXConfig', 'Rotary', 'read_neox_config', 'read_weight_index', 'what_it_is']

CONFIG_NAME = 'config.json'

_LARGEST_CONFIG_BYTES = 1 << 24
_LARGEST_INDEX_BYTES = 1 << 28
_HEAD_BYTES = 512

Width = Annotated[int, Field(gt=0, le=1 << 18)]
Depth = Annotated[int, Field(gt=0, le=1 << 10)]
Share = Annotated[float, Field(gt=0, le=1)]
Base = Annotated[float, Field(gt=0)]


class Rotary(Record):
    """``rope_parameters`` of transformers 5, ``rope_scaling`` of 4."""

    rope_type: str | None = None
    """``default`` unless positions are scaled."""
    type: str | None = None
    """The same in old releases."""
    rope_theta: Base | None = None
    """Base of the rotary frequencies."""
    partial_rotary_factor: Share | None = None
    """Share of each head's width that is rotated."""


class NeoXConfig(Record):
    """A ``config.json`` with ``model_type: gpt_neox``; what it leaves out is ``None``."""

    hidden_size: Width
    """Width of the residual stream."""
    num_hidden_layers: Depth
    """Transformer blocks."""
    num_attention_heads: Annotated[int, Field(gt=0, le=1 << 12)]
    """Attention heads."""
    intermediate_size: Width
    """Width of the MLP."""
    vocab_size: Annotated[int, Field(gt=0, le=LARGEST_VOCABULARY)]
    """Rows of the embedding."""
    rotary_pct: Share | None = None
    """Share of each head's width that is rotated."""
    rotary_emb_base: Base | None = None
    """Base of the rotary frequencies."""
    max_position_embeddings: Annotated[int, Field(gt=0, le=1 << 30)] | None = None
    """Longest sequence, in tokens."""
    layer_norm_eps: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Added to the variance in every LayerNorm."""
    use_parallel_residual: bool | None = None
    """Whether attention and MLP read the same input."""
    tie_word_embeddings: bool | None = None
    """Whether the output projection is the embedding."""
    attention_bias: bool | None = None
    """Whether the projections of attention have biases."""
    hidden_act: str | None = 'gelu'
    """Name of the activation."""
    rope_parameters: Rotary | None = None
    """Rotary embeddings (transformers 5)."""
    rope_scaling: Rotary | None = None
    """Scaling of positions (transformers 4)."""
    quantization_config: dict[str, Any] | None = None
    """How weights are packed into fewer bits."""


class _WeightIndex(Record):
    weight_map: dict[str, str]


def read_neox_config(path: Path) -> NeoXConfig:
    """Reads a ``config.json``.

    Raises:
        UserError: If there is no such file, or it is of another kind of model.
        DamagedFile: If a key is missing, of another type or out of bounds.
    """
    data = _read(path, _LARGEST_CONFIG_BYTES)
    content = parse_json(data, path)
    if not isinstance(content, dict):
        raise DamagedFile(path, what=f'no JSON object but {content!r:.40}')
    kind = cast('dict[str, object]', content).get('model_type')
    if kind != 'gpt_neox':
        raise UserError(f'{path}: `model_type` is {kind!r:.60}, and only gpt_neox can be loaded')
    return as_record(NeoXConfig, data, path)


def read_weight_index(path: Path) -> list[str]:
    """Reads which files hold a model, from its ``*.index.json``.

    Returns:
        list[str]: Names below the index's folder, each once, sorted.

    Raises:
        UserError: If there is no such file.
        DamagedFile: If it is no index, or names something else than weights of its own kind below its folder.
    """
    index = parse_record(_WeightIndex, _read(path, _LARGEST_INDEX_BYTES), path)
    names = sorted(set(index.weight_map.values()))
    if not names:
        raise DamagedFile(path, place='weight_map', what='it is empty')
    check_names(names, path)
    ending = Path(path.name.removesuffix('.index.json')).suffix
    for name in names:
        if not name.endswith(ending):
            raise DamagedFile(path, place='weight_map', what=f'{name!r:.100} is no {ending} file')
    return names


def what_it_is(path: Path) -> str | None:
    """What lies in place of a file of weights, by its first bytes, and what to do; ``None`` if nothing is known to be wrong.

    Raises:
        DamagedFile: If it cannot be read.
    """
    size, head = _head(path)
    start = head.lstrip().lower()
    if not size:
        return 'it is empty; fetch it again'
    if head.startswith(b'version https://git-lfs'):
        return (
            'it is a git-lfs pointer, not the file; fetch it with `git lfs pull` in its folder, or with `hf download`'
        )
    if start.startswith((b'<!doctype', b'<html', b'<?xml')):
        return 'it is a web page, not the file; fetch it again with `hf download`'
    if start.startswith((b'{"error', b'entry not found', b'repository not found', b'access to model')):
        return 'it is the answer of a server that refused the file; fetch it again with `hf download`'
    if not head.strip(b'\0'):
        return f'it begins with {len(head)} zeros: its download was cut off; fetch it again'
    return None


def _head(path: Path) -> tuple[int, bytes]:
    with path.open('rb') as file:
        return path.stat().st_size, file.read(_HEAD_BYTES)


def _read(path: Path, largest_bytes: int) -> bytes:
    try:
        return read_bytes(path, largest_bytes=largest_bytes)
    except FileNotFoundError:
        if path.is_symlink():
            raise UserError(f'{path} links to a file that is not there; fetch it again with `hf download`') from None
        raise UserError(f'{path} does not exist') from None
