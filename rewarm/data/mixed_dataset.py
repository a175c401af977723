"""A StreamingDataset that reads in the order of ``order.py``, from a position given as an argument.

Streaming keeps storage, downloads, cache and loader threads; its sampling, shuffle and saved position are not used.
"""

import multiprocessing
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from streaming import StreamingDataset

from rewarm.config.errors import DamagedFile, RankError, UserError, disk_error
from rewarm.data.datasets import Dataset
from rewarm.data.order import Mix
from rewarm.data.shard_files import CheckedStream

__all__ = ['MixedDataset', 'Refetched', 'Sample']

Sample = dict[str, Any]
"""``tokens``, an array, and ``id``; None and -1 where an evaluation's last batch is filled up."""

_REMOTE, _PREPARING, _LOCAL = 1, 2, 3  # Streaming's states of a shard.


class Refetched(NamedTuple):
    """A shard that was found damaged and replaced by a whole one."""

    shard: str
    reason: str


class MixedDataset(StreamingDataset):
    """A StreamingDataset that reads the samples an order names, from a position given as an argument.

    Args:
        sources (Sequence[Dataset]): The streams' folders, in the order's numbering.
        mix (Mix): The order.
        start (int): First sample to read, over all ranks.
        total (int): One past the last sample to read, over all ranks.
        device_batch (int): Samples in a batch of one rank.
        seq_len (int): Tokens in an input.
        predownload (int): How many samples each worker fetches ahead of those it reads.
    """

    def __init__(
        self,
        sources: Sequence[Dataset],
        mix: Mix,
        *,
        start: int,
        total: int,
        device_batch: int,
        seq_len: int,
        predownload: int,
    ) -> None:
        # No `cache_limit`: it deletes shards, also those of a folder that was only to be read (streaming #988).
        self._refetched, tell = multiprocessing.Pipe(duplex=False)  # loader workers tell, too
        streams = [
            CheckedStream(
                source.name,
                folder=source.folder,
                remote=source.remote,
                readers=source.readers,
                seq_len=seq_len,
                vocab_size=source.vocab_size,
                refetched=tell,
            )
            for source in sources
        ]
        super().__init__(streams=streams, batch_size=device_batch, predownload=predownload, num_canonical_nodes=1)
        self._sources, self._mix, self._seq_len = list(sources), mix, seq_len
        self._start, self._total = start, total
        self._at_hand: set[int] = set()
        self._work: _WorkerOrder | None = None
        self._failure: BaseException | None = None

    def __len__(self) -> int:
        """Samples of the whole stage that one rank reads, as the Trainer's length of an epoch."""
        ranks = self._parallel_rank_world.num_ranks
        return -(-self._total // (self._batch * ranks)) * self._batch

    def __iter__(self) -> Iterator[Sample]:
        """Reads this worker's samples once.

        Raises:
            UserError: If a shard cannot be had whole; Streaming would end the epoch instead.
        """
        self._failure = None
        came = 0
        try:
            for sample in super().__iter__():
                yield sample
                came += 1
        except Exception as error:
            # Where a thread has failed, what came to this one only says so.
            raise self._in_words(self._failure or error) from error
        work = self._work
        if work is None or came != len(work):
            raise self._in_words(self._failure) from self._failure
        for _ in range(work.padding):
            yield {'tokens': None, 'id': -1}

    def __getitem__(self, at: Any) -> Sample:
        """Reads one sample.

        Args:
            at (int): Its global id.

        Returns:
            Sample: Its ``seq_len`` or ``seq_len + 1`` tokens, and the id.
        """
        shard_id, _ = self.spanner[at]
        if shard_id not in self._at_hand:
            self.prepare_shard(shard_id)
        tokens = self.get_item(at)['tokens']
        if isinstance(tokens, bytes):
            tokens = np.frombuffer(tokens, np.int64)
        return {'tokens': tokens, 'id': int(at)}

    def prepare_shard(self, shard_id: int, blocking: bool = True) -> None:
        """Fetches a shard and checks it. Nothing is ever evicted: a thread running ahead asks for each only once."""
        if not blocking and shard_id in self._at_hand:
            return
        stream = self.streams[self.stream_per_shard[shard_id]]
        assert isinstance(stream, CheckedStream)
        try:
            super().prepare_shard(shard_id, blocking)
            if self._shard_states[shard_id] == _LOCAL:
                stream.check(self.shards[shard_id])
                self._at_hand.add(shard_id)
        except BaseException:
            # Streaming leaves it as being prepared, and its other readers would wait for ever.
            if self._shard_states[shard_id] == _PREPARING:
                self._shard_states[shard_id] = _REMOTE
            raise

    def refetched(self) -> Iterator[Refetched]:
        """Shards that were replaced since the last call, by this process or its loader workers."""
        while self._refetched.poll():
            yield Refetched(*self._refetched.recv())

    def on_exception(self, future: Future[Any]) -> None:
        """Remembers why a thread ended, so that the reader can say so."""
        if future.exception() is not None:
            self._failure = future.exception()
            self._event.set()
            self._iterator.on_exit()  # Streaming counts only threads that end well, and waits for two of three

    def _in_words(self, failure: BaseException | None) -> BaseException:
        if isinstance(failure, DamagedFile):
            return RankError(str(failure))  # it has to cross from a loader worker, with words alone
        if isinstance(failure, UserError):
            return failure
        words = disk_error(failure, self._sources[0].folder) if isinstance(failure, OSError) else None
        return words or RuntimeError(f'a shard could not be read: {failure!r}')

    @property
    def _batch(self) -> int:
        assert self.batch_size is not None
        return self.batch_size

    def _resume_incr_epoch(self) -> tuple[int, int]:
        return 0, 0  # the position is an argument: nothing to agree on through shared memory

    def _get_work(self, epoch: int, sample_in_epoch: int) -> '_WorkerOrder':  # pyright: ignore[reportIncompatibleMethodOverride]
        world = self._unique_worker_world
        self._work = _WorkerOrder(
            self._mix.ids,
            start=self._start,
            total=self._total,
            device_batch=self._batch,
            rank=world.rank,
            ranks=world.num_ranks,
            worker=world.worker_of_rank,
            workers=world.workers_per_rank,
        )
        return self._work


class _WorkerOrder:
    """Ids of the samples of one worker of one rank. Streaming asks for the length and for one id at a time."""

    def __init__(
        self,
        ids: Callable[[int, int], NDArray[np.int64]],
        *,
        start: int,
        total: int,
        device_batch: int,
        rank: int,
        ranks: int,
        worker: int,
        workers: int,
    ) -> None:
        self._ids, self._device_batch, self._total = ids, device_batch, total
        global_batch = device_batch * ranks
        self._first = start + worker * global_batch + rank * device_batch
        self._step = workers * global_batch
        batches = -(-(total - start) // global_batch)
        mine = len(range(worker, batches, workers))
        last = self._first + (mine - 1) * self._step
        self.padding = device_batch - min(max(total - last, 0), device_batch) if mine else 0
        self._length = mine * device_batch - self.padding
        # Three threads read at three places; each remembers its own batch.
        self._current = threading.local()

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> int:
        batch, place = divmod(int(index), self._device_batch)
        if getattr(self._current, 'batch', None) != batch:
            begin = self._first + batch * self._step
            self._current.ids = self._ids(begin, min(begin + self._device_batch, self._total))
            self._current.batch = batch
        return int(self._current.ids[place])
