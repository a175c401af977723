"""Shards that are packed with zstd, unpacked within the size that their index gives, whatever they hold."""

from typing import BinaryIO

import zstandard

from rewarm.config.errors import DamagedFile

__all__ = ['unpack']

_CHUNK_BYTES = 1 << 20


def unpack(packed: BinaryIO, raw: BinaryIO, raw_bytes: int, where: object) -> None:
    """Unpacks a shard in little memory.

    Args:
        packed (BinaryIO): The packed shard, at its beginning.
        raw (BinaryIO): Gets what is packed; never more than one byte above `raw_bytes`.
        raw_bytes (int): Bytes that it must have.
        where (object): The packed shard, for messages.

    Raises:
        DamagedFile: If it is not packed with zstd, or unpacks to another size; where its frame says so, before anything
            is unpacked.
    """
    try:
        said = zstandard.frame_content_size(packed.read(18))  # the longest header
        packed.seek(0)
        if said not in (-1, raw_bytes):
            raise DamagedFile(where, what=f'it unpacks to {said:,} bytes, the index says {raw_bytes:,}')
        written = 0
        with zstandard.ZstdDecompressor().stream_reader(packed, closefd=False) as reader:
            while block := reader.read(min(_CHUNK_BYTES, raw_bytes + 1 - written)):
                raw.write(block)
                written += len(block)
    except zstandard.ZstdError as error:
        raise DamagedFile(where, what=f'it cannot be unpacked ({error})') from None
    if written != raw_bytes:
        more = 'more than' if written > raw_bytes else f'{written:,} bytes, not'
        raise DamagedFile(where, what=f'it unpacks to {more} the {raw_bytes:,} bytes that the index says')
