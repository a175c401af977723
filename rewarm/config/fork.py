"""The way out of an edit that a run does not take: another run that goes on from its newest checkpoint, as a command."""

import json
import os
import shlex
from collections.abc import Collection, Sequence
from typing import Any

from rewarm.config.errors import ConfigError
from rewarm.config.past import Past
from rewarm.config.plan import Plan, make_plan
from rewarm.config.schema import RunConfig, StageConfig

__all__ = ['fork_command', 'new_run_command']


def fork_command(
    past: Past, config: RunConfig, plan: Plan, command: Sequence[str], changed: Collection[str]
) -> tuple[str, int] | None:
    """A command that goes on from a run's newest checkpoint with settings that the run itself does not take.

    The new run's first stage is what remains of the current one: without a warm-up that is behind it, and with AdamW's state. Its
    data comes in another order, since the old one would begin with what has just been trained on.

    Args:
        past (Past): The run.
        config (RunConfig): The settings that were refused.
        plan (Plan): The same, worked out.
        command (Sequence[str]): What was started: ``rewarm train RUN.yaml`` and overrides.
        changed (Collection[str]): Dotted keys of what was refused, which stay as they are.

    Returns:
        tuple[str, int] | None: For a shell, and the batches of its first stage; None if no stage remains.
    """
    begun = past.saved.stages or []
    index = len(begun) - 1
    trained = past.saved.tokens or 0
    left = plan.stages[index].budget_tokens - (
        trained - begun[-1].start_batch * (begun[-1].identity.tokens_per_batch or 0)
    )
    stopping = plan.stages[index].tokens - plan.stages[index].budget_tokens
    if left + stopping < plan.tokens_per_batch:
        index, left = index + 1, 0
    if index >= len(config.stages):
        return None
    candidates = [config.stages[index]]
    if left:
        rest = _rest(config.stages[index], index, left, left + stopping, plan.tokens_per_batch, changed)
        candidates = [rest, rest.model_copy(update={'schedule': config.stages[index].schedule}), *candidates]
    origin = f'checkpoint:{os.path.abspath(past.path)}'
    for first in candidates:
        stages = (first, *config.stages[index + 1 :])
        model = config.model.model_copy(update={'init_from': origin})
        try:
            fork = make_plan(config.model_copy(update={'stages': stages, 'model': model}), previous_lr=past.saved.lr)
        except ConfigError:
            continue
        written = [stage.model_dump(mode='json', exclude_none=True) for stage in stages]
        overrides = [
            f'model.init_from={json.dumps(origin)}',
            f'seed={config.seed + 1}',
            f'stages={json.dumps(written)}',
        ]
        return _with(command, config, f'from-{past.path.name}', overrides), fork.stages[0].batches
    return None


def new_run_command(config: RunConfig, command: Sequence[str]) -> str:
    """A command that begins another run with the same settings, from its beginning."""
    return _with(command, config, '2', [])


def _with(command: Sequence[str], config: RunConfig, suffix: str, overrides: Sequence[str]) -> str:
    """The command with another run's name and folder."""
    folder = config.run_folder.rstrip('/')
    number = ''
    while os.path.exists(f'{folder}-{suffix}{number}'):
        number = f'-{int(number[1:] or 1) + 1}'
    names = [f'run_name={config.run_name}-{suffix}{number}', f'run_folder={json.dumps(f"{folder}-{suffix}{number}")}']
    return shlex.join([*command, *names, *overrides])


def _rest(
    stage: StageConfig, index: int, left: int, end: int, tokens_per_batch: int, changed: Collection[str]
) -> StageConfig:
    """What remains of a stage: ``left`` tokens of its budget, of which ``end`` are trained."""
    at = f'stages.{index}'
    update: dict[str, Any] = {'max_duration': _batches(left, tokens_per_batch)}
    if stage.stop_at is not None:
        update['stop_at'] = _batches(end, tokens_per_batch)
    if f'{at}.optimizer_state' not in changed:
        update['optimizer_state'] = 'keep'
    rest: dict[str, Any] = stage.model_dump(mode='json', exclude_none=True) | update
    if not any(key.startswith(f'{at}.schedule.warmup') for key in changed):
        rest['schedule'] = {**rest['schedule'], 'warmup': '0tok'}
    return StageConfig.model_validate(rest)


def _batches(tokens: int, tokens_per_batch: int) -> str:
    return f'{max(1, tokens // tokens_per_batch)}ba'
