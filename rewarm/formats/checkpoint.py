"""A checkpoint on a disk or in a bucket: its names, its manifest and its state, each read strictly.

A checkpoint ``ba00001200`` holds::

    model.safetensors           parameters, fp32, Hugging Face names
    optimizer-0000.safetensors  AdamW's moments and step counts, '<parameter>.<key>'; a file for each rank that wrote
    state.json                  position, stages, states of algorithms
    tokenizer.json ...          the run's tokenizer, and the small files with which `transformers` loads it
    manifest.json               size and SHA-256 of the files above

Those of earlier versions hold no tokenizer. ``state.json`` of a run has every key of :class:`SavedState`; that of imported weights has the position only.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, cast

from pydantic import Field, model_validator

from rewarm.config.errors import DamagedFile
from rewarm.formats.base import Base
from rewarm.formats.files import read_bytes
from rewarm.formats.names import check_names
from rewarm.formats.strict_json import Record, as_record, parse_json

__all__ = [
    'BROKEN_SUFFIX',
    'FORMAT',
    'GONE_PREFIX',
    'LATEST_FILE',
    'MANIFEST_FILE',
    'MODEL_FILE',
    'NAME',
    'OPTIMIZER_FILE',
    'PIN_FILE',
    'PIN_TEXT',
    'STATE_FILE',
    'TEMPORARY_PREFIX',
    'UNFINISHED_FILE',
    'BegunStage',
    'FileEntry',
    'Identity',
    'Manifest',
    'RewarmState',
    'SavedState',
    'batch_of',
    'checkpoint_name',
    'optimizer_file',
    'parse_manifest',
    'parse_state',
    'read_latest',
    'read_manifest',
    'read_state',
]

FORMAT = 1
NAME = re.compile(r'ba(\d{8})', re.ASCII)
MODEL_FILE = 'model.safetensors'
STATE_FILE = 'state.json'
MANIFEST_FILE = 'manifest.json'
LATEST_FILE = 'latest'
"""Beside the checkpoints: the newest one's name, for people and scripts."""
UNFINISHED_FILE = 'unfinished.json'
"""In a bucket: a copy of the manifest while the files go up or are deleted."""
PIN_FILE = 'pinned'
"""In a checkpoint's folder, here or in a bucket: no run deletes it. No part of the checkpoint."""
PIN_TEXT = 'This checkpoint is pinned: no run deletes it. `rewarm pin RUN_FOLDER CHECKPOINT --remove` lets go of it.\n'
"""What it says, to whoever finds it; whether it is there is all that counts."""
OPTIMIZER_FILE = re.compile(r'optimizer-(\d{4,})\.safetensors', re.ASCII)
TEMPORARY_PREFIX = '.writing-'
GONE_PREFIX = f'{TEMPORARY_PREFIX}gone-'
"""Of a checkpoint that is being deleted."""
BROKEN_SUFFIX = '.broken'

LARGEST_BYTES = 64 << 20
"""Of ``manifest.json`` and ``state.json``, which have some kilobytes."""

_NOT_NEEDED = ('format', 'run_file', 'tensors', 'tokenizer_hash', 'model', 'base')
"""Keys of a state without which a run can go on from it."""

Count = Annotated[int, Field(ge=0)]


class FileEntry(Record):
    """One file of a checkpoint."""

    bytes: Count
    sha256: str = Field(pattern='^[0-9a-f]{64}$')


class Manifest(Record):
    """``manifest.json``: every other file of the checkpoint by its name, which is one component."""

    format: int
    files: dict[str, FileEntry]

    @property
    def optimizer_files(self) -> list[str]:
        """The names of the optimizer's files, in order."""
        return sorted(name for name in self.files if OPTIMIZER_FILE.fullmatch(name))

    def wrong_sizes(self, there: Mapping[str, int]) -> list[str]:
        """What is missing or of another size, in words.

        Args:
            there (Mapping[str, int]): Bytes of the regular files, or objects, that are there.
        """
        return [
            f'{name} is missing'
            if (actual := there.get(name)) is None
            else f'{name} has {actual:,} bytes instead of {entry.bytes:,}'
            for name, entry in self.files.items()
            if there.get(name) != entry.bytes
        ]


class Identity(Record):
    """What a stage was when it was trained, to see whether the run file still means the same one."""

    name: str | None = None
    batches: Count | None = None
    tokens: Count | None = None
    tokens_per_batch: Count | None = None
    schedule: dict[str, Any] | None = None
    schedule_as_written: dict[str, Any] | None = None
    streams: list[dict[str, Any]] | None = None
    optimizer_state: str | None = None


class BegunStage(Record):
    """A stage that has begun."""

    start_batch: Count
    lr_before: Annotated[float, Field(ge=0)] | None
    """The rate before it; ``None`` if there was none."""
    mix: dict[str, Any]
    """The fingerprint of its data."""
    identity: Identity


class RewarmState(Record):
    """What the algorithm that writes the rate remembers."""

    stage: str | None = None
    start_batch: Count = 0
    start_tokens: Count = 0
    lr: Annotated[float, Field(ge=0)] | None = None
    lr_before: Annotated[float, Field(ge=0)] | None = None
    optimizer: dict[str, Any] | None = None


class SavedState(Record):
    """``state.json`` of any checkpoint: where it is, and for one of a run how it came there."""

    format: int = FORMAT
    batch: Count
    """Batches of the run that are behind it."""
    run_name: str | None = None
    tokens: Count | None = None
    lr: Annotated[float, Field(ge=0)] | None = None
    settings: dict[str, Any] | None = None
    optimizer: dict[str, Any] | None = None
    stages: list[BegunStage] | None = None
    algorithms: dict[str, RewarmState] | None = None
    run_file: dict[str, Any] | None = None
    """The settings behind it, as ``config.yaml`` has them; checkpoints of earlier versions have none."""
    tensors: dict[str, str] | None = None
    """SHA-256 of each file of tensors that belongs to it; checkpoints of earlier versions have none."""
    tokenizer_hash: str | None = None
    """Of the tokenizer of its data; checkpoints of earlier versions have none."""
    model: dict[str, Any] | None = None
    """Of imported weights: what model they are of, as `saved_model.py` reads it. A run has it in its settings."""
    base: Base | None = None
    """The model that training or import started from; ``None`` for one from scratch, and in earlier versions."""

    @model_validator(mode='after')
    def _all_of_a_run_or_nothing(self) -> 'SavedState':
        of_a_run = {'settings': self.settings, 'optimizer': self.optimizer, 'stages': self.stages or None}
        if any(value is not None for value in of_a_run.values()):
            of_a_run |= {'tokens': self.tokens, 'lr': self.lr, 'algorithms': self.algorithms or None}
            for key, value in of_a_run.items():
                if value is None:
                    raise ValueError(f'{key} is missing, and the state is one of a run')
        return self

    @property
    def is_trained(self) -> bool:
        """Whether a run has saved it, and not an import."""
        return bool(self.stages)

    def lacks(self) -> list[str]:
        """The keys that a run needs to go on from it and that are not there, such as ``stages.0.identity.tokens``."""
        found = [] if 'Rewarm' in (self.algorithms or {}) else ['algorithms.Rewarm']
        return found + [key for key in _unset(self, '') if key.partition('.')[0] not in _NOT_NEEDED]


def checkpoint_name(batch: int) -> str:
    """The folder's name: ``ba`` and the batches behind it."""
    return f'ba{batch:08d}'


def batch_of(name: str) -> int:
    """Batches behind a checkpoint called ``name``."""
    return int(name.removeprefix('ba'))


def optimizer_file(part: int) -> str:
    """The file of one part of the optimizer's tensors."""
    return f'optimizer-{part:04d}.safetensors'


def parse_manifest(data: bytes, where: object) -> Manifest:
    """Reads a manifest, of a folder or of a bucket.

    Args:
        data (bytes): The file.
        where (object): What it is, for the message.

    Raises:
        DamagedFile: If it is not one that this version of rewarm reads, in any point.
    """
    content = parse_json(data, where)
    _check_format(content, where)
    if isinstance(content, dict) and isinstance(names := cast('dict[str, object]', content).get('files'), dict):
        # First: a message about an entry gives its name as it is.
        check_names(cast('dict[str, object]', names), where, reserved=(MANIFEST_FILE, UNFINISHED_FILE, PIN_FILE))
    manifest = as_record(Manifest, data, where)
    for name in manifest.files:
        if '/' in name:
            raise DamagedFile(where, place=f'the name {name!r:.100}', what='is in a folder')
    for name in (MODEL_FILE, STATE_FILE):
        if name not in manifest.files:
            raise DamagedFile(where, place='files', what=f'it does not list {name}')
    return manifest


def read_manifest(folder: Path) -> Manifest:
    """Reads a checkpoint folder's manifest.

    Raises:
        FileNotFoundError: If there is none.
        DamagedFile: As :func:`parse_manifest` says.
    """
    path = folder / MANIFEST_FILE
    return parse_manifest(read_bytes(path, largest_bytes=LARGEST_BYTES), path)


def parse_state(data: bytes, where: object) -> tuple[SavedState, dict[str, Any]]:
    """Reads ``state.json``.

    Returns:
        tuple[SavedState, dict]: It, and the same as plain JSON types, with keys that only other versions know.

    Raises:
        DamagedFile: If it is not one that this version of rewarm reads, in any point.
    """
    content = parse_json(data, where)
    _check_format(content, where, default=FORMAT)
    return as_record(SavedState, data, where), content


def read_state(folder: Path) -> tuple[SavedState, dict[str, Any]]:
    """Reads a checkpoint folder's state.

    Raises:
        FileNotFoundError: If there is none.
        DamagedFile: As :func:`parse_state` says.
    """
    path = folder / STATE_FILE
    return parse_state(read_bytes(path, largest_bytes=LARGEST_BYTES), path)


def read_latest(root: Path) -> str | None:
    """The checkpoint that ``latest`` names; ``None`` if it is not there or names none."""
    try:
        name = read_bytes(root / LATEST_FILE, largest_bytes=LARGEST_BYTES).decode().strip()
    except (FileNotFoundError, DamagedFile, UnicodeDecodeError):
        return None
    return name if NAME.fullmatch(name) else None


def _unset(record: Record, way: str) -> Iterator[str]:
    for key in type(record).model_fields:
        value: object = getattr(record, key)
        if key not in record.model_fields_set or (value is None and key != 'lr_before'):
            yield f'{way}{key}'
        yield from _unset_within(value, f'{way}{key}')


def _unset_within(value: object, way: str) -> Iterator[str]:
    if isinstance(value, Record):
        yield from _unset(value, f'{way}.')
    elif isinstance(value, dict | list):
        content = cast('dict[object, object] | list[object]', value)
        for name, each in content.items() if isinstance(content, dict) else enumerate(content):
            if isinstance(each, Record):
                yield from _unset(each, f'{way}.{name}.')


def _check_format(content: object, where: object, default: object = None) -> None:
    """A later format may differ in anything, so its number is looked at first."""
    if isinstance(content, dict):
        number = cast('dict[str, object]', content).get('format', default)
        if isinstance(number, int) and not isinstance(number, bool) and number != FORMAT:
            raise DamagedFile(where, what=f'it has format {number}, and this version of rewarm reads format {FORMAT}')
