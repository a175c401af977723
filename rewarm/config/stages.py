"""Stages with every length in whole batches and tokens, and every rate a number."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from typing import Any

from rewarm.config.duration import Duration
from rewarm.config.errors import UserError
from rewarm.config.paths import is_url
from rewarm.config.resolve import find_misfits, resolve_schedule
from rewarm.config.schedules import BaseSchedule, MultistepSchedule
from rewarm.config.schema import RunConfig, StageConfig
from rewarm.config.source import Loc
from rewarm.schedule.curves import make_curve, phase_edges

_NO_PREVIOUS = (
    'is `current`, but no stage came before, so there is no current rate. Write a number, or start from '
    '`model.init_from: checkpoint:<folder>`, whose state.json holds one'
)


@dataclass(frozen=True)
class StagePlan:
    """One stage, resolved.

    Args:
        name (str): The stage's identity.
        index (int): Its place among the stages, from 0.
        batches (int): Global batches that it trains: its budget, or up to ``stop_at``.
        tokens (int): Tokens that it trains, whole batches. Its curve's own budget is :attr:`budget_tokens`.
        start_batch (int): Batches of the run before it.
        start_tokens (int): Tokens of the run before it.
        tokens_per_batch (int): Tokens in a global batch.
        schedule (dict[str, Any]): The curve for ``make_curve``: rates as numbers, lengths in tokens, JSON types.
        schedule_as_written (dict[str, Any]): The curve as the run file has it, JSON types.
        streams (list[dict[str, Any]]): ``name``, ``share`` (such as ``'19/20'``), ``shuffle``, ``samples``, ``tokens`` of each.
        optimizer_state (str): ``keep``, ``reset`` or ``reset_second_moment``.
    """

    name: str
    index: int
    batches: int
    tokens: int
    start_batch: int
    start_tokens: int
    tokens_per_batch: int
    schedule: dict[str, Any] = field(hash=False)
    schedule_as_written: dict[str, Any] = field(hash=False)
    streams: list[dict[str, Any]] = field(hash=False)
    optimizer_state: str

    @property
    def budget_tokens(self) -> int:
        """The budget that its curve is made for, in tokens, whole batches; ``tokens`` unless ``stop_at`` ends it sooner."""
        return self.schedule['budget_tokens']

    @property
    def is_stopped(self) -> bool:
        """Whether ``stop_at`` ends it before its budget is spent."""
        return self.tokens < self.budget_tokens

    @property
    def budget_batches(self) -> int:
        """The same in global batches."""
        return self.budget_tokens // self.tokens_per_batch

    @property
    def end_batch(self) -> int:
        """Batches of the run after this stage."""
        return self.start_batch + self.batches

    @property
    def end_tokens(self) -> int:
        """Tokens of the run after this stage."""
        return self.start_tokens + self.tokens

    @property
    def last_lr(self) -> float:
        """Rate of the stage's last batch: what ``current`` means to the next stage."""
        return self.lr(self.tokens - self.tokens_per_batch)

    def lr(self, stage_tokens: int) -> float:
        """The learning rate of the batch that begins after ``stage_tokens`` tokens of this stage.

        Args:
            stage_tokens (int): Tokens since the stage began.

        Returns:
            float: Learning rate.
        """
        return self._curve(stage_tokens)

    @property
    def edges(self) -> dict[str, int]:
        """Where the curve goes from one phase to the next, as far as it is trained: what begins there, and tokens since the stage began."""
        return {name: tokens for name, tokens in phase_edges(self.schedule).items() if tokens <= self.tokens}

    @cached_property
    def _curve(self) -> Callable[[int], float]:
        return read_curve(self.schedule)


def read_curve(schedule: dict[str, Any]) -> Callable[[int], float]:
    """The curve of a resolved schedule, also of one that a checkpoint remembers.

    Args:
        schedule (dict[str, Any]): As ``StagePlan.schedule``.

    Returns:
        Callable[[int], float]: The rate at a number of tokens since the stage began.
    """
    return make_curve(schedule)


def plan_stages(config: RunConfig, previous_lr: float | None) -> tuple[list[StagePlan | None], list[tuple[Loc, str]]]:
    """Resolves all stages.

    Args:
        config (RunConfig): The settings.
        previous_lr (float | None): The rate before the first stage, if there was one.

    Returns:
        tuple[list[StagePlan | None], list[tuple[Loc, str]]]: The stages (None for one that cannot be resolved), and what is wrong:
        the way to a key and a message. A stage whose rate is `current` and not known yet is None without a problem.
    """
    problems: list[tuple[Loc, str]] = []
    stages: list[StagePlan | None] = []
    tokens_per_batch = config.global_train_batch_size * config.max_seq_len
    if previous_lr is None:
        previous_lr, problem = read_previous_lr(config)
        if problem and (key := _current_key(config.stages[0].schedule)):
            problems.append((('stages', 0, 'schedule', key), f'`stages.0.schedule.{key}` {problem}'))
    batch = 0
    for index, stage in enumerate(config.stages):
        at: Loc = ('stages', index)
        found = _find_unit_problems(stage, at, tokens_per_batch)
        if found:
            problems, previous_lr = problems + found, None
            stages.append(None)
            continue
        budget = stage.max_duration.batches(tokens_per_batch) * tokens_per_batch
        batches = (stage.stop_at or stage.max_duration).batches(tokens_per_batch, budget)
        schedule = resolve_schedule(stage.schedule, budget, tokens_per_batch, previous_lr)
        found = [
            ((*at, 'schedule', key), f'`stages.{index}.schedule.{key}` {text}') for key, text in find_misfits(schedule)
        ]
        problems += found
        known = not found and schedule['lr'] is not None and schedule['warmup_from_lr'] is not None
        planned = _plan_stage(stage, index, batches, batch, config, schedule) if known else None
        stages.append(planned)
        previous_lr = planned.last_lr if planned else None
        batch += batches
    return stages, problems


def read_previous_lr(config: RunConfig) -> tuple[float | None, str | None]:
    """Finds the rate before the first stage: the one that the checkpoint of ``init_from`` was saved at.

    A run that has begun remembers it in its own checkpoints, whatever became of that one.

    Args:
        config (RunConfig): The settings.

    Returns:
        tuple[float | None, str | None]: The rate, or why there is none. Neither, when no stage asks for it, or when it may be in
        a bucket.
    """
    if _current_key(config.stages[0].schedule) is None:
        return None, None
    from rewarm.config.past import find_past  # most runs begin from no checkpoint

    past = find_past(config.run_folder)
    if past is not None and past.previous_lr is not None:
        return past.previous_lr, None
    kind, _, folder = config.model.init_from.partition(':')
    if kind != 'checkpoint':
        return None, _NO_PREVIOUS
    lr, problem = _read_rate(folder)
    return lr, None if is_url(config.run_folder) else problem  # the run may have begun there


def _read_rate(folder: str) -> tuple[float | None, str | None]:
    from rewarm.formats.checkpoint import STATE_FILE, read_state  # most runs begin from no checkpoint
    from rewarm.formats.checkpoint_place import find_checkpoint

    if is_url(folder) or not os.path.exists(folder):  # Path.exists raises where one may not look
        return None, None
    try:
        state = find_checkpoint(folder) / STATE_FILE
        lr = read_state(state.parent)[0].lr
    except (FileNotFoundError, UserError) as error:
        return None, f'is `current`, and the checkpoint holds no rate ({error}). Bring it back whole'
    if lr is None:
        return None, f'is `current`, but {state} holds no rate `lr`. Write the rate as a number'
    return lr, None


def _find_unit_problems(stage: StageConfig, at: Loc, tokens_per_batch: int) -> list[tuple[Loc, str]]:
    found: list[tuple[Loc, str]] = []
    name = '.'.join(map(str, at))
    if stage.max_duration.unit not in ('tok', 'ba') or stage.max_duration.value == 0:
        text = f'`{name}.max_duration` must be in tokens or batches and above 0, such as `2e9tok` or `500ba`, got `{stage.max_duration}`'
        found.append(((*at, 'max_duration'), text))
    stop, budget = stage.stop_at, stage.max_duration
    if stop is not None and (stop.is_time or stop.value == 0):
        text = f'`{name}.stop_at` must be in tokens, batches or % of `max_duration` and above 0, such as `50e9tok`, got `{stop}`'
        found.append(((*at, 'stop_at'), text))
    elif stop is not None and not found:
        whole = budget.batches(tokens_per_batch) * tokens_per_batch
        if stop.batches(tokens_per_batch, whole) * tokens_per_batch > whole:
            text = f'`{name}.stop_at` is {stop}, past the end of the stage at {budget}. Write at most that, or leave it out'
            found.append(((*at, 'stop_at'), text))
    lengths = {(key,): getattr(stage.schedule, key) for key in type(stage.schedule).model_fields}
    if isinstance(stage.schedule, MultistepSchedule):
        lengths |= {('milestones', index, 'at'): item.at for index, item in enumerate(stage.schedule.milestones)}
    for way, value in lengths.items():
        if isinstance(value, Duration) and value.is_time:
            key = '.'.join(map(str, way))
            text = f'`{name}.schedule.{key}` must be in tokens, batches or % of the stage, not time, got `{value}`'
            found.append(((*at, 'schedule', *way), text))
    return found


def _plan_stage(
    stage: StageConfig, index: int, batches: int, start: int, config: RunConfig, schedule: dict[str, Any]
) -> StagePlan:
    tokens_per_batch = config.global_train_batch_size * config.max_seq_len
    as_written = stage.schedule.model_dump(mode='json', exclude_none=True)
    samples = _apportion(batches * config.global_train_batch_size, [stream.share for stream in stage.train.streams])
    return StagePlan(
        name=stage.name,
        index=index,
        batches=batches,
        tokens=batches * tokens_per_batch,
        start_batch=start,
        start_tokens=start * tokens_per_batch,
        tokens_per_batch=tokens_per_batch,
        schedule=schedule,
        schedule_as_written={'name': as_written.pop('name'), **as_written},
        streams=[
            {
                'name': s.name,
                'share': str(s.share),
                'shuffle': s.shuffle,
                'samples': n,
                'tokens': n * config.max_seq_len,
            }
            for s, n in zip(stage.train.streams, samples, strict=True)
        ],
        optimizer_state=stage.optimizer_state,
    )


def _apportion(total: int, shares: list[Fraction]) -> list[int]:
    """Whole numbers in proportion to ``shares`` that sum to ``total``: largest remainders get the rest."""
    whole = [int(total * share) for share in shares]
    order = sorted(range(len(shares)), key=lambda index: whole[index] - total * shares[index])
    for index in order[: total - sum(whole)]:
        whole[index] += 1
    return whole


def _current_key(schedule: BaseSchedule) -> str | None:
    return 'lr' if schedule.lr == 'current' else 'warmup_from' if schedule.warmup_from == 'current' else None
