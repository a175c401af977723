"""Runs that are hard to show: each name of ``RUNS`` writes the run folders of one page."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from tests.report.conftest import SHAPES, write_run
from tests.report.story import Story, eventful

__all__ = ['RUNS']


def five_arms(folder: Path) -> list[Path]:
    return [write_run(folder / role, role) for role in SHAPES]


def near_runs(folder: Path) -> list[Path]:
    """Two runs whose losses differ in the fourth digit, and one between them."""
    runs = []
    for index in range(3):
        run = write_run(folder / str(index), 'constant', name=f'an-anneal-with-a-rather-long-name-{index}')
        lines = [json.loads(line) for line in (run / 'evals.jsonl').read_text().splitlines()]
        for line in lines:
            line['loss'] += index * (4e-4 if line['set'] == 'code' else -3e-4)
        (run / 'evals.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))
        runs.append(run)
    return runs


def equal_runs(folder: Path) -> list[Path]:
    return [write_run(folder / str(index), 'constant', name=f'equal-{index}') for index in range(4)]


def eventful_run(folder: Path) -> list[Path]:
    """All that a run can go through, in many stages, of which some are short."""
    stages = {
        'code': 500,
        'a-stage-with-a-name-that-is-long': 20,
        'b': 10,
        'another-that-is-long-too': 10,
        'prose': 1000,
    }
    return [eventful(folder / 'run', stages).write()]


def three_stops(folder: Path) -> list[Path]:
    """Stops within minutes, on a night: the ticks of its clock need dates."""
    story = Story(folder / 'run')
    story.start().train(99).save().preempt(20_000).start().train(99).preempt(9000).start().train(50).preempt(
        3
    ).start().train(9)
    return [story.write()]


def lost_runs(folder: Path) -> list[Path]:
    """Two runs whose losses became NaN, as which JSON has ``null``."""
    runs = [write_run(folder / str(index), 'constant', name=f'lost-{index}', stop=60) for index in range(2)]
    for run in runs:
        for name in ('evals', 'metrics'):
            lines = [json.loads(line) for line in (run / f'{name}.jsonl').read_text().splitlines()]
            text = ''.join(json.dumps({**line, 'loss': None}) + '\n' for line in lines)
            (run / f'{name}.jsonl').write_text(text)
    return runs


RUNS: dict[str, Callable[[Path], list[Path]]] = {
    'five': five_arms,
    'near': near_runs,
    'equal': equal_runs,
    'eventful': eventful_run,
    'stops': three_stops,
    'lost': lost_runs,
}
