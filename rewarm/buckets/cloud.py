"""Google Cloud Storage (``gs://``) and Azure Blob Storage (``az://``), through fsspec's gcsfs and adlfs.

Both packages are extras (``gcs``, ``azure``), and keys are found the way each of them documents. The interface is tested
against the stores' emulators (gcp-storage-emulator, Azurite), never against the clouds themselves. A file that was
broken off goes up again from its beginning; the stores drop what was sent of it by themselves, after a week.
"""

import base64
import hashlib
import importlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rewarm.buckets.bucket import LARGEST_READ_BYTES, Bucket, Entry, split_url
from rewarm.buckets.errors import BucketError, Damaged, Declined, Unreachable
from rewarm.config.errors import UserError

__all__ = ['CloudBucket']

# gcsfs's own entry point asks another service for the kind of bucket first, which emulators do not have.
_CLASSES = {'gs': ('gcsfs.core', 'GCSFileSystem', {}), 'az': ('adlfs', 'AzureBlobFileSystem', {'anon': False})}
_PACKAGES = {'gs': 'gcsfs', 'az': 'adlfs'}
_WHERE = {
    'gs': "Credentials are Google's defaults (GOOGLE_APPLICATION_CREDENTIALS, or the machine's account)",
    'az': 'Credentials are read from AZURE_STORAGE_CONNECTION_STRING, or AZURE_STORAGE_ACCOUNT_NAME and _KEY, '
    "or the machine's identity",
}
_UNANSWERED = ('ServiceRequestError', 'ServiceResponseError', 'ClientError', 'TransportError')
"""Classes of azure-core, aiohttp and google-auth that say a server was not reached; those packages may be absent."""


class CloudBucket(Bucket):
    """A client that turns what goes wrong into words.

    Args:
        url (str): Any URL of the store.

    Raises:
        UserError: If the package that speaks to it is not installed.
    """

    def __init__(self, url: str) -> None:
        super().__init__()
        self._scheme = url.partition('://')[0]
        module, name, arguments = _CLASSES[self._scheme]
        package = _PACKAGES[self._scheme]
        try:
            kind = getattr(importlib.import_module(module), name)
        except ModuleNotFoundError:
            raise UserError(f'{url}: {package} is not installed; write: pip install {package}') from None
        with self._in_words(url):
            self._files: Any = kind(use_listings_cache=False, skip_instance_cache=True, **arguments)
        self._lock = threading.Lock()

    def _list(self, url: str) -> list[tuple[str, int, str]]:
        exact = self.find(url)
        if exact is not None:
            return [(split_url(url)[1], exact.bytes, exact.version)]
        with self._in_words(url):
            try:
                found = dict(self._files.find(_path(url), detail=True))
            except FileNotFoundError:
                return []
        return [(path.partition('/')[2], int(info['size']), _version(info)) for path, info in found.items()]

    def find(self, url: str) -> Entry | None:
        """The object at ``url``, or None."""
        info = self._info(url)
        return None if info is None else Entry('', int(info['size']), _version(info))

    def read(self, url: str, *, largest_bytes: int = LARGEST_READ_BYTES) -> bytes | None:
        """The bytes of a small object, or None if there is none."""
        found = self.find(url)
        if found is not None and found.bytes > largest_bytes:
            raise Damaged(f'{url}: has {found.bytes:,} bytes, more than {largest_bytes:,}')
        with self._in_words(url):
            try:
                return None if found is None else self._files.cat_file(_path(url))
            except FileNotFoundError:
                return None

    def read_range(self, url: str, begin: int, end: int, version: str) -> bytes:
        """Bytes ``begin`` to ``end`` (exclusive) of an object."""
        with self._in_words(url):
            data = self._files.cat_file(_path(url), begin, end)
        now = self.find(url)
        if now is None or now.version != version:
            raise BucketError(f'{url}: was replaced while it was read; start again when it is at rest')
        return data

    def write(self, url: str, data: bytes) -> None:
        """Writes a small object whole."""
        with self._in_words(url):
            self._files.pipe_file(_path(url), data)
        self._count(len(data))

    def upload(self, path: Path, url: str, sha256: str | None = None) -> None:
        """Uploads a file unless the object is there with the same size and MD5."""
        info = self._info(url)
        if info is not None and int(info['size']) == path.stat().st_size and _md5(info) == _md5_of(path):
            return
        with self._in_words(url):
            self._files.put_file(str(path), _path(url))
        self._count(path.stat().st_size)

    def delete(self, url: str) -> None:
        """Deletes an object, if it is there."""
        with self._in_words(url):
            try:
                self._files.rm_file(_path(url))
            except FileNotFoundError:
                return

    def forget_uploads(self, url: str) -> None:
        """Does nothing: these stores drop what broken-off uploads left by themselves."""

    def _info(self, url: str) -> dict[str, Any] | None:
        with self._in_words(url):
            try:
                info = self._files.info(_path(url))
            except FileNotFoundError:
                return None
        return info if info['type'] == 'file' else None

    def _count(self, size: int) -> None:
        with self._lock:
            self.bytes_sent += size

    @contextmanager
    def _in_words(self, url: str) -> Iterator[None]:
        self._refuse_if_closed(url)
        try:
            yield
        except UserError:
            raise
        except FileNotFoundError as error:
            bucket, _ = split_url(url)
            raise BucketError(f'{url}: there is no bucket {bucket}, or it may not be seen ({error})') from error
        except Exception as error:  # fsspec passes on whatever each cloud's own client raises
            names = {kind.__name__ for kind in type(error).__mro__}
            kind = BucketError
            if isinstance(error, (ConnectionError, TimeoutError)) or names & set(_UNANSWERED):
                kind = Unreachable
            elif _status(error) in (408, 409, 429) or _status(error) >= 500:
                kind = Declined
            words = (str(error) or type(error).__name__).splitlines()[0].rstrip('.')
            raise kind(f'{url}: {words}. {_WHERE[self._scheme]}') from error


def _status(error: Exception) -> int:
    """The HTTP status of an answer, as azure-core and gcsfs tell it; 0 if there was none."""
    found = getattr(error, 'status_code', None) or getattr(error, 'code', None)
    return int(found) if isinstance(found, int | str) and str(found).isdecimal() else 0


def _path(url: str) -> str:
    bucket, key = split_url(url)
    return f'{bucket}/{key}' if key else bucket


def _version(info: dict[str, Any]) -> str:
    return str(info.get('generation') or info['etag']).strip('"')


def _md5(info: dict[str, Any]) -> bytes | None:
    """The MD5 that the store keeps of an object, if it does."""
    if 'md5Hash' in info:
        return base64.b64decode(info['md5Hash'])
    found = (info.get('content_settings') or {}).get('content_md5')
    return bytes(found) if found else None


def _md5_of(path: Path) -> bytes:
    with path.open('rb') as file:
        return hashlib.file_digest(file, 'md5').digest()
