"""A curve as written becomes a curve in numbers: lengths in tokens, rates as rates; and what cannot be, found."""

from typing import Any

from rewarm.config.duration import Duration
from rewarm.config.schedules import BaseSchedule, MultistepSchedule


def resolve_schedule(
    schedule: BaseSchedule, budget: int, tokens_per_batch: int, previous_lr: float | None
) -> dict[str, Any]:
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
        return [
            *found,
            (
                'warmup',
                f'is {_tok(warmup)}, longer than the stage of {_tok(budget)}. Shorten it, or lengthen `max_duration`',
            ),
        ]
    match resolved['name']:
        case 'linear' | 'cosine':
            found += _find_decay_misfits(resolved)
        case 'neox_clipped_cosine' if 2 * warmup > budget:
            found.append(
                (
                    'warmup',
                    f'is {_tok(warmup)}; this curve needs it to be at most half of the stage, {_tok(budget // 2)}',
                )
            )
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
            found.append(
                (
                    'min_lr',
                    'must be above 0 when `constant` is given: the anneal is exponential. Write such as 0.1 x `lr`',
                )
            )
    elif lr is not None and low > lr:
        found.append(('min_lr', f'{low:g} is above `lr` {lr:g}. Write at most {lr:g}, or raise `lr`'))
    if resolved.get('shape') == 'exponential' and low == 0:
        found.append(('min_lr', 'must be above 0 for `shape: exponential`. Write such as 0.1 x `lr`, or another shape'))
    return found


def _find_decay_misfits(resolved: dict[str, Any]) -> list[tuple[str, str]]:
    budget, warmup, end = resolved['budget_tokens'], resolved['warmup_tokens'], resolved['decay_until_tokens']
    if end > budget:
        return [
            (
                'decay_until',
                f'is {_tok(end)}, past the end of the stage at {_tok(budget)}. Write at most that, or lengthen `max_duration`',
            )
        ]
    if end <= warmup:
        key = 'decay_until' if end < budget else 'warmup'
        return [
            (
                key,
                f'leaves no room for the decay: the warm-up ends at {_tok(warmup)}, the decay at {_tok(end)}. Shorten `warmup`',
            )
        ]
    return []


def _find_infinite_misfits(resolved: dict[str, Any]) -> list[tuple[str, str]]:
    budget, warmup, cooldown, constant = (
        resolved[f'{key}_tokens'] for key in ('budget', 'warmup', 'cooldown', 'constant')
    )
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
        return [
            ('milestones', f'begin at {_tok(marks[0])}, before the warm-up ends at {_tok(resolved["warmup_tokens"])}')
        ]
    if marks[-1] >= resolved['budget_tokens']:
        return [
            (
                'milestones',
                f'end at {_tok(marks[-1])}, and the stage already at {_tok(resolved["budget_tokens"])}. Lengthen `max_duration`',
            )
        ]
    return []


def _tok(tokens: int) -> str:
    text = str(Duration(tokens, 'tok'))
    return f'`{text}`' if len(text) <= 12 else f'{tokens:,} tokens'
