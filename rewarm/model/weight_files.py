"""Tensors out of files that others made: safetensors, and ``.bin`` files of ``torch.save`` without running anything.

What is no tensor, and each file that is not what its name says, is told in our own words: torch's texts advise to switch
its protection off.
"""

from __future__ import annotations

import pickle
import re
import stat
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from packaging.version import InvalidVersion, Version
from safetensors import safe_open
from torch import Tensor

from rewarm.config.errors import DamagedFile, UserError
from rewarm.formats.hugging_face import read_weight_index, what_it_is

__all__ = ['bin_refusal', 'check_archive', 'find_weight_files', 'read_tensors']

_WEIGHT_FILES = (
    'model.safetensors',
    'model.safetensors.index.json',
    'pytorch_model.bin',
    'pytorch_model.bin.index.json',
)
_SAFE_TORCH = Version('2.10.0')
_DEEPEST = 4
_LISTED = 8
_MOST_LISTED = 20


def bin_refusal(torch_version: str) -> str | None:
    """Why no ``.bin`` file is read with a release of torch, and the way out; ``None`` if they are.

    Args:
        torch_version (str): Such as ``2.13.0+cpu``.
    """
    try:
        if Version(torch_version) >= _SAFE_TORCH:
            return None
    except InvalidVersion:
        pass  # of nothing that can be compared it is not known that it is safe
    return (
        f'with torch {torch_version} a .bin file can overwrite memory (CVE-2026-24747, fixed in 2.10). Take the '
        "model's .safetensors files instead (`hf download` brings them where its author made some), convert it on a "
        'machine with torch 2.10 or later, or install that here'
    )


def find_weight_files(folder: Path) -> list[Path]:
    """The files that hold a folder's weights: one, or those that its index names.

    Raises:
        UserError: If there are none, one is missing, or one is no regular file.
        DamagedFile: If the index is damaged, or another thing lies in place of a file.
    """
    present = [name for name in _WEIGHT_FILES if (folder / name).exists() or (folder / name).is_symlink()]
    if not present:
        raise UserError(f'{folder} has no weights: none of {", ".join(_WEIGHT_FILES)}')
    first = folder / present[0]
    files = [first]
    if first.suffix == '.json':
        files = [folder / name for name in read_weight_index(first)]
        absent = [file.relative_to(folder).as_posix() for file in files if not file.exists()]
        if absent:
            more = f' and {len(absent) - _LISTED} more' if len(absent) > _LISTED else ''
            raise UserError(f'{first} names files that are not there: {", ".join(absent[:_LISTED])}{more}')
    for file in files:
        _check_file(file)
    return files


def read_tensors(file: Path) -> Iterator[tuple[str, Tensor]]:
    """Yields the tensors of one file, dense and on the CPU, in whatever dtype they are stored.

    Raises:
        UserError: If a ``.bin`` file holds something else than tensors, or torch is too old to read it safely.
        DamagedFile: If the file cannot be read.
    """
    return _read_safetensors(file) if file.suffix == '.safetensors' else _read_bin(file)


def _check_file(file: Path) -> None:
    try:
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):
            raise DamagedFile(file, what='it is no regular file')
        wrong = what_it_is(file)
    except FileNotFoundError:
        raise UserError(f'{file} links to a file that is not there; fetch it again with `hf download`') from None
    except OSError as error:
        raise DamagedFile(file, what=f'it cannot be read ({error.strerror or error})') from None
    if wrong is not None:
        raise DamagedFile(file, what=wrong)


def _read_safetensors(file: Path) -> Iterator[tuple[str, Tensor]]:
    try:
        with safe_open(file, framework='pt') as tensors:
            for key in tensors.keys():
                yield key, tensors.get_tensor(key)
    except Exception as error:  # of several kinds, by what is wrong with the header
        reason = str(error).partition('\n')[0].removeprefix('Error while deserializing header: ')
        raise DamagedFile(file, what=f'no safetensors file, or one cut off ({reason:.200})') from None


def _read_bin(file: Path) -> Iterator[tuple[str, Tensor]]:
    refusal = bin_refusal(torch.__version__)
    if refusal is not None:
        raise UserError(f'{file}: {refusal}')
    check_archive(file)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # about the pickle; torch's words
            content = torch.load(file, map_location='cpu', weights_only=True)
    except pickle.UnpicklingError as error:
        raise DamagedFile(file, what=_not_loaded(str(error))) from None
    except MemoryError:
        raise UserError(f'{file}: not enough memory to read it') from None
    except Exception:  # of any kind: the file says which functions are called with what
        raise DamagedFile(file, what='no file of torch.save with tensors alone, or one cut off') from None
    yield from _only_tensors(content, file).items()


def check_archive(file: Path) -> None:
    """Refuses an archive that unpacks to more than it has (torch writes none), or whose checksums torch would not look at."""
    if not zipfile.is_zipfile(file):
        return
    try:
        with zipfile.ZipFile(file) as archive:
            packed = next((each for each in archive.infolist() if each.compress_type != zipfile.ZIP_STORED), None)
            changed = archive.testzip() if packed is None else None
    except (zipfile.BadZipFile, OSError, ValueError, RuntimeError) as error:
        raise DamagedFile(file, what=f'no file of torch.save, or one cut off ({error})') from None
    if packed is not None:
        raise DamagedFile(file, place=f'{packed.filename!r:.80}', what='compressed, which torch.save never does')
    if changed is not None:
        raise DamagedFile(
            file, place=f'{changed!r:.80}', what='another checksum than when it was written; fetch it again'
        )


def _not_loaded(reason: str) -> str:
    named = re.search(r'GLOBAL ([A-Za-z_][\w.]{2,79})', reason)
    if named is None:
        return 'no file of torch.save with tensors alone, or one cut off'
    return (
        f'it holds Python objects ({named[1]}) besides tensors, which can run code when they are loaded. Have its author '
        'save the state dict alone, as safetensors'
    )


def _only_tensors(content: object, file: Path) -> dict[str, Tensor]:
    if not isinstance(content, Mapping):
        raise UserError(f'{file} holds no weights under their names but {_kind(content)}')
    values = cast('Mapping[object, object]', content)
    problems = [f'  {problem}' for key, value in values.items() if (problem := _problem(key, value))]
    if not problems:
        return cast('dict[str, Tensor]', dict(values))
    inside = sorted(_state_dicts(values, (), _DEEPEST), key=lambda found: -found[1])
    if inside and not any(isinstance(value, Tensor) for value in values.values()):
        keys, count = inside[0]
        path = ''.join(f'[{key!r:.60}]' for key in keys)
        listed = ', '.join(f'`{key!s:.40}`' for key in list(values)[:_LISTED])
        raise UserError(
            f'{file} is a training checkpoint with {listed}: {count} tensors lie under {path}. Write them alone, with '
            f"`safetensors.torch.save_file(torch.load(FILE){path}, 'model.safetensors')`, and remove this file"
        )
    if len(problems) > _LISTED:
        problems[_LISTED:] = [f'  and {len(problems) - _LISTED} more']
    raise UserError(f'{file} holds more than weights; take it out:\n' + '\n'.join(problems))


def _problem(key: object, value: object) -> str | None:
    if not isinstance(key, str):
        return f'the key {key!r:.60} is no text'
    if not isinstance(value, Tensor):
        return f'`{key:.80}` is {_kind(value)}, not a tensor'
    if value.is_quantized:
        return f'`{key:.80}` is quantized'
    if value.layout != torch.strided or value.is_nested:
        return f'`{key:.80}` is a sparse or nested tensor'
    if value.device.type != 'cpu':
        return f'`{key:.80}` is a tensor without values (on the device {value.device.type})'
    if type(value) not in (Tensor, torch.nn.Parameter):
        return f'`{key:.80}` is a {type(value).__name__}, not a plain tensor'
    return None


def _state_dicts(values: Mapping[Any, Any], keys: tuple[Any, ...], depth: int) -> Iterator[tuple[tuple[Any, ...], int]]:
    """Where tensors lie under their names, and how many; an optimizer's are deeper and fewer a dictionary."""
    count = sum(isinstance(key, str) and isinstance(value, Tensor) for key, value in values.items())
    if count and keys:
        yield keys, count
    if depth:
        for key, value in values.items():
            if isinstance(value, Mapping):
                yield from _state_dicts(cast('Mapping[Any, Any]', value), (*keys, key), depth - 1)


def _kind(value: object) -> str:
    return 'None' if value is None else f'a {type(value).__name__}'


def listed(problems: list[str]) -> str:
    """Problems as lines of a message, as many as anyone reads."""
    lines = [f'  {problem}' for problem in problems[:_MOST_LISTED]]
    if len(problems) > _MOST_LISTED:
        lines.append(f'  and {len(problems) - _MOST_LISTED} more')
    return '\n'.join(lines)
