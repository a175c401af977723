"""What a run that has begun does not take from its run file: every such setting at once, and the way out."""

import os
import textwrap
from collections.abc import Sequence

from rewarm.config.changes import Difference, check_stage_change, differences
from rewarm.config.errors import DamagedFile, UserError
from rewarm.config.fates import fixed_settings, stage_settings
from rewarm.config.fork import fork_command, new_run_command
from rewarm.config.past import Past, weights_hash
from rewarm.config.plan import Plan
from rewarm.config.schema import RunConfig
from rewarm.config.shapes import SHAPE_KEYS
from rewarm.formats.checkpoint import STATE_FILE

__all__ = ['WEIGHTS', 'find_refusals', 'means_the_same_weights', 'refuse_changes']

WIDTH = 80
WEIGHTS = 'init_weights'
"""Among a checkpoint's settings: the hash of the weights that the run began with."""


def refuse_changes(past: Past | None, config: RunConfig, plan: Plan, command: Sequence[str]) -> None:
    """Compares the run file with what the newest checkpoint was trained with; :mod:`rewarm.config.fates` says what may change.

    Args:
        past (Past | None): The run so far; None if it has not begun.
        config (RunConfig): The run file.
        plan (Plan): The same, worked out.
        command (Sequence[str]): What was started, to be given back with the way out.

    Raises:
        UserError: With a table of all that is not allowed, what to do, and a command where that is one.
    """
    if past is None or not (found := find_refusals(past, config, plan)):
        return
    lines = [f'the run file does not go with {past.path} ({past.where}):', '', *_table(found), '']
    lines += [line for advice in dict.fromkeys(each.advice for each in found) for line in textwrap.wrap(advice, WIDTH)]
    lines += _way_out(found, past, config, plan, command)
    raise UserError('\n'.join(lines))


def find_refusals(past: Past, config: RunConfig, plan: Plan) -> list[Difference]:
    """Every setting that may not be what it now is."""
    found = _fixed(past, config) + _origin(past, config)
    begun = past.saved.stages or []
    if len(plan.stages) < len(begun):
        advice = 'A stage that has begun cannot be taken out: put it back.'
        found.append(Difference('stages', f'{len(begun)} begun', str(len(plan.stages)), advice, False))
    if any(each.key in ('global_train_batch_size', 'max_seq_len') for each in found):
        return found  # all that is counted in batches follows from them
    for number, (record, stage) in enumerate(zip(begun, plan.stages, strict=False)):
        try:
            old = record.identity.model_dump()
            inside = past.batch - record.start_batch
            found += check_stage_change(old, stage, batch_in_stage=inside, ended=number < len(begun) - 1)
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:  # a curve that no version has written
            place = f'stages.{number}.identity'
            raise DamagedFile(past.path / STATE_FILE, place=place, what=f'no stage ({error!r:.100})') from None
    if not any(stage.start_batch == past.batch for stage in plan.stages):
        found += _within_a_stage(past, config, len(begun) - 1)
    return found


def means_the_same_weights(past: Past, init_from: str) -> bool:
    """Whether ``init_from`` is what the run began with, perhaps in another place."""
    if past.config is None or init_from == past.config.model.init_from:
        return True
    old, new = (text.partition(':') for text in (past.config.model.init_from, init_from))
    if old[0] != new[0]:
        return False
    if os.path.realpath(old[2]) == os.path.realpath(new[2]):
        return True
    known = past.settings.get(WEIGHTS) or weights_hash(past.config.model.init_from)
    return known is not None and known == weights_hash(init_from)


def _fixed(past: Past, config: RunConfig) -> list[Difference]:
    rows = _rows(past.settings, fixed_settings(config))
    sizes = {f'model.{key}' for key in SHAPE_KEYS}
    advice = 'The model has the sizes that it began with: put them back.'
    found = [Difference(*row, advice, False) for row in rows if row[0] in sizes]
    advice = 'Some settings hold for a whole run.'
    return found + [Difference(*row, advice, True) for row in rows if row[0] not in sizes]


def _origin(past: Past, config: RunConfig) -> list[Difference]:
    if past.config is None or means_the_same_weights(past, config.model.init_from):
        return []
    was, now = past.config.model.init_from, config.model.init_from
    advice = (
        f'The run began with the weights of {was}, and those of {now} would have no effect on it: put `model.init_from` back, or '
        'begin another run with another `run_folder`.'
    )
    return [Difference('model.init_from', was, now, advice, False)]


def _within_a_stage(past: Past, config: RunConfig, index: int) -> list[Difference]:
    here = past.batch - (past.saved.stages or [])[-1].start_batch
    advice = (
        f'The optimizer is set where a stage begins: put it back, or end stage {index} here (`stages.{index}.stop_at: {here}ba`) and '
        'append another one.'
    )
    return [Difference(*row, advice, True) for row in _rows(past.saved.optimizer or {}, stage_settings(config))]


def _rows(old: object, new: dict[str, object]) -> list[tuple[str, str, str]]:
    was = dict(old) if isinstance(old, dict) else {}  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
    return [row for key, now in new.items() if key in was for row in differences(key, was[key], now)]


def _table(found: Sequence[Difference]) -> list[str]:
    """Aligned lines that fit a terminal; what does not is shortened in the middle, and written out below."""
    rows = [('key', 'was', 'now'), *((each.key, each.was, each.now) for each in found)]
    room = WIDTH - 6 - max(len(key) for key, _, _ in rows)
    widest = [max(len(row[column]) for row in rows) for column in (1, 2)]
    if sum(widest) > room:
        widest = [max(8, min(width, room // 2)) for width in widest]
    keys = max(len(key) for key, _, _ in rows)
    lines = [
        f'  {key:<{keys}}  {_short(was, widest[0]):<{widest[0]}}  {_short(now, widest[1])}'.rstrip()
        for key, was, now in rows
    ]
    long = [each for each in found if len(each.was) > widest[0] or len(each.now) > widest[1]]
    return lines + [f'  {each.key} was {each.was}, now {each.now}' for each in long]


def _short(text: str, width: int) -> str:
    if len(text) <= width:
        return text
    head = (width - 3) // 2
    return f'{text[:head]}...{text[len(text) - (width - 3 - head) :]}'


def _way_out(
    found: Sequence[Difference], past: Past, config: RunConfig, plan: Plan, command: Sequence[str]
) -> list[str]:
    if all(each.key == 'model.init_from' for each in found):
        return ['', 'Another run:', '', f'  {new_run_command(config, command)}']
    if not all(each.forks for each in found):
        return []
    fork = fork_command(past, config, plan, command, [each.key for each in found])
    if fork is None:
        return ['Put the old values back.']
    text = (
        f'Put the old values back; or go on from here with the new ones in another run. Its first stage is the {fork[1]:,} batches '
        'that remain of this one; its curve begins anew, and its data comes in another order:'
    )
    return [*textwrap.wrap(text, WIDTH), '', f'  {fork[0]}']
