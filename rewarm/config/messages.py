"""Turns pydantic's findings into lines a person can act on: which key, what was expected, what to write instead."""

import difflib
import re
from collections.abc import Iterable, Iterator, Sequence
from types import UnionType
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel

from rewarm.config.schema import RunConfig, StageConfig
from rewarm.config.source import Loc, dotted

MOST_EXPLAINED = 100
"""Errors that are put in words. More have one cause, and a suggestion for each takes its time."""

QUOTES_NEEDED = '. Put it in quotes'
"""Ends the message about a number or a word of YAML where text is meant."""

_TYPES = {
    'int_type': 'an integer',
    'float_type': 'a number',
    'finite_number': 'a finite number',
    'string_type': 'text',
    'bool_type': 'true or false',
    'tuple_type': 'a list',
    'list_type': 'a list',
    'model_type': 'a group of keys',
    'model_attributes_type': 'a group of keys',
    'dict_type': 'a group of keys, `{}` when it needs none',
}
_BOUNDS = {
    'greater_than': ('above', 'gt'),
    'greater_than_equal': ('at least', 'ge'),
    'less_than': ('below', 'lt'),
    'less_than_equal': ('at most', 'le'),
}
_PATTERNS = {
    'hf:': '`hf:<id or folder>`, `checkpoint:<folder>` or `scratch`',
    'http:': '`http://<host>` or `http://<host>:<port>`, without a path',
    'A-Za-z0-9': 'letters, digits, `.`, `_` or `-`, and begin with a letter or digit',
}


def did_you_mean(word: Any, known: Iterable[str]) -> str:
    """A question to append to a message, or nothing.

    Args:
        word (Any): What was written.
        known (Iterable[str]): What could have been meant.

    Returns:
        str: `` Did you mean `x`?`` with a space before it, or an empty string.
    """
    close = difflib.get_close_matches(str(word), list(known), n=1, cutoff=0.6)
    return f' Did you mean `{close[0]}`?' if close else ''


def unknown_key(loc: Loc, known: Iterable[str]) -> str:
    """The message about a key nobody knows.

    Args:
        loc (Loc): The way to the key.
        known (Iterable[str]): Every key there is in that place.

    Returns:
        str: The message, with a suggestion and the known keys.
    """
    names = sorted(known)
    hint = did_you_mean(loc[-1], names)
    if not hint:
        elsewhere = dict.fromkeys(dotted(place) for place in _all_keys(RunConfig, ()) if place[-1] == loc[-1])
        same = dotted(tuple(0 if isinstance(part, int) else part for part in loc))
        if same in elsewhere:
            curves = _members(StageConfig.model_fields['schedule'].annotation)
            hint = (
                f' It belongs to {", ".join(name for name, curve in curves.items() if loc[-1] in curve.model_fields)}.'
            )
        elif elsewhere:
            hint = f' There is `{next(iter(elsewhere))}`.'
    return f'unknown key `{dotted(loc)}`.{hint} Known keys here: {", ".join(names)}'


def explain(errors: Sequence[Any]) -> list[tuple[Loc, str]]:
    """Puts pydantic's errors about a run file in words.

    Args:
        errors (Sequence[Any]): ``ValidationError.errors()`` of ``RunConfig``.

    Returns:
        list[tuple[Loc, str]]: For each, the way to the key and the message. A missing key that is there misspelt is left out.
    """
    found: list[tuple[Loc, str]] = []
    misspelt: set[str] = set()
    shown = sorted(errors[:MOST_EXPLAINED], key=lambda error: error['type'] == 'missing')
    for error in shown:
        loc, parent = locate(error['loc'])
        if error['type'] == 'extra_forbidden' and parent is not None:
            text = unknown_key(loc, parent.model_fields)
            if meant := re.search(r'Did you mean `(.*?)`', text):
                misspelt.add(dotted((*loc[:-1], meant[1])))
        elif error['type'] == 'missing' and dotted(loc) in misspelt:
            continue
        elif error['type'] == 'too_short' and error['input']:
            continue  # the list has entries; each that is wrong has its own line
        else:
            loc, text = _explain_one(error, loc, parent)
        found.append((loc, text))
    if len(errors) > MOST_EXPLAINED:
        found.append(((), f'{len(errors) - MOST_EXPLAINED:,} more settings are wrong'))
    return found


def locate(loc: Loc) -> tuple[Loc, type[BaseModel] | None]:
    """Takes the tags of unions out of pydantic's way to a value, and finds whose key the last one is.

    Args:
        loc (Loc): As pydantic gives it, such as ``('stages', 0, 'schedule', 'cosine', 'lrr')``.

    Returns:
        tuple[Loc, type[BaseModel] | None]: The way in the file, and the section the last key is in.
    """
    way: list[str | int] = []
    parent: type[BaseModel] | None = None
    kind: Any = RunConfig
    for part in loc:
        members = _members(kind)
        if members and part in members:
            kind = members[str(part)]
            continue
        way.append(part)
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            parent = kind
            kind = kind.model_fields[str(part)].annotation if part in kind.model_fields else None
        elif get_origin(kind) is tuple:
            kind = get_args(kind)[0]
        else:
            parent, kind = None, None
    return tuple(way), parent


def _members(kind: Any) -> dict[str, type[BaseModel]]:
    """The models of a tagged union by their tags; empty for anything else."""
    if get_origin(kind) not in (Union, UnionType):
        return {}
    models = [item for item in get_args(kind) if isinstance(item, type) and issubclass(item, BaseModel)]
    return {get_args(model.model_fields['name'].annotation)[0]: model for model in models}


def _explain_one(error: Any, loc: Loc, parent: type[BaseModel] | None) -> tuple[Loc, str]:
    kind, context, value = error['type'], error.get('ctx', {}), _show(error.get('input'))
    key = f'`{dotted(loc)}`'
    if kind == 'missing':
        about = parent.model_fields[str(loc[-1])].description if parent and loc[-1] in parent.model_fields else None
        return loc, f'{key} is missing{f": {about}" if about else ""}'
    if kind == 'union_tag_not_found':
        return loc, f'{key} needs a `name`, one of {", ".join(_quoted(context, loc))}'
    if kind in ('union_tag_invalid', 'literal_error'):
        loc = (*loc, 'name') if kind == 'union_tag_invalid' else loc
        value = repr(context['tag']) if kind == 'union_tag_invalid' else value
        words = re.findall(r"'([^']*)'", context.get('expected_tags') or context['expected'])
        choices = ', '.join(words) or context['expected']
        return (
            loc,
            f'`{dotted(loc)}` must be {"one of " if len(words) > 1 else ""}{choices}, got {value}.{did_you_mean(value, words)}'.removesuffix(
                '.'
            ),
        )
    if kind in ('duration', 'rate', 'proportion', 'path'):
        return loc, f'{key} {context["reason"]}'
    if kind == 'value_error':
        return loc, f'{key}: {context["error"]}'
    if kind in _BOUNDS:
        word, name = _BOUNDS[kind]
        bound = context[name]
        return loc, f'{key} must be {word} {f"{bound:,}" if isinstance(bound, int) else f"{bound:g}"}, got {value}'
    if kind == 'string_too_long':
        return loc, f'{key} has {len(error["input"]):,} characters, and at most {context["max_length"]} are possible'
    if kind == 'string_pattern_mismatch':
        meaning = next((text for mark, text in _PATTERNS.items() if mark in context['pattern']), context['pattern'])
        return loc, f'{key} must be {meaning}, got {value}'
    if kind in ('too_short', 'too_long', 'string_too_short'):
        return loc, f'{key} must not be empty' if context.get(
            'actual_length', 0
        ) == 0 else f'{key}: {error["msg"].lower()}'
    hint = QUOTES_NEEDED if kind == 'string_type' and error.get('input') is not None else ''
    return (
        loc,
        f'{key} must be {_TYPES[kind]}, got {value}{hint}' if kind in _TYPES else f'{key}: {error["msg"]}, got {value}',
    )


def _quoted(context: dict[str, Any], loc: Loc) -> list[str]:
    kind: Any = RunConfig
    for part in loc:
        kind = kind.model_fields[part].annotation if isinstance(part, str) else get_args(kind)[0]
    return list(_members(kind))


def _show(value: Any) -> str:
    if value is None:
        return 'nothing'
    if isinstance(value, (dict, list, tuple)):
        return 'a group of keys' if isinstance(value, dict) else 'a list'
    text = repr(value)
    return text if len(text) <= 60 else f'{text[:57]}...'


def _all_keys(kind: Any, way: Loc) -> Iterator[Loc]:
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        for name, item in kind.model_fields.items():
            yield (*way, name)
            yield from _all_keys(item.annotation, (*way, name))
    elif get_origin(kind) is tuple:
        yield from _all_keys(get_args(kind)[0], (*way, 0))
    else:
        for model in _members(kind).values():
            yield from _all_keys(model, way)
