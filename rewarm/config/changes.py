"""What may still be edited in a stage that has begun, and what may not."""

from dataclasses import dataclass
from typing import Any

from rewarm.config.source import is_list, is_map
from rewarm.config.stages import StagePlan, read_curve

__all__ = ['Difference', 'check_stage_change', 'describe_data_change', 'differences', 'identity']

BUDGET_ADVICE = (
    'More budget fits where no batch so far depends on it: `constant`, `inverse_sqrt`, `infinite_cosine` and '
    '`infinite_inverse_sqrt` with lengths in tokens or batches, `wsd` before its decay begins. Otherwise append a stage.'
)


@dataclass(frozen=True)
class Difference:
    """A setting that may not be what it now is.

    Args:
        key (str): Its dotted way, as an override has it.
        was (str): The value that the run was trained with.
        now (str): The run file's.
        advice (str): What to do instead, a sentence or two; the same for many differences is said once.
        forks (bool): Whether another run that starts at the newest checkpoint may have the new value.
    """

    key: str
    was: str
    now: str
    advice: str
    forks: bool


def identity(stage: StagePlan) -> dict[str, Any]:
    """What a checkpoint remembers of a stage, to see whether the run file still means the same one.

    Args:
        stage (StagePlan): The stage.

    Returns:
        dict[str, Any]: JSON types: name, batches, tokens (as far as ``stop_at``), tokens_per_batch, schedule (resolved, with the
        whole budget, and as written), streams with their shares and shuffle, optimizer_state.
    """
    return {
        'name': stage.name,
        'batches': stage.batches,
        'tokens': stage.tokens,
        'tokens_per_batch': stage.tokens_per_batch,
        'schedule': stage.schedule,
        'schedule_as_written': stage.schedule_as_written,
        'streams': [{key: stream[key] for key in ('name', 'share', 'shuffle')} for stream in stage.streams],
        'optimizer_state': stage.optimizer_state,
    }


def check_stage_change(old: dict[str, Any], new: StagePlan, *, batch_in_stage: int, ended: bool) -> list[Difference]:
    """Compares a stage that has begun with what the run file now says.

    A stage that another one came after cannot be edited. Of the current one the length may change, down to where it is, if every
    batch so far keeps its rate; nothing else may. It is current also at its very end, as long as nothing came after.

    Args:
        old (dict[str, Any]): ``identity`` of the stage as it was trained.
        new (StagePlan): The stage as the run file has it.
        batch_in_stage (int): Batches of the stage that are trained.
        ended (bool): Whether a later stage has begun.

    Returns:
        list[Difference]: Every difference that is not allowed. Empty when the run may go on.
    """
    now, at = identity(new), f'stages.{new.index}'
    is_over = ended or batch_in_stage >= old['batches']
    where = f'Stage `{old["name"]}` is at batch {batch_in_stage:,}: what is trained cannot be edited.'
    if is_over:
        where = f'Stage `{old["name"]}` has ended and cannot be edited: put it back, or append a new stage.'
    rows = [
        (_written_key(key), was, is_now)
        for part in ('name', 'tokens_per_batch', 'streams', 'optimizer_state')
        for key, was, is_now in differences(part, old.get(part), now[part])
    ]
    if ended:
        rows += _lengths(old, now)
    if ended or _budget(old) == _budget(now) or old['schedule_as_written'] != now['schedule_as_written']:
        rows += _curves(old, now)
    found = [Difference(f'{at}.{key}', was, is_now, where, not is_over) for key, was, is_now in rows]
    if not ended:
        found += _check_least(old, now, at, batch_in_stage)
    if not found and _budget(old) != _budget(now):
        found += _check_rates(old, now, at, batch_in_stage)
    return found


def differences(key: str, old: Any, new: Any) -> list[tuple[str, str, str]]:
    """The differences of two JSON values.

    Args:
        key (str): What to call the whole.
        old (Any): The value before.
        new (Any): The value now.

    Returns:
        list[tuple[str, str, str]]: The dotted way to each leaf that differs, and both values as a table shows them.
    """
    if is_map(old) and is_map(new):
        keys = dict.fromkeys([*old, *new])
        return [line for part in keys for line in differences(f'{key}.{part}', old.get(part), new.get(part))]
    if is_list(old) and is_list(new) and len(old) == len(new) and any(map(is_map, new)):
        pairs = enumerate(zip(old, new, strict=True))
        return [line for index, pair in pairs for line in differences(f'{key}.{index}', *pair)]
    return [] if old == new else [(key, _show(old), _show(new))]


def describe_data_change(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Puts in words how the data of a stage differs from what the stage has begun with.

    Args:
        old (dict[str, Any]): The order's fingerprint that a checkpoint remembers.
        new (dict[str, Any]): The one of the data that is there now.

    Returns:
        list[str]: One text for each difference; empty when the order is the same.
    """
    found = [line for key in new if key != 'streams' for line in _compare(key, old.get(key), new[key])]
    before, now = ({stream['name']: stream for stream in mix.get('streams', [])} for mix in (old, new))
    for name in dict.fromkeys([*before, *now]):
        if name not in before or name not in now:
            found.append(f'stream `{name}` {"is new" if name in now else "is gone"}')
            continue
        keys = [key for key in now[name] if key != 'shards']
        lines = [line for key in keys for line in _compare(key, before[name].get(key), now[name][key])]
        if not lines and before[name].get('shards') != now[name].get('shards'):
            lines = [f'its shards hold other samples ({_short(before[name])} was, {_short(now[name])} is)']
        found += [f'stream `{name}`: {line}' for line in lines]
    if not found and old.get('streams') != new.get('streams'):
        found.append('the streams are in another order')
    return found


def _short(stream: dict[str, Any]) -> str:
    return str(stream.get('shards', '')).removeprefix('sha256:')[:8]


def _budget(stage: dict[str, Any]) -> int:
    return stage['schedule']['budget_tokens'] // stage['tokens_per_batch']


def _lengths(old: dict[str, Any], now: dict[str, Any]) -> list[tuple[str, str, str]]:
    """How budget and end of two identities differ, in batches."""
    found = differences('max_duration', f'{_budget(old)}ba', f'{_budget(now)}ba')
    ends = [None if each['batches'] == _budget(each) else f'{each["batches"]}ba' for each in (old, now)]
    return found + differences('stop_at', *ends)


def _check_least(old: dict[str, Any], now: dict[str, Any], at: str, batch_in_stage: int) -> list[Difference]:
    """A stage may end where it is or later; ``stop_at`` says so whatever its curve."""
    if now['batches'] >= batch_in_stage:
        return []
    least = batch_in_stage * now['tokens_per_batch']
    advice = f'Stage `{old["name"]}` has trained {batch_in_stage:,} batches. To end it there, write `stop_at: {batch_in_stage}ba` (`{least}tok`)'
    if _budget(old) != _budget(now):
        advice += f' and leave `max_duration` at `{_budget(old)}ba`'
    return [Difference(f'{at}.{key}', was, is_now, f'{advice}.', False) for key, was, is_now in _lengths(old, now)]


def _check_rates(old: dict[str, Any], now: dict[str, Any], at: str, batch_in_stage: int) -> list[Difference]:
    """Another budget must not change the rate of a batch that is trained."""
    before, after = read_curve(old['schedule']), read_curve(now['schedule'])
    for batch in range(batch_in_stage):
        tokens = batch * now['tokens_per_batch']
        if before(tokens) == after(tokens):
            continue
        was, is_now = (f'{_budget(each)}ba' for each in (old, now))
        advice = (
            f'The curve of stage `{old["name"]}` depends on its budget: batch {batch:,} was trained at rate {before(tokens):.6g} '
            f'and would be at {after(tokens):.6g}. '
        )
        if _budget(now) < _budget(old):
            advice += f'To end the stage sooner, leave `max_duration` at `{was}` and write `stop_at: {is_now}`.'
        else:
            advice += BUDGET_ADVICE
        return [Difference(f'{at}.max_duration', was, is_now, advice, False)]
    return []


def _curves(old: dict[str, Any], now: dict[str, Any]) -> list[tuple[str, str, str]]:
    """How two curves differ, as the run files write them where that tells it."""
    if _budget(old) != _budget(now) and old['schedule_as_written'] == now['schedule_as_written']:
        return []  # the lengths follow from the budget, which has its own line
    before, after = ({**each['schedule'], 'budget_tokens': None} for each in (old, now))
    resolved = differences('schedule', before, after)
    written = differences('schedule', old['schedule_as_written'], now['schedule_as_written'])
    keys = {key for key, _, _ in resolved}
    telling = [row for row in written if keys & {row[0], f'{row[0]}_tokens', f'{row[0]}_lr'}]
    return telling if resolved and telling else resolved


def _written_key(key: str) -> str:
    """The run file's way to what an identity calls otherwise."""
    return f'train.{key}'.replace('.share', '.proportion') if key.startswith('streams') else key


def _compare(key: str, old: Any, new: Any) -> list[str]:
    return [f'`{where}` was {was}, now {is_now}' for where, was, is_now in differences(key, old, new)]


def _show(value: Any) -> str:
    if is_list(value):
        return '[' + ', '.join(_show_item(item) for item in value) + ']'
    if value is None or isinstance(value, bool):
        return {None: 'not set', True: 'true', False: 'false'}[value]
    return f'{value:,}' if isinstance(value, int) else str(value)


def _show_item(item: Any) -> str:
    return f'{item["name"]} {item["share"]}' if is_map(item) and 'share' in item else _show(item)
