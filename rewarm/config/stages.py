"""Stages with every length in whole batches and tokens, and every rate a number."""

import json
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any

from rewarm.config.duration import Duration
from rewarm.config.schema import BaseSchedule, MultistepSchedule, RunConfig, StageConfig
from rewarm.config.source import Loc
from rewarm.schedule.curves import make_curve

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
        batches (int): Global batches in it.
        tokens (int): Its budget in tokens, whole batches.
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

    @cached_property
    def _curve(self) -> Any:
        return make_curve(self.schedule)


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
        found = _find_unit_problems(stage, at)
        if found:
            problems, previous_lr = problems + found, None
            stages.append(None)
            continue
        batches = stage.max_duration.batches(tokens_per_batch)
        schedule = resolve_schedule(stage.schedule, batches * tokens_per_batch, tokens_per_batch, previous_lr)
        found = [((*at, 'schedule', key), f'`stages.{index}.schedule.{key}` {text}') for key, text in find_misfits(schedule)]
        problems += found
        known = not found and schedule['lr'] is not None and schedule['warmup_from_lr'] is not None
        planned = _plan_stage(stage, index, batches, batch, config, schedule) if known else None
        stages.append(planned)
        previous_lr = planned.last_lr if planned else None
        batch += batches
    return stages, problems


def read_previous_lr(config: RunConfig) -> tuple[float | None, str | None]:
    """Finds the rate before the first stage: the one that the checkpoint of ``init_from`` was saved at.

    Args:
        config (RunConfig): The settings.

    Returns:
        tuple[float | None, str | None]: The rate, or why there is certainly none. Neither, when the checkpoint is not on this machine.
    """
    kind, _, folder = config.model.init_from.partition(':')
    if kind != 'checkpoint':
        return None, _NO_PREVIOUS
    state = Path(folder) / 'state.json'
    if '://' in folder or not state.parent.is_dir():
        return None, None
    try:
        lr = json.loads(state.read_text(encoding='utf-8'))['lr']
        return float(lr), None
    except (OSError, ValueError, TypeError, KeyError):
        return None, f'is `current`, but {state} holds no rate `lr`. Write the rate as a number'


def resolve_schedule(schedule: BaseSchedule, budget: int, tokens_per_batch: int, previous_lr: float | None) -> dict[str, Any]:
    """Puts numbers in place of durations and of ``current``.

    Args:
        schedule (BaseSchedule): The curve as written.
        budget (int): The stage's budget in tokens.
        tokens_per_batch (int): Tokens in a global batch.
        previous_lr (float | None): What ``current`` means.

    Returns:
        dict[str, Any]: What ``make_curve`` takes; a rate is None where ``current`` is not known.
    """

    def length(duration: Duration) -> int:
        return duration.tokens(tokens_per_batch, budget)

    values = {name: getattr(schedule, name) for name in type(schedule).model_fields}
    lr, warmup, start = values.pop('lr'), values.pop('warmup'), values.pop('warmup_from')
    resolved = {
        'name': values.pop('name'),
        'lr': previous_lr if lr == 'current' else lr,
        'warmup_tokens': length(warmup),
        'warmup_from_lr': previous_lr if start == 'current' else 0.0,
        'budget_tokens': budget,
    }
    for key, value in values.items():
        if isinstance(schedule, MultistepSchedule) and key == 'milestones':
            resolved[key] = [{'at_tokens': length(item.at), 'factor': item.factor} for item in schedule.milestones]
        elif isinstance(value, Duration) or key in ('decay_until', 'constant'):
            default = budget if key == 'decay_until' else None
            resolved[f'{key}_tokens'] = default if value is None else length(value)
        else:
            resolved[key] = value
    return _absorb_rounding(resolved, tokens_per_batch // 2)


def find_misfits(resolved: dict[str, Any]) -> list[tuple[str, str]]:
    """Finds what is wrong with a curve: phases that do not fit the budget, rates in the wrong order.

    Args:
        resolved (dict[str, Any]): From ``resolve_schedule``.

    Returns:
        list[tuple[str, str]]: The key and the message, which follows the key's name.
    """
    found = _find_rate_misfits(resolved)
    budget, warmup = resolved['budget_tokens'], resolved['warmup_tokens']
    if warmup > budget:
        return [*found, ('warmup', f'is {_tok(warmup)}, longer than the stage of {_tok(budget)}. Shorten it, or lengthen `max_duration`')]
    match resolved['name']:
        case 'linear' | 'cosine':
            found += _find_decay_misfits(resolved)
        case 'neox_clipped_cosine' if 2 * warmup > budget:
            found.append(('warmup', f'is {_tok(warmup)}; this curve needs it to be at most half of the stage, {_tok(budget // 2)}'))
        case 'wsd':
            decay = resolved['decay_tokens']
            if decay == 0:
                found.append(('decay', 'is 0. Write its length, such as `10%`, or use `name: constant`'))
            elif warmup + decay > budget:
                text = f'of {_tok(decay)} and `warmup` of {_tok(warmup)} do not fit the stage of {_tok(budget)}. Shorten one, or lengthen `max_duration`'
                found.append(('decay', text))
        case 'inverse_sqrt' if resolved['timescale_tokens'] == 0:
            found.append(('timescale', 'must be above 0, such as `1e9tok`'))
        case 'infinite_cosine' | 'infinite_inverse_sqrt':
            found += _find_infinite_misfits(resolved)
        case 'multistep':
            found += _find_milestone_misfits(resolved)
        case _:
            pass
    return found


def _absorb_rounding(resolved: dict[str, Any], slack: int) -> dict[str, Any]:
    """Shortens the phase that ends past the budget only because budgets are rounded to whole batches, and shares to tokens."""
    budget, warmup = resolved['budget_tokens'], resolved['warmup_tokens']
    begins = {'warmup_tokens': 0, 'decay_until_tokens': 0, 'decay_tokens': warmup, 'cooldown_tokens': warmup}
    for key, begin in begins.items():
        if key in resolved and 0 < begin + resolved[key] - budget <= slack:
            resolved[key] = budget - begin
    return resolved


def _find_rate_misfits(resolved: dict[str, Any]) -> list[tuple[str, str]]:
    lr, low, middle = resolved['lr'], resolved.get('min_lr', 0.0), resolved.get('constant_lr')
    found: list[tuple[str, str]] = []
    if middle is not None:
        if lr is not None and middle > lr:
            found.append(('constant_lr', f'{middle:g} is above `lr` {lr:g}. Write at most {lr:g}, or raise `lr`'))
        if low > middle:
            found.append(('min_lr', f'{low:g} is above `constant_lr` {middle:g}. Write at most {middle:g}'))
        if low == 0 and resolved['constant_tokens'] is not None:
            found.append(('min_lr', 'must be above 0 when `constant` is given: the anneal is exponential. Write such as 0.1 x `lr`'))
    elif lr is not None and low > lr:
        found.append(('min_lr', f'{low:g} is above `lr` {lr:g}. Write at most {lr:g}, or raise `lr`'))
    if resolved.get('shape') == 'exponential' and low == 0:
        found.append(('min_lr', 'must be above 0 for `shape: exponential`. Write such as 0.1 x `lr`, or another shape'))
    return found


def _find_decay_misfits(resolved: dict[str, Any]) -> list[tuple[str, str]]:
    budget, warmup, end = resolved['budget_tokens'], resolved['warmup_tokens'], resolved['decay_until_tokens']
    if end > budget:
        return [('decay_until', f'is {_tok(end)}, past the end of the stage at {_tok(budget)}. Write at most that, or lengthen `max_duration`')]
    if end <= warmup:
        key = 'decay_until' if end < budget else 'warmup'
        return [(key, f'leaves no room for the decay: the warm-up ends at {_tok(warmup)}, the decay at {_tok(end)}. Shorten `warmup`')]
    return []


def _find_infinite_misfits(resolved: dict[str, Any]) -> list[tuple[str, str]]:
    budget, warmup, cooldown, constant = (resolved[f'{key}_tokens'] for key in ('budget', 'warmup', 'cooldown', 'constant'))
    if cooldown == 0:
        return [('cooldown', 'must be above 0, such as `60%`')]
    if warmup + cooldown > budget:
        text = f'of {_tok(cooldown)} and `warmup` of {_tok(warmup)} do not fit the stage of {_tok(budget)}. Shorten one, or lengthen `max_duration`'
        return [('cooldown', text)]
    if constant is not None and warmup + cooldown + constant >= budget:
        room = budget - warmup - cooldown
        text = f'of {_tok(constant)} leaves no room for the anneal: after `warmup` and `cooldown` {_tok(room)} are left. Shorten it, or leave it out'
        return [('constant', text)]
    return []


def _find_milestone_misfits(resolved: dict[str, Any]) -> list[tuple[str, str]]:
    marks = [item['at_tokens'] for item in resolved['milestones']]
    if marks != sorted(set(marks)):
        return [('milestones', 'must be in order, each later than the one before')]
    if marks[0] < resolved['warmup_tokens']:
        return [('milestones', f'begin at {_tok(marks[0])}, before the warm-up ends at {_tok(resolved["warmup_tokens"])}')]
    if marks[-1] >= resolved['budget_tokens']:
        return [('milestones', f'end at {_tok(marks[-1])}, and the stage already at {_tok(resolved["budget_tokens"])}. Lengthen `max_duration`')]
    return []


def _find_unit_problems(stage: StageConfig, at: Loc) -> list[tuple[Loc, str]]:
    found: list[tuple[Loc, str]] = []
    name = '.'.join(map(str, at))
    if stage.max_duration.unit not in ('tok', 'ba') or stage.max_duration.value == 0:
        text = f'`{name}.max_duration` must be in tokens or batches and above 0, such as `2e9tok` or `500ba`, got `{stage.max_duration}`'
        found.append(((*at, 'max_duration'), text))
    lengths = {(key,): getattr(stage.schedule, key) for key in type(stage.schedule).model_fields}
    if isinstance(stage.schedule, MultistepSchedule):
        lengths |= {('milestones', index, 'at'): item.at for index, item in enumerate(stage.schedule.milestones)}
    for way, value in lengths.items():
        if isinstance(value, Duration) and value.is_time:
            key = '.'.join(map(str, way))
            text = f'`{name}.schedule.{key}` must be in tokens, batches or % of the stage, not time, got `{value}`'
            found.append(((*at, 'schedule', *way), text))
    return found


def _plan_stage(stage: StageConfig, index: int, batches: int, start: int, config: RunConfig, schedule: dict[str, Any]) -> StagePlan:
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
            {'name': s.name, 'share': str(s.share), 'shuffle': s.shuffle, 'samples': n, 'tokens': n * config.max_seq_len}
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


def _tok(tokens: int) -> str:
    return f'`{Duration(tokens, "tok")}`'
