"""A run file as plain data that remembers where each value was written, with overrides and ``${key}`` put in."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from rewarm.config.errors import ConfigError

Loc = tuple[str | int, ...]
"""The way to a value: keys and list positions, such as ``('stages', 0, 'schedule', 'lr')``."""

COMMAND_LINE = 0
"""The line number of what was written on the command line."""

_REFERENCE = re.compile(r'\$\{([^}]*)\}')
_STANDARD_TAGS = ('null', 'bool', 'int', 'float', 'str', 'timestamp', 'merge', 'value')


def is_map(value: Any) -> TypeGuard[dict[str, Any]]:
    """Whether plain data is keys and values."""
    return isinstance(value, dict)


def is_list(value: Any) -> TypeGuard[list[Any]]:
    """Whether plain data is a list."""
    return isinstance(value, list)


def dotted(loc: Loc) -> str:
    """Spells a way to a value as an override does: ``stages.0.schedule.lr``."""
    return '.'.join(map(str, loc))


@dataclass
class Source:
    """What was written, and where.

    Args:
        name (str): What to call the file in messages.
        data (dict[str, Any]): The content as plain dicts, lists, and scalars.
        lines (dict[Loc, int]): Line of every key and list item, counted from 1.
        problems (list[tuple[int, str]]): What is wrong with it as YAML: line and message.
    """

    name: str
    data: dict[str, Any] = field(default_factory=dict[str, Any])
    lines: dict[Loc, int] = field(default_factory=dict[Loc, int])
    problems: list[tuple[int, str]] = field(default_factory=list[tuple[int, str]])

    def line(self, loc: Loc) -> int:
        """The line of a value, or of the nearest thing around it that was written."""
        while loc not in self.lines and loc:
            loc = loc[:-1]
        return self.lines.get(loc, 1)

    def error(self, problems: Sequence[tuple[int, str]]) -> ConfigError:
        """The error that shows problems in the order of their lines, the command line's last."""
        ordered = sorted(dict.fromkeys(problems), key=lambda problem: problem[0] or float('inf'))
        return ConfigError(f'{self.name}:{line}: {text}' if line else f'command line: {text}' for line, text in ordered)


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
    try:
        text = Path(path).read_text(encoding='utf-8')
    except FileNotFoundError:
        raise ConfigError([f'{path}: there is no such file']) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([f'{path}: cannot be read: {error}']) from None
    source = Source(str(path))
    data = _parse(text, source, ())
    if not is_map(data):
        raise source.error(
            [(1, 'the file is empty' if data is None else 'the file must be keys and values, such as `run_name: demo`')]
        )
    source.data = data
    for override in overrides:
        _override(source, override)
    source.data = _interpolate(source, source.data, ())
    return source


def _parse(text: str, source: Source, at: Loc, line: int | None = None) -> Any:
    """Reads YAML 1.2 into plain data. ``line`` stands for every line when the text is not the file's."""
    yaml: Any = YAML(typ='safe', pure=True)  # ruamel.yaml comes without types
    try:
        node = yaml.compose(text)
    except YAMLError as error:
        mark: Any = getattr(error, 'problem_mark', None)
        what = ' '.join(str(getattr(error, 'problem', None) or error).split())
        where: int = line if line is not None else mark.line + 1 if mark else 1
        raise source.error([*source.problems, (where, f'not valid YAML: {what}')]) from None
    return None if node is None else _Reader(yaml, source, line).plain(node, at)


class _Reader:
    def __init__(self, yaml: Any, source: Source, line: int | None) -> None:
        self.yaml, self.source, self.fixed_line = yaml, source, line
        self.open: list[Any] = []

    def line(self, node: Any) -> int:
        return self.fixed_line if self.fixed_line is not None else node.start_mark.line + 1

    def plain(self, node: Any, loc: Loc) -> Any:
        self.source.lines.setdefault(loc, self.line(node))
        if any(node is outer for outer in self.open):
            raise self.source.error([(self.line(node), f'`{dotted(loc)}` contains itself through an alias')])
        self.open.append(node)
        try:
            if node.id == 'mapping':
                return self.mapping(node, loc)
            if node.id == 'sequence':
                return [self.plain(item, (*loc, index)) for index, item in enumerate(node.value)]
            return self.scalar(node, loc)
        finally:
            self.open.pop()

    def mapping(self, node: Any, loc: Loc) -> dict[str, Any]:
        content: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if key_node.id != 'scalar':
                self.source.problems.append((self.line(key_node), f'a key in `{dotted(loc)}` is not plain text'))
                continue
            key = str(key_node.value)
            here = (*loc, key)
            if key in content:
                first = self.source.lines[here]
                text = f'`{dotted(here)}` is set twice, first on line {first}. Remove one'
                self.source.problems.append((self.line(key_node), text if first else f'`{dotted(here)}` is set twice'))
                continue
            self.source.lines[here] = self.line(key_node)
            content[key] = self.plain(value_node, here)
        return content

    def scalar(self, node: Any, loc: Loc) -> Any:
        text = str(node.value)
        tag = str(node.tag).rpartition(':')[2]
        if tag not in _STANDARD_TAGS:
            self.source.problems.append((self.line(node), f'`{dotted(loc)}` has the tag `{node.tag}`; remove it'))
            return text
        if tag in ('timestamp', 'merge', 'value'):
            return text
        try:
            return self.yaml.constructor.construct_object(node, deep=True)
        except ValueError:
            return text


def _override(source: Source, text: str) -> None:
    key, equals, value = text.partition('=')
    if not equals or not key:
        problem = f'`{text}` is not an override. Write `key=value`, such as `stages.0.schedule.lr=1e-4`'
        source.problems.append((COMMAND_LINE, problem))
        return
    parts = key.split('.')
    target: Any = source.data
    loc: Loc = ()
    for part in parts[:-1]:
        step = _step(source, target, loc, part)
        if step is None:
            return
        loc = (*loc, step)
        if is_map(target) and part not in target:
            source.lines[loc] = COMMAND_LINE
            target[part] = {}
        target = target[step]
    step = _step(source, target, loc, parts[-1])
    if step is None:
        return
    loc = (*loc, step)
    for old in [known for known in source.lines if known[: len(loc)] == loc]:
        del source.lines[old]
    source.lines[loc] = COMMAND_LINE
    target[step] = _parse(value, source, loc, COMMAND_LINE)


def _step(source: Source, target: Any, loc: Loc, part: str) -> Any:
    """The key or position that one part of an override's key names; None, and a problem, if there cannot be such."""
    if is_map(target):
        return part
    if is_list(target) and part.isdigit() and int(part) < len(target):
        return int(part)
    what = f'is a list with positions 0 to {len(target) - 1}' if is_list(target) else f'has no keys, it is {target!r}'
    source.problems.append((COMMAND_LINE, f'`{dotted((*loc, part))}`: `{dotted(loc)}` {what}'))
    return None


def _interpolate(source: Source, value: Any, loc: Loc) -> Any:
    if is_map(value):
        return {key: _interpolate(source, item, (*loc, key)) for key, item in value.items()}
    if is_list(value):
        return [_interpolate(source, item, (*loc, index)) for index, item in enumerate(value)]
    if not isinstance(value, str) or '${' not in value:
        return value

    def put(match: re.Match[str]) -> str:
        found = source.data.get(match[1])
        if isinstance(found, bool) or not isinstance(found, (str, int, float)) or '${' in str(found):
            names = ', '.join(key for key, item in source.data.items() if isinstance(item, str) and '${' not in item)
            text = f'`{dotted(loc)}`: `{match[0]}` must name a top-level key with a plain value, such as {names or "run_name"}'
            source.problems.append((source.line(loc), text))
            return match[1]
        return str(found)

    return _REFERENCE.sub(put, value)
