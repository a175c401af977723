"""Composer's side of the loggers: gathers what a Trainer logs into one row for each batch."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from composer import Logger, State
from composer.loggers import LoggerDestination

from rewarm.loggers.rows import Row

__all__ = ['Receiver', 'Relay']


class Receiver(Protocol):
    """Takes what is logged, at once and without raising."""

    def put_row(self, row: Row) -> None:
        """A row."""
        ...

    def put_hyperparameters(self, hyperparameters: dict[str, Any]) -> None:
        """What does not change."""
        ...

    def put_traces(self, traces: dict[str, Any]) -> None:
        """Which algorithms ran."""
        ...


class Relay(LoggerDestination):
    """The one logger that a Trainer gets.

    Composer logs a batch's loss before it counts the batch, so at the step before, and counts time at the batch's start.
    Here all of a batch has its own number, as in ``metrics.jsonl``, its evaluation too. Tables, images and files are not
    passed on: nothing in a run logs any.

    Args:
        receivers (Sequence[Receiver]): The run's loggers on this rank.
    """

    def __init__(self, receivers: Sequence[Receiver]) -> None:
        self.receivers = receivers
        self._trained: dict[str, float] = {}
        self._evaluated: dict[str, float] = {}
        self._traces: dict[str, Any] = {}
        self._batch_ended = False

    def log_hyperparameters(self, hyperparameters: dict[str, Any]) -> None:
        """Passes them on."""
        for receiver in self.receivers:
            receiver.put_hyperparameters(dict(hyperparameters))

    def log_traces(self, traces: dict[str, Any]) -> None:
        """Keeps them until the batch is done."""
        self._traces.update(traces)

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        """Keeps them until the batch is done, as numbers: a tensor may change until then."""
        del step
        for key, value in metrics.items():
            if not key.startswith('time/') and (number := _number(value)) is not None:
                (self._evaluated if key.startswith('metrics/') else self._trained)[key] = number

    def batch_end(self, state: State, logger: Logger) -> None:
        """Notes that the batch counts."""
        self._batch_ended = True

    def batch_checkpoint(self, state: State, logger: Logger) -> None:
        """Passes the batch on, with its evaluation."""
        self._send(state)

    def eval_standalone_end(self, state: State, logger: Logger) -> None:
        """Passes on an evaluation that is made up for, or that of the starting weights."""
        self._send(state)

    def close(self, state: State, logger: Logger) -> None:
        """Passes on the batch whose evaluation was broken off, without it: all of it is made again."""
        self._evaluated = {}
        if self._batch_ended:
            self._send(state)

    def _send(self, state: State) -> None:
        if found := {**self._trained, **self._evaluated}:
            batch, tokens = int(state.timestamp.batch), int(state.timestamp.token)
            times = {'time/batch': batch, 'time/token': tokens}
            row = Row(batch, tokens, {**times, **found}, trained=self._batch_ended)
            for receiver in self.receivers:
                if self._traces:
                    receiver.put_traces(self._traces)
                receiver.put_row(row)
        self._trained, self._evaluated, self._traces, self._batch_ended = {}, {}, {}, False


def _number(value: Any) -> float | None:
    """A number of any library; None for what is none, which no chart shows."""
    if isinstance(value, torch.Tensor):
        return float(value) if value.numel() == 1 else None
    try:
        return None if isinstance(value, str) else float(value)
    except (TypeError, ValueError):
        return None
