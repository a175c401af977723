"""Checkpoints on disk: folders that are visible only when whole.

A checkpoint ``checkpoints/ba00001200`` holds::

    model.safetensors           parameters, fp32, Hugging Face names
    optimizer-0000.safetensors  AdamW's moments and step counts, '<parameter>.<key>'; a file for each rank that wrote
    state.json                  position, stages, states of algorithms
    manifest.json               size and SHA-256 of the files above

It is written under a temporary name, flushed to the disk, and renamed; only then does ``latest`` name it. Whatever
instant the machine dies, each folder called ``ba...`` is whole or was damaged later, and hashes tell which.
"""

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from rewarm.config.errors import UserError
from rewarm.formats.files import flush

__all__ = [
    'MODEL_FILE',
    'Checkpoint',
    'FileDescription',
    'checkpoint_name',
    'find_newest_valid',
    'open_checkpoint',
    'optimizer_file',
    'problems',
    'publish',
    'remove_leftovers',
    'retain',
    'write',
    'write_tensors',
]

FORMAT = 1
NAME = re.compile(r'ba(\d{8})')
MODEL_FILE = 'model.safetensors'
STATE_FILE = 'state.json'
MANIFEST_FILE = 'manifest.json'
TEMPORARY_PREFIX = '.writing-'
BROKEN_SUFFIX = '.broken'

Record = Callable[..., None]
FileDescription = dict[str, Any]
"""``bytes`` and ``sha256`` of a file."""


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
        return cls(path, json.loads((path / STATE_FILE).read_text()))

    @property
    def batch(self) -> int:
        """Batches of the run that are behind this checkpoint."""
        return self.state['batch']

    @property
    def model_file(self) -> Path:
        """The parameters."""
        return self.path / MODEL_FILE

    @property
    def optimizer_files(self) -> list[Path]:
        """The optimizer's tensors, in one or more files."""
        return sorted(self.path.glob('optimizer-*.safetensors'))


def write(
    root: Path, *, batch: int, model: Mapping[str, Tensor], optimizer: Mapping[str, Tensor], state: Mapping[str, Any]
) -> Path:
    """Writes a whole checkpoint at once; see :func:`write_tensors` and :func:`publish` for its two steps.

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
    parts = {MODEL_FILE: model, optimizer_file(0): optimizer}
    files = {name: write_tensors(root, batch, name, tensors) for name, tensors in parts.items()}
    return publish(root, batch=batch, files=files, state=state)


def write_tensors(root: Path, batch: int, name: str, tensors: Mapping[str, Tensor]) -> FileDescription:
    """Writes one file of a checkpoint that is not visible yet, and flushes it to the disk.

    Args:
        root (Path): The run's ``checkpoints`` folder.
        batch (int): Batches of the run that are behind it.
        name (str): :data:`MODEL_FILE`, or one of :func:`optimizer_file`.
        tensors (Mapping[str, Tensor]): Tensors by name; on any device.

    Returns:
        FileDescription: For :func:`publish`, which another rank may call.

    Raises:
        OSError: If the disk is full or not writable; what was written of this checkpoint is removed.
    """
    draft = _draft(root, batch)
    draft.mkdir(parents=True, exist_ok=True)
    try:
        save_file({key: tensor.detach().contiguous() for key, tensor in tensors.items()}, draft / name)
        flush(draft / name)
        return _describe(draft / name)
    except SafetensorError as error:
        shutil.rmtree(draft, ignore_errors=True)
        raise _as_os_error(error, draft / name) from error
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def publish(root: Path, *, batch: int, files: Mapping[str, FileDescription], state: Mapping[str, Any]) -> Path:
    """Makes a checkpoint appear whole or not at all, and points ``latest`` at it.

    Args:
        root (Path): The run's ``checkpoints`` folder.
        batch (int): Batches of the run that are behind it.
        files (Mapping[str, FileDescription]): All that :func:`write_tensors` has written for it, on any rank.
        state (Mapping): JSON types only; ``batch`` and the format are added.

    Returns:
        Path: The folder.

    Raises:
        OSError: If the disk is full or not writable; no folder ``ba...`` was made or changed then.
    """
    name, draft = checkpoint_name(batch), _draft(root, batch)
    try:
        (draft / STATE_FILE).write_text(json.dumps({'format': FORMAT, 'batch': batch, **state}, indent=1))
        described = {**files, STATE_FILE: _describe(draft / STATE_FILE)}
        (draft / MANIFEST_FILE).write_text(json.dumps({'format': FORMAT, 'files': described}, indent=1))
        for path in (draft / STATE_FILE, draft / MANIFEST_FILE, draft):
            flush(path)
        # The same batch saved again, by a run that was set back: the same bits, or broken.
        if (root / name).exists():
            _remove(root / name)
        draft.rename(root / name)
        flush(root)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    _point_latest(root, name)
    return root / name


def problems(path: Path) -> list[str]:
    """What is wrong with a checkpoint folder, in words; empty if it is whole.

    Every file of the manifest is read and hashed.
    """
    try:
        manifest = json.loads((path / MANIFEST_FILE).read_text())
        files = dict(manifest['files'])
        form = manifest['format']
    except (OSError, ValueError, KeyError, TypeError) as error:
        return [f'manifest.json cannot be read ({error.__class__.__name__}: {error})']
    if form != FORMAT:
        return [f'manifest.json has format {form}, and this version of rewarm reads format {FORMAT}']
    missing = {MODEL_FILE, STATE_FILE} - set(files)
    found = [f'manifest.json does not list {name}' for name in sorted(missing)]
    with ThreadPoolExecutor() as threads:  # hashing lets other threads run
        for texts in threads.map(lambda item: _differences(path / item[0], item[1]), files.items()):
            found += texts
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


def find_newest_valid(root: Path, record: Record, *, hashed: str | None = None) -> Checkpoint | None:
    """The newest whole checkpoint below ``root``; newer ones, all broken, are renamed to ``*.broken`` and recorded.

    Args:
        root (Path): The run's ``checkpoints`` folder; may be absent. Only the holder of the run's lock may call this.
        record (Callable): Called as ``record('fallback', path=..., reason=..., instead=...)`` for each one set aside.
        hashed (str | None): The name of one that this process has found whole a moment ago; hashing 4.9 GB takes seconds.

    Returns:
        Checkpoint | None: ``None`` only where no checkpoint was ever finished.

    Raises:
        UserError: If there are checkpoints and none of them is whole: starting over silently would cost the run.
            Nothing is moved then.
    """
    broken: dict[Path, str] = {}
    for path in sorted((p for p in root.glob('ba*') if NAME.fullmatch(p.name)), reverse=True):
        if path.name != hashed and (found := problems(path)):
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


def retain(root: Path, *, keep: int, stage_ends: Collection[int], in_use: Collection[str] = frozenset()) -> list[Path]:
    """Deletes all but the newest ``keep`` checkpoints, by what is on disk.

    Never a stage's end, nor a folder that holds anything that its manifest does not list: somebody else put it there.

    Args:
        root (Path): The run's ``checkpoints`` folder.
        keep (int): How many to keep besides stage ends; at least 1.
        stage_ends (Collection[int]): Batches at which a stage ends.
        in_use (Collection[str]): Names of checkpoints that are being read, such as for an upload; they stay this time.

    Returns:
        list[Path]: The folders deleted.
    """
    ordinary = sorted(p for p in root.glob('ba*') if (m := NAME.fullmatch(p.name)) and int(m[1]) not in stage_ends)
    doomed = [path for path in ordinary[:-keep] if path.name not in in_use and _holds_only_its_own(path)]
    for path in doomed:
        _remove(path)
    return doomed


def _as_os_error(error: SafetensorError, path: Path) -> OSError:
    """The system's error, of which safetensors leaves a text such as ``... (os error 28)``."""
    number = re.search(r'\(os error (\d+)\)', str(error))
    return (
        OSError(f'{path}: {error}')
        if number is None
        else OSError(int(number[1]), os.strerror(int(number[1])), str(path))
    )


def _remove(path: Path) -> None:
    # Renamed first, so that a kill in the middle leaves a leftover and not a torn checkpoint.
    shutil.rmtree(path.rename(path.with_name(TEMPORARY_PREFIX + 'gone-' + path.name)))


def _holds_only_its_own(path: Path) -> bool:
    try:
        listed = json.loads((path / MANIFEST_FILE).read_text())['files']
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return {file.name for file in path.iterdir()} == {*listed, MANIFEST_FILE}


def checkpoint_name(batch: int) -> str:
    """The folder's name: ``ba`` and the batches behind it."""
    return f'ba{batch:08d}'


def optimizer_file(part: int) -> str:
    """The file of one part of the optimizer's tensors."""
    return f'optimizer-{part:04d}.safetensors'


def _draft(root: Path, batch: int) -> Path:
    return root / (TEMPORARY_PREFIX + checkpoint_name(batch))


def _differences(path: Path, expected: FileDescription) -> list[str]:
    try:
        actual = _describe(path)
    except OSError as error:
        return [f'{path.name} cannot be read ({error.strerror})']
    if actual['bytes'] != expected['bytes']:
        return [f'{path.name} has {actual["bytes"]:,} bytes instead of {expected["bytes"]:,}']
    if actual['sha256'] != expected['sha256']:
        return [f'{path.name} does not hash to what {MANIFEST_FILE} says']
    return []


def _describe(path: Path) -> FileDescription:
    with path.open('rb') as file:
        return {'bytes': os.fstat(file.fileno()).st_size, 'sha256': hashlib.file_digest(file, 'sha256').hexdigest()}


def _point_latest(root: Path, name: str) -> None:
    temporary = root / (TEMPORARY_PREFIX + 'latest')
    temporary.write_text(name + '\n')
    flush(temporary)
    temporary.replace(root / 'latest')
    flush(root)


def _mend_latest(root: Path, name: str, record: Record) -> None:
    """``latest`` is for people and scripts; the newest valid folder is the truth, and a wrong ``latest`` is put right."""
    try:
        said = (root / 'latest').read_text(errors='replace').strip()
    except OSError as error:
        said = f'nothing ({error.strerror})'
    if said != name:
        if (root / 'latest').is_dir() and not (root / 'latest').is_symlink():  # somebody's; no file can replace it
            (root / 'latest').rename(root / f'latest-{time.time_ns()}{BROKEN_SUFFIX}')
        record('fallback', path=str(root / 'latest'), reason=f'it says {said!r}', instead=name)
        _point_latest(root, name)
