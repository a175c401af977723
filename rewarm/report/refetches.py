"""Records shards that were damaged and have been fetched again."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

from composer import Callback, Logger, State

from rewarm.report.records import Events

__all__ = ['Refetches']


class Dataset(Protocol):
    """A dataset, as far as this module reads it."""

    def refetched(self) -> Iterator[Any]:
        """Pairs of shard and reason since the last call."""
        ...


class Refetches(Callback):
    """Writes the event ``shard_refetched`` for each shard that rank 0 or its loader workers replaced.

    Args:
        events (Events): ``events.jsonl``.
        datasets (Iterable[Dataset]): All that the stage reads.
    """

    def __init__(self, events: Events, datasets: Iterable[Dataset]) -> None:
        self.events = events
        self.datasets: Sequence[Dataset] = list(datasets)

    def batch_end(self, state: State, logger: Logger) -> None:
        """Looks after each batch; nothing is waited for."""
        for dataset in self.datasets:
            for shard, reason in dataset.refetched():
                self.events.record('shard_refetched', shard=shard, reason=reason)
