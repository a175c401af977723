"""Which sample is the n-th of a stage: a pure function of its number, so a run can go on from anywhere.

Nothing here knows ranks, workers, batch size or budget, so none of them can change the order. Two questions are
answered one after the other:

1. *Whose turn is it?* Shares are exact fractions, so the streams take turns in a pattern that repeats. Tijdeman's
   rule for the chairman assignment problem keeps every stream within one sample of its share after *every* sample.
2. *Which of its samples?* Each stream is read pass after pass. A pass puts the shards in a new order, groups
   neighbours into blocks and mixes the samples of each block, so a reader needs only a few shards at hand.

Random numbers come from the raw output of PCG64 seeded by a hash of (seed, stage, stream). NumPy promises that both
stay as they are; it makes no such promise for ``permutation`` or ``shuffle``.

Source: R. Tijdeman, The chairman assignment problem, Discrete Mathematics 32 (1980) 323-330,
https://doi.org/10.1016/0012-365X(80)90269-1.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import lcm
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rewarm.config.errors import UserError

__all__ = ['MAX_PERIOD', 'ORDER_VERSION', 'Mix', 'MixStream', 'fingerprint']

ORDER_VERSION = 1
"""Raised whenever the same arguments give another order; a run never goes on under another version."""

MAX_PERIOD = 1_000_000
"""Longest pattern of turns, in samples: above it the table takes seconds and megabytes for no better mix."""

_BLOCKS_KEPT = 8  # Blocks of a stream that stay computed: three loader threads read near each other.


@dataclass(frozen=True, eq=False)
class MixStream:
    """One source of samples as the order sees it.

    Args:
        name (str): The stream's name, part of its seed.
        samples_per_shard (Sequence[int] | NDArray): Samples in each of its shards, in the order of ``index.json``.
        share (Fraction): Its exact share of the stage's samples, above 0 and at most 1.
        shuffle (bool): Whether each pass is shuffled, or read in the order of the shards.
    """

    name: str
    samples_per_shard: Sequence[int] | NDArray[np.int64]
    share: Fraction
    shuffle: bool = True


class Mix:
    """The order of a stage's samples.

    Args:
        streams (Sequence[MixStream]): The streams; a sample's id counts through all of them in this order, as
            Streaming does.
        seed (int): The run's seed.
        stage (str): The stage's name: each stage has an order of its own, whatever other stages there are.
        block_size (int): About how many samples of neighbouring shards are shuffled together.

    Raises:
        UserError: If the streams cannot be mixed: no samples, one name twice, shares that do not sum to 1, or shares
            whose pattern of turns is longer than ``MAX_PERIOD``.
    """

    def __init__(self, streams: Sequence[MixStream], seed: int, stage: str, block_size: int) -> None:
        _check(streams, block_size)
        self.streams = tuple(streams)
        self._turns = _Turns([stream.share for stream in streams])
        self._passes = [_Passes(stream, _entropy(seed, stage, stream.name), block_size) for stream in streams]
        sizes = [passes.samples for passes in self._passes]
        self._first_id = np.cumsum([0, *sizes])[:-1]
        self.samples_per_stream: dict[str, int] = {stream.name: size for stream, size in zip(streams, sizes)}

    def ids(self, begin: int, end: int) -> NDArray[np.int64]:
        """Names the samples number ``begin`` up to, not including, ``end`` of the stage.

        Args:
            begin (int): First number, counted from the stage's start.
            end (int): One past the last.

        Returns:
            NDArray[np.int64]: Global sample ids, shape ``(end - begin,)``.
        """
        if not 0 <= begin <= end:
            raise ValueError(f'samples {begin} to {end} of a stage do not exist')
        stream_of, number_of = self._turns.at(np.arange(begin, end))
        ids = np.empty(end - begin, np.int64)
        for index, passes in enumerate(self._passes):
            mine = stream_of == index
            numbers = number_of[mine]  # consecutive: one stream's turns in a row of samples leave none out
            if len(numbers):
                ids[mine] = self._first_id[index] + passes.at(int(numbers[0]), int(numbers[-1]) + 1)
        return ids

    def counts(self, samples: int) -> dict[str, int]:
        """Counts how many of the stage's first samples come from each stream.

        Args:
            samples (int): How many samples the stage has had.

        Returns:
            dict[str, int]: Samples of each stream by name; they sum to ``samples``.
        """
        return {stream.name: count for stream, count in zip(self.streams, self._turns.counts(samples))}


class _Turns:
    """Which stream each sample of the stage comes from."""

    def __init__(self, shares: Sequence[Fraction]) -> None:
        self.period = lcm(*(share.denominator for share in shares))
        if self.period > MAX_PERIOD:
            spelled = ', '.join(str(share) for share in shares)
            raise UserError(
                f'the proportions {spelled} repeat only after {self.period:,} samples (the most is {MAX_PERIOD:,}). '
                'Use rounder numbers, such as 0.05 or 1/3'
            )
        self.per_period = np.array([int(share * self.period) for share in shares], np.int64)
        self._stream = _tijdeman(self.per_period.tolist())
        # How many turns the same stream had before, in the period.
        self._number = np.empty(self.period, np.int32)
        for index, count in enumerate(self.per_period):
            self._number[self._stream == index] = np.arange(count, dtype=np.int32)

    def at(self, numbers: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """For each sample number of the stage, the index of its stream and its number within that stream."""
        period, place = np.divmod(numbers, self.period)
        stream = self._stream[place].astype(np.int64)
        return stream, period * self.per_period[stream] + self._number[place]

    def counts(self, samples: int) -> list[int]:
        """How many of the first ``samples`` samples come from each stream."""
        periods, rest = divmod(samples, self.period)
        in_rest = np.bincount(self._stream[:rest], minlength=len(self.per_period))
        return (periods * self.per_period + in_rest).tolist()


def _tijdeman(per_period: Sequence[int]) -> NDArray[np.int16]:
    """One period of turns: of the streams that may go ahead, the one that must go soonest; of those, the first.

    With k streams, a count stays within 1 - 1 / (2k - 2) of its share. So the (m+1)-th sample of a stream with share p
    may be taken once (n + 1) p >= m + 1 / (2k - 2), n being the samples before it, and must be by n p = m + 1 - 1 / (2k - 2).
    """
    period = sum(per_period)
    if len(per_period) == 1:
        return np.zeros(period, np.int16)
    slack = 2 * len(per_period) - 2
    # In samples before it, of each stream's next sample: the first place where it may be taken, and the last.
    first = [-(-period // (slack * each)) - 1 for each in per_period]
    last = [(slack - 1) * period // (slack * each) for each in per_period]
    taken = [0] * len(per_period)
    turns = np.empty(period, np.int16)
    streams = range(len(per_period))
    for place in range(period):
        index = min((i for i in streams if first[i] <= place), key=last.__getitem__)
        turns[place] = index
        taken[index] += 1
        done, each = slack * taken[index], slack * per_period[index]
        first[index] = -(-period * (done + 1) // each) - 1
        last[index] = period * (done + slack - 1) // each
    return turns


class _Passes:
    """One stream, pass after pass: each pass visits each sample once."""

    def __init__(self, stream: MixStream, entropy: int, block_size: int) -> None:
        self._sizes = np.asarray(stream.samples_per_shard, np.int64)
        self._first_id = self._sizes.cumsum() - self._sizes
        self._entropy, self._block_size, self._shuffle = entropy, block_size, stream.shuffle
        self.samples = int(self._sizes.sum())
        # Each slot holds (key, value) and is written in one go, so threads need no lock and a copy can be pickled.
        self._plan: tuple[int, tuple[NDArray[np.int64], ...]] = (-1, ())
        self._blocks: list[tuple[tuple[int, int], NDArray[np.int64]] | None] = [None] * _BLOCKS_KEPT

    def at(self, begin: int, end: int) -> NDArray[np.int64]:
        """Ids within the stream of its samples number ``begin`` up to ``end``, counted over all passes."""
        parts: list[NDArray[np.int64]] = []
        while begin < end:
            turn, place = divmod(begin, self.samples)
            starts = self._plan_of(turn)[2]
            block = int(np.searchsorted(starts, place, side='right')) - 1
            inside = place - int(starts[block])
            part = self._block_of(turn, block)[inside : inside + end - begin]
            parts.append(part)
            begin += len(part)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _plan_of(self, turn: int) -> tuple[NDArray[np.int64], ...]:
        """Of one pass: the order of shards, and where its blocks begin, counted in shards and in samples."""
        known, plan = self._plan
        if known != turn:
            order = self._permutation(len(self._sizes), turn)
            ends = self._sizes[order].cumsum()
            edges = np.searchsorted(ends, np.arange(0, self.samples, self._block_size), side='right')
            edges = np.unique(np.append(edges, len(order)))
            plan = (order, edges, np.append(0, ends)[edges])
            self._plan = (turn, plan)
        return plan

    def _block_of(self, turn: int, block: int) -> NDArray[np.int64]:
        """Ids within the stream of the samples of one block, in order."""
        key, slot = (turn, block), block % _BLOCKS_KEPT
        known = self._blocks[slot]
        if known is not None and known[0] == key:
            return known[1]
        order, edges, _ = self._plan_of(turn)
        shards = order[edges[block] : edges[block + 1]]
        ids = np.concatenate([np.arange(self._first_id[s], self._first_id[s] + self._sizes[s]) for s in shards])
        ids = ids[self._permutation(len(ids), turn, block)]
        self._blocks[slot] = (key, ids)
        return ids

    def _permutation(self, length: int, *key: int) -> NDArray[np.int64]:
        """A random order of ``length`` things, the same for the same key for ever; or the order as it is."""
        if not self._shuffle:
            return np.arange(length)
        source = np.random.PCG64(np.random.SeedSequence(self._entropy, spawn_key=key))
        return np.argsort(source.random_raw(length), kind='stable')


def _entropy(seed: int, stage: str, stream: str) -> int:
    """A seed of 128 bits for one stream of one stage: adding a stream or a stage changes no other's."""
    text = json.dumps([ORDER_VERSION, seed, stage, stream])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), 'little')


def _check(streams: Sequence[MixStream], block_size: int) -> None:
    if not streams:
        raise UserError('a stage needs at least one stream')
    names = [stream.name for stream in streams]
    for stream in streams:
        if names.count(stream.name) > 1:
            raise UserError(f'two streams of one stage are called {stream.name!r}; give each a name of its own')
        if not 0 < stream.share <= 1:
            raise UserError(f'stream {stream.name}: the proportion {stream.share} must be above 0 and at most 1')
        if not np.sum(stream.samples_per_shard):
            raise UserError(f'stream {stream.name} holds no samples')
    total = sum(stream.share for stream in streams)
    if total != 1:
        raise UserError(f'the proportions of {", ".join(names)} sum to {total}, not to 1')
    if block_size < 1:
        raise UserError(f'shuffle_block_size must be at least 1, got {block_size}')


def fingerprint(
    streams: Sequence[MixStream], shard_hashes: Mapping[str, Sequence[str]], seed: int, block_size: int
) -> dict[str, Any]:
    """Describes a mix so that a later start can tell whether it would read the same samples in the same order.

    Args:
        streams (Sequence[MixStream]): The streams of the stage, in order.
        shard_hashes (Mapping[str, Sequence[str]]): By stream name, one text for each shard that changes with its
            content.
        seed (int): The run's seed.
        block_size (int): Samples shuffled together.

    Returns:
        dict[str, Any]: JSON types. Equal for two stages of one name: the same order.
    """
    described: list[dict[str, Any]] = []
    for stream in streams:
        shards = [
            [int(size), text] for size, text in zip(stream.samples_per_shard, shard_hashes[stream.name], strict=True)
        ]
        digest = hashlib.sha256(json.dumps(shards).encode()).hexdigest()
        described.append(
            {
                'name': stream.name,
                'share': str(stream.share),
                'shuffle': stream.shuffle,
                'samples': int(np.sum(stream.samples_per_shard)),
                'shards': f'sha256:{digest}',
            }
        )
    return {'order_version': ORDER_VERSION, 'seed': seed, 'block_size': block_size, 'streams': described}
