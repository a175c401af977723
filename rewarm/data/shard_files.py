"""A shard's file, checked against the index: used as it lies if it is whole, fetched anew if it is not.

Streaming trusts what lies in the folder, and of what it fetches checks neither size nor, unless told which, a hash.
Here each process checks each shard once, before it reads from it; 16 MB of SHA-1 take 12 ms.
"""

import contextlib
import fcntl
import hashlib
import logging
import os
import re
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from streaming import Stream
from streaming.base.compression import decompress
from streaming.base.format import FileInfo, Reader
from streaming.base.hashing import get_hash, is_hash
from streaming.base.util import retry

from rewarm.config.errors import RankError
from rewarm.data.shards import INDEX_NAME

__all__ = ['CheckedStream', 'problem_of', 'remove_half_fetched']

log = logging.getLogger(__name__)

_FETCHES = 3  # of a file that comes without an error and is not what the index says
_HALF_FETCHED = re.compile(r'.+\.(\d+)\.tmp')


class CheckedStream(Stream):
    """A Stream that reads whole shards only, leaves a folder of the user's as it is, and shares it with other runs.

    Args:
        name (str): The stream's or evaluation set's name, for messages.
        folder (str): Where shards are, or are cached.
        remote (str | None): Where they are fetched from; None if all are in the folder.
        refetched (Connection): Gets the name and the file of each shard that was replaced, and what was wrong.
    """

    def __init__(self, name: str, *, folder: str, remote: str | None, refetched: Connection) -> None:
        super().__init__(remote=remote, local=folder, download_retry=4)
        self._name, self._refetched = name, refetched
        self._whole: set[str] = set()

    def check(self, shard: Reader) -> None:
        """Checks a shard that is at hand, once in this process; a damaged one is unpacked or fetched again.

        Raises:
            RankError: If it is damaged and no whole one can be had.
        """
        for raw, packed in shard.file_pairs:
            if raw.basename not in self._whole and (problem := problem_of(self._path(raw), raw)):
                self._mend(raw, packed, shard.compression, problem)
            self._whole.add(raw.basename)

    def set_up_local(self, shards: list[Reader], cache_usage_per_shard: NDArray[np.int64]) -> None:
        """Finds which shards are there. Streaming would delete unpacked shards that have no packed form beside them."""
        if self.remote is not None:
            super().set_up_local(shards, cache_usage_per_shard)
            return
        there = set(os.listdir(self.local))
        for index, shard in enumerate(shards):
            infos = [info for pair in shard.file_pairs for info in pair if info is not None]
            cache_usage_per_shard[index] = sum(info.bytes for info in infos if info.basename in there)

    def _prepare_shard_part(
        self, raw_info: FileInfo, zip_info: FileInfo | None = None, compression: str | None = None
    ) -> int:
        if self._path(raw_info).is_file():
            return 0
        self._bring(raw_info, zip_info, compression, 'it is missing')
        return raw_info.bytes

    def _mend(self, raw: FileInfo, packed: FileInfo | None, compression: str | None, problem: str) -> None:
        path = self._path(raw)
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(FileNotFoundError):
                damaged = stack.enter_context(path.open('rb'))
                # Every reader of this machine finds the damage; one mends it, and the others then see another file.
                fcntl.flock(damaged, fcntl.LOCK_EX)
                if not os.path.samestat(os.fstat(damaged.fileno()), path.stat()):
                    return
            self._bring(raw, packed, compression, problem)
        log.warning('%s: %s was damaged (%s) and has been replaced by a whole one', self._name, path, problem)
        self._refetched.send((f'{self._name}/{raw.basename}', problem))  # short enough to be written at once

    def _bring(self, raw: FileInfo, packed: FileInfo | None, compression: str | None, problem: str) -> None:
        """Puts a whole shard in place, from its packed form if it has one; readers see the old file or the new one."""
        if packed is None:
            self._fetch(raw, problem)
        else:
            zipped = self._path(packed)
            if problem_of(zipped, packed):
                self._fetch(packed, problem)
            unpacked = self._temporary(raw)
            unpacked.write_bytes(decompress(compression, zipped.read_bytes()))
            self._put_in_place(unpacked, raw, f'what is packed in {zipped}')
            if not self.safe_keep_zip:
                zipped.unlink(missing_ok=True)
        self._whole.add(raw.basename)

    def _fetch(self, info: FileInfo, problem: str) -> None:
        path = self._path(info)
        if self.remote is None:
            raise RankError(
                f'{self._name}: {path} cannot be used: {problem}. Nothing was deleted. Copy it there again from where '
                'it came, or add `remote` to say where to fetch it from'
            )
        address, temporary = f'{self.remote.rstrip("/")}/{info.basename}', self._temporary(info)

        def download() -> None:
            temporary.unlink(missing_ok=True)
            self._downloader.download(address, str(temporary), self.download_timeout)

        for attempt in range(_FETCHES):
            try:
                retry(clean_up_fn=self._downloader.clean_up, num_attempts=self.download_retry)(download)()
            except Exception as error:
                raise RankError(f'{self._name}: {address} could not be fetched: {error}') from error
            try:
                self._put_in_place(temporary, info, address)
                return
            except RankError:
                if attempt == _FETCHES - 1:
                    raise

    def _put_in_place(self, temporary: Path, info: FileInfo, origin: str) -> None:
        if problem := problem_of(temporary, info):
            temporary.unlink(missing_ok=True)
            raise RankError(
                f'{self._name}: {origin} is damaged: {problem}. Put a whole copy there; '
                f'if the dataset was replaced by another, remove {self.local} as well'
            )
        os.replace(temporary, self._path(info))

    def _path(self, info: FileInfo) -> Path:
        return Path(self.local, self.split, info.basename)

    def _temporary(self, info: FileInfo) -> Path:
        """A name that no other process uses, nor another run that unpacks the folder at this moment."""
        return Path(f'{self._path(info)}.{os.getpid()}.tmp')


def problem_of(path: Path, info: FileInfo) -> str | None:
    """What is wrong with a file, by the size and the first hash that the index has of it; None if it is whole."""
    try:
        with path.open('rb') as file:
            size = os.fstat(file.fileno()).st_size
            if size != info.bytes:
                return f'it has {size:,} bytes instead of {info.bytes:,}'
            for name in filter(is_hash, info.hashes):
                of_library = name in hashlib.algorithms_available
                found = hashlib.file_digest(file, name).hexdigest() if of_library else get_hash(name, file.read())
                return None if found == info.hashes[name] else f'its {name} is not what {INDEX_NAME} says'
    except FileNotFoundError:
        return 'it is missing'
    return None


def remove_half_fetched(folder: Path) -> None:
    """Removes what a killed process had begun to fetch; a living one's is left alone."""
    for path in folder.glob('*.tmp'):
        if (match := _HALF_FETCHED.fullmatch(path.name)) and not Path('/proc', match[1]).exists():
            path.unlink(missing_ok=True)
