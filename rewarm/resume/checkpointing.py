"""When to save, and how all ranks come to agree on it."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from composer import Callback, Logger, State
from composer.utils import dist
from torch.nn import Module

from rewarm.config.duration import Duration
from rewarm.config.plan import Plan, StagePlan
from rewarm.resume import checkpoint as checkpoints
from rewarm.resume.preemption import StopRequest
from rewarm.resume.state import optimizer_tensors

__all__ = ['Checkpointing', 'EventLog']


class EventLog(Protocol):
    """The run's event log, as far as this module writes it."""

    def at(self, *, batch: int, tokens: int, stage: str | None) -> None:
        """Says where the run is."""
        ...

    def record(self, event: str, **fields: Any) -> None:
        """Writes one event."""
        ...


class Checkpointing(Callback):
    """Saves when it is due, at a stage's end and when the run is told to go; stops the Trainer in the last case.

    Ranks agree at each batch's end, before evaluations, so that none is begun inside a grace period. Saves come at
    BATCH_CHECKPOINT, after the evaluations of that batch: a kill after a save neither loses nor repeats one.

    Args:
        root (Path): The run's ``checkpoints`` folder.
        stage (StagePlan): The stage being trained.
        plan (Plan): The whole run's.
        model (Module): The raw model.
        describe (Callable[[State], dict]): What ``state.json`` holds besides the position.
        interval (Duration): Batches, tokens or wall-clock time between saves.
        keep (int): Checkpoints to keep besides stage ends.
        stop (StopRequest): The signals.
        sync_records (Callable): Flushes the run's records to the disk; called before each save, since a checkpoint
            must never be newer than the metrics that lead to it.
        events (EventLog): ``events.jsonl``.
    """

    def __init__(
        self,
        root: Path,
        *,
        stage: StagePlan,
        plan: Plan,
        model: Module,
        describe: Callable[[State], dict[str, Any]],
        interval: Duration,
        keep: int,
        stop: StopRequest,
        sync_records: Callable[[], object],
        events: EventLog,
    ) -> None:
        self.root = root
        self.stage = stage
        self.plan = plan
        self.model = model
        self.describe = describe
        self.interval = interval
        self.keep = keep
        self.stop = stop
        self.sync_records = sync_records
        self.events = events
        self._saved_at = time.monotonic()
        self._due = False

    def batch_end(self, state: State, logger: Logger) -> None:
        """All ranks agree on whether to stop and whether to save: one small all-reduce a batch."""
        batch = int(state.timestamp.batch)
        self.events.at(batch=batch, tokens=int(state.timestamp.token), stage=self.stage.name)
        wishes = torch.tensor([self.stop.received is not None, self._is_due(batch)], dtype=torch.int32)
        wishes = state.device.tensor_to_device(wishes)
        dist.all_reduce(wishes, reduce_operation='MAX')
        stop, due = wishes.tolist()
        if stop and not self.stop.agreed:
            self.events.record('signal', signal=self.stop.received or 'on another rank')
        self.stop.agreed = bool(stop)
        self._due = bool(stop or due) or batch == self.stage.end_batch

    def batch_checkpoint(self, state: State, logger: Logger) -> None:
        """Saves, and ends the Trainer if the run was told to go."""
        if self._due:
            if dist.get_global_rank() == 0:
                self._save(state)
            dist.barrier()
            self._saved_at = time.monotonic()
        if self.stop.agreed:
            state.stop_training()

    def _is_due(self, batch: int) -> bool:
        if self.interval.is_time:
            # Wall clocks differ between ranks; the first one decides.
            return dist.get_global_rank() == 0 and time.monotonic() - self._saved_at >= self.interval.seconds
        return batch % self.interval.batches(self.plan.tokens_per_batch) == 0

    def _save(self, state: State) -> None:
        started = time.monotonic()
        self.sync_records()
        path = checkpoints.write(
            self.root,
            batch=int(state.timestamp.batch),
            model=self.model.state_dict(),
            optimizer=optimizer_tensors(self.model, state.optimizers[0]),
            state=self.describe(state),
        )
        size = sum(file.stat().st_size for file in path.iterdir())
        self.events.record('save', path=str(path), bytes=size, seconds=round(time.monotonic() - started, 3))
        for gone in checkpoints.retain(
            self.root, keep=self.keep, stage_ends={stage.end_batch for stage in self.plan.stages}
        ):
            self.events.record('delete', path=str(gone))
