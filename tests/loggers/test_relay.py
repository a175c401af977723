"""What a Trainer logs becomes one row for each batch, at the number that the batch has in metrics.jsonl."""

from types import SimpleNamespace
from typing import Any

import torch
from composer.core import Timestamp

from rewarm.loggers.relay import Relay
from rewarm.loggers.rows import Row


class Receiver:
    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.traces: list[dict[str, Any]] = []
        self.hyperparameters: dict[str, Any] = {}

    def put_row(self, row: Row) -> None:
        self.rows.append(row)

    def put_traces(self, traces: dict[str, Any]) -> None:
        self.traces.append(traces)

    def put_hyperparameters(self, hyperparameters: dict[str, Any]) -> None:
        self.hyperparameters.update(hyperparameters)


def at(batch: int) -> Any:
    return SimpleNamespace(timestamp=Timestamp(batch=batch, token=100 * batch))


def train(relay: Relay, batch: int) -> None:
    """As Composer calls its loggers in a batch."""
    relay.log_metrics({'time/batch': batch - 1, 'time/token': 100 * (batch - 1)}, step=batch - 1)
    relay.log_metrics({'loss/train/total': torch.tensor(1.0 * batch)}, step=batch - 1)
    relay.log_metrics({'train/loss': 1.0 * batch}, step=batch)
    relay.batch_end(at(batch), None)  # type: ignore[arg-type]


def test_a_batch_is_one_row_with_its_evaluation():
    relay = Relay([receiver := Receiver()])
    relay.log_hyperparameters({'a': 1})
    train(relay, 1)
    relay.log_metrics({'metrics/old/loss': torch.tensor([3.0]), 'metrics/old/table': 'text'}, step=1)
    relay.log_traces({'guard/batch_end': 1})
    relay.batch_checkpoint(at(1), None)  # type: ignore[arg-type]
    train(relay, 2)
    relay.batch_checkpoint(at(2), None)  # type: ignore[arg-type]
    relay.log_metrics({'time/batch': 2}, step=2)  # at the end of fit
    relay.close(at(2), None)  # type: ignore[arg-type]
    times = [{'time/batch': batch, 'time/token': 100 * batch} for batch in (1, 2)]
    assert receiver.rows == [
        Row(1, 100, {**times[0], 'loss/train/total': 1.0, 'train/loss': 1.0, 'metrics/old/loss': 3.0}, True),
        Row(2, 200, {**times[1], 'loss/train/total': 2.0, 'train/loss': 2.0}, True),
    ]
    assert receiver.traces == [{'guard/batch_end': 1}]
    assert receiver.hyperparameters == {'a': 1}


def test_an_evaluation_that_is_broken_off_is_left_to_the_one_that_makes_up_for_it():
    relay = Relay([receiver := Receiver()])
    train(relay, 1)
    relay.log_metrics({'metrics/old/loss': 3.0}, step=1)
    relay.close(at(1), None)  # type: ignore[arg-type]
    later = Relay([receiver])
    later.log_metrics({'metrics/old/loss': 3.0}, step=1)
    later.log_metrics({'metrics/new/loss': 4.0}, step=1)
    later.eval_standalone_end(at(1), None)  # type: ignore[arg-type]
    assert [(row.batch, row.trained, sorted(row.metrics)) for row in receiver.rows] == [
        (1, True, ['loss/train/total', 'time/batch', 'time/token', 'train/loss']),
        (1, False, ['metrics/new/loss', 'metrics/old/loss', 'time/batch', 'time/token']),
    ]


def test_a_batch_that_was_rolled_back_is_not_logged():
    relay = Relay([receiver := Receiver()])
    relay.log_metrics({'loss/train/total': 9.0}, step=0)
    relay.close(at(0), None)  # type: ignore[arg-type]
    assert receiver.rows == []
