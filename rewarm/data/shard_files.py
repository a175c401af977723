"""A shard's file, checked against the index: used as it lies if it is whole, fetched anew if it is not.

Streaming trusts what lies in the folder, and of what it fetches checks neither size nor, unless told which, a hash.
Here each process checks each shard once, before it reads from it: size and hash, that its samples are where it says,
and that they are tokens of the run. 16 MB of SHA-1 take 12 ms, the tokens 5 ms.

Nothing is written or deleted but the files that a checked index names, and through no link.
"""

import contextlib
import fcntl
import logging
import os
import stat
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import BinaryIO

from numpy import int64
from numpy.typing import NDArray
from streaming import Stream
from streaming.base.format import FileInfo, Reader
from streaming.base.format.mds import MDSReader
from streaming.base.util import retry
from streaming.base.world import World

from rewarm.config.errors import DamagedFile, RankError
from rewarm.data.shard_folder import files_there
from rewarm.formats.files import open_regular
from rewarm.formats.mds import problem_of_tokens, read_blocks
from rewarm.formats.packed import unpack
from rewarm.formats.shards import (
    TEMPORARY_SUFFIX,
    Index,
    ShardFile,
    is_hashed,
    parse_encoding,
    problem_of,
)

__all__ = ['CheckedStream', 'make_readers', 'problem_of']

log = logging.getLogger(__name__)

_FETCHES = 3  # of a file that comes without an error and is not what the index says


class CheckedStream(Stream):
    """A Stream that reads whole shards only, leaves a folder of the user's as it is, and shares it with other runs.

    Args:
        name (str): The stream's or evaluation set's name, for messages.
        folder (str): Where shards are, or are cached.
        remote (str | None): Where they are fetched from; None if all are in the folder.
        readers (Sequence[Reader]): Of its shards, as `make_readers` makes them: Streaming does not read the index.
        seq_len (int): Tokens in an input.
        vocab_size (int): Token ids there are.
        refetched (Connection): Gets the name and the file of each shard that was replaced, and what was wrong.
    """

    def __init__(
        self,
        name: str,
        *,
        folder: str,
        remote: str | None,
        readers: Sequence[Reader],
        seq_len: int,
        vocab_size: int,
        refetched: Connection,
    ) -> None:
        super().__init__(remote=remote, local=folder, download_retry=4)
        self._name, self._readers, self._refetched = name, readers, refetched
        self._seq_len, self._vocab_size = seq_len, vocab_size
        self._whole: set[str] = set()

    def get_shards(self, world: World, allow_unsafe_types: bool) -> list[Reader]:
        """The readers of the index that was checked."""
        return list(self._readers)

    def check(self, shard: Reader) -> None:
        """Checks a shard that is at hand, once in this process; a damaged one is unpacked or fetched again.

        Raises:
            RankError: If it is damaged and no whole one can be had, or holds something else than samples of the run.
        """
        for raw, packed in shard.file_pairs:
            if raw.basename in self._whole:
                continue
            path = self._path(raw)
            problem = problem_of(path, raw)
            if problem is None and (problem := self._problem_of_samples(path, shard)):
                if self.remote is None or is_hashed(raw):
                    raise self._misfit(path, problem)
            if problem:
                self._mend(shard, raw, packed, problem)
            self._whole.add(raw.basename)

    def set_up_local(self, shards: list[Reader], cache_usage_per_shard: NDArray[int64]) -> None:
        """Finds which shards are there, raw or packed. Streaming would delete those that lie there half."""
        there = files_there(Path(self.local), {info.basename for shard in shards for info in _files(shard)})
        for index, shard in enumerate(shards):
            cache_usage_per_shard[index] = sum(info.bytes for info in _files(shard) if info.basename in there)

    def prepare_shard(self, shard: Reader) -> int:
        """Brings a shard if it is not there; returns the bytes that it added."""
        size = 0
        for raw, packed in shard.file_pairs:
            if not self._path(raw).is_file():
                self._bring(shard, raw, packed, problem_of(self._path(raw), raw) or 'it is missing')
                size += raw.bytes
        return size

    def _mend(self, shard: Reader, raw: FileInfo, packed: FileInfo | None, problem: str) -> None:
        path = self._path(raw)
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(FileNotFoundError, DamagedFile):
                damaged = stack.enter_context(open_regular(path))
                # Every reader of this machine finds the damage; one mends it, and the others then see another file.
                fcntl.flock(damaged, fcntl.LOCK_EX)
                if problem_of(path, raw) is None and self._problem_of_samples(path, shard) is None:
                    return
            self._bring(shard, raw, packed, problem)
        log.warning('%s: %s was damaged (%s) and has been replaced by a whole one', self._name, path, problem)
        self._refetched.send((f'{self._name}/{raw.basename}', problem))  # short enough to be written at once

    def _bring(self, shard: Reader, raw: FileInfo, packed: FileInfo | None, problem: str) -> None:
        """Puts a whole shard in place, from its packed form if it has one; readers see the old file or the new one."""
        for info in (raw, packed):
            if info is not None:
                self._make_folder(info)
        if packed is None:
            self._fetch(raw, problem, shard)
        else:
            self._unpack(shard, raw, packed)
        self._whole.add(raw.basename)

    def _unpack(self, shard: Reader, raw: FileInfo, packed: FileInfo) -> None:
        zipped, unpacked = self._path(packed), self._temporary(raw)
        if fetched := (problem := problem_of(zipped, packed)) is not None:
            self._fetch(packed, problem)
        try:
            _unpack_file(zipped, unpacked, raw.bytes)
        except DamagedFile as error:
            if fetched or self.remote is None or is_hashed(packed):
                unpacked.unlink(missing_ok=True)
                raise RankError(f'{self._name}: {zipped} cannot be used: {error.what}') from None
            self._fetch(packed, error.what)  # nothing but its size was known of it
            self._unpack(shard, raw, packed)
            return
        self._put_in_place(unpacked, raw, f'what is packed in {zipped}', shard)
        if not self.safe_keep_zip:
            zipped.unlink(missing_ok=True)

    def _fetch(self, info: FileInfo, problem: str, shard: Reader | None = None) -> None:
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
                if '://' not in address:
                    open_regular(address).close()  # a device has no end
                retry(clean_up_fn=self._downloader.clean_up, num_attempts=self.download_retry)(download)()
            except Exception as error:
                raise RankError(f'{self._name}: {address} could not be fetched: {error}') from error
            try:
                self._put_in_place(temporary, info, address, shard)
                return
            except _Misfit:
                raise
            except RankError:
                if attempt == _FETCHES - 1:
                    raise

    def _put_in_place(self, temporary: Path, info: FileInfo, origin: str, shard: Reader | None) -> None:
        if problem := problem_of(temporary, info):
            temporary.unlink(missing_ok=True)
            raise RankError(
                f'{self._name}: {origin} is damaged: {problem}. Put a whole copy there; '
                f'if the dataset was replaced by another, remove {self.local} as well'
            )
        if shard is not None and (problem := self._problem_of_samples(temporary, shard)):
            temporary.unlink(missing_ok=True)
            raise self._misfit(origin, problem)
        try:
            os.replace(temporary, self._path(info))
        except IsADirectoryError:
            temporary.unlink(missing_ok=True)
            raise RankError(f'{self._name}: {self._path(info)} is a folder, where a shard belongs; remove it') from None

    def _problem_of_samples(self, path: Path, shard: Reader) -> str | None:
        """Why what a shard holds are no samples of this run; None if they are."""
        assert isinstance(shard, MDSReader)
        encoding = parse_encoding(shard.column_encodings[0])
        try:
            with open_regular(path) as file:
                for blocks in read_blocks(file, shard.samples, encoding, path):
                    if (length := blocks.shape[1]) not in (self._seq_len, self._seq_len + 1):
                        return f'a sample has {length} tokens, but max_seq_len is {self._seq_len}'
                    if problem := problem_of_tokens(blocks, self._vocab_size):
                        return problem
        except FileNotFoundError:
            return 'it is missing'
        except DamagedFile as error:
            return error.what
        return None

    def _misfit(self, where: object, problem: str) -> '_Misfit':
        return _Misfit(
            f'{self._name}: {where} cannot be used: {problem}. The file is the one that its index describes, so another '
            "copy will not help: convert the data again, with the run's tokenizer and max_seq_len"
        )

    def _make_folder(self, info: FileInfo) -> None:
        """Makes the folders of a file's name. A link among them could lead anywhere, so it is not followed."""
        folder = Path(self.local)
        for part in Path(info.basename).parent.parts:
            folder /= part
            with contextlib.suppress(FileExistsError):
                folder.mkdir()
            if not stat.S_ISDIR(folder.lstat().st_mode):
                raise RankError(
                    f'{self._name}: {folder} is a link or no folder, so nothing is written below it; '
                    'put a folder there, or name another place for `local`'
                )

    def _path(self, info: FileInfo) -> Path:
        return Path(self.local, info.basename)

    def _temporary(self, info: FileInfo) -> Path:
        """A name that no other process uses, nor another run that unpacks the folder at this moment."""
        return Path(f'{self._path(info)}.{os.getpid()}{TEMPORARY_SUFFIX}')


class _Misfit(RankError):
    """A file is whole, and is not for this run."""

    def __reduce__(self) -> tuple[type[RankError], tuple[str]]:
        return RankError, (str(self),)


def make_readers(index: Index, folder: str) -> list[Reader]:
    """Streaming's readers of the shards of an index, so that nobody else reads its text.

    Args:
        index (Index): The index.
        folder (str): Where its shards are, or are cached.
    """

    def info(file: ShardFile) -> FileInfo:
        return FileInfo(file.basename, file.bytes, file.hashes)

    return [
        MDSReader(
            dirname=folder,
            split=None,
            column_encodings=list(shard.column_encodings),
            column_names=list(shard.column_names),
            column_sizes=list(shard.column_sizes),
            compression=shard.compression,
            hashes=[],
            raw_data=info(shard.raw_data),
            samples=shard.samples,
            size_limit=None,
            zip_data=info(shard.zip_data) if shard.zip_data else None,
        )
        for shard in index.shards
    ]


def _files(shard: Reader) -> list[FileInfo]:
    return [info for pair in shard.file_pairs for info in pair if info is not None]


def _unpack_file(zipped: Path, target: Path, raw_bytes: int) -> None:
    target.unlink(missing_ok=True)
    with contextlib.ExitStack() as stack:
        try:
            packed = stack.enter_context(open_regular(zipped))
        except FileNotFoundError:
            raise DamagedFile(zipped, what='it is missing') from None
        raw: BinaryIO = stack.enter_context(target.open('xb'))  # x follows no link
        unpack(packed, raw, raw_bytes, zipped)
