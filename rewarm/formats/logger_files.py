"""What a run's loggers keep in its folder: which run it is, and up to which batch each one holds its rows."""

import json
from pathlib import Path
from typing import Annotated

from pydantic import Field

from rewarm.config.errors import DamagedFile
from rewarm.formats.files import write_whole
from rewarm.formats.records import Count
from rewarm.formats.strict_json import Record, parse_record, read_file

__all__ = [
    'IDENTITY_FILE',
    'LARGEST_IDENTITY_BYTES',
    'Identity',
    'parse_identity',
    'read_held',
    'read_identity',
    'write_identity',
]

IDENTITY_FILE = 'identity.json'
LARGEST_IDENTITY_BYTES = 4096


class Identity(Record):
    """``identity.json``: drawn at random at a run's first start; it stays the same wherever the folder goes."""

    id: Annotated[str, Field(pattern=r'^[0-9a-f]{32}$')]
    """What W&B, Comet and Neptune know the run by."""


class _Held(Record):
    """The newest batch of which a logger holds the row."""

    batch: Count


def parse_identity(data: bytes, where: object) -> Identity:
    """Reads ``identity.json``.

    Raises:
        DamagedFile: If it is not one.
    """
    return parse_record(Identity, data, where)


def read_identity(folder: Path) -> Identity | None:
    """The identity of the run in a folder, if it has one yet.

    Raises:
        DamagedFile: If the file is not one.
    """
    try:
        return read_file(Identity, folder / IDENTITY_FILE, largest_bytes=LARGEST_IDENTITY_BYTES)
    except FileNotFoundError:
        return None


def write_identity(folder: Path, identity: Identity) -> None:
    """Writes ``identity.json``, so that it is there whole or not at all.

    Raises:
        OSError: If the disk is full or not writable.
    """
    write_whole(folder / IDENTITY_FILE, (json.dumps({'id': identity.id}) + '\n').encode())


def read_held(path: Path) -> int | None:
    """The newest batch of which a logger holds the row; None if the file is not there or says none."""
    try:
        return read_file(_Held, path, largest_bytes=LARGEST_IDENTITY_BYTES).batch
    except (FileNotFoundError, DamagedFile):
        return None
