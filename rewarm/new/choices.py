"""The numbers of a run that nobody has to choose by hand: sequence length, batch, budget, how often to evaluate."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from rewarm.config.duration import Duration
from rewarm.config.errors import UserError
from rewarm.config.memory import estimate_memory
from rewarm.new.dataset import Dataset, Part
from rewarm.new.model import Model
from rewarm.new.request import Replayed, Request

__all__ = ['Choices', 'Stream', 'choose']

BATCH_TOKENS = 1 << 21
"""Of a step, where there is data enough: what Pythia was trained with."""

LEAST_STEPS = 1000
"""A smaller batch is taken before a run has fewer steps than this."""

MICROBATCH_BYTES = 30e9
"""By the estimate; leaves room on a GPU of 40 GB."""

EVALUATED_SHARE = 0.05
"""Of the work, for evaluations, unless there were fewer than ``LEAST_EVALUATIONS``; a sequence that is evaluated costs a third of one that is trained."""

MOST_EVALUATIONS = 100
LEAST_EVALUATIONS = 10
LARGEST_MICROBATCH = 128

SHARE_PARTS = 10_000
"""Shares of several new datasets are rounded to so many parts; their order repeats its pattern with it."""


@dataclass(frozen=True)
class Stream:
    """A dataset of the mix with its share."""

    name: str
    part: Part
    share: Fraction
    replayed: bool


@dataclass(frozen=True)
class Choices:
    """What was decided, with what it was decided from."""

    seq_len: int
    global_batch_size: int
    microbatch_size: int
    memory_bytes: int
    """Estimated, of one GPU."""
    streams: tuple[Stream, ...]
    evals: tuple[tuple[str, Part, str], ...]
    """Name, data and role of each validation set."""
    duration: Duration
    batches: int
    passes: float
    """Over the new data."""
    eval_interval: int
    """In batches."""

    @property
    def tokens_per_batch(self) -> int:
        """Tokens in a step."""
        return self.global_batch_size * self.seq_len


def choose(
    request: Request, model: Model, datasets: Mapping[str, Dataset], extra_evals: Mapping[str, Dataset]
) -> Choices:
    """Works the numbers out.

    Args:
        request (Request): What was asked for.
        model (Model): The model.
        datasets (Mapping[str, Dataset]): What each source of the mix is, by its name.
        extra_evals (Mapping[str, Dataset]): What each evaluation set is that was named, by its name.

    Raises:
        UserError: If the datasets do not fit each other, or the shares leave nothing for the new data.
    """
    evals = _evals(request, datasets, extra_evals)
    seq_len = _seq_len(request, [*(each.train for each in datasets.values()), *(part for _, part, _ in evals)])
    streams = _streams(request, datasets)
    new_share = sum((stream.share for stream in streams if not stream.replayed), Fraction(0))
    one_pass = sum(stream.part.samples for stream in streams if not stream.replayed) / new_share
    length, wanted = request.budget.length, (request.budget.passes or 1) * one_pass
    if length is not None and length.unit == 'tok':
        wanted = Fraction(length.value) / seq_len
    batch = request.global_batch_size or _batch(request, wanted, seq_len)
    microbatch, memory = _microbatch(model, batch, request.gpus, seq_len)
    duration = length or Duration(max(1, int(wanted / batch)), 'ba')
    batches = duration.batches(batch * seq_len)
    evaluated = sum(part.samples for _, part, _ in evals)
    interval = max(math.ceil(evaluated / (3 * EVALUATED_SHARE * batch)), math.ceil(batches / MOST_EVALUATIONS))
    interval = min(interval, math.ceil(batches / LEAST_EVALUATIONS))
    return Choices(
        seq_len=seq_len,
        global_batch_size=batch,
        microbatch_size=microbatch,
        memory_bytes=memory,
        streams=streams,
        evals=evals,
        duration=duration,
        batches=batches,
        passes=float(batches * batch / one_pass),
        eval_interval=interval,
    )


def _evals(
    request: Request, datasets: Mapping[str, Dataset], extra: Mapping[str, Dataset]
) -> tuple[tuple[str, Part, str], ...]:
    """Those that were named, and before them the validation part of each dataset of which none was named."""
    found = [
        (source.name, val, 'upstream' if isinstance(source, Replayed) else 'downstream')
        for source in (*request.replay, *request.data)
        if source.name not in extra and (val := datasets[source.name].val) is not None
    ]
    return (*found, *((each.name, extra[each.name].train, each.role) for each in request.evals))


def _seq_len(request: Request, parts: Sequence[Part]) -> int:
    known = {part.place: part.seq_len for part in parts if part.seq_len is not None}
    if len(set(known.values())) > 1:
        each = ', '.join(f'{place}: {length}' for place, length in known.items())
        raise UserError(
            f'these datasets have sequences of several lengths ({each}), and a run has one. Convert them again with one --seq-len'
        )
    if not known and request.seq_len is None:
        raise UserError(f'{parts[0].place} does not say how long its sequences are. Name it: --seq-len 2048')
    return request.seq_len or next(iter(known.values()))


def _streams(request: Request, datasets: Mapping[str, Dataset]) -> tuple[Stream, ...]:
    """New data by its size, in what the replayed data leaves of the mix."""
    left = 1 - sum((each.share for each in request.replay), Fraction(0))
    if left <= 0:
        raise UserError('the shares of --replay leave nothing for the new data. Make them smaller, such as 0.05')
    total = sum(datasets[each.name].train.samples for each in request.data)
    streams: list[Stream] = []
    for source in request.data:
        part = datasets[source.name].train
        last = source is request.data[-1]
        of_all = left * part.samples / total
        taken = sum((stream.share for stream in streams), Fraction(0))
        share = (
            left - taken if last else max(Fraction(1, SHARE_PARTS), Fraction(round(of_all * SHARE_PARTS), SHARE_PARTS))
        )
        streams.append(Stream(source.name, part, share, replayed=False))
    replayed = [Stream(each.name, datasets[each.name].train, each.share, replayed=True) for each in request.replay]
    return (*streams, *replayed)


def _batch(request: Request, samples: Fraction, seq_len: int) -> int:
    """Sequences of a step: a power of two on each GPU, at most about ``BATCH_TOKENS`` in all."""
    sequences = min(BATCH_TOKENS // seq_len, int(samples / LEAST_STEPS))
    each = max(1, sequences // request.gpus)
    return request.gpus * (1 << (each.bit_length() - 1))


def _microbatch(model: Model, batch: int, gpus: int, seq_len: int) -> tuple[int, int]:
    """The largest that divides a GPU's part of the batch and fits, and the memory it is estimated to take."""
    each = max(1, batch // gpus)

    def memory(size: int) -> int:
        return max(
            estimate_memory(model.shape, size, seq_len, model.precision, fused=fused).total for fused in (True, False)
        )

    divisors = [size for size in range(1, min(each, LARGEST_MICROBATCH) + 1) if each % size == 0]
    fitting = [size for size in divisors if memory(size) <= MICROBATCH_BYTES] or [1]
    return fitting[-1], memory(fitting[-1])
