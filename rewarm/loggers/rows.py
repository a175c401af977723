"""What a logger gets of a batch, and the same from the run's records, for a logger that lacks some."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rewarm.formats.records import BATCHES, EVALUATIONS, Damage, read_lines

__all__ = ['Row', 'recorded_rows']

TRAINING = ('lr', 'loss', 'grad_norm', 'tokens_per_second')
"""Of ``metrics.jsonl``; each is logged as ``train/...``."""


@dataclass(frozen=True)
class Row:
    """All that is logged of one batch, its evaluation included: one point of every chart."""

    batch: int
    """Batches behind the run: the step in every logger."""
    tokens: int
    """Tokens behind the run."""
    metrics: dict[str, float]
    """By name, ``time/batch`` and ``time/token`` among them."""
    trained: bool
    """Whether a batch ended here; else it is an evaluation alone, of weights whose batch was logged before."""


def recorded_rows(folder: Path, *, after: int, before: int) -> Iterator[Row]:
    """The rows of a run folder's records.

    Args:
        folder (Path): The run's folder.
        after (int): The batch before the first one wanted; -1 also gives the evaluation of the starting weights.
        before (int): The batch after the last one wanted.

    Yields:
        Row: In the order of batches.

    Raises:
        DamagedFile: If a file is no regular file.
    """
    metrics: dict[int, dict[str, float]] = {}
    tokens: dict[int, int] = {}
    trained: set[int] = set()
    for line in read_lines(BATCHES, folder / 'metrics.jsonl', Damage('metrics.jsonl')):
        if after < line.batch < before:
            values = {f'train/{key}': float(getattr(line, key)) for key in TRAINING}
            metrics[line.batch] = {**values, 'loss/train/total': line.loss}
            tokens[line.batch] = line.tokens
            trained.add(line.batch)
    for line in read_lines(EVALUATIONS, folder / 'evals.jsonl', Damage('evals.jsonl')):
        if after < line.batch < before:
            metrics.setdefault(line.batch, {})[f'metrics/{line.set}/loss'] = line.loss
            tokens[line.batch] = line.tokens
    for batch in sorted(metrics):
        times = {'time/batch': batch, 'time/token': tokens[batch]}
        known = {key: value for key, value in metrics[batch].items() if not math.isnan(value)}
        yield Row(batch, tokens[batch], {**times, **known}, batch in trained)
