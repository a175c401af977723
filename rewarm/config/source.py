"""A run file as plain data that remembers where each value was written, with overrides and ``${key}`` put in."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rewarm.config.errors import ConfigError, DamagedFile
from rewarm.config.located import COMMAND_LINE, Loc, Source, dotted, is_list, is_map
from rewarm.config.overrides import put_override
from rewarm.config.yaml_text import parse_yaml
from rewarm.formats.files import read_bytes

__all__ = ['COMMAND_LINE', 'Loc', 'Source', 'dotted', 'is_list', 'is_map', 'read_source']

LARGEST_BYTES = 128 * 1024
"""Of a run file; the longest of ours has 5 kB."""

LONGEST_TEXT = 4096
"""Characters of a text that ``${key}`` was put into."""

_REFERENCE = re.compile(r'\$\{([^}]*)\}')


def read_source(path: str | Path, overrides: Sequence[str] = ()) -> Source:
    """Reads a run file and puts overrides and references in.

    Args:
        path (str | Path): The YAML file.
        overrides (Sequence[str]): ``key=value`` each; the value is read as YAML.

    Returns:
        Source: The data, its lines, and all problems that leave it readable (duplicate keys, bad overrides).

    Raises:
        ConfigError: If there is no such file or it is not YAML.
    """
    source = Source(str(path))
    try:
        text = _decode(read_bytes(path, largest_bytes=LARGEST_BYTES), source)
    except FileNotFoundError:
        raise ConfigError([f'{path}: there is no such file']) from None
    except DamagedFile as error:
        raise ConfigError([f'{path}: this is no run file: {error.what}']) from None
    data = parse_yaml(text, source, ())
    if not is_map(data):
        raise source.error(
            [(1, 'the file is empty' if data is None else 'the file must be keys and values, such as `run_name: demo`')]
        )
    source.data = data
    for override in overrides:
        put_override(source, override)
    source.data = _interpolate(source, source.data, ())
    return source


def _decode(data: bytes, source: Source) -> str:
    if data.startswith((b'\xff\xfe', b'\xfe\xff')) or b'\0' in data[:4]:
        raise source.error([(1, 'the file is UTF-16, as Windows writes it. Save it as UTF-8')])
    try:
        return data.decode('utf-8-sig')
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b'\n') + 1
        what = f'the byte 0x{data[error.start]:02x} is no UTF-8 (the file may be Latin-1). Save it as UTF-8'
        raise source.error([(line, what)]) from None


def _interpolate(source: Source, value: Any, loc: Loc) -> Any:
    if is_map(value):
        return {key: _interpolate(source, item, (*loc, key)) for key, item in value.items()}
    if is_list(value):
        return [_interpolate(source, item, (*loc, index)) for index, item in enumerate(value)]
    if not isinstance(value, str) or '${' not in value:
        return value
    if len(value) > LONGEST_TEXT:
        source.problems.append(
            (source.line(loc), f'`{dotted(loc)}`: more than {LONGEST_TEXT:,} characters with a `${{`')
        )
        return ''

    def put(match: re.Match[str]) -> str:
        found = source.data.get(match[1])
        if isinstance(found, bool) or not isinstance(found, (str, int, float)) or '${' in str(found):
            names = ', '.join(
                f'{key:.40}' for key, item in source.data.items() if isinstance(item, str) and '${' not in item
            )
            text = f'`{dotted(loc)}`: `{match[0]}` must name a top-level key with a plain value, such as {names or "run_name"}'
            source.problems.append((source.line(loc), text))
            return match[1]
        return str(found)[:LONGEST_TEXT]

    text = _REFERENCE.sub(put, value)
    if len(text) > LONGEST_TEXT:
        source.problems.append((source.line(loc), f'`{dotted(loc)}`: has more than {LONGEST_TEXT:,} characters'))
    return text[:LONGEST_TEXT]
