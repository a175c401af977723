"""The lines of a run's records as plain Python: ``metrics.jsonl``, ``evals.jsonl``, ``events.jsonl``.

A run may be going on, or have been killed in the middle of a line: a torn last line is dropped, unreadable lines before it
are dropped and counted, and a file that is not there yet reads as empty.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from rewarm.config.errors import UserError

__all__ = ['Batch', 'Evaluation', 'Event', 'parse_batch', 'parse_evaluation', 'parse_event', 'read_lines', 'read_text']

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


def read_lines(
    path: Path, parse: Callable[[dict[str, Any]], T], skipped: dict[str, int], last: int | None = None
) -> list[T]:
    """Parses the lines of a file.

    Args:
        path (Path): The file.
        parse (Callable): Makes a record of a JSON object.
        skipped (dict[str, int]): Gets the count of unreadable lines by file name.
        last (int | None): Read about so many of the last lines only.

    Returns:
        list[T]: In the order of the file.

    Raises:
        UserError: If a line is JSON of another kind.
    """
    records: list[T] = []
    lines = (read_text(path) if last is None else _tail(path, last * LINE_BYTES)).split('\n')
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


def read_text(path: Path) -> str:
    """The whole file; empty if it is not there."""
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


def parse_batch(line: dict[str, Any]) -> Batch:
    """A line of ``metrics.jsonl``."""
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


def parse_evaluation(line: dict[str, Any]) -> Evaluation:
    """A line of ``evals.jsonl``."""
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


def parse_event(line: dict[str, Any]) -> Event:
    """A line of ``events.jsonl``."""
    known = ('event', 'time', 'batch', 'tokens', 'stage')
    return Event(
        event=str(line['event']),
        time=_time(line.get('time')),
        batch=line.get('batch'),
        tokens=line.get('tokens'),
        stage=line.get('stage'),
        fields={key: value for key, value in line.items() if key not in known},
    )
