"""The settings that are true of a run that goes on, and what has changed since its newest checkpoint, for the records."""

from dataclasses import dataclass, field
from typing import Any

from rewarm.config.fates import Change, Fate, changes_between
from rewarm.config.past import Past
from rewarm.config.plan import Plan, identity
from rewarm.config.schema import RunConfig, StageConfig

__all__ = ['Settled', 'settle']

MOST_TOLD = 6
"""Changes that are said; the record has all."""


@dataclass(frozen=True)
class Settled:
    """What is true of a run after its run file was edited.

    Args:
        config (RunConfig): The run file, with the old value of whatever has no effect any more.
        changes (dict[str, list[Any]]): What takes effect now: old and new value by dotted key.
        without_effect (dict[str, list[Any]]): What is written otherwise and changes nothing.
    """

    config: RunConfig
    changes: dict[str, list[Any]] = field(default_factory=dict[str, list[Any]])
    without_effect: dict[str, list[Any]] = field(default_factory=dict[str, list[Any]])

    def __str__(self) -> str:
        """One line for each of the two that there is."""
        groups = {'Changed since the newest checkpoint': self.changes, 'Changed without effect': self.without_effect}
        return '\n'.join(f'{title}: {_tell(changes)}.' for title, changes in groups.items() if changes)


def settle(past: Past | None, config: RunConfig, plan: Plan, *, idle: bool) -> Settled:
    """Works out what an edited run file, which was not refused, does to a run.

    Args:
        past (Past | None): The run so far; None if it has not begun.
        config (RunConfig): The run file.
        plan (Plan): The same, worked out.
        idle (bool): Whether nothing is left to be done, so that nothing takes effect.

    Returns:
        Settled: The settings that are true, and the changes.
    """
    if past is None or past.config is None:
        return Settled(config)
    true = config
    if idle:
        true = past.config.model_copy(update={'run_name': config.run_name, 'run_folder': config.run_folder})
    model = true.model.model_copy(update={'init_from': past.config.model.init_from})
    stages = tuple(_stage(past, stage, plan, index, idle=idle) for index, stage in enumerate(config.stages))
    true = true.model_copy(update={'model': model, 'stages': stages})
    effective = [each for each in changes_between(past.config, true) if each.fate is not Fate.SAME_MEANING]
    rest = [each for each in changes_between(past.config, config) if each not in effective]
    return Settled(true, _as_pairs(effective), _as_pairs(rest))


def _stage(past: Past, stage: StageConfig, plan: Plan, index: int, *, idle: bool) -> StageConfig:
    """A stage as it was written when it was trained, if nothing is trained in it any more."""
    begun, old = past.saved.stages or [], past.config
    if old is None or not index < len(begun) - (0 if idle else 1) or index >= len(old.stages):
        return stage
    was, now = begun[index].identity, identity(plan.stages[index])
    same = (was.batches, was.schedule) == (now['batches'], now['schedule'])
    return old.stages[index] if same else stage


def _as_pairs(changes: list[Change]) -> dict[str, list[Any]]:
    return {each.key: [each.was, each.now] for each in changes}


def _tell(changes: dict[str, list[Any]]) -> str:
    told = [f'`{key}` {_show(was)} -> {_show(now)}' for key, (was, now) in list(changes.items())[:MOST_TOLD]]
    return ', '.join(told) + (f' and {len(changes) - MOST_TOLD} more' if len(changes) > MOST_TOLD else '')


def _show(value: Any) -> str:
    return 'nothing' if value is None else 'there' if isinstance(value, dict) else f'{value}'
