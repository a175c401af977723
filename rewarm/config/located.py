"""Plain data that remembers where each value was written: the file's line, or the command line."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeGuard

from rewarm.config.errors import ConfigError

Loc = tuple[str | int, ...]
"""The way to a value: keys and list positions, such as ``('stages', 0, 'schedule', 'lr')``."""

COMMAND_LINE = 0
"""The line number of what was written on the command line."""

MOST_PROBLEMS = 20
"""Problems that are shown; whoever has more has the wrong file, or one cause for all."""


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
        overrides (dict[Loc, str]): The text of each value that came from the command line.
    """

    name: str
    data: dict[str, Any] = field(default_factory=dict[str, Any])
    lines: dict[Loc, int] = field(default_factory=dict[Loc, int])
    problems: list[tuple[int, str]] = field(default_factory=list[tuple[int, str]])
    overrides: dict[Loc, str] = field(default_factory=dict[Loc, str])

    def line(self, loc: Loc) -> int:
        """The line of a value, or of the nearest thing around it that was written."""
        while loc not in self.lines and loc:
            loc = loc[:-1]
        return self.lines.get(loc, 1)

    def error(self, problems: Sequence[tuple[int, str]]) -> ConfigError:
        """The error that shows problems in the order of their lines, the command line's last; of many only the first."""
        ordered = sorted(dict.fromkeys(problems), key=lambda problem: problem[0] or float('inf'))
        lines = [f'{self.name}:{line}: {text}' if line else f'command line: {text}' for line, text in ordered]
        if len(lines) > MOST_PROBLEMS:
            lines[MOST_PROBLEMS:] = [f'... and {len(lines) - MOST_PROBLEMS:,} more']
        return ConfigError(lines)
