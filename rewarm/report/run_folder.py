"""Reads a run folder into plain records.

A run folder may belong to a run that is still going on, so files that are not there yet read as empty. A folder without
any file of a run is the user's mistake and is refused.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from rewarm.config.errors import UserError
from rewarm.report.lines import (
    Batch,
    Evaluation,
    Event,
    parse_batch,
    parse_evaluation,
    parse_event,
    read_lines,
    read_text,
)

__all__ = ['Batch', 'Evaluation', 'Event', 'Run', 'Stage', 'read_run', 'read_runs']

RUN_FILES = ('config.yaml', 'plan.json', 'metrics.jsonl', 'evals.jsonl', 'events.jsonl')
"""A folder with none of these is no run folder."""


@dataclass(frozen=True)
class Stage:
    """A stage as it was planned and as far as it came."""

    name: str
    index: int
    start_tokens: int
    """Tokens of the run before the stage's first batch."""
    planned_tokens: int
    """Budget of the stage in tokens; the tokens done where no plan was written."""
    done_tokens: int
    batches: int
    """Batches of the stage that were done."""
    schedule: dict[str, Any]
    streams: tuple[dict[str, Any], ...]
    optimizer_state: str | None

    @property
    def finished(self) -> bool:
        """Whether the whole budget was spent."""
        return self.done_tokens >= self.planned_tokens > 0


@dataclass(frozen=True)
class Run:
    """All that a run folder holds, apart from checkpoints."""

    folder: Path
    place: str
    """The folder as it was given; of a run in a bucket, its URL."""
    name: str
    config: dict[str, Any]
    config_text: str
    plan: dict[str, Any]
    environment: dict[str, Any]
    stages: tuple[Stage, ...]
    """Stages that have begun, in order."""
    batches: tuple[Batch, ...]
    evaluations: tuple[Evaluation, ...]
    events: tuple[Event, ...]
    skipped: dict[str, int]
    """Unreadable lines by file, a torn last line not counted."""

    @property
    def tokens(self) -> int:
        """Tokens of the run so far."""
        return max([line.tokens for line in (*self.batches[-1:], *self.evaluations[-1:])], default=0)

    @property
    def finished(self) -> bool:
        """Whether every planned stage was done, as far as the files tell."""
        planned = len(self.plan.get('stages') or ()) or len(self.stages)
        return bool(self.stages) and len(self.stages) == planned and self.stages[-1].finished

    @property
    def from_scratch(self) -> bool:
        """Whether the run's first stage began with untrained weights."""
        model = self.config.get('model')
        return isinstance(model, dict) and model.get('init_from') == 'scratch'

    def stage_evaluations(self, stage: str) -> list[Evaluation]:
        """The evaluations recorded in one stage, oldest first."""
        return [line for line in self.evaluations if line.stage == stage]


def read_runs(folders: Sequence[str | Path]) -> list[Run]:
    """Reads several run folders; see :func:`read_run`.

    Raises:
        UserError: If there is none, or one of them is no run folder.
    """
    if not folders:
        raise UserError('no run folder given; name at least one, for example runs/demo-rewarm')
    return [read_run(folder) for folder in folders]


def read_run(folder: str | Path, *, last_batches: int | None = None) -> Run:
    """Reads one run folder.

    Args:
        folder (str | Path): The folder that ``run_folder`` names in the run's YAML, here or in a bucket.
        last_batches (int | None): Read about so many of the newest batches only, for a glance at a long run: whatever is
            derived from batches is then about these.

    Returns:
        Run: Its records; empty where a file is not there yet.

    Raises:
        UserError: If the folder does not exist, holds no file of a run, or a file's content is of another kind; or the
            bucket cannot be read.
    """
    if '://' in str(folder):
        from rewarm.report.shadow import shadow

        with shadow(str(folder)) as copy:
            return replace(read_run(copy, last_batches=last_batches), place=str(folder))
    path = Path(folder)
    if not path.is_dir():
        raise UserError(f'{path}: no such folder')
    if not any((path / name).is_file() for name in RUN_FILES):
        raise UserError(
            f'{path}: not a run folder, it has none of {", ".join(RUN_FILES)}; '
            'give the folder that `run_folder` names in the YAML, for example runs/NAME',
        )
    skipped: dict[str, int] = {}
    config_text = read_text(path / 'config.yaml')
    config = _config(path / 'config.yaml', config_text)
    plan = _json(path / 'plan.json')
    batches = _newest_batches(read_lines(path / 'metrics.jsonl', parse_batch, skipped, last_batches))
    evaluations = _newest_evaluations(read_lines(path / 'evals.jsonl', parse_evaluation, skipped))
    return Run(
        folder=path,
        place=str(path),
        name=str(config.get('run_name') or path.resolve().name),
        config=config,
        config_text=config_text,
        plan=plan,
        environment=_json(path / 'environment.json'),
        stages=_stages(plan, config, batches, evaluations),
        batches=batches,
        evaluations=evaluations,
        events=tuple(read_lines(path / 'events.jsonl', parse_event, skipped)),
        skipped=skipped,
    )


def _config(path: Path, text: str) -> dict[str, Any]:
    try:
        config = YAML(typ='safe', pure=True).load(text) if text else {}
    except YAMLError as error:
        raise UserError(f'{path}: not YAML: {error}') from None
    if not isinstance(config, dict):
        raise UserError(f'{path}: not a run file')
    return config


def _json(path: Path) -> dict[str, Any]:
    text = read_text(path)
    if not text.strip():
        return {}
    try:
        value = json.loads(text)
    except ValueError as error:
        raise UserError(f'{path}: not JSON: {error}') from None
    if not isinstance(value, dict):
        raise UserError(f'{path}: not a JSON object')
    return value


def _newest_batches(lines: list[Batch]) -> tuple[Batch, ...]:
    """Keeps each batch once: a run that was killed and went on from an older checkpoint did some of them twice."""
    kept: list[Batch] = []
    for line in lines:
        while kept and kept[-1].batch >= line.batch:
            kept.pop()
        kept.append(line)
    return tuple(kept)


def _newest_evaluations(lines: list[Evaluation]) -> tuple[Evaluation, ...]:
    kept = {(line.stage, line.set, line.stage_tokens): line for line in lines}
    return tuple(sorted(kept.values(), key=lambda line: (line.tokens, line.stage_tokens == 0)))


def _stages(
    plan: dict[str, Any],
    config: dict[str, Any],
    batches: Sequence[Batch],
    evaluations: Sequence[Evaluation],
) -> tuple[Stage, ...]:
    """The stages that have begun: in the plan's order, else in the order in which the files name them."""
    planned = {str(stage.get('name')): stage for stage in plan.get('stages') or ()}
    configured = {str(stage.get('name')): stage for stage in config.get('stages') or ()}
    seen = dict.fromkeys([*(line.stage for line in batches), *(line.stage for line in evaluations)])
    names = [name for name in planned if name in seen] + [name for name in seen if name not in planned]
    stages = []
    for index, name in enumerate(names):
        here = [line for line in batches if line.stage == name]
        positions = [*here, *(line for line in evaluations if line.stage == name)]
        done = max(line.stage_tokens for line in positions)
        stage = planned.get(name, {})
        stages.append(
            Stage(
                name=name,
                index=index,
                start_tokens=min(line.tokens - line.stage_tokens for line in positions),
                planned_tokens=int(stage.get('tokens') or done),
                done_tokens=done,
                batches=len(here),
                schedule=dict(stage.get('schedule') or configured.get(name, {}).get('schedule') or {}),
                streams=tuple(stage.get('streams') or ()),
                optimizer_state=stage.get('optimizer_state') or configured.get(name, {}).get('optimizer_state'),
            ),
        )
    return tuple(stages)
