"""GPT-NeoX checkpoints to our tensors: fp32 weights and AdamW's moments, as EleutherAI publishes them for Pythia.

ZeRO flattens the parameters of each optimizer group one after the other, cuts the vector into pieces and gives them out: piece
``interval * ranks + rank`` lies in the file of ``rank``. So the pieces in that order are the vector again, with nothing but
padding behind it. The weights are in the checkpoint a second time, layer by layer in half precision; each number is compared,
so no other order than the true one is taken.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate, chain
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from tqdm import tqdm

from rewarm.config.errors import DamagedFile, UserError
from rewarm.config.located import Source, is_map
from rewarm.config.shapes import MODEL_SHAPES, ModelShape
from rewarm.config.yaml_text import parse_yaml
from rewarm.formats.files import read_bytes
from rewarm.model.neox_files import NeoxFiles, read_objects
from rewarm.model.pythia import Pythia

__all__ = ['NeoxCheckpoint', 'read_neox_checkpoint']

_MOMENTS = ('exp_avg', 'exp_avg_sq')
_WEIGHTS = 'fp32'
_NAMES = {
    'word_embeddings.weight': 'gpt_neox.embed_in.weight',
    'norm.weight': 'gpt_neox.final_layer_norm.weight',
    'norm.bias': 'gpt_neox.final_layer_norm.bias',
    'final_linear.weight': 'embed_out.weight',
}
_BUFFERS = re.compile(r'(rotary_emb\.inv_freq|attention\.(masked_)?bias)$')
_FIRST_BLOCK = 2
"""Number of the first block's file: the embedding is 0, and 1 has no weights."""

_LARGEST_SETTINGS_BYTES = 1 << 20


@dataclass(frozen=True)
class NeoxCheckpoint:
    """What a GPT-NeoX checkpoint holds, under our names.

    Args:
        shape (ModelShape): Of the model.
        gelu (str): How it was trained.
        model (dict[str, Tensor]): Parameters, fp32; the optimizer's own copies where there are some.
        optimizer (dict[str, Tensor]): ``<parameter>.exp_avg``, ``.exp_avg_sq``, ``.step``, fp32; empty if none was saved.
        step (int): Optimizer steps taken; 0 if no optimizer state was saved.
    """

    shape: ModelShape
    gelu: Literal['tanh', 'erf']
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    step: int


def read_neox_checkpoint(files: NeoxFiles) -> NeoxCheckpoint:
    """Reads one step of a GPT-NeoX training.

    Args:
        files (NeoxFiles): From :func:`rewarm.model.neox_files.find_neox_files`.

    Returns:
        NeoxCheckpoint: Weights, and moments if they were saved.

    Raises:
        UserError: If the model is none that is computed here, or its settings are not known.
        DamagedFile: If a file is damaged, or the optimizer's weights are not the model's.
    """
    halves = dict(_layers(files))
    shape, gelu = _describe(files, halves)
    _check_shapes(halves, shape, files.folder)
    if not files.partitions:
        return NeoxCheckpoint(shape, gelu, {name: _float(half) for name, half in halves.items()}, {}, 0)
    partitions = [
        _Partition.read(path) for path in tqdm(files.partitions, desc='optimizer state', unit='file', disable=None)
    ]
    found: dict[str, dict[str, Tensor]] = {what: {} for what in (_WEIGHTS, *_MOMENTS)}
    for group, names in enumerate(_groups(halves, partitions[0])):
        for what, tensors in found.items():
            tensors.update(_assemble(partitions, group, what, {name: halves[name].shape for name in names}))
    for name, half in halves.items():
        if not torch.equal(found[_WEIGHTS][name].to(half.dtype), half):
            raise DamagedFile(
                files.folder,
                place=name,
                what="the optimizer's copy of these weights is not what the model's layer has: the files are of different "
                'steps, or in an order that is not known here',
            )
        _check_numbers({what: tensors[name] for what, tensors in found.items()}, name, files.folder)
    step = _step(partitions[0], files)
    optimizer = {f'{name}.{what}': tensor for what in _MOMENTS for name, tensor in found[what].items()}
    optimizer |= {f'{name}.step': torch.tensor(float(step)) for name in halves}
    return NeoxCheckpoint(shape, gelu, found[_WEIGHTS], optimizer, step)


def _layers(files: NeoxFiles) -> Iterator[tuple[str, Tensor]]:
    """Weights in the order of the model's modules, which is the order in which they were saved."""
    for path in files.layers:
        number = int(path.name[6:].partition('-')[0])
        for key, tensor in read_objects(path).items():
            if not isinstance(tensor, Tensor):
                raise DamagedFile(path, place=f'{key!r:.80}', what='it is no tensor')
            if not _BUFFERS.search(key):
                yield _NAMES.get(key, f'gpt_neox.layers.{number - _FIRST_BLOCK}.{key}'), tensor


def _describe(files: NeoxFiles, weights: dict[str, Tensor]) -> tuple[ModelShape, Literal['tanh', 'erf']]:
    embedding = weights.get('gpt_neox.embed_in.weight')
    if embedding is None or embedding.ndim != 2:
        raise DamagedFile(files.folder, what='the layer with the embedding is missing')
    vocabulary, width = embedding.shape
    depth = sum(name.endswith('attention.dense.weight') for name in weights)
    if files.settings is not None:
        settings = _Settings(files.settings)
        shape = ModelShape(
            hidden_size=width,
            num_hidden_layers=depth,
            num_attention_heads=settings.number('num-attention-heads'),
            intermediate_size=settings.number('intermediate-size', 4 * width),
            vocab_size=vocabulary,
            rotary_pct=settings.number('rotary-pct', 1.0),
            rotary_emb_base=settings.number('rotary-emb-base', 10000),
            max_position_embeddings=settings.number('max-position-embeddings'),
            layer_norm_eps=settings.number('layernorm-epsilon', 1e-5),
            use_parallel_residual=settings.flag('gpt-j-residual'),
            tie_word_embeddings=not settings.flag('no-weight-tying'),
        )
        return shape, 'tanh' if settings.flag('bias-gelu-fusion') else 'erf'
    for shape in MODEL_SHAPES.values():
        if (shape.hidden_size, shape.num_hidden_layers, shape.vocab_size) == (width, depth, vocabulary):
            return shape, 'tanh'  # Pythia was trained with `bias_gelu_fusion`
    raise UserError(
        f'{files.folder}: a model {width} wide with {depth} blocks and {vocabulary:,} ids is none of {", ".join(MODEL_SHAPES)}. '
        'Put the YAML file that it was trained with there, alone of its kind'
    )


class _Settings:
    """A GPT-NeoX YAML file; its keys have dashes or underscores."""

    def __init__(self, path: Path) -> None:
        source = Source(str(path))
        text = read_bytes(path, largest_bytes=_LARGEST_SETTINGS_BYTES).decode(errors='replace')
        data = parse_yaml(text, source, ())
        self.path = path
        self.values = {str(key).replace('_', '-'): value for key, value in data.items()} if is_map(data) else {}

    def number(self, key: str, default: Any = None) -> Any:
        value = self.values.get(key, default)
        kinds = (int, float) if isinstance(default, float) else int
        if isinstance(value, bool) or not isinstance(value, kinds) or value <= 0:
            raise DamagedFile(self.path, place=f'`{key}`', what=f'must be a number above 0, and it is {value!r:.60}')
        return value

    def flag(self, key: str) -> bool:
        value = self.values.get(key, False)
        if not isinstance(value, bool):
            raise DamagedFile(self.path, place=f'`{key}`', what=f'must be true or false, and it is {value!r:.60}')
        return value


def _check_shapes(weights: dict[str, Tensor], shape: ModelShape, folder: Path) -> None:
    try:
        with torch.device('meta'):
            expected = {name: each.shape for name, each in Pythia(shape, gelu='tanh').state_dict().items()}
    except ValueError as error:
        raise UserError(f'{folder}: {error}') from None
    for name in sorted(expected.keys() | weights.keys()):
        there, wanted = weights[name].shape if name in weights else None, expected.get(name)
        if there != wanted:
            raise UserError(
                f'{folder}: `{name}` has shape {_spell(there)}, and in a model of these settings {_spell(wanted)}'
            )


@dataclass(frozen=True)
class _Partition:
    """One rank's part: for each group and each of its intervals, what lies under ``fp32`` and AdamW's keys."""

    path: Path
    groups: list[list[dict[str, Any]]]
    steps: Any
    """Optimizer steps where they are kept beside the groups."""

    @classmethod
    def read(cls, path: Path) -> _Partition:
        state = read_objects(path).get('optimizer_state_dict')
        if not isinstance(state, dict):
            raise DamagedFile(path, what='it holds no `optimizer_state_dict`')
        weights = state.get('local_sub_partitions_of_fp32_groups', state.get('single_partition_of_fp32_groups'))
        if not isinstance(weights, list):
            raise DamagedFile(path, what='it is not of ZeRO stage 1 or 2: it holds no fp32 partitions')
        pieces = [each if isinstance(each, list) else [each] for each in weights]
        saved = state.get('base_optimizer_state')
        if isinstance(saved, dict):  # torch's form: a state for each piece, counted through
            numbered = saved.get('state', {})
            states = [numbered.get(number, {}) for number in range(sum(map(len, pieces)))]
        else:
            states = list(chain.from_iterable(each if isinstance(each, list) else [each] for each in saved or []))
        if len(states) != sum(map(len, pieces)) or not all(isinstance(each, dict) for each in states):
            raise DamagedFile(path, what='it has another number of optimizer states than of partitions')
        following = iter(states)
        groups = [[{_WEIGHTS: piece, **next(following)} for piece in group] for group in pieces]
        return cls(path, groups, state.get('base_optimizer_state_step'))


def _groups(weights: dict[str, Tensor], first: _Partition) -> list[list[str]]:
    """Names in the order in which each group was flattened: without decay are LayerNorms and biases, unless all are."""
    if len(first.groups) == 1:
        return [list(weights)]
    if len(first.groups) != 2:
        raise DamagedFile(
            first.path, what=f'it has {len(first.groups)} groups of parameters, and GPT-NeoX makes one or two'
        )
    plain = [name for name in weights if name.endswith('.bias') or re.search(r'layer_?norm\.', name)]
    return [[name for name in weights if name not in set(plain)], plain]


def _assemble(
    partitions: list[_Partition], group: int, what: str, shapes: dict[str, torch.Size]
) -> Iterator[tuple[str, Tensor]]:
    """The group's vector, cut into its parameters; copies, so that no file stays mapped."""
    pieces: list[Tensor] = []
    intervals = len(partitions[0].groups[group])
    for interval in range(intervals):
        for partition in partitions:
            if len(partition.groups) <= group or len(partition.groups[group]) != intervals:
                raise DamagedFile(partition.path, what='it has another number of pieces than the first rank')
            piece = partition.groups[group][interval].get(what)
            if not isinstance(piece, Tensor) or piece.dtype != torch.float32:
                raise DamagedFile(partition.path, what=f'a piece of `{what}` is missing, or not float32')
            pieces.append(piece.detach().flatten())
    sizes = [shape.numel() for shape in shapes.values()]
    there, wanted = sum(map(len, pieces)), sum(sizes)
    if there < wanted:
        raise DamagedFile(
            partitions[-1].path, what=f'all ranks together have {there:,} numbers of `{what}` where {wanted:,} belong'
        )
    vector = torch.cat(pieces)
    for (name, shape), end, size in zip(shapes.items(), accumulate(sizes), sizes, strict=True):
        yield name, vector[end - size : end].reshape(shape).clone()


def _check_numbers(tensors: dict[str, Tensor], name: str, folder: Path) -> None:
    for what, tensor in tensors.items():
        least, greatest = (float(each) for each in tensor.aminmax())  # NaN where there is one
        if not math.isfinite(least) or not math.isfinite(greatest) or (what == 'exp_avg_sq' and least < 0):
            raise DamagedFile(folder, place=name, what=f'`{what}` has numbers from {least} to {greatest}')


def _step(first: _Partition, files: NeoxFiles) -> int:
    """Steps of the optimizer, which leaves out batches that overflowed in half precision."""
    step = first.groups[0][0].get('step', first.steps)
    if step is None and files.counters is not None:
        counters = read_objects(files.counters)
        taken, skipped = counters.get('global_steps'), counters.get('skipped_steps', 0)
        step = taken - skipped if isinstance(taken, int) and isinstance(skipped, int) else None
    if isinstance(step, Tensor) and step.numel() == 1:
        step = step.item()
    if isinstance(step, bool) or not isinstance(step, int | float) or step < 0:
        raise DamagedFile(
            first.path, what='it does not say how many steps the optimizer took, nor does mp_rank_00_model_states.pt'
        )
    return int(step)


def _float(tensor: Tensor) -> Tensor:
    return tensor.detach().to(torch.float32, copy=True)


def _spell(shape: torch.Size | None) -> str:
    return 'none' if shape is None else str(list(shape))
