"""When to save, and how all ranks come to agree on it."""

import time
from collections.abc import Callable
from typing import Any, Protocol

from composer import Callback, Logger, State
from composer.utils import dist

from rewarm.config.duration import Duration
from rewarm.config.plan import Plan, StagePlan
from rewarm.resume.agreement import any_rank
from rewarm.resume.preemption import StopRequest
from rewarm.resume.saving import BackgroundSaver

__all__ = ['Checkpointing', 'EvaluationCut', 'EventLog']


class EventLog(Protocol):
    """The run's event log, as far as this module writes it."""

    def at(self, *, batch: int, tokens: int, stage: str | None) -> None:
        """Says where the run is."""
        ...

    def record(self, event: str, **fields: Any) -> None:
        """Writes one event."""
        ...


class EvaluationCut(Exception):
    """Leaves an evaluation, on all ranks: the run is told to go."""


class Checkpointing(Callback):
    """Saves when it is due, at a stage's end and when the run is told to go; stops the Trainer in the last case.

    Ranks agree at each batch's end, before evaluations, so that none is begun inside a grace period. Saves begin at
    BATCH_CHECKPOINT, after the evaluations of that batch: a kill after a save neither loses nor repeats one.

    Args:
        saver (BackgroundSaver): Writes the checkpoints of the run.
        stage (StagePlan): The stage being trained.
        plan (Plan): The whole run's.
        describe (Callable[[State], dict]): What ``state.json`` holds besides the position.
        interval (Duration): Batches, tokens or wall-clock time between saves. In time, a save that takes longer than the
            interval puts the next one off; in batches, the next one waits for it.
        stop (StopRequest): The signals and notices.
        events (EventLog): ``events.jsonl``.
    """

    def __init__(
        self,
        saver: BackgroundSaver,
        *,
        stage: StagePlan,
        plan: Plan,
        describe: Callable[[State], dict[str, Any]],
        interval: Duration,
        stop: StopRequest,
        events: EventLog,
    ) -> None:
        self.saver = saver
        self.stage = stage
        self.plan = plan
        self.describe = describe
        self.interval = interval
        self.stop = stop
        self.events = events
        self._saved_at = time.monotonic()
        self._due = False

    def batch_end(self, state: State, logger: Logger) -> None:
        """All ranks agree on whether to stop and whether to save, and take a save in flight a step on.

        Raises:
            UserError: On every rank, if a save in the background failed because of the disk.
            RuntimeError: On every rank, if it failed in another way.
        """
        batch = int(state.timestamp.batch)
        self.events.at(batch=batch, tokens=int(state.timestamp.token), stage=self.stage.name)
        busy = self.saver.busy  # before `failure`, which is final only then
        failed = self.saver.failure is not None
        stop, news, due, busy, failed = any_rank(
            [self.stop.reason is not None, self.stop.has_news, self._is_due(batch), busy, failed]
        )
        if failed:
            self.saver.raise_failure()
        if self.saver.in_flight and not busy:
            self.saver.advance()
        if news:
            for notice in sum(dist.all_gather_object(self.stop.take_news()), []):
                self.events.record('notice', **notice)
        if stop:
            self._agree_to_stop()
        self._due = stop or news or due or batch == self.stage.end_batch

    def batch_checkpoint(self, state: State, logger: Logger) -> None:
        """Saves, and ends the Trainer if the run was told to go."""
        if self._due:
            self.save(state, wait=self.stop.agreed is not None or int(state.timestamp.batch) == self.stage.end_batch)
        if self.stop.agreed:
            state.stop_training()

    def eval_batch_end(self, state: State, logger: Logger) -> None:
        """Breaks an evaluation off when the run is told to go: it may outlast the grace period, and is made up later.

        Raises:
            EvaluationCut: On every rank.
        """
        (stop,) = any_rank([self.stop.reason is not None])
        if stop:
            self._agree_to_stop()
            raise EvaluationCut

    def save(self, state: State, *, wait: bool) -> None:
        """Begins a save of where the Trainer is; ``wait`` until it is whole."""
        timestamp = state.timestamp
        position = {'batch': int(timestamp.batch), 'tokens': int(timestamp.token), 'stage': self.stage.name}
        self.saver.begin(position, self.describe(state), wait=wait)
        self._saved_at = time.monotonic()

    def _agree_to_stop(self) -> None:
        if self.stop.agreed is None:
            reasons = dist.all_gather_object(self.stop.reason)
            self.stop.agreed = ', '.join(dict.fromkeys(reason for reason in reasons if reason))
            self.events.record('signal', signal=self.stop.agreed)

    def _is_due(self, batch: int) -> bool:
        if self.interval.is_time:
            # Wall clocks differ between ranks; the first one decides.
            waited = time.monotonic() - self._saved_at >= self.interval.seconds
            return dist.get_global_rank() == 0 and waited and not self.saver.in_flight
        return batch % self.interval.batches(self.plan.tokens_per_batch) == 0
