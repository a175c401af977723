"""Checkpoints on disk: folders that are visible only when whole.

A checkpoint ``checkpoints/ba00001200`` holds::

    model.safetensors        parameters, fp32, Hugging Face names
    optimizer-0.safetensors  AdamW's moments and step counts, '<parameter>.<key>'
    state.json               position, stages, states of algorithms
    manifest.json            size and SHA-256 of the three above

It is written under a temporary name, flushed to the disk, and renamed; only then does ``latest`` name it. Whatever
instant the machine dies, each folder called ``ba...`` is whole or was damaged later, and hashes tell which.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from rewarm.config.errors import UserError

__all__ = ['Checkpoint', 'find_newest_valid', 'open_checkpoint', 'problems', 'remove_leftovers', 'retain', 'write']

FORMAT = 1
NAME = re.compile(r'ba(\d{8})')
TEMPORARY_PREFIX = '.writing-'
BROKEN_SUFFIX = '.broken'

Record = Callable[..., None]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint folder that has been verified.

    Args:
        path (Path): The folder.
        state (dict): Contents of its ``state.json``.
    """

    path: Path
    state: dict[str, Any]

    @classmethod
    def trusted(cls, path: Path) -> 'Checkpoint':
        """Opens a folder that has just been verified, here or on another rank."""
        return cls(path, json.loads((path / 'state.json').read_text()))

    @property
    def batch(self) -> int:
        """Batches of the run that are behind this checkpoint."""
        return self.state['batch']

    @property
    def model_file(self) -> Path:
        """The parameters."""
        return self.path / 'model.safetensors'

    @property
    def optimizer_files(self) -> list[Path]:
        """The optimizer's tensors, in one or more files."""
        return sorted(self.path.glob('optimizer-*.safetensors'))


def write(
    root: Path, *, batch: int, model: Mapping[str, Tensor], optimizer: Mapping[str, Tensor], state: Mapping[str, Any]
) -> Path:
    """Writes the checkpoint of ``batch`` so that it appears whole or not at all, and points ``latest`` at it.

    Args:
        root (Path): The run's ``checkpoints`` folder.
        batch (int): Batches of the run that are behind it.
        model (Mapping[str, Tensor]): Parameters by name; on any device.
        optimizer (Mapping[str, Tensor]): Optimizer tensors by name.
        state (Mapping): JSON types only; ``batch`` and the format are added.

    Returns:
        Path: The folder.

    Raises:
        OSError: If the disk is full or not writable; no folder ``ba...`` was made or changed then.
    """
    name = f'ba{batch:08d}'
    temporary = root / (TEMPORARY_PREFIX + name)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        save_file({key: tensor.detach().contiguous() for key, tensor in model.items()}, temporary / 'model.safetensors')
        save_file(
            {key: tensor.detach().contiguous() for key, tensor in optimizer.items()},
            temporary / 'optimizer-0.safetensors',
        )
        (temporary / 'state.json').write_text(json.dumps({'format': FORMAT, 'batch': batch, **state}, indent=1))
        files = {path.name: _describe(path) for path in sorted(temporary.iterdir())}
        (temporary / 'manifest.json').write_text(json.dumps({'format': FORMAT, 'files': files}, indent=1))
        for path in temporary.iterdir():
            _flush(path)
        _flush(temporary)
        target = root / name
        if (
            target.exists()
        ):  # The same batch saved again, by a run that was set back; it holds the same bits or is broken.
            shutil.rmtree(target)
        temporary.rename(target)
        _flush(root)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _point_latest(root, name)
    return target


def problems(path: Path) -> list[str]:
    """What is wrong with a checkpoint folder, in words; empty if it is whole.

    Every file of the manifest is read and hashed.
    """
    try:
        manifest = json.loads((path / 'manifest.json').read_text())
        files = dict(manifest['files'])
        form = manifest['format']
    except (OSError, ValueError, KeyError, TypeError) as error:
        return [f'manifest.json cannot be read ({error.__class__.__name__}: {error})']
    if form != FORMAT:
        return [f'manifest.json has format {form}, and this version of rewarm reads format {FORMAT}']
    missing = {'model.safetensors', 'state.json'} - set(files)
    found = [f'manifest.json does not list {name}' for name in sorted(missing)]
    for name, expected in files.items():
        try:
            actual = _describe(path / name)
        except OSError as error:
            found.append(f'{name} cannot be read ({error.strerror})')
            continue
        if actual['bytes'] != expected['bytes']:
            found.append(f'{name} has {actual["bytes"]:,} bytes instead of {expected["bytes"]:,}')
        elif actual['sha256'] != expected['sha256']:
            found.append(f'{name} does not hash to what manifest.json says')
    return found


def open_checkpoint(path: Path) -> Checkpoint:
    """Opens one checkpoint after verifying it.

    Raises:
        UserError: If it is no checkpoint or is damaged, naming each file.
    """
    if not path.is_dir():
        raise UserError(f'{path}: no such checkpoint folder')
    found = problems(path)
    if found:
        raise UserError(f'{path} is not a whole checkpoint: ' + '; '.join(found))
    return Checkpoint.trusted(path)


def find_newest_valid(root: Path, record: Record) -> Checkpoint | None:
    """The newest whole checkpoint below ``root``; newer ones, all broken, are renamed to ``*.broken`` and recorded.

    Args:
        root (Path): The run's ``checkpoints`` folder; may be absent. Only the holder of the run's lock may call this.
        record (Callable): Called as ``record('fallback', path=..., reason=..., instead=...)`` for each one set aside.

    Returns:
        Checkpoint | None: ``None`` only where no checkpoint was ever finished.

    Raises:
        UserError: If there are checkpoints and none of them is whole: starting over silently would cost the run.
            Nothing is moved then.
    """
    broken: dict[Path, str] = {}
    for path in sorted((p for p in root.glob('ba*') if NAME.fullmatch(p.name)), reverse=True):
        if found := problems(path):
            broken[path] = '; '.join(found)
            continue
        for other, reason in broken.items():
            aside = other.with_name(other.name + BROKEN_SUFFIX)
            shutil.rmtree(aside, ignore_errors=True)
            other.rename(aside)
            record('fallback', path=str(other), reason=reason, moved_to=str(aside), instead=path.name)
        _mend_latest(root, path.name, record)
        return Checkpoint.trusted(path)
    earlier = sorted(root.glob(f'ba*{BROKEN_SUFFIX}'))
    if broken or earlier:
        raise UserError(
            f'{root} has checkpoints and none of them is whole, so the run does not start over by itself.\n'
            + ''.join(f'  {path.name}: {reason}\n' for path, reason in broken.items())
            + ''.join(f'  {path.name}: was set aside earlier\n' for path in earlier)
            + f'Bring back a good copy of one of them, or move {root} away to start from the beginning.'
        )
    return None


def remove_leftovers(root: Path) -> None:
    """Removes half-written folders that a kill left behind. Call it only while holding the run's lock."""
    for path in root.glob(TEMPORARY_PREFIX + '*'):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def retain(root: Path, *, keep: int, stage_ends: Collection[int]) -> list[Path]:
    """Deletes all but the newest ``keep`` checkpoints, by what is on disk; stage ends are never deleted.

    Args:
        root (Path): The run's ``checkpoints`` folder.
        keep (int): How many to keep besides stage ends.
        stage_ends (Collection[int]): Batches at which a stage ends.

    Returns:
        list[Path]: The folders deleted.
    """
    ordinary = sorted(p for p in root.glob('ba*') if (m := NAME.fullmatch(p.name)) and int(m[1]) not in stage_ends)
    doomed = ordinary[:-keep] if keep else ordinary
    for path in doomed:
        # Renamed first, so that a kill in the middle leaves a leftover and not a torn checkpoint.
        gone = path.rename(root / (TEMPORARY_PREFIX + path.name))
        shutil.rmtree(gone)
    return doomed


def _describe(path: Path) -> dict[str, Any]:
    with path.open('rb') as file:
        return {'bytes': os.fstat(file.fileno()).st_size, 'sha256': hashlib.file_digest(file, 'sha256').hexdigest()}


def _point_latest(root: Path, name: str) -> None:
    temporary = root / (TEMPORARY_PREFIX + 'latest')
    temporary.write_text(name + '\n')
    _flush(temporary)
    temporary.replace(root / 'latest')
    _flush(root)


def _mend_latest(root: Path, name: str, record: Record) -> None:
    """``latest`` is for people and scripts; the newest valid folder is the truth, and a wrong ``latest`` is put right."""
    try:
        said = (root / 'latest').read_text(errors='replace').strip()
    except OSError as error:
        said = f'nothing ({error.strerror})'
    if said != name:
        record('fallback', path=str(root / 'latest'), reason=f'it says {said!r}', instead=name)
        _point_latest(root, name)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
