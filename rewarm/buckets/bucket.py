"""The one interface that data and runs use of an object store: list, read, write, upload, download, delete.

``s3://`` is spoken by boto3 and tested against two real servers. ``gs://`` and ``az://`` go through fsspec (gcsfs, adlfs)
and are tested against the stores' emulators only (`rewarm/buckets/cloud.py`).
"""

import hashlib
import io
import os
import random
import stat
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO, NamedTuple

from rewarm.buckets.errors import BucketError, CutShort, Damaged, Unreachable
from rewarm.buckets.parallel import in_parallel
from rewarm.config.buckets import SCHEMES
from rewarm.config.errors import UserError
from rewarm.config.secrets import without_secrets
from rewarm.formats.names import is_plain

__all__ = ['LARGEST_READ_BYTES', 'Bucket', 'Entry', 'is_bucket', 'open_bucket', 'split_url']

READ_BYTES = 8 << 20
"""Bytes of one read: large enough that a round trip hardly counts, small beside the memory bound."""

LARGEST_READ_BYTES = 64 << 20
"""Of an object that is read at once: three times the largest index or tokenizer in use."""

MOST_OBJECTS = 2_000_000
"""Of one listing, which take some 500 MB."""

DOWNLOAD_THREADS = 8
READ_ATTEMPTS = 5


class Entry(NamedTuple):
    """An object."""

    name: str
    """Its key relative to the URL asked for; empty for the object itself."""
    bytes: int
    """Its size."""
    version: str
    """Changes when it is replaced (ETag, generation)."""


def is_bucket(path: str) -> bool:
    """Whether ``path`` is in a bucket rather than in a folder."""
    return path.startswith(tuple(f'{scheme}://' for scheme in SCHEMES))


def split_url(url: str) -> tuple[str, str]:
    """Splits ``s3://bucket/a/b`` into ``('bucket', 'a/b')``.

    Raises:
        UserError: If the URL names no bucket, or says more than a bucket and a key.
    """
    scheme, _, rest = url.partition('://')
    bucket, _, key = rest.partition('/')
    if '@' in bucket or ':' in bucket:
        raise UserError(
            f'{scheme}://***: a bucket is given by its name alone, without keys, server or port; '
            f'write {scheme}://bucket/prefix. Keys and server are read from the environment'
        )
    if not bucket:
        raise UserError(f'{url}: names no bucket; write {scheme}://bucket/prefix')
    return bucket, key.strip('/')


def open_bucket(url: str) -> 'Bucket':
    """A client for the store that ``url`` names; nothing is asked of the store yet.

    Raises:
        UserError: If the scheme is unknown, the URL holds keys, or the package that speaks it is not installed.
    """
    if is_bucket(url):
        split_url(url)  # before anything repeats it
    if url.startswith('s3://'):
        from rewarm.buckets.s3 import S3Bucket

        return S3Bucket()
    if is_bucket(url):
        from rewarm.buckets.cloud import CloudBucket

        return CloudBucket(url)
    places = ', '.join(f'{scheme}://bucket/prefix' for scheme in SCHEMES)
    raise UserError(f'{without_secrets(url)}: no bucket; write {places}')


class Bucket(ABC):
    """An object store. Every URL is a whole one, such as ``s3://bucket/run/metrics.jsonl``.

    Whatever goes wrong in the store is a ``BucketError`` in words; ``OSError`` is about this machine's own files.
    """

    def __init__(self) -> None:
        self.bytes_sent = 0
        """Bytes of objects and parts that the store has taken from this client."""
        self.closed = False

    def list(self, url: str) -> list[Entry]:
        """Objects at or under ``url``, sorted; ``corpus-2`` is not under ``corpus``.

        Their names may be used below any folder: keys that climb, are absolute or could be two files (``a/../b``,
        ``/etc/x``, ``a//b``) are left out with a warning, and a console's placeholders (``a/``) without.

        Raises:
            BucketError: If it cannot be listed, or has more objects than anyone needs.
        """
        _, top = split_url(url)
        found: list[Entry] = []
        odd: list[str] = []
        for number, (key, size, version) in enumerate(self._list(url)):
            if number == MOST_OBJECTS:
                raise BucketError(f'{url}: there are more than {MOST_OBJECTS:,} objects; name a folder further down')
            inside = key.removeprefix(top)
            if top and inside and not (key.startswith(top) and inside.startswith('/')):
                continue
            name = inside[1:] if top else inside
            if not inside or is_plain(name):
                found.append(Entry(name, size, version))
            elif not key.endswith('/'):
                odd.append(key)
        if odd:
            warnings.warn(
                f'{url}: {len(odd):,} objects are left out, since their keys are no names of files: {odd[0]!r:.120}',
                stacklevel=2,
            )
        return sorted(found)

    @abstractmethod
    def _list(self, url: str) -> Iterable[tuple[str, int, str]]:
        """Key, size and version of each object whose key begins with that of ``url``, whatever it is called."""

    @abstractmethod
    def find(self, url: str) -> Entry | None:
        """The object at ``url``, or None."""

    @abstractmethod
    def read(self, url: str, *, largest_bytes: int = LARGEST_READ_BYTES) -> bytes | None:
        """The bytes of a small object, or None if there is none.

        Raises:
            Damaged: If it has more than ``largest_bytes``, of which no more than these are read.
            BucketError: If it cannot be read.
        """

    @abstractmethod
    def read_range(self, url: str, begin: int, end: int, version: str) -> bytes:
        """Bytes ``begin`` to ``end`` (exclusive) of an object; one replaced meanwhile is an error, not a mixture."""

    @abstractmethod
    def write(self, url: str, data: bytes) -> None:
        """Writes a small object whole."""

    @abstractmethod
    def upload(self, path: Path, url: str, sha256: str | None = None) -> None:
        """Uploads a file unless the object is there with the same content; what a broken-off upload sent is used.

        Args:
            path (Path): The file; of one that grows, what it holds now.
            url (str): The object.
            sha256 (str | None): The file's hash if it is known; kept with the object where it went up in one piece.
        """

    @abstractmethod
    def delete(self, url: str) -> None:
        """Deletes an object, if it is there."""

    @abstractmethod
    def forget_uploads(self, url: str) -> None:
        """Frees what broken-off uploads left at or under ``url``, which listings do not show and the store bills."""

    def close(self) -> None:
        """Lets no further request begin; those of background threads fail from now on."""
        self.closed = True

    def holds(self, url: str, data: bytes) -> bool:
        """Whether an object is there and is these bytes.

        Raises:
            BucketError: If it cannot be read.
        """
        try:
            return self.read(url, largest_bytes=len(data)) == data
        except Damaged:
            return False

    def open(self, url: str, size: int, version: str) -> BinaryIO:
        """Opens an object for reading anywhere; an object replaced meanwhile is an error, not a mixture."""
        return io.BufferedReader(_Object(self, url, size, version), READ_BYTES)

    def download(self, url: str, path: Path, *, size: int | None = None, sha256: str | None = None) -> None:
        """Downloads an object so that ``path`` appears whole and verified or not at all; a good file is kept as it is.

        Args:
            url (str): The object.
            path (Path): The file; ``<path>.part`` until it is whole.
            size (int | None): Bytes it must have.
            sha256 (str | None): The hash it must have.

        Raises:
            Damaged: If the object is missing or is something else.
            BucketError: If it cannot be read.
            OSError: If the disk is full or not writable.
        """
        if sha256 and _is_regular(path) and _hash(path) == sha256:
            return
        found = self.find(url)
        if found is None:
            raise Damaged(f'{url}: is missing')
        if size is not None and found.bytes != size:
            raise Damaged(f'{url}: has {found.bytes:,} bytes instead of {size:,}')
        part = path.with_name(path.name + '.part')
        try:
            with _create(part) as file:
                self._fetch(url, found, file)
                os.fsync(file.fileno())
            if sha256 and _hash(part) != sha256:
                raise Damaged(f'{url}: does not hash to what was written')
            part.replace(path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise

    def _fetch(self, url: str, entry: Entry, file: BinaryIO) -> None:
        handle = file.fileno()
        if entry.bytes:
            os.posix_fallocate(handle, 0, entry.bytes)  # a disk too small is noticed now and not at the last byte

        def fetch(begin: int) -> None:
            end = min(begin + READ_BYTES, entry.bytes)
            os.pwrite(handle, self._read_patiently(url, begin, end, entry.version), begin)

        in_parallel(fetch, range(0, entry.bytes, READ_BYTES), DOWNLOAD_THREADS)

    def _read_patiently(self, url: str, begin: int, end: int, version: str) -> bytes:
        """Reads a range, again if the connection breaks, so that one break does not cost the whole object."""
        for attempt in range(1, READ_ATTEMPTS):
            try:
                return self._read_exactly(url, begin, end, version)
            except Unreachable:
                time.sleep(random.uniform(0.5, 1) * 2**attempt / 4)
        try:
            return self._read_exactly(url, begin, end, version)
        except CutShort as error:
            raise Damaged(f'{url}: breaks off each time it is read ({error})') from error

    def _read_exactly(self, url: str, begin: int, end: int, version: str) -> bytes:
        """Reads a range; a server that answers with more or less of the object must not write beside it."""
        data = self.read_range(url, begin, end, version)
        if len(data) != end - begin:
            kind = CutShort if len(data) < end - begin else Damaged
            raise kind(f'{url}: {len(data):,} bytes or more came instead of {end - begin:,}')
        return data

    def _refuse_if_closed(self, url: str) -> None:
        if self.closed:
            raise BucketError(f'{url}: the client is closed')


class _Object(io.RawIOBase):
    """One object as a seekable file, read by ranges."""

    def __init__(self, bucket: Bucket, url: str, size: int, version: str) -> None:
        self._bucket, self._url, self._size, self._version = bucket, url, size, version
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: 'memoryview[int]') -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        end = min(self._position + len(buffer), self._size)
        if self._position >= end:
            return 0
        data = self._bucket.read_range(self._url, self._position, end, self._version)[: end - self._position]
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


def _is_regular(path: Path) -> bool:
    """Whether a file is there, itself and not by a link."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except FileNotFoundError:
        return False


def _create(path: Path) -> BinaryIO:
    """Opens a new file in the place of whatever has this name; a link there is removed and not followed."""
    path.unlink(missing_ok=True)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    return os.fdopen(handle, 'wb')


def _hash(path: Path) -> str:
    with path.open('rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()
