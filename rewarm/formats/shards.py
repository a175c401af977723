"""``index.json``: what a dataset of MDS shards is made of, by which Streaming and everybody else knows it.

Written by our converter, by Streaming's `MDSWriter`, and by its `merge_index`, whose file names have folders. Read here
and nowhere else: Streaming's readers are made of what this module gives (`rewarm/data/shard_files.py`).
"""

import contextlib
import functools
import gc
import hashlib
from collections.abc import Generator
from pathlib import Path
from typing import Annotated, BinaryIO, Literal, NamedTuple, Protocol

import xxhash
from pydantic import Field, model_validator

from rewarm.config.errors import DamagedFile
from rewarm.formats.card import CARD_NAME, REJECTS_NAME
from rewarm.formats.files import open_regular
from rewarm.formats.names import check_names
from rewarm.formats.strict_json import Record, read_file

__all__ = [
    'INDEX_NAME',
    'TEMPORARY_SUFFIX',
    'Encoding',
    'Index',
    'Shard',
    'ShardFile',
    'is_hashed',
    'parse_encoding',
    'problem_of',
    'problem_of_content',
    'read_index',
]

INDEX_NAME = 'index.json'
"""The file by which Streaming knows a dataset; a folder without it is none."""

LARGEST_BYTES = 256 << 20
"""Of an index: eight times one of a billion blocks in shards of 16 MB."""

MOST_SAMPLES = 1 << 36
"""Of a dataset: 10^14 tokens in blocks of 2,048. The order of more is not worth its memory."""

MAX_SHARD_BYTES = 1 << 32
"""An MDS shard counts its bytes in 32 bits."""

TEMPORARY_SUFFIX = '.tmp'
"""Of a shard that is being fetched or unpacked: ``NAME.PID.tmp``."""

_LONGEST_NAME_BYTES = 255 - len('.4194304') - len(TEMPORARY_SUFFIX)
_TOKEN_TYPES = {'uint8': 1, 'int8': 1, 'uint16': 2, 'int16': 2, 'uint32': 4, 'int32': 4, 'uint64': 8, 'int64': 8}
_HASHES = {name for name in hashlib.algorithms_guaranteed if not name.startswith('shake_')}


class Encoding(NamedTuple):
    """How a sample's tokens are laid down, such as ``ndarray:uint16:2049``."""

    kind: Literal['ndarray', 'bytes']
    """``bytes`` are int64, as LLM Foundry's converter writes them."""
    dtype: str | None
    """Type of a token; ``None`` if each sample says its own."""
    length: int | None
    """Tokens of a sample; ``None`` if each sample says its own."""

    @property
    def token_bytes(self) -> int:
        """Least size of a token in bytes."""
        return _TOKEN_TYPES[self.dtype] if self.dtype else 1

    @property
    def sample_bytes(self) -> int | None:
        """Size of a sample in bytes, if all have one: ``column_sizes`` has the same."""
        return self.length * self.token_bytes if self.length else None


class ShardFile(Record):
    """A file of a shard."""

    basename: str
    """Its name, below the dataset's folder."""
    bytes: Annotated[int, Field(ge=0, lt=MAX_SHARD_BYTES)]
    """Its size."""
    hashes: dict[str, str] = Field(default_factory=dict)
    """By algorithm, in hex."""


class Shard(Record):
    """One shard of a dataset, with the one column ``tokens``."""

    version: Literal[2]
    """Of Streaming's format."""
    format: Literal['mds']
    """Kind of shard."""
    samples: Annotated[int, Field(ge=0)]
    """Samples in it."""
    raw_data: ShardFile
    """The shard as it is read."""
    zip_data: ShardFile | None = None
    """The same, packed."""
    compression: str | None = None
    """How `zip_data` is packed: ``zstd`` or ``zstd:LEVEL``."""
    column_names: tuple[str, ...]
    """``tokens`` alone: whatever else is there would be decoded for each sample."""
    column_encodings: tuple[str, ...]
    """As :func:`parse_encoding` reads them."""
    column_sizes: tuple[int | None, ...]
    """Bytes of a column, where every sample has as many."""

    @property
    def encoding(self) -> Encoding:
        """How the tokens are laid down."""
        return parse_encoding(self.column_encodings[0])

    @property
    def files(self) -> tuple[ShardFile, ...]:
        """The raw file, and the packed one if there is one."""
        return (self.raw_data, self.zip_data) if self.zip_data else (self.raw_data,)

    @model_validator(mode='after')
    def _check(self) -> 'Shard':
        if self.column_names != ('tokens',) or len(self.column_encodings) != 1 or len(self.column_sizes) != 1:
            columns = ', '.join(f'{name}: {how}' for name, how in zip(self.column_names, self.column_encodings))
            raise ValueError(
                f'a shard must have the one column `tokens` and no other; its columns are {columns or "none":.200}'
            )
        size = self.encoding.sample_bytes
        if self.column_sizes[0] != size:
            raise ValueError(f'column_sizes is {self.column_sizes[0]}, but {self.column_encodings[0]} has {size}')
        if self.compression is not None and not _is_zstd(self.compression):
            raise ValueError(f'compression must be zstd, zstd:LEVEL or null, not {self.compression!r:.60}')
        if (self.compression is None) != (self.zip_data is None):
            raise ValueError('compression and zip_data must both be given, or neither')
        if 8 + self.samples * (4 + (size or 1)) > self.raw_data.bytes:
            raise ValueError(f'{self.samples} samples do not fit into the {self.raw_data.bytes} bytes of raw_data')
        return self


class Index(Record):
    """All shards of a dataset, in order."""

    version: Literal[2]
    """Of Streaming's format."""
    shards: tuple[Shard, ...]
    """In the order of their samples."""

    @property
    def samples(self) -> int:
        """Samples of the dataset."""
        return sum(shard.samples for shard in self.shards)

    @property
    def names(self) -> list[str]:
        """Names of all files, below the dataset's folder."""
        return [file.basename for shard in self.shards for file in shard.files]


def read_index(path: str | Path) -> Index:
    """Reads an ``index.json``.

    Args:
        path (str | Path): The file.

    Returns:
        Index: All of whose names may be used below the dataset's folder, and below any other.

    Raises:
        FileNotFoundError: If there is none.
        DamagedFile: If it is no index, or is of shards that are not read here.
    """
    with _without_collector():
        index = read_file(Index, path, largest_bytes=LARGEST_BYTES)
    check_names(index.names, path, reserved=(INDEX_NAME, CARD_NAME, REJECTS_NAME))
    for name in index.names:
        last = name.rpartition('/')[2]
        if last.endswith(TEMPORARY_SUFFIX) or len(last.encode()) > _LONGEST_NAME_BYTES:
            raise DamagedFile(path, place=f'the name {name!r:.100}', what='is too long, or one of an unfinished file')
    if index.samples > MOST_SAMPLES:
        raise DamagedFile(path, what=f'it counts {index.samples:,} samples, more than {MOST_SAMPLES:,}')
    return index


@contextlib.contextmanager
def _without_collector() -> Generator[None]:
    """Of 35,700 shards' objects none is garbage, and looking through them again and again takes half of the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@functools.lru_cache(maxsize=256)
def parse_encoding(text: str) -> Encoding:
    """Reads the encoding of a column of tokens.

    Args:
        text (str): ``bytes``, ``ndarray``, ``ndarray:DTYPE`` or ``ndarray:DTYPE:LENGTH``.

    Raises:
        ValueError: If it is another, of which the words say so.
    """
    kind, *rest = text.split(':')
    if kind == 'bytes' and not rest:
        return Encoding('bytes', 'int64', None)
    dtype, length = (*rest, '', '')[:2]
    if (
        kind != 'ndarray'
        or len(rest) > 2
        or (rest and dtype not in _TOKEN_TYPES)
        or (len(rest) == 2 and not (length.isascii() and length.isdecimal() and len(length) < 10 and int(length)))
    ):
        raise ValueError(f'`tokens` must be ndarray of integers, in one row, or bytes; it is {text!r:.100}')
    return Encoding('ndarray', dtype or None, int(length) if length else None)


class _Described(Protocol):
    """A `ShardFile`, or Streaming's own."""

    @property
    def bytes(self) -> int: ...
    @property
    def hashes(self) -> dict[str, str]: ...


def problem_of(path: Path, info: _Described) -> str | None:
    """What is wrong with a file, by its size and the first known hash that the index has of it; None if it is whole."""
    try:
        with open_regular(path) as file:
            return problem_of_content(file, info)
    except FileNotFoundError:
        return 'it is missing'
    except DamagedFile as error:
        return error.what


def problem_of_content(file: BinaryIO, info: _Described) -> str | None:
    """The same of a file that is open; it is read from its beginning."""
    size = file.seek(0, 2)
    file.seek(0)
    if size != info.bytes:
        return f'it has {size:,} bytes instead of {info.bytes:,}'
    for name in _known_hashes(info):
        digest = hashlib.new(name) if name in _HASHES else getattr(xxhash, name)()
        while block := file.read(1 << 20):
            digest.update(block)
        return None if digest.hexdigest() == info.hashes[name] else f'its {name} is not what {INDEX_NAME} says'
    return None


def is_hashed(info: _Described) -> bool:
    """Whether the index has a hash of a file that can be checked."""
    return bool(_known_hashes(info))


def _known_hashes(info: _Described) -> list[str]:
    return [name for name in info.hashes if name in _HASHES or name in xxhash.algorithms_available]


@functools.lru_cache(maxsize=256)
def _is_zstd(text: str) -> bool:
    name, separator, level = text.partition(':')
    known = level.isascii() and level.isdecimal() and 1 <= int(level[:3]) <= 22
    return name == 'zstd' and (known if separator else True)
