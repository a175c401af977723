"""What a part of a file holds: documents, and records that are none.

`rewarm.data.reading` cuts files into parts, one after the other; the workers turn parts into texts with `records`.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from rewarm.data.sources import Kind

MAX_RECORD_BYTES = 32 << 20
"""A longer record is rejected: memory stays bounded whatever a file holds."""

BOM = b'\xef\xbb\xbf'
"""Byte order mark that some programs put before UTF-8 text."""


@dataclass
class Part:
    """A piece of a file, about 4 MiB long."""

    source: int
    """Index of the file."""
    index: int
    """Place among the file's parts."""
    kind: Kind
    """What the file holds."""
    first_line: int
    """Line (or row) number of the first record, from 1."""
    lines: bytes = b''
    """Whole lines of JSON, or the whole or a piece of a text file."""
    rows: list[bytes | None] | None = None
    """UTF-8 texts, for columnar files."""
    rejects: list[tuple[int, str]] = field(default_factory=list)
    """(line, reason) of records that were too long to be read."""
    whole: bool = True
    """False for a piece of a text file that is cut into several."""
    last: bool = True
    """Whether the document ends here; of a cut text file only the last piece gets an EOD."""
    digest: bytes | None = None
    """Hash of the whole document by the rule of the split, when this is only a piece of it."""

    @property
    def bytes(self) -> int:
        """Size of the content in bytes."""
        return len(self.lines) + sum(len(row or b'') for row in self.rows or ())


@dataclass(frozen=True)
class Reject:
    """Why a record is no document."""

    reason: str


TOO_LONG = Reject(f'longer than {MAX_RECORD_BYTES >> 20} MiB')
"""What becomes of a record above `MAX_RECORD_BYTES`."""


def text_keys(text_key: str) -> tuple[str, ...]:
    """The keys under which a text is looked for, in order: the whole name first, then the names between its commas."""
    names = (text_key, *(name.strip() for name in text_key.split(',')))
    return tuple(dict.fromkeys(name for name in names if name))


def records(part: Part, text_key: str) -> Iterator[tuple[int, str | Reject]]:
    """Parses a part into documents and rejects. Blank lines are no records.

    Args:
        part (Part): What to parse.
        text_key (str): Key of the text in a JSON record, or several with commas between.

    Yields:
        tuple[int, str | Reject]: Line or row number from 1, and the text or the reason why there is none.
    """
    for line, reason in part.rejects:
        yield line, Reject(reason)
    if part.kind == 'jsonl':
        yield from _json_records(part, text_keys(text_key))
    elif part.kind == 'txt':
        if not part.rejects:
            yield part.first_line, _utf8(part.lines)
    else:
        for row, value in enumerate(part.rows or (), part.first_line):
            yield row, _utf8(value) if value is not None else Reject('the text is missing')


def _json_records(part: Part, keys: Sequence[str]) -> Iterator[tuple[int, str | Reject]]:
    data = part.lines.removeprefix(BOM) if part.index == 0 else part.lines
    if data.isspace():
        return  # a gigabyte of line ends is 65 kB of zstd
    # LF only: str.splitlines would also cut at U+2028 and others, which JSON allows inside a string.
    for line, raw in enumerate(data.split(b'\n'), part.first_line):
        if not raw or raw.isspace():
            continue
        record = parse_record(raw)
        yield line, record if isinstance(record, Reject) else text_of(record, keys)


def parse_record(raw: bytes) -> dict[str, Any] | Reject:
    """A line of JSON as an object, or why it is none."""
    line = _utf8(raw)
    if isinstance(line, Reject):
        return line
    try:
        record: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        return Reject(f'invalid JSON: {getattr(error, "msg", "nested too deeply")}')
    if not isinstance(record, dict):
        return Reject(f'a JSON {type(record).__name__}, not an object')
    return cast('dict[str, Any]', record)


def text_of(record: dict[str, Any], keys: Sequence[str]) -> str | Reject:
    """The text of a record, under the first of the keys that it has, or why there is none.

    Args:
        record (dict[str, Any]): A line of JSON.
        keys (Sequence[str]): From `text_keys`.

    Returns:
        str | Reject: Valid Unicode.
    """
    key = next((key for key in keys if key in record), None)
    if key is None:
        return Reject(f'no key {" or ".join(map(repr, keys[1:] or keys))}')
    text = record[key]
    if not isinstance(text, str):
        return Reject(f'{key!r} is {type(text).__name__}, not a string')
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            return Reject('lone surrogate')
    return text


def _utf8(raw: bytes) -> str | Reject:
    if len(raw) > MAX_RECORD_BYTES:
        return TOO_LONG
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return Reject('invalid UTF-8')
