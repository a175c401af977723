"""Reads a run folder into plain records.

A run folder may belong to a run that is still going on, so files that are not there yet read as empty. A folder without
any file of a run is the user's mistake and is refused.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from rewarm.config.errors import DamagedFile, UserError
from rewarm.config.located import Source
from rewarm.config.secrets import has_secret, redacted, without_secrets
from rewarm.config.yaml_text import parse_yaml
from rewarm.formats.files import read_bytes, refuse_lost_link
from rewarm.formats.records import BATCHES, EVALUATIONS, EVENTS, Batch, Damage, Evaluation, Event, read_lines
from rewarm.formats.run_files import Environment, PlanFile, PlannedStage, PlannedStream, RunFile, Schedule
from rewarm.formats.strict_json import Record, in_words, parse_record
from rewarm.terminal import printable

__all__ = [
    'RUN_FILES',
    'Batch',
    'Evaluation',
    'Event',
    'NoRunYet',
    'Run',
    'Stage',
    'is_run_folder',
    'no_run_there',
    'read_run',
    'read_runs',
]

Format = TypeVar('Format', bound=Record)
Line = TypeVar('Line', Batch, Evaluation)

RUN_FILES = ('config.yaml', 'plan.json', 'metrics.jsonl', 'evals.jsonl', 'events.jsonl')
"""A folder with none of these is no run folder."""

LINE_BYTES = 500
"""About the length of a line of ``metrics.jsonl``."""

LARGEST_FILE_BYTES = 1 << 24
"""Of what a start writes; a plan of a hundred stages has 100 kB."""

MOST_NAMED = 5
"""Runs that a message names."""

MOST_NAMES = 1000
"""Stages, and evaluation sets, of one run. Tables and charts have something for each."""


class NoRunYet(UserError):
    """There is no run; one may begin there."""


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
    schedule: Schedule
    streams: tuple[PlannedStream, ...]
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
    config: RunFile
    config_text: str
    plan: PlanFile
    environment: Environment
    stages: tuple[Stage, ...]
    """Stages that have begun, in order."""
    batches: tuple[Batch, ...]
    evaluations: tuple[Evaluation, ...]
    events: tuple[Event, ...]
    damage: tuple[Damage, ...]
    """Lines that were left out, of each file that has some; a torn last line is none."""

    @property
    def tokens(self) -> int:
        """Tokens of the run so far."""
        return max([line.tokens for line in (*self.batches[-1:], *self.evaluations[-1:])], default=0)

    @property
    def finished(self) -> bool:
        """Whether every planned stage was done, as far as the files tell."""
        planned = len(self.plan.stages) or len(self.stages)
        return bool(self.stages) and len(self.stages) == planned and self.stages[-1].finished

    @property
    def from_scratch(self) -> bool:
        """Whether the run's first stage began with untrained weights."""
        return self.config.model is not None and self.config.model.init_from == 'scratch'

    def stage_batches(self, stage: str) -> Sequence[Batch]:
        """The batches of one stage, oldest first."""
        return self._batches_by_stage.get(stage, ())

    def stage_evaluations(self, stage: str) -> Sequence[Evaluation]:
        """The evaluations recorded in one stage, oldest first."""
        return self._evaluations_by_stage.get(stage, ())

    @cached_property
    def _batches_by_stage(self) -> dict[str, list[Batch]]:
        return _by_stage(self.batches)

    @cached_property
    def _evaluations_by_stage(self) -> dict[str, list[Evaluation]]:
        return _by_stage(self.evaluations)


def read_runs(folders: Sequence[str | Path]) -> list[Run]:
    """Reads several run folders; see :func:`read_run`.

    Raises:
        UserError: If there is none, or one of them is no run folder.
    """
    if not folders:
        raise UserError('no run folder given; name at least one, for example runs/demo-rewarm')
    return [read_run(folder) for folder in folders]


def read_run(folder: str | Path, *, last_batches: int | None = None, tail_bytes: int | None = None) -> Run:
    """Reads one run folder.

    Args:
        folder (str | Path): The folder that ``run_folder`` names in the run's YAML, here or in a bucket.
        last_batches (int | None): Read about so many of the newest batches only, for a glance at a long run: whatever is
            derived from batches is then about these.
        tail_bytes (int | None): Read so much of the end of evaluations and events only.

    Returns:
        Run: Its records; empty where a file is not there yet.

    Raises:
        UserError: If the folder does not exist, holds no file of a run, or a file's content is of another kind; or the
            bucket cannot be read.
    """
    if '://' in str(folder):
        from rewarm.report.shadow import shadow

        with shadow(str(folder)) as copy:
            if not is_run_folder(copy):
                raise no_run_there(str(folder), ())
            run = read_run(copy, last_batches=last_batches, tail_bytes=tail_bytes)
            return replace(run, place=printable(without_secrets(str(folder))))
    path = Path(folder)
    if not path.is_dir():
        raise NoRunYet(f'{path}: no such folder')
    if not is_run_folder(path):
        raise no_run_there(str(path), [each.name for each in path.iterdir() if each.is_dir() and is_run_folder(each)])
    metrics, evals, happened = (Damage(name) for name in ('metrics.jsonl', 'evals.jsonl', 'events.jsonl'))
    config, config_text = _read_config(path / 'config.yaml')
    plan = _read(PlanFile, path / 'plan.json')
    last_bytes = None if last_batches is None else last_batches * LINE_BYTES
    batches = _newest_batches(read_lines(BATCHES, path / metrics.file, metrics, last_bytes=last_bytes))
    evaluations = _newest_evaluations(read_lines(EVALUATIONS, path / evals.file, evals, last_bytes=tail_bytes))
    _refuse_too_many(((line.role, line.set) for line in evaluations), path / evals.file, 'evaluation sets')
    return Run(
        folder=path,
        place=printable(str(path)),
        name=printable(config.run_name or path.resolve().name).replace('\n', ' '),
        config=config,
        config_text=config_text,
        plan=plan,
        environment=_read(Environment, path / 'environment.json'),
        stages=_stages(plan, config, batches, evaluations, path),
        batches=batches,
        evaluations=evaluations,
        events=tuple(read_lines(EVENTS, path / happened.file, happened, last_bytes=tail_bytes)),
        damage=tuple(each for each in (metrics, evals, happened) if each.lines),
    )


def is_run_folder(path: Path) -> bool:
    """Whether a folder holds a file of a run."""
    return any((path / name).is_file() for name in RUN_FILES)


def no_run_there(place: str, runs: Collection[str]) -> NoRunYet:
    """What to say of a folder that is none of a run.

    Args:
        place (str): The folder, here or in a bucket.
        runs (Collection[str]): The run folders in it, by name.
    """
    if not runs:
        return NoRunYet(
            f'{place}: not a run folder, it has none of {", ".join(RUN_FILES)}; '
            'give the folder that `run_folder` names in the YAML, for example runs/NAME'
        )
    more = f' and {len(runs) - MOST_NAMED} more' if len(runs) > MOST_NAMED else ''
    named = printable(', '.join(sorted(runs)[:MOST_NAMED]))
    return NoRunYet(
        f'{place}: not a run folder; it holds the runs {named}{more}: name one of them. All: rewarm runs {place}'
    )


def _read_config(path: Path) -> tuple[RunFile, str]:
    """The run file as it was resolved, and its text."""
    text = _read_text(path)
    if not text.strip():
        return RunFile(), text
    source = Source(str(path))
    data = parse_yaml(text, source, ())
    if source.problems:
        raise source.error(source.problems[:1])
    if has_secret(data):  # written by an older version
        text = json.dumps(redacted(data), indent=1)
    try:
        return RunFile.model_validate(data), text
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        raise DamagedFile(path, place='.'.join(map(str, first['loc'])), what=in_words(first)) from None


def _read(kind: type[Format], path: Path) -> Format:
    text = _read_text(path)
    return parse_record(kind, text.encode(), path) if text.strip() else kind()


def _read_text(path: Path) -> str:
    """All of a file; empty if it is not there yet."""
    try:
        return read_bytes(path, largest_bytes=LARGEST_FILE_BYTES).decode()
    except FileNotFoundError:
        refuse_lost_link(path)
        return ''
    except UnicodeDecodeError as error:
        raise DamagedFile(path, place=f'byte {error.start}', what='no valid UTF-8') from None


def _by_stage(lines: Iterable[Line]) -> dict[str, list[Line]]:
    found: dict[str, list[Line]] = {}
    for line in lines:
        found.setdefault(line.stage, []).append(line)
    return found


def _refuse_too_many(names: Iterable[object], path: Path, what: str) -> None:
    count = len(set(names))
    if count > MOST_NAMES:
        raise DamagedFile(path, what=f'it names {count:,} {what}, more than {MOST_NAMES:,}')


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
    plan: PlanFile, config: RunFile, batches: Sequence[Batch], evaluations: Sequence[Evaluation], path: Path
) -> tuple[Stage, ...]:
    """The stages that have begun: in the plan's order, else in the order in which the files name them."""
    planned = {stage.name: stage for stage in plan.stages}
    configured = {stage.name: stage for stage in config.stages}
    trained, evaluated = _by_stage(batches), _by_stage(evaluations)
    seen = {**trained, **evaluated}
    _refuse_too_many(seen, path, 'stages')
    names = [name for name in planned if name in seen] + [name for name in seen if name not in planned]
    stages = []
    for index, name in enumerate(names):
        positions = [*trained.get(name, ()), *evaluated.get(name, ())]
        done = max(line.stage_tokens for line in positions)
        stage = planned.get(name) or PlannedStage(name=name)
        written = configured.get(name)
        stages.append(
            Stage(
                name=name,
                index=index,
                start_tokens=min(line.tokens - line.stage_tokens for line in positions),
                planned_tokens=stage.tokens or done,
                done_tokens=done,
                batches=len(trained.get(name, ())),
                schedule=stage.schedule or (written and written.schedule) or Schedule(),
                streams=tuple(stage.streams),
                optimizer_state=stage.optimizer_state or (written and written.optimizer_state),
            ),
        )
    return tuple(stages)
