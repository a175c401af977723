"""The loss of each batch judged before the optimizer's step, as a Composer algorithm."""

from collections.abc import Callable
from typing import Protocol

import torch
from composer import Algorithm, Event, Logger, State
from composer.utils import dist
from torch import Tensor

from rewarm.config.errors import UserError
from rewarm.resume.spikes import SpikePolicy, Verdict

__all__ = ['RollBack', 'SpikeGuard', 'SpikeStop']


class EventLog(Protocol):
    """The run's event log, as far as this module writes it."""

    def record_once(self, event: str, **fields: object) -> None:
        """Writes one event, unless it is there from an earlier start."""
        ...


class RollBack(Exception):
    """Leaves ``Trainer.fit`` on all ranks, before a batch's update: the run is to go on from its newest checkpoint.

    Args:
        batch (int): Number of the batch, as in ``metrics.jsonl``; one more than are behind the run.
        tokens (int): Of the run, up to and with that batch.
        reason (str): In words.
    """

    def __init__(self, batch: int, tokens: int, reason: str) -> None:
        super().__init__(f'batch {batch:,}: {reason}')
        self.batch = batch
        self.tokens = tokens
        self.reason = reason


class SpikeStop(UserError):
    """Ends the run on all ranks, before a batch's update."""


class SpikeGuard(Algorithm):
    """Asks a policy about each batch, and trains on it, skips it, rolls the run back or stops it.

    Pass it before ``ClipGradients``: Composer runs algorithms in reverse at AFTER events, and the norm must be there.
    All ranks judge the same two numbers, averaged over them, by the same past, so they agree without a word more.

    A skipped batch counts as trained: position, rate and data go on. Its gradients are dropped, and AdamW, which passes
    over parameters without one, neither steps nor decays nor counts.

    Args:
        policy (SpikePolicy): The stage's, the same on every rank.
        grad_norm (Callable[[], Tensor]): The norm before clipping, a scalar on the device.
        tokens_per_batch (int): Of the whole batch.
        events (EventLog): Gets ``spike`` and ``skip``, each with the number of the batch in ``metrics.jsonl``.
        announce (Callable[[str], None]): Says something to the user.
    """

    def __init__(
        self,
        policy: SpikePolicy,
        *,
        grad_norm: Callable[[], Tensor],
        tokens_per_batch: int,
        events: EventLog,
        announce: Callable[[str], None],
    ) -> None:
        self.policy = policy
        self.grad_norm = grad_norm
        self.tokens_per_batch = tokens_per_batch
        self.events = events
        self.announce = announce
        self.skipped = False
        """Whether the last batch was skipped."""
        self._losses: list[Tensor] = []
        self._num_samples = 0

    def match(self, event: Event, state: State) -> bool:
        """Acts after each microbatch's loss, when all gradients of the batch are there, and at its end."""
        return event in (Event.BEFORE_TRAIN_BATCH, Event.AFTER_LOSS, Event.AFTER_TRAIN_BATCH, Event.BATCH_END)

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        """Adds up the loss, judges the batch, or remembers it.

        Raises:
            RollBack: If that is to be done; on every rank, and before the update.
            SpikeStop: If the run is to stop; likewise.
        """
        if event == Event.BEFORE_TRAIN_BATCH:
            self._losses, self._num_samples = [], 0
        elif event == Event.AFTER_LOSS:
            assert isinstance(state.loss, Tensor)
            num_samples = len(state.batch['input_ids'])
            self._losses.append(state.loss.detach().float() * num_samples)
            self._num_samples += num_samples
        elif event == Event.AFTER_TRAIN_BATCH:
            self._act(state, self._judge(int(state.timestamp.batch) + 1))
        else:  # the loss as it is recorded, so that a resume finds the same
            self.policy.note(state.total_loss_dict['loss/train/total'], skipped=self.skipped)

    def _judge(self, batch: int) -> Verdict:
        """One all-reduce, and one wait for the device."""
        seen = torch.stack([torch.stack(self._losses).sum() / self._num_samples, self.grad_norm().float()])
        dist.all_reduce(seen, reduce_operation='SUM')
        loss, grad_norm = (seen / dist.get_world_size()).tolist()
        return self.policy.judge(batch, loss=loss, grad_norm=grad_norm)

    def _act(self, state: State, verdict: Verdict) -> None:
        batch = int(state.timestamp.batch) + 1
        self.skipped = verdict.action == 'skip'
        if verdict.action == 'train':
            return
        where = {'batch': batch, 'tokens': batch * self.tokens_per_batch}
        if verdict.spike is not None:
            self.events.record_once('spike', **where, **vars(verdict.spike), action=verdict.action)
        if verdict.action == 'rollback':
            raise RollBack(**where, reason=verdict.reason)
        if verdict.action == 'stop':
            raise SpikeStop(
                f'batch {batch:,}: {verdict.reason}. It was not trained on; the newest checkpoint stands. '
                'Look at its data, the learning rate and the machine, or write another `spikes.on_nan` or `spikes.on_spike`'
            )
        if verdict.action == 'skip':
            self.events.record_once('skip', **where, reason=verdict.reason)
            state.optimizers[0].zero_grad(set_to_none=True)
        self.announce(f'Batch {batch:,}: {verdict.reason}{". It is skipped" if self.skipped else ""}.')
