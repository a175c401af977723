"""One logger on a thread of its own, behind a bounded queue: whatever it does, training neither waits nor ends."""

import math
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rewarm.loggers.destination import NOTHING, Destination
from rewarm.loggers.failures import Failures, reason_of
from rewarm.loggers.held import HeldFile
from rewarm.loggers.rows import Row, recorded_rows

__all__ = ['Guard']

MOST_WAITING = 1000
"""Calls that wait for a logger. More are dropped; their rows are in the run's records and are given to it later."""

STUCK_SECONDS = 60.0
"""A call that takes longer is told."""

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 10.0, 600.0
"""Between a failure and the next try, doubled at each."""

TRIES_OF_A_ROW = 4
"""At each so many tries a row is passed over for the next one: it may be the row that is wrong."""


@dataclass(frozen=True)
class _Finish:
    """The last item of the queue."""

    failed: bool


class Guard:
    """Keeps one logger, gives it each batch's row once and in order, and tells when it fails.

    What it lacks is read from the run's records, whatever the reason: rows that were dropped or failed, a machine that
    vanished before a client had sent them, a logger that was added to the run file later.

    Args:
        name (str): The logger's, as in the run file.
        build (Callable[[], Destination]): Makes the logger; called on its thread, and again after it failed.
        folder (Path): The run folder, for its records.
        held (HeldFile): Remembers up to where it holds rows.
        failures (Failures): Told and counted here.
    """

    def __init__(
        self, name: str, build: Callable[[], Destination], *, folder: Path, held: HeldFile, failures: Failures
    ) -> None:
        self.name = name
        self.failures = failures
        self._build = build
        self._folder = folder
        self._held_file = held
        self._held = NOTHING
        self._flushed = NOTHING
        self._position = 0
        self._newest = NOTHING
        self._destination: Destination | None = None
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=f'logger-{name}', daemon=True)
        self._tried = threading.Event()
        self._first_error: BaseException | None = None
        self._given_up = False
        self._busy_since = math.inf
        self._retry_at, self._pause_seconds, self._tries = 0.0, FIRST_PAUSE_SECONDS, 0
        self._hyperparameters: dict[str, Any] = {}

    def start(self, batch: int) -> None:
        """Begins to connect, on the thread.

        Args:
            batch (int): Batches behind the run; what was logged of later ones comes again.
        """
        self._position = batch
        self._thread.start()

    def refusal(self, ends_at: float) -> BaseException | None:
        """Waits for the first try to connect, but no longer than a time of the monotonic clock.

        Returns:
            BaseException | None: What it failed with; None if it did not, or is still at it.
        """
        self._tried.wait(max(0.0, ends_at - time.monotonic()))
        return self._first_error

    def give_up(self) -> None:
        """Says nothing more, and does not try again to connect: the start is refused."""
        self.failures.silence()
        self._given_up = True

    def put_row(self, row: Row) -> None:
        """Gives it a batch's row."""
        self._put(row)

    def put_hyperparameters(self, hyperparameters: dict[str, Any]) -> None:
        """Gives it what does not change."""
        self._put(lambda: self._log_hyperparameters(hyperparameters))

    def put_traces(self, traces: dict[str, Any]) -> None:
        """Gives it which algorithms ran."""
        self.put_call(lambda logger: logger.log_traces(traces))

    def put_call(self, call: Callable[[Destination], object]) -> None:
        """Has something done with the logger, on its thread."""
        self._put(lambda: call(self._destination) if self._destination is not None else None)

    def go_back(self, batch: int) -> None:
        """Says that the run goes on from an earlier batch. Waits for nothing."""
        self._put(lambda: self._go_back(batch))

    def begin_to_close(self, *, failed: bool) -> None:
        """Lets it finish after all that waits."""
        self._queue.put(_Finish(failed))

    def wait_until_closed(self, ends_at: float) -> bool:
        """Waits until it has finished, but no longer than a time of the monotonic clock; whether it has."""
        self._thread.join(max(0.0, ends_at - time.monotonic()))
        closed = not self._thread.is_alive()
        if not closed:
            self.failures.tell('it has not finished in time and is left')
        self.failures.close()
        return closed

    def _put(self, item: Any) -> None:
        if (error := self._first_error) is not None:
            self._first_error = None
            self.failures.lose(reason_of(error))
        busy_seconds = time.monotonic() - self._busy_since
        if busy_seconds > STUCK_SECONDS:
            self.failures.tell(f'it has not come back from a call for {busy_seconds:.0f} s')
        if self._queue.qsize() < MOST_WAITING:
            self._queue.put(item)
        else:
            self.failures.lose(f'{MOST_WAITING:,} calls wait for it, and further ones are dropped')

    def _work(self) -> None:
        self._try(self._open)
        self._tried.set()
        while not isinstance(item := self._queue.get(), _Finish):
            if isinstance(item, Row):
                self._newest = max(self._newest, item.batch)
                self._try(lambda: self._log(item))
            else:
                self._try(item)
            if self._queue.empty():
                self._try(self._flush, counts=False)
        if self._destination is not None or not self._given_up:
            self._retry_at = 0.0
            self._try(lambda: self._finish(item.failed))

    def _try(self, call: Callable[[], object], *, counts: bool = True) -> None:
        """Calls the logger, unless it has just failed; after a pause it is connected anew if need be."""
        if time.monotonic() < self._retry_at:
            if counts:
                self.failures.lose('it fails')  # told already
            return
        self._busy_since = time.monotonic()
        try:
            if self._destination is None and self._tried.is_set():
                self._open()
            call()
        except BaseException as error:  # a client may even raise SystemExit
            if self._destination is not None and self._destination.buffers:
                self._held = min(self._held, self._flushed)
            if self._tried.is_set():
                self.failures.lose(reason_of(error))
            else:
                self._first_error = error  # refused by the start, or told with the first call
            self._retry_at = time.monotonic() + self._pause_seconds
            self._pause_seconds = min(2 * self._pause_seconds, LONGEST_PAUSE_SECONDS)
        finally:
            self._busy_since = math.inf

    def _open(self) -> None:
        destination = self._build()
        held = destination.open()
        if held is None:
            held = self._held_file.read()
        if held is None:
            held = self._position  # it was there before, and what it holds is not known
        self._destination, self._held = destination, held
        if destination.go_back(self._position):
            self._held = min(self._held, self._position)
        self._flushed = self._held
        if self._hyperparameters:
            destination.log_hyperparameters(dict(self._hyperparameters))

    def _go_back(self, batch: int) -> None:
        self._position = self._newest = batch
        if self._destination is not None and self._destination.go_back(batch):
            self._held, self._flushed = min(self._held, batch), min(self._flushed, batch)

    def _log_hyperparameters(self, hyperparameters: dict[str, Any]) -> None:
        self._hyperparameters.update(hyperparameters)
        if self._destination is not None:
            self._destination.log_hyperparameters(hyperparameters)

    def _log(self, row: Row) -> None:
        """Gives it a row after those that it lacks; one that it holds comes a second time and is left out."""
        if row.trained:
            self._fill(row.batch)
            if row.batch > self._held:
                self._give(row)
        elif not self._fill(row.batch + 1):
            self._give(row)

    def _fill(self, before: int) -> bool:
        """Gives it what it lacks up to a batch; whether the last of it was the evaluation of the batch before that."""
        evaluated = False
        if before > self._held + 1:
            for row in recorded_rows(self._folder, after=self._held, before=before):
                self._give(row)
                evaluated = row.batch == before - 1 and any(key.startswith('metrics/') for key in row.metrics)
        return evaluated

    def _give(self, row: Row) -> None:
        assert self._destination is not None
        self._tries += 1
        if self._tries % TRIES_OF_A_ROW == 0:
            return
        self._destination.log_row(row)
        self._held, self._tries, self._pause_seconds = max(self._held, row.batch), 0, FIRST_PAUSE_SECONDS

    def _flush(self) -> None:
        if self._destination is not None:
            self._destination.flush()
            self._flushed = self._held
            self._held_file.write(self._held)

    def _finish(self, failed: bool) -> None:
        if self._destination is None:
            return
        try:
            self._fill(self._newest + 1)
            self._flush()
        finally:
            self._destination.finish(failed=failed)
            self._held_file.close()
