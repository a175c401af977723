"""Whether a checkpoint folder is complete and right: sizes, hashes, and that its parts belong together."""

import hashlib
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

from safetensors import SafetensorError, safe_open

from rewarm.config.errors import DamagedFile
from rewarm.formats.checkpoint import (
    MANIFEST_FILE,
    MODEL_FILE,
    NAME,
    OPTIMIZER_FILE,
    PIN_FILE,
    FileEntry,
    Manifest,
    SavedState,
    batch_of,
    read_manifest,
    read_state,
)
from rewarm.formats.checkpoint_place import is_complete
from rewarm.formats.files import open_regular

__all__ = ['MOMENTS', 'damage', 'describe_file', 'is_complete', 'problems']

MOMENTS = ('exp_avg', 'exp_avg_sq', 'step')
"""AdamW's tensors of one parameter."""


def problems(path: Path) -> list[str]:
    """What is wrong with a checkpoint folder, in words: its damage, and what lies in it without being a part of it.

    Every file of the manifest is read and hashed. What is not listed is never loaded.
    """
    found = damage(path)
    try:
        listed = read_manifest(path).files
        there = sorted(each.name for each in path.iterdir())
    except (OSError, DamagedFile):
        return found  # and says so
    return found + [
        f'{name} is not listed in {MANIFEST_FILE}' for name in there if name not in {*listed, MANIFEST_FILE, PIN_FILE}
    ]


def damage(path: Path, *, hashed: bool = False, trained: bool = False) -> list[str]:
    """Why a checkpoint folder cannot be used, in words; empty if it can.

    Args:
        path (Path): The folder, or a link to one.
        hashed (bool): Whether this process has hashed its files a moment ago; 4.9 GB take seconds.
        trained (bool): Whether a run must be able to go on from it.
    """
    if not path.is_dir():
        return ['it is no folder']
    try:
        manifest = read_manifest(path)
    except FileNotFoundError:
        return [f'{MANIFEST_FILE} is missing']
    except DamagedFile as error:
        return [_short(error)]
    if not hashed:
        with ThreadPoolExecutor() as threads:  # hashing lets other threads run
            differences = threads.map(lambda item: _difference(path / item[0], item[1]), manifest.files.items())
            if found := [text for text in differences if text]:
                return found
    return list(_discord(path, manifest, trained=trained))


def describe_file(path: Path) -> dict[str, Any]:
    """A file's entry in the manifest.

    Raises:
        FileNotFoundError: If there is none.
        DamagedFile: If it is no regular file or cannot be read.
    """
    with open_regular(path) as file:
        return {'bytes': os.fstat(file.fileno()).st_size, 'sha256': _hash(file, path)}


def _hash(file: BinaryIO, path: Path) -> str:
    try:
        return hashlib.file_digest(file, 'sha256').hexdigest()  # pyright: ignore[reportArgumentType]
    except OSError as error:
        raise DamagedFile(path, what=f'it cannot be read ({error.strerror})') from None


def _difference(path: Path, expected: FileEntry) -> str:
    try:
        with open_regular(path) as file:
            actual = os.fstat(file.fileno()).st_size
            if actual != expected.bytes:
                return f'{path.name} has {actual:,} bytes instead of {expected.bytes:,}'
            if _hash(file, path) != expected.sha256:
                return f'{path.name} does not hash to what {MANIFEST_FILE} says'
    except FileNotFoundError:
        return f'{path.name} is missing'
    except DamagedFile as error:
        return _short(error)
    return ''


def _short(error: DamagedFile) -> str:
    """What is wrong, with the name of the file in its folder."""
    return f'{Path(error.where).name}: {error.place + ": " if error.place else ""}{error.what}'


def _discord(path: Path, manifest: Manifest, *, trained: bool) -> Iterator[str]:
    """Where files that hash to what the manifest says do not make one checkpoint."""
    try:
        state, _ = read_state(path)
        model = _tensors(path / MODEL_FILE)
        moments: dict[str, list[int]] = {}
        for name in manifest.optimizer_files:
            part = _tensors(path / name)
            yield from (f'{name}: {key} is in another file too' for key in sorted(part.keys() & moments.keys())[:1])
            moments |= part
    except FileNotFoundError as error:
        yield f'{Path(error.filename).name} is missing'
        return
    except DamagedFile as error:
        yield _short(error)
        return
    if NAME.fullmatch(path.name) and state.batch != batch_of(path.name):
        yield f'state.json is of batch {state.batch:,}'
    if trained and (lacking := state.lacks()):
        yield f'state.json lacks {", ".join(lacking[:4])}'
    for name, sha256 in (state.tensors or {}).items():
        if name not in manifest.files or manifest.files[name].sha256 != sha256:
            yield f'{name} is not the one that state.json was written with'
    if not manifest.optimizer_files and any(OPTIMIZER_FILE.fullmatch(each.name) for each in path.iterdir()):
        yield f'{MANIFEST_FILE} lists no optimizer file, and there are some'
    yield from _misfits(model, moments, state)


def _tensors(path: Path) -> dict[str, list[int]]:
    """The shape of each tensor of a file, from its header.

    Raises:
        DamagedFile: If it is no safetensors file, or one of something else than fp32.
    """
    try:
        with open_regular(path):  # a device or a pipe would be read for ever
            pass
        with safe_open(path, framework='pt', backend='pread') as file:
            slices = {name: file.get_slice(name) for name in file.keys()}
            for name, each in slices.items():
                if each.get_dtype() != 'F32':
                    raise DamagedFile(path, place=f'{name!r:.100}', what=f'is {each.get_dtype()}, not fp32')
            return {name: list(each.get_shape()) for name, each in slices.items()}
    except (SafetensorError, OSError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise DamagedFile(path, what=f'it cannot be read as tensors ({error})') from None


def _misfits(model: Mapping[str, list[int]], moments: Mapping[str, list[int]], state: SavedState) -> Iterator[str]:
    """Where AdamW's tensors are not those of the parameters."""
    for key, shape in moments.items():
        name, _, what = key.rpartition('.')
        if name not in model or what not in MOMENTS:
            yield f'the optimizer has {key!r:.100}, which is of no parameter'
            return
        if shape != ([] if what == 'step' else model[name]):
            yield f'{key} has the shape {shape}, and the parameter {model[name]}'
            return
    if state.is_trained and moments:  # nothing: no step since a reset
        for name in model:
            if lacking := [what for what in MOMENTS if f'{name}.{what}' not in moments]:
                yield f'the optimizer has no {lacking[0]} of {name}'
                return
