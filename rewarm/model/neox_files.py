"""The files of a GPT-NeoX checkpoint, read without running what they name.

GPT-NeoX saves through DeepSpeed, a folder for each step::

    layer_00-model_00-model_states.pt          the embedding; 02, 03, ... the blocks; then the last LayerNorm and the output
    zero_pp_rank_0_mp_rank_00_optim_states.pt  rank 0's part of the optimizer's state (ZeRO stage 1 or 2)
    mp_rank_00_model_states.pt                 counters, and Python objects of the program that saved it
    410M.yml                                   the model's settings, where somebody put them there

Sources: DeeperSpeed eb7f5cff (GPT-NeoX 1.0) and its later ``stage_1_and_2.py``.
"""

from __future__ import annotations

import pickle
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from rewarm.config.errors import DamagedFile, UserError
from rewarm.model.weight_files import bin_refusal, check_archive

__all__ = ['NeoxFiles', 'find_neox_files', 'read_objects']

_LAYER = re.compile(r'layer_(\d{2,4})-model_(\d{2,4})-model_states\.pt')
_PARTITION = re.compile(r'zero_pp_rank_(\d{1,5})_mp_rank_(\d{2,4})_?optim_states\.pt')
_COUNTERS = 'mp_rank_00_model_states.pt'

_PROGRAMS = ('deepspeed', 'megatron', 'apex', 'numpy', 'argparse', '_codecs', 'torch')
"""Whose objects such files hold beside tensors. Each is replaced by something that holds and does nothing."""


@dataclass(frozen=True)
class NeoxFiles:
    """The files of one step.

    Args:
        folder (Path): Where they lie.
        layers (tuple[Path, ...]): One for each layer that has weights, first to last.
        partitions (tuple[Path, ...]): Of the optimizer's state, by rank; empty where none was saved.
        counters (Path | None): Step counts.
        settings (Path | None): The model's settings in YAML.
    """

    folder: Path
    layers: tuple[Path, ...]
    partitions: tuple[Path, ...]
    counters: Path | None
    settings: Path | None


def find_neox_files(folder: Path) -> NeoxFiles | None:
    """Finds the files of a GPT-NeoX checkpoint in a folder, or in the one that its file ``latest`` names.

    Args:
        folder (Path): The folder of a step, or of a training's steps.

    Returns:
        NeoxFiles | None: ``None`` if it is no such folder.

    Raises:
        UserError: If the model was split over several GPUs, or ranks are missing.
    """
    folder = _newest_step(folder)
    layers: dict[int, Path] = {}
    partitions: dict[int, Path] = {}
    for path in sorted(folder.iterdir()):
        for pattern, found in ((_LAYER, layers), (_PARTITION, partitions)):
            if match := pattern.fullmatch(path.name):
                if int(match[2]):
                    raise UserError(
                        f'{path}: this model was split over several GPUs (model parallel), and only whole ones are read. '
                        "Merge it with GPT-NeoX's own tools, or take its Hugging Face weights"
                    )
                found[int(match[1])] = path
    if not layers:
        return None
    if absent := sorted(set(range(len(partitions))) - set(partitions)):
        raise UserError(f'{folder}: the optimizer state of rank {absent[0]} is missing; fetch all zero_pp_rank_* files')
    settings = sorted(folder.glob('*.yml'))
    return NeoxFiles(
        folder,
        tuple(layers[number] for number in sorted(layers)),
        tuple(partitions[rank] for rank in sorted(partitions)),
        folder / _COUNTERS if (folder / _COUNTERS).is_file() else None,
        settings[0] if len(settings) == 1 else None,
    )


def _newest_step(folder: Path) -> Path:
    latest = folder / 'latest'
    if latest.is_file() and latest.stat().st_size < 100:
        name = latest.read_text(errors='replace').strip()
        if re.fullmatch(r'global_step\d+', name) and (folder / name).is_dir():
            return folder / name
    return folder


class _Nothing:
    """Stands for an object of another program: takes whatever it is given, and keeps none of it."""

    def __init__(self, *args: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


def read_objects(file: Path) -> dict[str, Any]:
    """Reads what ``torch.save`` wrote: tensors, numbers and containers as they are, objects of other programs as nothing.

    Args:
        file (Path): The file.

    Returns:
        dict[str, Any]: On the CPU, mapped from the file.

    Raises:
        UserError: If torch is too old to read it safely.
        DamagedFile: If it is damaged, or names objects that no training program puts there.
    """
    if (refusal := bin_refusal(torch.__version__)) is not None:
        raise UserError(f'{file}: {refusal}')
    check_archive(file)
    try:
        named = get_unsafe_globals_in_checkpoint(file)
        if strange := [name for name in named if name.partition('.')[0] not in _PROGRAMS]:
            raise DamagedFile(file, what=f'it holds a Python object that no training program saves ({strange[0]:.80})')
        with warnings.catch_warnings(), safe_globals([(_Nothing, name) for name in named]):
            warnings.simplefilter('ignore')  # about the pickle; torch's words
            content = torch.load(file, map_location='cpu', weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise DamagedFile(file, what=f'no file that GPT-NeoX saves ({str(error).partition(chr(10))[0]:.120})') from None
    except MemoryError:
        raise UserError(f'{file}: not enough memory to read it') from None
    except DamagedFile:
        raise
    except Exception:  # of any kind: the file says which functions are called with what
        raise DamagedFile(file, what='no file of torch.save, or one cut off') from None
    if not isinstance(content, dict):
        raise DamagedFile(file, what='it holds no dictionary')
    return content
