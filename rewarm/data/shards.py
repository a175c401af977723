"""Tokens to MDS shards, and the check of a finished dataset.

The format is Streaming's, and so are the bytes: a test compares every shard and index entry with what `MDSWriter` of
the pinned version writes. Its import alone (torch, torchvision, transformers) takes 715 MB and five seconds, more than
a whole conversion may; the blocks here are of one fixed size, for which the format is three arrays one after the other.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import zstandard
from numpy.typing import NDArray

from rewarm.config.errors import UserError
from rewarm.formats.files import write_whole
from rewarm.formats.shards import INDEX_NAME

SHARD_BYTES = 16 << 20
"""Default size of a shard: small, so that blocks of neighbouring shards shuffle well and a restart fetches little."""


@dataclass(frozen=True)
class ShardFormat:
    """How blocks are laid down.

    Args:
        seq_len (int): Sequence length in tokens; a block holds one more.
        dtype (str): Type of a token.
        compression (str | None): None, ``zstd`` or ``zstd:LEVEL``.
        shard_bytes (int): Upper bound of an uncompressed shard in bytes.
    """

    seq_len: int
    dtype: Literal['uint16', 'uint32']
    compression: str | None = None
    shard_bytes: int = SHARD_BYTES

    def __post_init__(self) -> None:
        if self.seq_len < 1:
            raise UserError(f'--seq-len must be at least 1, got {self.seq_len}')
        name, _, level = (self.compression or 'zstd').partition(':')
        if name != 'zstd' or (level and not (level.isdecimal() and 1 <= int(level) <= 22)):
            raise UserError(
                f'--compression must be zstd or zstd:LEVEL with a level from 1 to 22, got {self.compression}'
            )
        if not self._block_bytes + len(self.header) + 12 <= self.shard_bytes < 1 << 32:
            raise UserError(
                f'--shard-bytes must hold a block ({self._block_bytes} bytes) and be below 4 GiB, got {self.shard_bytes}'
            )

    @property
    def _block_bytes(self) -> int:
        return (self.seq_len + 1) * np.dtype(self.dtype).itemsize

    @property
    def config(self) -> dict[str, Any]:
        """What Streaming repeats in every shard and every entry of the index."""
        return {
            'version': 2,
            'format': 'mds',
            'compression': self.compression,
            'hashes': ['sha1'],
            'size_limit': self.shard_bytes,
            'column_names': ['tokens'],
            'column_encodings': [f'ndarray:{self.dtype}:{self.seq_len + 1}'],
            'column_sizes': [self._block_bytes],
        }

    @property
    def header(self) -> bytes:
        """`config` as it stands in a shard."""
        return json.dumps(self.config, sort_keys=True).encode()

    @property
    def samples_per_shard(self) -> int:
        """Blocks in a full shard."""
        return (self.shard_bytes - 8 - len(self.header)) // (self._block_bytes + 4)

    def encode(self, tokens: NDArray[Any]) -> tuple[bytes, int]:
        """Lays down a shard.

        Args:
            tokens (NDArray[Any]): ``(n * seq_len + 1,)`` ids: block i is tokens i * seq_len to (i + 1) * seq_len.

        Returns:
            tuple[bytes, int]: The shard's bytes and n.
        """
        count = (len(tokens) - 1) // self.seq_len
        blocks = np.lib.stride_tricks.sliding_window_view(tokens, self.seq_len + 1)[:: self.seq_len]
        begin = 4 + 4 * (count + 1) + len(self.header)
        offsets = begin + self._block_bytes * np.arange(count + 1, dtype=np.int64)
        body = np.ascontiguousarray(blocks, dtype=f'<{np.dtype(self.dtype).str[1:]}').tobytes()
        return b''.join((np.uint32(count).tobytes(), offsets.astype('<u4').tobytes(), self.header, body)), count

    def write(self, folder: Path, number: int, tokens: NDArray[Any]) -> dict[str, Any]:
        """Writes a shard, whole or not at all.

        Returns:
            dict[str, Any]: Its entry in the index.
        """
        raw, count = self.encode(tokens)
        name = f'shard.{number:05}.mds'
        entry = {'samples': count, 'raw_data': _entry(name, raw), 'zip_data': None, **self.config}
        data = raw
        if self.compression:
            level = int(self.compression.partition(':')[2] or 3)
            data = zstandard.ZstdCompressor(level=level).compress(raw)
            name += '.zstd'
            entry['zip_data'] = _entry(name, data)
        write_whole(folder / name, data)
        return entry


def _entry(name: str, data: bytes) -> dict[str, Any]:
    return {'basename': name, 'bytes': len(data), 'hashes': {'sha1': hashlib.sha1(data).hexdigest()}}


class Packer:
    """Turns a stream of tokens into shards of full blocks; blocks overlap by one token.

    Args:
        shape (ShardFormat): How blocks are laid down.
        folder (Path): Where shards go.
        on_shard (Callable[[dict[str, Any]], None]): Gets the index entry of each shard, in order, in this thread.
        pending (NDArray[Any] | None): Tokens that an interrupted packer still held.
        number (int): Number of the next shard.
    """

    def __init__(
        self,
        shape: ShardFormat,
        folder: Path,
        on_shard: Callable[[dict[str, Any]], None],
        *,
        pending: NDArray[Any] | None = None,
        number: int = 0,
    ) -> None:
        self._shape, self._folder, self._on_shard = shape, folder, on_shard
        self.pending = np.zeros(0, shape.dtype) if pending is None else pending
        """Tokens that do not fill a shard yet."""
        self._number = number
        self._threads = ThreadPoolExecutor(2)  # hashing, compressing and writing release the lock
        self._writing: list[Future[dict[str, Any]]] = []

    def add(self, tokens: NDArray[Any]) -> None:
        """Appends tokens, ``(n,)`` ids, and writes the shards that become full."""
        self.pending = np.concatenate((self.pending, tokens)) if len(self.pending) else tokens
        full = self._shape.samples_per_shard * self._shape.seq_len
        while len(self.pending) > full:
            self._write(self.pending[: full + 1])
            self.pending = self.pending[full:].copy()
        while len(self._writing) > 3:
            self._on_shard(self._writing.pop(0).result())

    def wait(self) -> None:
        """Waits until every full shard is on disk."""
        while self._writing:
            self._on_shard(self._writing.pop(0).result())

    def close(self) -> int:
        """Writes the last shard, which may be smaller.

        Returns:
            int: Tokens that are in no block: at most ``seq_len``, behind the last one.
        """
        whole = max(0, len(self.pending) - 1) // self._shape.seq_len * self._shape.seq_len
        # Without any block not even the first token counts; otherwise it belongs to the block before.
        left = len(self.pending) - whole - 1 if whole or self._number else len(self.pending)
        if whole:
            self._write(self.pending[: whole + 1])
        self.wait()
        self._threads.shutdown()
        return left

    def _write(self, tokens: NDArray[Any]) -> None:
        self._writing.append(self._threads.submit(self._shape.write, self._folder, self._number, tokens))
        self._number += 1


def write_index(folder: Path, entries: Iterator[dict[str, Any]]) -> None:
    """Writes ``index.json`` as Streaming does."""
    write_whole(folder / INDEX_NAME, json.dumps({'version': 2, 'shards': list(entries)}, sort_keys=True).encode())
