"""Tells the watchdog what Composer is at."""

from typing import Protocol

from composer import Callback, Event, Logger, State

__all__ = ['Heartbeat']

IN_BATCH = {
    Event.BEFORE_DATALOADER: 'waiting for the data of',
    Event.BATCH_START: 'start of',
    Event.BEFORE_FORWARD: 'forward of',
    Event.BEFORE_BACKWARD: 'backward of',
    Event.AFTER_BACKWARD: 'after the backward of',
    Event.AFTER_TRAIN_BATCH: 'optimizer step of',
}
"""Events at which the timestamp still names the batch before."""

AFTER_BATCH = {
    Event.BATCH_END: 'end of',
    Event.BATCH_CHECKPOINT: 'checkpoint after',
    Event.EVAL_START: 'start of an evaluation after',
    Event.EVAL_BATCH_START: 'evaluation after',
    Event.EVAL_BATCH_END: 'evaluation after',
    Event.EVAL_END: 'end of an evaluation after',
    Event.FIT_END: 'end of the stage after',
}


class _Progress(Protocol):
    def __call__(self, where: str, *, settled: bool | None = None) -> object: ...


class Heartbeat(Callback):
    """Calls ``Watchdog.progress`` at every event that tells a phase; first of the callbacks, to name what the others do.

    Args:
        progress (Callable): ``Watchdog.progress``.
    """

    def __init__(self, progress: _Progress) -> None:
        self.progress = progress

    def run_event(self, event: Event, state: State, logger: Logger) -> None:
        """Says what is about to happen."""
        if (what := IN_BATCH.get(event)) is not None:
            self.progress(f'{what} batch {int(state.timestamp.batch) + 1}')
        elif (what := AFTER_BATCH.get(event)) is not None:
            settled = True if event is Event.BATCH_END else None
            self.progress(f'{what} batch {int(state.timestamp.batch)}', settled=settled)
        elif event is Event.FIT_START:
            self.progress('start of a stage', settled=False)
