"""The first look at what is to be converted: is the text where it is said to be? Before anything is made or written."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from rewarm.buckets.bucket import is_bucket
from rewarm.config.errors import UserError
from rewarm.data.columns import column_problem, is_text, read_columns
from rewarm.data.documents import BOM, MAX_RECORD_BYTES, Reject, parse_record, text_keys, text_of
from rewarm.data.reading import decompressed, errors_of
from rewarm.data.sources import Source

__all__ = ['look_at_sources']

RECORDS = 1000
"""Records at the beginning of a file that are looked at until one has a text."""

_BLOCK_BYTES, _LOOKED_AT_BYTES = 1 << 16, 1 << 20
_THREADS = 16
_MOST_NAMED = 5
_MOST_KEYS, _LONGEST_KEY = 20, 60


class _Found(NamedTuple):
    """A file without a text where it was looked for."""

    problem: str
    """In words: file, place, what is wrong, what there is."""
    suggestion: str | None
    """Key that seems to hold the text."""


def look_at_sources(sources: Sequence[Source], text_key: str) -> None:
    """Looks for the text at the beginning of each file: the first records of lines of JSON, the columns of a table.

    Single records that have none are no concern here: they are rejected, and counted, when all is read.

    Args:
        sources (Sequence[Source]): The files.
        text_key (str): Key or column of the text, or several with commas between.

    Raises:
        UserError: If a file has no text there, or cannot be read; names what it has instead.
    """
    look: dict[str, Callable[[Source, Sequence[str]], _Found | None]] = {
        'jsonl': _look_at_lines,
        'parquet': _look_at_table,
        'arrow': _look_at_table,
    }
    keys, looked_at = text_keys(text_key), [source for source in sources if source.kind in look]

    def look_at(source: Source) -> _Found | None:
        with errors_of(source):
            return look[source.kind](source, keys)

    if any(is_bucket(source.path) for source in looked_at):
        with ThreadPoolExecutor(_THREADS) as threads:
            results = list(threads.map(look_at, looked_at))
    else:
        results = [look_at(source) for source in looked_at]
    if found := [result for result in results if result is not None]:
        raise UserError(_in_words(found, len(looked_at), text_key))


def _in_words(found: Sequence[_Found], looked_at: int, text_key: str) -> str:
    lines = [each.problem for each in found[:_MOST_NAMED]]
    if len(found) > _MOST_NAMED:
        lines.append(f'and {len(found) - _MOST_NAMED:,} more files')
    others = dict.fromkeys(each.suggestion for each in found if each.suggestion is not None)
    # Where some files have the text under the key that was given, or they differ, one name is not enough.
    names = list(others) if len(found) == looked_at else [text_key, *others]
    if not others:
        hint = 'Name the key or column of the text with --text-key'
    elif len(names) == 1:
        hint = f'Name one with --text-key, such as --text-key {names[0]}'
    else:
        hint = f'Name them with --text-key {",".join(names)}: the first of them that a record or a table has is taken'
    return '\n'.join(lines) + f'. {hint}'


def _look_at_table(source: Source, keys: Sequence[str]) -> _Found | None:
    with source.open() as file:
        columns = read_columns(file, source)
    problem = column_problem(columns, keys)
    if problem is None:
        return None
    texts = [name for name, kind in columns.items() if is_text(kind) and ',' not in name]
    return _Found(f'{source.path}: {problem}', texts[0] if texts else None)


def _look_at_lines(source: Source, keys: Sequence[str]) -> _Found | None:
    first: tuple[int, dict[str, Any], Reject] | None = None
    for number, line in _first_lines(source):
        record = parse_record(line) if line.strip() else Reject('')
        if isinstance(record, Reject):  # no lack of a key; it is counted when all is read
            continue
        text = text_of(record, keys)
        if isinstance(text, str):
            return None
        if any(record.get(key, '') is None for key in keys):
            return None  # the key is right, and this text is not there
        first = first or (number, record, text)
    if first is None:
        return None
    number, record, reject = first
    texts = {key: len(value) for key, value in record.items() if isinstance(value, str) and ',' not in key}
    names = [key if len(key) <= _LONGEST_KEY else f'{key[:_LONGEST_KEY]}...' for key in list(record)[:_MOST_KEYS]]
    more = ', ...' if len(record) > _MOST_KEYS else ''
    problem = f'{source.path}:{number}: {reject.reason}; the record has {", ".join(names) or "no keys"}{more}'
    longest = max(texts, key=lambda key: texts[key], default=None)
    return _Found(problem, longest if longest is not None and len(longest) <= _LONGEST_KEY else None)


def _first_lines(source: Source) -> Iterator[tuple[int, bytes]]:
    """The first lines with their numbers, each of them whole, a block at a time; none longer than a record may be."""
    rest, number, size = bytearray(), 0, 0
    with source.open() as file:
        for block in decompressed(iter(lambda: file.read(_BLOCK_BYTES), b''), source, _BLOCK_BYTES):
            rest += block if size else block.removeprefix(BOM)
            size += len(block)
            if b'\n' in block:
                *lines, last = bytes(rest).split(b'\n')
                rest = bytearray(last)
                for line in lines:
                    number += 1
                    yield number, line
            if number >= RECORDS or len(rest) > MAX_RECORD_BYTES or (number and size >= _LOOKED_AT_BYTES):
                return
    if rest:
        yield number + 1, bytes(rest)
