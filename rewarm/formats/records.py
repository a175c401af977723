"""A run's records: the lines of ``metrics.jsonl``, ``evals.jsonl`` and ``events.jsonl``, and the one reader for them.

Lines are appended, by a run that may be going on: a last line that a kill has torn is not counted. Any other line that is
not what its kind says is left out; :class:`Damage` counts them and tells the first. What is read is finite, not negative
where it counts something, and small enough to reckon with.
"""

import math
import os
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Generic, TypeVar, cast

from pydantic import ConfigDict, Field, PlainValidator, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from rewarm.config.errors import DamagedFile
from rewarm.formats.files import LARGEST_BYTES, open_regular, refuse_lost_link
from rewarm.formats.strict_json import in_words, parse_json

__all__ = [
    'BATCHES',
    'EVALUATIONS',
    'EVENTS',
    'Batch',
    'Count',
    'Damage',
    'Evaluation',
    'Event',
    'Kind',
    'Number',
    'Seconds',
    'Text',
    'open_records',
    'parse_lines',
    'read_lines',
]

LONGEST_LINE_BYTES = 1 << 20
"""A line of ours has some hundreds."""

LARGEST_NUMBER = 1e39
"""Above any 32-bit float: sums and means of so many as a run has stay finite."""

LONGEST_SECONDS = 1e9
"""Thirty years."""


def _number(value: object) -> float:
    """A finite number; NaN for the ``null`` that stands for one that was not."""
    if value is None:
        return math.nan
    if type(value) not in (float, int) or not -LARGEST_NUMBER <= value <= LARGEST_NUMBER:  # type: ignore[operator]
        raise ValueError(f'should be a number of at most {LARGEST_NUMBER:g}')
    return float(value)  # type: ignore[arg-type]


def _not_negative(value: object) -> float:
    number = _number(value)
    if number < 0:
        raise ValueError('should not be negative')
    return number


def _seconds(value: object) -> float:
    if value is None:
        return math.nan
    if type(value) not in (float, int) or not 0 <= value <= LONGEST_SECONDS:  # type: ignore[operator]
        raise ValueError(f'should be seconds, at most {LONGEST_SECONDS:g}')
    return float(value)  # type: ignore[arg-type]


def _time(value: object) -> datetime | None:
    """A time in UTC; ``None`` for a text that is none of the years in which a run can have been."""
    if value is None:
        return None
    if not isinstance(value, str):
        raise ValueError('should be a time')
    try:
        time = datetime.fromisoformat(value)
    except ValueError:
        return None
    if not 1970 < time.year < 2100:  # a zone's offset cannot take it out of the calendar
        return None
    if time.tzinfo is None:
        return time.replace(tzinfo=UTC)
    return time if time.tzinfo is UTC else time.astimezone(UTC)


Text = Annotated[str, Field(strict=True, max_length=1000)]
"""A name or a reason."""
Count = Annotated[int, Field(strict=True, ge=0, lt=1 << 63)]
Flag = Annotated[bool, Field(strict=True)]
Number = Annotated[float, PlainValidator(_number)]
"""NaN for ``null``."""
NotNegative = Annotated[float, PlainValidator(_not_negative)]
"""Not negative; NaN for ``null``."""
Seconds = Annotated[float, PlainValidator(_seconds)]
"""NaN for ``null``."""
Time = Annotated[datetime | None, PlainValidator(_time)]
Positive = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]
"""Finite, and maybe so large that a sum of two is not."""


@dataclass(frozen=True, slots=True)
class Batch:
    """One line of ``metrics.jsonl``: one optimizer step."""

    stage: Text
    batch: Annotated[int, Field(strict=True, ge=1, lt=1 << 63)]
    """Batches of the run after this one (1-based)."""
    tokens: Count
    """Tokens of the run after this batch."""
    stage_tokens: Count
    """Tokens of the stage after this batch."""
    lr: NotNegative
    loss: Number
    """Training loss in nats per token; NaN where the file has none."""
    tokens_per_second: NotNegative = math.nan
    seconds: Seconds = math.nan
    """Duration of this batch in seconds."""
    samples: dict[Text, Count] = field(default_factory=dict[str, int])
    """Samples of the stage so far, by stream."""
    time: Time = None
    """When it was done; old runs did not record it."""
    skipped: Flag = False
    """It was left out of training, by a rule for spikes of the loss."""
    grad_norm: Number = math.nan
    """Of the gradient before clipping; NaN where it was no number, or the file has none."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One line of ``evals.jsonl``: one evaluation set at one position."""

    stage: Text
    batch: Count
    tokens: Count
    stage_tokens: Count
    set: Text
    role: Text
    """What it is when the run begins: ``upstream`` (old data) or ``downstream`` (new data)."""
    loss: Number
    """Mean loss in nats per token; NaN where the file has none."""
    when: Text = 'interval'
    """``start``, ``interval`` or ``end`` of the stage."""
    perplexity: Positive | None = None
    bits_per_byte: Positive | None = None
    tokens_evaluated: Count | None = None
    kind: Text | None = None
    """What it is in the stage, in words, as the run file said when it was written; reports ask the run file anew."""


class EventFields(TypedDict, total=False):
    """What is reckoned with among all that events say; whatever else they say is only shown."""

    __pydantic_config__ = ConfigDict(extra='allow')  # type: ignore[misc]

    path: Text | None
    seconds: Annotated[float, Field(strict=True, ge=0, le=LONGEST_SECONDS)] | None
    stall_seconds: Annotated[float, Field(strict=True, ge=0, le=LONGEST_SECONDS)] | None
    bytes: Count | None
    lost_batches: Count | None
    logger: Text | None
    calls: Count | None


@dataclass(frozen=True, slots=True)
class Event:
    """One line of ``events.jsonl``: something that happened, in the order it happened."""

    event: Text
    time: Time = None
    batch: Count | None = None
    tokens: Count | None = None
    stage: Text | None = None
    fields: EventFields = field(default_factory=EventFields)
    """All that the line says beyond the above."""


Record = TypeVar('Record')


class Kind(Generic[Record]):
    """A kind of line.

    Args:
        record (type[Record]): What a line becomes.
        rest (str | None): The attribute that gets all keys that are no attributes. Default: they are not read.
    """

    def __init__(self, record: type[Record], *, rest: str | None = None) -> None:
        self.adapter = TypeAdapter(record)
        self.rest = rest
        self.named = frozenset(each.name for each in fields(cast(Any, record)) if each.name != rest)

    def parse(self, line: bytes, where: object) -> Record:
        """Reads a line.

        Raises:
            DamagedFile: If it is not JSON, lacks a key, or a value is of another type or size.
        """
        value = parse_json(line, where)
        if self.rest is not None and isinstance(value, dict):
            value = self._divide(cast('dict[str, Any]', value))
        try:
            return self.adapter.validate_python(value)
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False)[0]
            raise DamagedFile(where, place='.'.join(map(str, first['loc'])), what=in_words(first)) from None

    def _divide(self, value: dict[str, Any]) -> dict[str, Any]:
        named = {key: item for key, item in value.items() if key in self.named}
        return {**named, self.rest or '': {key: item for key, item in value.items() if key not in named}}


BATCHES = Kind(Batch)
EVALUATIONS = Kind(Evaluation)
EVENTS = Kind(Event, rest='fields')


@dataclass
class Damage:
    """The lines of a file that were left out."""

    file: str
    """Its name, as messages say it."""
    lines: int = 0
    first: DamagedFile | None = None

    def add(self, error: DamagedFile) -> None:
        """Counts a line."""
        self.lines += 1
        self.first = self.first or error

    def __str__(self) -> str:
        lines = f'{self.lines:,} damaged lines' if self.lines > 1 else '1 damaged line'
        return f'{lines} of {self.file} left out, the first: {self.first}'


def parse_lines(
    kind: Kind[Record], file: BinaryIO, damage: Damage, *, first: int = 1
) -> Iterator[tuple[bytes, Record]]:
    """Reads the lines of a file, one at a time.

    Args:
        kind (Kind): What they are.
        file (BinaryIO): Positioned at the beginning of a line; ``io.BytesIO`` for what came from a bucket.
        damage (Damage): Gets the lines that are left out.
        first (int): Number of the first one.

    Yields:
        tuple[bytes, Record]: Each line as it stands there, with a newline, and what it says.
    """
    number = first - 1
    while line := file.readline(LONGEST_LINE_BYTES):
        number += 1
        torn = not line.endswith(b'\n')
        if len(line) == LONGEST_LINE_BYTES and torn:
            while (rest := file.readline(LONGEST_LINE_BYTES)) and not rest.endswith(b'\n'):
                pass
            damage.add(DamagedFile(f'{damage.file}:{number}', what=f'it has more than {LONGEST_LINE_BYTES:,} bytes'))
        elif not line.isspace():
            try:
                yield (line + b'\n' if torn else line), kind.parse(line.rstrip(b'\n'), f'{damage.file}:{number}')
            except DamagedFile as error:
                if not torn:
                    damage.add(error)


@contextmanager
def open_records(path: Path) -> Generator[BinaryIO]:
    """Opens a file of lines for :func:`parse_lines`.

    Raises:
        FileNotFoundError: If there is none.
        DamagedFile: If it is no regular file, or cannot be read; also within the ``with`` block.
    """
    with open_regular(path) as file:
        if (size := os.fstat(file.fileno()).st_size) > LARGEST_BYTES:
            raise DamagedFile(path, what=f'it has {size:,} bytes, more than {LARGEST_BYTES:,}')
        try:
            yield file
        except OSError as error:
            raise DamagedFile(path, what=f'it cannot be read ({error.strerror or error})') from None


def read_lines(kind: Kind[Record], path: Path, damage: Damage, *, last_bytes: int | None = None) -> list[Record]:
    """Reads a file of lines.

    Args:
        kind (Kind): What they are.
        path (Path): The file.
        damage (Damage): Gets the lines that are left out.
        last_bytes (int | None): Read the whole lines within so many bytes at its end only.

    Returns:
        list[Record]: In the order of the file; none if it is not there.

    Raises:
        DamagedFile: If it is no regular file.
    """
    try:
        with open_records(path) as file:
            begin = 0 if last_bytes is None else _skip_to_last(file, last_bytes)
            found = Damage(damage.file)
            lines = [record for _, record in parse_lines(kind, file, found)]
            if found.lines and begin:  # counting the lines before takes long, and is needed to name one only
                first, found = _count_lines(file, begin) + 1, Damage(damage.file)
                lines = [record for _, record in parse_lines(kind, file, found, first=first)]
            damage.lines, damage.first = damage.lines + found.lines, damage.first or found.first
            return lines
    except FileNotFoundError:
        refuse_lost_link(path)
        return []


def _skip_to_last(file: BinaryIO, size: int) -> int:
    """Goes to the first line that begins within the last ``size`` bytes; returns its place in the file."""
    begin = max(0, file.seek(0, 2) - size)
    file.seek(max(0, begin - 1))
    if begin:
        file.readline()  # ends where a line begins, if only with the byte before
    return file.tell()


def _count_lines(file: BinaryIO, end: int) -> int:
    """The lines in the first ``end`` bytes, and goes there."""
    file.seek(0)
    lines, left = 0, end
    while left and (piece := file.read(min(left, 1 << 20))):
        lines, left = lines + piece.count(b'\n'), left - len(piece)
    return lines
