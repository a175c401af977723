"""What may still be edited in a stage that has begun, and what may not."""

from typing import Any

from rewarm.config.source import is_list, is_map
from rewarm.config.stages import StagePlan, read_curve


def identity(stage: StagePlan) -> dict[str, Any]:
    """What a checkpoint remembers of a stage, to see whether the run file still means the same one.

    Args:
        stage (StagePlan): The stage.

    Returns:
        dict[str, Any]: JSON types: name, batches, tokens, tokens_per_batch, schedule (resolved and as written), streams with their
        shares and shuffle, optimizer_state.
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


def check_stage_change(old: dict[str, Any], new: StagePlan, *, batch_in_stage: int, ended: bool) -> list[str]:
    """Compares a stage that has begun with what the run file now says.

    An ended stage cannot be edited. Of the current one the budget may change, down to where it is, if every batch so far keeps its
    rate; nothing else may.

    Args:
        old (dict[str, Any]): ``identity`` of the stage as it was trained.
        new (StagePlan): The stage as the run file has it.
        batch_in_stage (int): Batches of the stage that are trained.
        ended (bool): Whether the stage is over.

    Returns:
        list[str]: Every difference that is not allowed: key, old, new, and what to do. Empty when the run may go on.
    """
    now = identity(new)
    found: list[str] = []
    for key in ('name', 'tokens_per_batch', 'streams', 'optimizer_state'):
        found += _compare(key, old.get(key), now[key])
    resized = old.get('batches') != now['batches']
    if ended:
        if resized:
            found.append(f'`max_duration` was {old.get("batches"):,} batches, now {now["batches"]:,}')
        found += _compare_curves(old, now)
        return [
            f'stage `{old.get("name")}` has ended and cannot be edited: {text}. Put it back, or append a new stage'
            for text in found
        ]
    if not resized:
        found += _compare_curves(old, now)
    elif not found:
        found += _check_resize(old, now, batch_in_stage)
    return [f'stage `{old.get("name")}` is at batch {batch_in_stage:,}: {text}' for text in found]


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


def _check_resize(old: dict[str, Any], now: dict[str, Any], batch_in_stage: int) -> list[str]:
    if now['batches'] < batch_in_stage:
        least = batch_in_stage * now['tokens_per_batch']
        return [
            f'`max_duration` is now {now["batches"]:,} batches, fewer than trained. Write at least `{batch_in_stage}ba` (`{least}tok`)'
        ]
    if old['schedule_as_written'] != now['schedule_as_written'] and (found := _compare_curves(old, now)):
        return found
    before, after = read_curve(old['schedule']), read_curve(now['schedule'])
    for batch in range(batch_in_stage):
        tokens = batch * now['tokens_per_batch']
        if before(tokens) != after(tokens):
            return [
                f'`max_duration` cannot go from {old["batches"]:,} to {now["batches"]:,} batches, because the curve depends on it: batch '
                f'{batch:,} was trained at rate {before(tokens):.6g} and would be at {after(tokens):.6g}. Put it back; to end '
                'here, begin another run with `model.init_from: checkpoint:<its newest checkpoint>`. Only a stage whose curve so far '
                'does not depend on the budget (`constant`, or lengths in tokens or batches) can be cut or lengthened'
            ]
    return []


def _compare_curves(old: dict[str, Any], now: dict[str, Any]) -> list[str]:
    before, after = dict(old['schedule']), dict(now['schedule'])
    if old.get('tokens') != now['tokens'] and old['schedule_as_written'] == now['schedule_as_written']:
        return []  # the lengths follow from the budget, which has its own line
    before.pop('budget_tokens', None)
    after.pop('budget_tokens', None)
    return _compare('schedule', before, after)


def _compare(key: str, old: Any, new: Any) -> list[str]:
    """The differences of two JSON values, one line for each leaf."""
    if is_map(old) and is_map(new):
        keys = dict.fromkeys([*old, *new])
        return [line for part in keys for line in _compare(f'{key}.{part}', old.get(part), new.get(part))]
    if is_list(old) and is_list(new) and len(old) == len(new):
        return [
            line
            for index, pair in enumerate(zip(old, new, strict=True))
            for line in _compare(f'{key}.{index}', pair[0], pair[1])
        ]
    if old == new:
        return []
    return [f'`{key}` was {_show(old)}, now {_show(new)}']


def _show(value: Any) -> str:
    if is_list(value):
        return (
            '[' + ', '.join(f'{item["name"]} {item["share"]}' if 'share' in item else str(item) for item in value) + ']'
        )
    if value is None or isinstance(value, bool):
        return {None: 'not set', True: 'true', False: 'false'}[value]
    return f'{value:,}' if isinstance(value, int) else str(value)
