"""Reads the rows that an offline W&B run has on disk: W&B writes them late, and a kill takes what it has not written."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ['newest_batch', 'offline_files', 'read_rows']

HEADER_BYTES, BLOCK_BYTES, RECORD_HEADER_BYTES = 7, 32768, 7
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4
"""Kinds of records in LevelDB's log format: a whole one, or a part."""


def offline_files(folder: Path, run_id: str) -> list[Path]:
    """The files of a W&B run's offline parts, oldest first."""
    return sorted(folder.glob(f'offline-run-*-{run_id}/run-{run_id}.wandb'))


def newest_batch(folder: Path, run_id: str, key: str) -> int | None:
    """The batch of the newest row that a run has in a folder; None if it has none there.

    Args:
        folder (Path): What ``wandb`` writes into, called ``wandb`` itself.
        run_id (str): The W&B run.
        key (str): What a row's batch is under.
    """
    for file in reversed(offline_files(folder, run_id)):
        if batches := [int(row[key]) for row in read_rows(file) if key in row]:
            return max(batches)
    return None


def read_rows(file: Path) -> Iterator[dict[str, Any]]:
    """The rows of a ``.wandb`` file, up to where a kill has torn it."""
    from wandb.proto import wandb_internal_pb2  # pyright: ignore[reportMissingImports]

    for data in _records(file.read_bytes()):
        record = wandb_internal_pb2.Record()  # pyright: ignore[reportAttributeAccessIssue]
        record.ParseFromString(data)
        if record.history.item:
            yield {each.key or '.'.join(each.nested_key): json.loads(each.value_json) for each in record.history.item}


def _records(data: bytes) -> Iterator[bytes]:
    position, whole = HEADER_BYTES, b''
    while position + RECORD_HEADER_BYTES <= len(data):
        left = BLOCK_BYTES - position % BLOCK_BYTES
        if left < RECORD_HEADER_BYTES:  # the rest of a block is too small for a record's header
            position += left
            continue
        length, kind = struct.unpack_from('<HB', data, position + 4)  # after a checksum
        end = position + RECORD_HEADER_BYTES + length
        if not FULL <= kind <= LAST or end > len(data):
            return
        part, position = data[position + RECORD_HEADER_BYTES : end], end
        whole = part if kind in (FULL, FIRST) else whole + part
        if kind in (FULL, LAST):
            yield whole
