"""Re-warming as a Composer algorithm: a stage begins once, and its rate is a function of where the run is.

No scheduler object exists, so there is no scheduler state for a checkpoint to fight the run file with.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from composer import Algorithm, Event, Logger, State
from torch.optim import Optimizer

from rewarm.config.errors import UserError
from rewarm.config.plan import StagePlan
from rewarm.config.schema import RunConfig

__all__ = ['Hyperparameters', 'Rewarm', 'apply_optimizer_policy']


@dataclass(frozen=True)
class Hyperparameters:
    """AdamW's settings as the run file has them; ``weight_decay`` is per step and times the rate, as in torch.

    ``max_grad_norm`` is only recorded; None where somebody else clips.
    """

    betas: tuple[float, float]
    eps: float
    weight_decay: float
    max_grad_norm: float | None = None

    @classmethod
    def of(cls, config: RunConfig) -> 'Hyperparameters':
        """Those of a run file."""
        adamw = config.optimizer
        return cls(adamw.betas, adamw.eps, adamw.weight_decay, config.max_grad_norm)


class Rewarm(Algorithm):
    """Owns the identity of the stage and writes the learning rate.

    At AFTER_LOAD it compares the stage it remembers with the one configured. The same: nothing happens, whatever the
    machine went through. Another: the stage begins here: its start is remembered, the optimizer's state is treated as
    ``optimizer_state`` says, and every change is recorded, old -> new. At each BATCH_START it sets the rate from the
    tokens since the stage's start, before the optimizer uses it for that very batch.

    Args:
        stage (StagePlan): The configured stage, with its curve.
        hyperparameters (Hyperparameters): Written into every parameter group: a checkpoint never wins over the run file.
        record (Callable): Writes to ``events.jsonl``; called as ``record('stage_start', stage=..., changes=...)``.
    """

    def __init__(self, stage: StagePlan, *, hyperparameters: Hyperparameters, record: Callable[..., None]) -> None:
        self.stage = stage
        self.hyperparameters = hyperparameters
        self.record = record
        self.name: str | None = None
        self.start_batch = 0
        self.start_tokens = 0
        self.lr: float | None = None
        self.lr_before: float | None = None
        self.remembered: dict[str, Any] | None = None
        self._last: tuple[int, int] | None = None

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps: plain JSON types."""
        return {
            'stage': self.name,
            'start_batch': self.start_batch,
            'start_tokens': self.start_tokens,
            'lr': self.lr,
            'lr_before': self.lr_before,
            'optimizer': _as_json(self.hyperparameters),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Remembers the stage that a checkpoint, or the previous Trainer, was in."""
        self.name = state['stage']
        self.start_batch = state['start_batch']
        self.start_tokens = state['start_tokens']
        self.lr = state['lr']
        self.lr_before = state['lr_before']
        self.remembered = state['optimizer']

    def match(self, event: Event, state: State) -> bool:
        """Acts after loading and at the start of each batch."""
        return event in (Event.AFTER_LOAD, Event.BATCH_START)

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        """Begins the stage if it is new, and sets the rate.

        Raises:
            UserError: At the second batch, if the first one counted no tokens: the rate would never move.
        """
        optimizer = state.optimizers[0]
        if event == Event.AFTER_LOAD:
            if self.name != self.stage.name:
                self._begin_stage(optimizer, batch=int(state.timestamp.batch), tokens=int(state.timestamp.token))
            self._write_hyperparameters(optimizer)
        else:
            self._check_that_tokens_move(int(state.timestamp.batch), int(state.timestamp.token))
        self.lr = self.stage.lr(int(state.timestamp.token) - self.start_tokens)
        for group in optimizer.param_groups:
            # initial_lr too: optimizers that scale by lr / initial_lr, and schedulers built later, read it.
            group['lr'] = group['initial_lr'] = self.lr

    def _check_that_tokens_move(self, batch: int, tokens: int) -> None:
        """Composer counts a batch that it does not know as 0 tokens, and the curve is a function of tokens."""
        before, self._last = self._last, (batch, tokens)
        if before is not None and batch > before[0] and tokens == before[1]:
            raise UserError(
                f'{batch - before[0]:,} batch was trained and Composer counted no tokens in it, so the learning rate would stay at '
                f'{self.lr:g} for ever. Say how many tokens a batch has: give the Trainer '
                "`train_dataloader=DataSpec(loader, get_num_tokens_in_batch=lambda batch: batch['input_ids'].numel())` "
                '(`from composer.core import DataSpec`), with the count of your batches; or let batches be dicts with '
                '`input_ids` of shape (sequences, tokens), which Composer counts by itself'
            )

    def _begin_stage(self, optimizer: Optimizer, *, batch: int, tokens: int) -> None:
        policy = self.stage.optimizer_state
        before = self.name
        self.lr_before = self.lr
        self.name, self.start_batch, self.start_tokens = self.stage.name, batch, tokens
        apply_optimizer_policy(optimizer, policy)
        now = {'lr': self.stage.lr(0), **_as_json(self.hyperparameters)}
        old = {'lr': self.lr_before, **(self.remembered or {})}
        # What an older version's checkpoint does not tell is no change.
        told = {key: value for key, value in now.items() if key in old or self.remembered is None}
        changes = {key: [old.get(key), value] for key, value in told.items() if old.get(key) != value}
        self.record(
            'stage_start',
            stage=self.name,
            batch=batch,
            tokens=tokens,
            previous=before,
            optimizer_state=policy,
            schedule=self.stage.schedule,
            changes=changes,
        )

    def _write_hyperparameters(self, optimizer: Optimizer) -> None:
        for group in optimizer.param_groups:
            group['betas'] = self.hyperparameters.betas
            group['eps'] = self.hyperparameters.eps
            # The group of LayerNorms and biases is not decayed, whatever the setting.
            group['weight_decay'] = self.hyperparameters.weight_decay if group['weight_decay'] else 0.0


def apply_optimizer_policy(optimizer: Optimizer, policy: str) -> None:
    """Treats AdamW's state at a stage's start.

    ``keep`` leaves it. ``reset`` forgets it. ``reset_second_moment`` forgets the scale of the gradients and keeps their
    direction: the second moment and the step count go to zero, so that both bias corrections start anew, and the first
    moment is multiplied by ``1 - beta1``, that is, it enters as if it were one more gradient.
    """
    if policy == 'reset':
        optimizer.state.clear()
    elif policy == 'reset_second_moment':
        with torch.no_grad():
            for group in optimizer.param_groups:
                for parameter in group['params']:
                    if (moments := optimizer.state.get(parameter)) is not None:
                        moments['exp_avg'].mul_(1 - group['betas'][0])
                        moments['exp_avg_sq'].zero_()
                        moments['step'].zero_()


def _as_json(hyperparameters: Hyperparameters) -> dict[str, Any]:
    found = {**asdict(hyperparameters), 'betas': list(hyperparameters.betas)}
    return {key: value for key, value in found.items() if value is not None}
