"""Reads a run folder into plain records.

A run folder may belong to a run that is still going on, or to one that was killed in the middle of writing a line.
So a torn last line is dropped, unreadable lines before it are dropped and counted, and files that are not there yet
read as empty. A folder without any file of a run is the user's mistake and is refused.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from rewarm.config.errors import UserError

__all__ = ['Batch', 'Evaluation', 'Event', 'Run', 'Stage', 'read_run', 'read_runs']

RUN_FILES = ('config.yaml', 'plan.json', 'metrics.jsonl', 'evals.jsonl', 'events.jsonl')
"""A folder with none of these is no run folder."""

LINE_BYTES = 500
"""About the length of a line of ``metrics.jsonl``."""

T = TypeVar('T')


@dataclass(frozen=True)
class Batch:
    """One line of ``metrics.jsonl``: one optimizer step."""

    stage: str
    batch: int
    """Batches of the run after this one (1-based)."""
    tokens: int
    """Tokens of the run after this batch."""
    stage_tokens: int
    """Tokens of the stage after this batch."""
    lr: float
    loss: float
    """Training loss in nats per token; NaN where the file has none."""
    tokens_per_second: float
    seconds: float
    """Duration of this batch in seconds."""
    samples: dict[str, int] = field(default_factory=dict)
    """Samples of the stage so far, by stream."""
    time: datetime | None = None
    """When it was done; old runs did not record it."""
    skipped: bool = False
    """It was left out of training, by a rule for spikes of the loss."""


@dataclass(frozen=True)
class Evaluation:
    """One line of ``evals.jsonl``: one evaluation set at one position."""

    stage: str
    batch: int
    tokens: int
    stage_tokens: int
    set: str
    role: str
    """``upstream`` (old data) or ``downstream`` (new data)."""
    loss: float
    """Mean loss in nats per token; NaN where the file has none."""
    when: str
    """``start``, ``interval`` or ``end`` of the stage."""
    perplexity: float | None = None
    bits_per_byte: float | None = None
    tokens_evaluated: int | None = None


@dataclass(frozen=True)
class Event:
    """One line of ``events.jsonl``: something that happened, in the order it happened."""

    event: str
    time: datetime | None
    batch: int | None
    tokens: int | None
    stage: str | None
    fields: dict[str, Any]
    """All that the line says beyond the above."""


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
        folder (str | Path): The folder that ``run_folder`` names in the run's YAML.
        last_batches (int | None): Read about so many of the newest batches only, for a glance at a long run: whatever is
            derived from batches is then about these.

    Returns:
        Run: Its records; empty where a file is not there yet.

    Raises:
        UserError: If the folder does not exist, holds no file of a run, or a file's content is of another kind.
    """
    if '://' in str(folder):
        raise UserError(
            f'{folder}: a report reads local folders; copy the run folder here first (checkpoints not needed)'
        )
    path = Path(folder)
    if not path.is_dir():
        raise UserError(f'{path}: no such folder')
    if not any((path / name).is_file() for name in RUN_FILES):
        raise UserError(
            f'{path}: not a run folder, it has none of {", ".join(RUN_FILES)}; '
            'give the folder that `run_folder` names in the YAML, for example runs/NAME',
        )
    skipped: dict[str, int] = {}
    config_text = _text(path / 'config.yaml')
    config = _config(path / 'config.yaml', config_text)
    plan = _json(path / 'plan.json')
    batches = _newest_batches(_lines(path / 'metrics.jsonl', _batch, skipped, last_batches))
    evaluations = _newest_evaluations(_lines(path / 'evals.jsonl', _evaluation, skipped))
    return Run(
        folder=path,
        name=str(config.get('run_name') or path.resolve().name),
        config=config,
        config_text=config_text,
        plan=plan,
        environment=_json(path / 'environment.json'),
        stages=_stages(plan, config, batches, evaluations),
        batches=batches,
        evaluations=evaluations,
        events=tuple(_lines(path / 'events.jsonl', _event, skipped)),
        skipped=skipped,
    )


def _text(path: Path) -> str:
    return path.read_text(encoding='utf-8', errors='replace') if path.is_file() else ''


def _tail(path: Path, size: int) -> str:
    """The whole lines within the last ``size`` bytes of a file."""
    if not path.is_file():
        return ''
    with path.open('rb') as file:
        begin = max(0, file.seek(0, 2) - size)
        file.seek(begin)
        text = file.read().decode('utf-8', errors='replace')
    return text.partition('\n')[2] if begin else text


def _config(path: Path, text: str) -> dict[str, Any]:
    try:
        config = YAML(typ='safe', pure=True).load(text) if text else {}
    except YAMLError as error:
        raise UserError(f'{path}: not YAML: {error}') from None
    if not isinstance(config, dict):
        raise UserError(f'{path}: not a run file')
    return config


def _json(path: Path) -> dict[str, Any]:
    text = _text(path)
    if not text.strip():
        return {}
    try:
        value = json.loads(text)
    except ValueError as error:
        raise UserError(f'{path}: not JSON: {error}') from None
    if not isinstance(value, dict):
        raise UserError(f'{path}: not a JSON object')
    return value


def _lines(
    path: Path, parse: Callable[[dict[str, Any]], T], skipped: dict[str, int], last: int | None = None
) -> list[T]:
    """Parses the lines of a file; drops a torn last line, drops and counts unreadable ones before it."""
    records: list[T] = []
    lines = (_text(path) if last is None else _tail(path, last * LINE_BYTES)).split('\n')
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError:
            value = None
        if not isinstance(value, dict):
            if number < len(lines):
                skipped[path.name] = skipped.get(path.name, 0) + 1
            continue
        try:
            records.append(parse(value))
        except KeyError as error:
            raise UserError(f'{path}:{number}: no key {error}') from None
        except (TypeError, ValueError, AttributeError) as error:
            raise UserError(f'{path}:{number}: {error}') from None
    return records


def _number(value: object) -> float:
    return math.nan if value is None else float(value)  # type: ignore[arg-type]


def _optional(value: object) -> float | None:
    return None if value is None else float(value)  # type: ignore[arg-type]


def _time(value: object) -> datetime | None:
    try:
        time = datetime.fromisoformat(str(value))
    except ValueError:
        return None
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def _batch(line: dict[str, Any]) -> Batch:
    return Batch(
        stage=str(line['stage']),
        batch=int(line['batch']),
        tokens=int(line['tokens']),
        stage_tokens=int(line['stage_tokens']),
        lr=_number(line.get('lr')),
        loss=_number(line.get('loss')),
        tokens_per_second=_number(line.get('tokens_per_second')),
        seconds=_number(line.get('seconds')),
        samples={str(name): int(count) for name, count in (line.get('samples') or {}).items()},
        time=_time(line.get('time')),
        skipped=line.get('skipped') is True,
    )


def _evaluation(line: dict[str, Any]) -> Evaluation:
    return Evaluation(
        stage=str(line['stage']),
        batch=int(line['batch']),
        tokens=int(line['tokens']),
        stage_tokens=int(line['stage_tokens']),
        set=str(line['set']),
        role=str(line['role']),
        loss=_number(line['loss']),
        when=str(line.get('when') or 'interval'),
        perplexity=_optional(line.get('perplexity')),
        bits_per_byte=_optional(line.get('bits_per_byte')),
        tokens_evaluated=line.get('tokens_evaluated'),
    )


def _event(line: dict[str, Any]) -> Event:
    known = ('event', 'time', 'batch', 'tokens', 'stage')
    return Event(
        event=str(line['event']),
        time=_time(line.get('time')),
        batch=line.get('batch'),
        tokens=line.get('tokens'),
        stage=line.get('stage'),
        fields={key: value for key, value in line.items() if key not in known},
    )


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
