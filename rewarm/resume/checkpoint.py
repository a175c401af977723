"""Checkpoints on disk: folders that are visible only when whole.

A checkpoint ``checkpoints/ba00001200`` holds::

    model.safetensors           parameters, fp32, Hugging Face names
    optimizer-0000.safetensors  AdamW's moments and step counts, '<parameter>.<key>'; a file for each rank that wrote
    state.json                  position, stages, states of algorithms
    tokenizer.json ...          the run's tokenizer, and the small files with which `transformers` loads it
    manifest.json               size and SHA-256 of the files above

It is written under a temporary name, flushed to the disk, and renamed; only then does ``latest`` name it. Whatever
instant the machine dies, each folder called ``ba...`` is whole or was damaged later, and hashes tell which.
"""

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from rewarm.config.errors import DamagedFile, UserError
from rewarm.formats.checkpoint import (
    BROKEN_SUFFIX,
    FORMAT,
    LATEST_FILE,
    MANIFEST_FILE,
    MODEL_FILE,
    PIN_FILE,
    PIN_TEXT,
    STATE_FILE,
    TEMPORARY_PREFIX,
    Manifest,
    SavedState,
    checkpoint_name,
    optimizer_file,
    read_latest,
    read_manifest,
    read_state,
)
from rewarm.formats.files import flush
from rewarm.formats.tokenizer_folder import TokenizerFiles
from rewarm.resume.folders import (
    clear_way,
    is_pinned,
    make_draft,
    names_below,
    point_latest,
    remove_leftovers,
    retain,
    set_aside,
)
from rewarm.resume.verification import damage, describe_file, problems

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

Record = Callable[..., None]
FileDescription = dict[str, Any]
"""``bytes`` and ``sha256`` of a file."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint folder that has been verified.

    Args:
        path (Path): The folder.
        state (dict): Contents of its ``state.json``, but for the hashes of tensors.
        saved (SavedState): The same, with types.
        manifest (Manifest): Its files.
    """

    path: Path
    state: dict[str, Any]
    saved: SavedState = field(repr=False)
    manifest: Manifest = field(repr=False)

    @classmethod
    def trusted(cls, path: Path) -> 'Checkpoint':
        """Opens a folder that has just been verified, here or on another rank.

        Raises:
            UserError: If it has changed since and cannot be read any more.
        """
        try:
            saved, content = read_state(path)
            return cls(path, {k: v for k, v in content.items() if k != 'tensors'}, saved, read_manifest(path))
        except FileNotFoundError as error:
            raise DamagedFile(path, what=f'{Path(error.filename).name} is missing') from None

    @property
    def batch(self) -> int:
        """Batches of the run that are behind this checkpoint."""
        return self.saved.batch

    @property
    def model_file(self) -> Path:
        """The parameters."""
        return self.path / MODEL_FILE

    @property
    def optimizer_files(self) -> list[Path]:
        """The optimizer's tensors, in one or more files, as the manifest lists them."""
        return [self.path / name for name in self.manifest.optimizer_files]


def write(
    root: Path,
    *,
    batch: int,
    model: Mapping[str, Tensor],
    optimizer: Mapping[str, Tensor],
    state: Mapping[str, Any],
    tokenizer: TokenizerFiles | None = None,
) -> Path:
    """Writes a whole checkpoint at once; see :func:`write_tensors` and :func:`publish` for its two steps.

    Args:
        root (Path): The run's ``checkpoints`` folder.
        batch (int): Batches of the run that are behind it.
        model (Mapping[str, Tensor]): Parameters by name; on any device.
        optimizer (Mapping[str, Tensor]): Optimizer tensors by name.
        state (Mapping): JSON types only; ``batch`` and the format are added.
        tokenizer (TokenizerFiles | None): Goes into the checkpoint, so that it can be used far from its run.

    Returns:
        Path: The folder.

    Raises:
        OSError: If the disk is full or not writable; no folder ``ba...`` was made or changed then.
    """
    parts = {MODEL_FILE: model, optimizer_file(0): optimizer}
    files = {name: write_tensors(root, batch, name, tensors) for name, tensors in parts.items()}
    return publish(root, batch=batch, files=files, state=state, tokenizer=tokenizer)


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
    make_draft(draft)
    try:
        (draft / name).unlink(missing_ok=True)  # a link would be written through
        save_file({key: tensor.detach().contiguous() for key, tensor in tensors.items()}, draft / name)
        flush(draft / name)
        return describe_file(draft / name)
    except SafetensorError as error:
        shutil.rmtree(draft, ignore_errors=True)
        raise _as_os_error(error, draft / name) from error
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def publish(
    root: Path,
    *,
    batch: int,
    files: Mapping[str, FileDescription],
    state: Mapping[str, Any],
    tokenizer: TokenizerFiles | None = None,
) -> Path:
    """Makes a checkpoint appear whole or not at all, and points ``latest`` at it.

    Args:
        root (Path): The run's ``checkpoints`` folder.
        batch (int): Batches of the run that are behind it.
        files (Mapping[str, FileDescription]): All that :func:`write_tensors` has written for it, on any rank.
        state (Mapping): JSON types only; ``batch`` and the format are added.
        tokenizer (TokenizerFiles | None): Goes into the checkpoint, so that it can be used far from its run.

    Returns:
        Path: The folder.

    Raises:
        OSError: If the disk is full or not writable; no folder ``ba...`` was made or changed then.
    """
    name, draft = checkpoint_name(batch), _draft(root, batch)
    try:
        # state.json says as well which tensors it was written with: a manifest alone is easily made anew over wrong ones.
        tensors = {file: about['sha256'] for file, about in files.items()}
        content = {'format': FORMAT, 'batch': batch, **state, 'tensors': tensors}
        texts: dict[str, bytes] = {}
        if tokenizer is not None:
            content['tokenizer_hash'] = tokenizer.hash
            texts.update(tokenizer.files)
        texts[STATE_FILE] = json.dumps(content, indent=1).encode()
        for file, text in texts.items():
            _write_new(draft / file, text)
        described = {**files, **{file: describe_file(draft / file) for file in texts}}
        _write_new(draft / MANIFEST_FILE, json.dumps({'format': FORMAT, 'files': described}, indent=1).encode())
        if is_pinned(root / name):
            _write_new(draft / PIN_FILE, PIN_TEXT.encode())
        flush(draft)
        clear_way(root / name)  # the same batch saved again, by a run that was set back: the same bits, or broken
        draft.rename(root / name)
        flush(root)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    point_latest(root, name)
    return root / name


def open_checkpoint(path: Path) -> Checkpoint:
    """Opens one checkpoint after verifying it.

    Raises:
        UserError: If it is no checkpoint or is damaged, naming each file.
    """
    if not path.is_dir():
        raise UserError(f'{path}: no such checkpoint folder')
    if found := damage(path):
        raise UserError(f'{path} is not a whole checkpoint: ' + '; '.join(found))
    return Checkpoint.trusted(path)


def find_newest_valid(
    root: Path, record: Record, *, hashed: str | None = None, trained: bool = False
) -> Checkpoint | None:
    """The newest whole checkpoint below ``root``; newer ones, all broken, are renamed to ``*.broken`` and recorded.

    Args:
        root (Path): The run's ``checkpoints`` folder; may be absent. Only the holder of the run's lock may call this.
        record (Callable): Called as ``record('fallback', path=..., reason=..., instead=...)`` for each one set aside.
        hashed (str | None): The name of one that this process has hashed a moment ago.
        trained (bool): Whether a run must be able to go on from it.

    Returns:
        Checkpoint | None: ``None`` only where no checkpoint was ever finished.

    Raises:
        UserError: If there are checkpoints and none of them is whole: starting over silently would cost the run.
            Nothing is moved then. Or if one cannot be set aside.
    """
    broken: dict[Path, str] = {}
    for name in reversed(names_below(root)):
        path = root / name
        if found := damage(path, hashed=name == hashed, trained=trained):
            broken[path] = '; '.join(found)
            continue
        for other, reason in broken.items():
            aside = set_aside(other)
            record('fallback', path=str(other), reason=reason, moved_to=str(aside), instead=name)
        _mend_latest(root, name, record)
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


def _as_os_error(error: SafetensorError, path: Path) -> OSError:
    """The system's error, of which safetensors leaves a text such as ``... (os error 28)``."""
    number = re.search(r'\(os error (\d+)\)', str(error))
    return (
        OSError(f'{path}: {error}')
        if number is None
        else OSError(int(number[1]), os.strerror(int(number[1])), str(path))
    )


def _write_new(path: Path, data: bytes) -> None:
    path.unlink(missing_ok=True)
    with path.open('xb') as file:  # x follows no link
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _draft(root: Path, batch: int) -> Path:
    return root / (TEMPORARY_PREFIX + checkpoint_name(batch))


def _mend_latest(root: Path, name: str, record: Record) -> None:
    """``latest`` is for people and scripts; the newest valid folder is the truth, and a wrong ``latest`` is put right."""
    if (said := read_latest(root)) != name:
        reason = 'it names no checkpoint' if said is None else f'it names {said}'
        record('fallback', path=str(root / LATEST_FILE), reason=reason, instead=name)
        point_latest(root, name)
