"""Overrides of the command line, ``key=value``, put into a run file's data."""

from typing import Any

from rewarm.config.located import COMMAND_LINE, Loc, Source, dotted, is_list, is_map
from rewarm.config.secrets import is_secret_name
from rewarm.config.yaml_text import DEEPEST, parse_yaml


def put_override(source: Source, text: str) -> None:
    """Sets one key; what is wrong with it becomes a problem of the source.

    Args:
        source (Source): What was read so far, changed in place.
        text (str): Such as ``stages.0.schedule.lr=1e-4``; the value is read as YAML.

    Raises:
        ConfigError: If the value is not YAML.
    """
    key, equals, value = text.partition('=')
    if not equals or not key:
        problem = f'`{text}` is not an override. Write `key=value`, such as `stages.0.schedule.lr=1e-4`'
        source.problems.append((COMMAND_LINE, problem))
        return
    parts = key.split('.')
    if len(parts) > DEEPEST:
        source.problems.append((COMMAND_LINE, f'`{key}`: no setting is nested {len(parts):,} levels deep'))
        return
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
    source.overrides[loc] = value
    target[step] = parse_yaml(value, source, loc, COMMAND_LINE)


def _step(source: Source, target: Any, loc: Loc, part: str) -> Any:
    """The key or position that one part of an override's key names; None, and a problem, if there cannot be such."""
    if is_map(target):
        return part
    if is_list(target) and part.isascii() and part.isdecimal() and len(part) < 10 and int(part) < len(target):
        return int(part)
    if is_list(target):
        what = f'is a list with positions 0 to {len(target) - 1}' if target else 'is an empty list'
    else:
        what = f'has no keys, it is {"a secret" if is_secret_name(dotted(loc)) else f"{target!r:.60}"}'
    source.problems.append((COMMAND_LINE, f'`{dotted((*loc, part))}`: `{dotted(loc)}` {what}'))
    return None
