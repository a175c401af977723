"""JSON from outside, read strictly: a value that means one thing, or ``DamagedFile``.

Python's reader takes NaN and Infinity, keeps the last of two equal keys, makes ``inf`` of 1e400, and raises
RecursionError on what is nested deeply. Here all of these are damage, and so are invalid UTF-8, halves of surrogate
pairs, and numbers that no 64-bit field holds. Each format is a pydantic model; its reader is one line::

    card = read_file(DatasetCard, folder / 'dataset_card.json')
"""

import difflib
import json
import math
import re
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar, cast

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import from_json

from rewarm.config.errors import DamagedFile
from rewarm.formats.files import LARGEST_BYTES, read_bytes

__all__ = ['Record', 'as_record', 'in_words', 'parse_json', 'parse_record', 'read_file', 'read_json']

DEEPEST = 100
"""Levels of nesting; none of our formats has more than eight."""

_MOST_KEYS, _MOST_COMPARED = 20, 100
_INFINITE = math.inf
_SMALLEST, _LARGEST = -(1 << 63), (1 << 64) - 1
_NUMBERS = ('int_type', 'float_type', 'bool_type')  # pydantic's names for a value that is none of these

_HALF_OF_A_PAIR = re.compile(rb'\\u[dD][89a-fA-F]')


class Record(BaseModel):
    """A format: strict types, finite numbers; keys that a newer version adds are not read."""

    model_config = ConfigDict(
        frozen=True, strict=True, extra='ignore', allow_inf_nan=False, use_attribute_docstrings=True
    )


Kind = TypeVar('Kind', bound=BaseModel)


def parse_json(data: bytes, where: object) -> Any:
    """Reads JSON text.

    Args:
        data (bytes): UTF-8.
        where (object): The file, or ``file:line``, for the message.

    Raises:
        DamagedFile: If it is not JSON, or its value is not one that every reader would give.
    """
    try:
        with suppress(ValueError, RecursionError):  # the slower way says what is wrong
            value = from_json(data, allow_inf_nan=False)
            if _check(value, 0) == data.count(b':') and b'\\' not in data:
                return value
        value = json.loads(data.decode(), object_pairs_hook=_unique, parse_constant=_refuse_constant)
        _check(value, 0)
        if _HALF_OF_A_PAIR.search(data):
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        if data.startswith(b'version https://git-lfs'):
            raise DamagedFile(
                where, what='it is a git-lfs pointer, not the file; fetch it with: git lfs pull'
            ) from None
        if data.lstrip()[:1] == b'<':
            raise DamagedFile(where, what='it is an HTML or XML page, not the file: see what it says') from None
        place = f'line {error.lineno}, column {error.colno}' if error.lineno > 1 else f'byte {error.pos}'
        raise DamagedFile(where, place=place, what=f'no JSON ({error.msg})') from None
    except UnicodeDecodeError as error:
        raise DamagedFile(where, place=f'byte {error.start}', what='no valid UTF-8') from None
    except UnicodeEncodeError:
        raise DamagedFile(where, what='half of a surrogate pair in a text') from None
    except RecursionError:
        raise DamagedFile(where, what=f'nested more than {DEEPEST} levels deep') from None
    except ValueError as error:
        raise DamagedFile(where, what=str(error)) from None
    return value


def parse_record(kind: type[Kind], data: bytes, where: object) -> Kind:
    """Reads JSON text as a format.

    Raises:
        DamagedFile: If it is not JSON, lacks a key, or a value is of another type.
    """
    parse_json(data, where)
    return as_record(kind, data, where)


def as_record(kind: type[Kind], data: bytes, where: object) -> Kind:
    """The same of text that :func:`parse_json` has read already; a tokenizer's takes it a tenth of a second.

    Raises:
        DamagedFile: If it lacks a key, or a value is of another type.
    """
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        raise DamagedFile(where, place='.'.join(map(str, first['loc'])), what=in_words(first)) from None


def read_json(path: str | Path, *, largest_bytes: int = LARGEST_BYTES) -> Any:
    """Reads a JSON file.

    Raises:
        FileNotFoundError: If there is none.
        DamagedFile: If it is no regular file, or as :func:`parse_json` says.
    """
    return parse_json(read_bytes(path, largest_bytes=largest_bytes), path)


def read_file(kind: type[Kind], path: str | Path, *, largest_bytes: int = LARGEST_BYTES) -> Kind:
    """Reads a JSON file as a format.

    Raises:
        FileNotFoundError: If there is none.
        DamagedFile: If it is no regular file, or as :func:`parse_record` says.
    """
    return parse_record(kind, read_bytes(path, largest_bytes=largest_bytes), path)


def in_words(problem: Any) -> str:
    """What pydantic found at one place."""
    if problem['type'] == 'missing':
        return f'is missing{_keys_there(problem["input"], str(problem["loc"][-1]))}'
    message = str(problem['msg']).removeprefix('Value error, ').removeprefix('Input ')
    if problem['type'] == 'value_error':  # in words of our own, which say what is there
        return message
    text = ' (a text)' if isinstance(problem['input'], str) and problem['type'] in _NUMBERS else ''
    return f'{message}, not {problem["input"]!r:.60}{text}'


def _keys_there(content: object, wanted: str) -> str:
    """What there is where a key is missing, since most are spelt otherwise; nothing where that is no object."""
    if not isinstance(content, dict):
        return ''
    keys = [str(key) for key in cast('dict[object, object]', content)]
    if not keys:
        return '; there are no keys'
    shown = ', '.join(f'{key:.40}' for key in keys[:_MOST_KEYS]) + (', ...' if len(keys) > _MOST_KEYS else '')
    close = difflib.get_close_matches(
        wanted, [key for key in keys[:_MOST_COMPARED] if len(key) < 100], n=1, cutoff=0.75
    )
    meant = f', and `{close[0]}` may be meant for it' if close else ''
    return f'; there are {shown}{meant}'


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f'the key {next(key for key in keys if keys.count(key) > 1)!r:.60} is there twice')
    return content


def _refuse_constant(name: str) -> Any:
    raise ValueError(f'the number {name}, which JSON does not know')


def _check(value: Any, depth: int) -> int:
    """Refuses what is nested deeply and numbers of more than 64 bits.

    Returns:
        int: Colons of the JSON text without escapes that gives the value: one for each key, and those within its texts.
            A text that has more has a key twice.
    """
    if depth == DEEPEST and isinstance(value, dict | list):
        raise RecursionError
    items: Any = value
    colons = 0
    if isinstance(value, dict):
        content = cast('dict[str, Any]', value)
        items = content.values()
        colons = len(content) + ''.join(content).count(':')
    elif not isinstance(value, list):
        items = (value,)
    for item in items:
        kind = cast(Any, type)(item)  # millions of values: no call for the common ones
        if kind is float:
            if not -_INFINITE < item < _INFINITE:
                raise ValueError('a number too large for 64 bits')
        elif kind is int:
            if not _SMALLEST <= item <= _LARGEST:
                raise ValueError('a number too large for 64 bits')
        elif kind is str:
            if ':' in item:
                colons += item.count(':')
        elif kind is dict or kind is list:
            colons += _check(item, depth + 1)
    return colons
