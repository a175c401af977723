"""What the user asks for, as it is spelled on the command line or typed at a prompt."""

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from pydantic import TypeAdapter, ValidationError

from rewarm.config.duration import Duration
from rewarm.config.errors import UserError
from rewarm.config.schema import Name
from rewarm.formats.names import name_problem

__all__ = [
    'CURVES',
    'Budget',
    'Curve',
    'Evaluated',
    'Replayed',
    'Request',
    'Source',
    'check_name',
    'parse_budget',
    'parse_evaluated',
    'parse_replayed',
    'parse_source',
]

Curve = Literal['constant', 'linear', 'cosine', 'neox_clipped_cosine', 'wsd']
CURVES: tuple[Curve, ...] = ('constant', 'linear', 'cosine', 'neox_clipped_cosine', 'wsd')

USUAL_REPLAY = Fraction(5, 100)
"""Enough for a weak shift (2403.08763, table 2)."""

_SHARE = re.compile(r'([0-9]{0,3}\.?[0-9]{1,6})(%?)', re.ASCII)
_COUNT = re.compile(r'([0-9]+(?:\.[0-9]+)?) ?([kMBT]) ?(?:tok|tokens)?', re.ASCII)
_PASSES = re.compile(r'([0-9]{1,3}(?:\.[0-9]{1,3})?) ?(?:ep|pass|passes)', re.ASCII)
_ZEROS = {'k': 3, 'M': 6, 'B': 9, 'T': 12}
_ROLES: dict[str, Literal['upstream', 'downstream']] = {
    'old': 'upstream',
    'upstream': 'upstream',
    'new': 'downstream',
    'downstream': 'downstream',
}


@dataclass(frozen=True)
class Source:
    """A dataset of the new data."""

    name: str
    place: str
    """A folder or a URL, as typed."""


@dataclass(frozen=True)
class Replayed(Source):
    """A dataset of old data that is mixed in."""

    share: Fraction = USUAL_REPLAY
    """Of the stage's samples."""


@dataclass(frozen=True)
class Evaluated(Source):
    """A validation set."""

    role: Literal['upstream', 'downstream'] = 'downstream'
    """``upstream`` is old data, ``downstream`` new."""


@dataclass(frozen=True)
class Budget:
    """How long to train: so many passes over the new data, or a fixed length."""

    passes: Fraction | None = Fraction(1)
    length: Duration | None = None
    """In tokens or batches, if it is not in passes."""


@dataclass(frozen=True)
class Request:
    """Everything that is asked for; ``None`` is decided from the data."""

    name: str
    data: tuple[Source, ...]
    model: str
    replay: tuple[Replayed, ...] = ()
    evals: tuple[Evaluated, ...] = ()
    budget: Budget = Budget()
    lr: float | None = None
    curve: Curve = 'cosine'
    gpus: int = 1
    global_batch_size: int | None = None
    """Sequences in a step."""
    seq_len: int | None = None
    """For data that does not say its own."""
    tokenizer: str | None = None
    run_folder: str = 'runs/${run_name}'


def check_name(name: str, what: str = 'NAME') -> str:
    """Returns a name that may be a run's, a dataset's or a file's.

    Raises:
        UserError: If it may not.
    """
    problem = name_problem(name)
    if problem is None and '/' in name:
        problem = 'has a slash in it'
    try:
        TypeAdapter(Name).validate_python(name)
    except ValidationError:
        problem = problem or 'is no name'
    if problem is not None:
        raise UserError(
            f'{what} {name!r:.60} {problem}. A name has letters, digits, dots, underscores and hyphens, and at most 200 of '
            'them; it begins with a letter or digit'
        )
    return name


def parse_source(text: str, option: str = '--data') -> Source:
    """Reads ``NAME=DIR``, or ``DIR`` alone, which is called after its folder.

    Raises:
        UserError: If there is no such name or no place.
    """
    name, equals, place = text.partition('=')
    if not equals or '/' in name:  # a path may have a = in it
        place = text
        name = place.rstrip('/').rpartition('/')[2]
    if not place.strip():
        raise UserError(
            f'{option} {text!r:.60} names no folder. Write {option} NAME=DIR, such as {option} law=data/law'
        )
    return Source(check_name(name, f'{option} {text!r:.60}: the name'), place.rstrip('/') or '/')


def parse_replayed(text: str, option: str = '--replay') -> Replayed:
    """Reads ``NAME=DIR:SHARE``; a share is ``0.05`` or ``5%``.

    Raises:
        UserError: If the share is none, or the rest is wrong.
    """
    rest, colon, share = text.rpartition(':')
    found = _SHARE.fullmatch(share.strip()) if colon else None
    if found is None:
        if colon and '/' not in share:
            raise UserError(f'{option} {text!r:.60}: {share!r:.30} is no share. Write 0.05, or 5%')
        rest, value = text, USUAL_REPLAY
    else:
        value = Fraction(found[1]) / (100 if found[2] else 1)
    if not 0 < value < 1:
        raise UserError(f'{option} {text!r:.60}: a share of old data is above 0 and below 1, such as 0.05')
    source = parse_source(rest, option)
    return Replayed(source.name, source.place, value)


def parse_evaluated(text: str, option: str = '--eval') -> Evaluated:
    """Reads ``NAME=DIR:ROLE``; a role is ``old`` or ``new``, or what run files call them.

    Raises:
        UserError: If the role is none, or the rest is wrong.
    """
    rest, _, role = text.rpartition(':')
    if role not in _ROLES:
        raise UserError(
            f'{option} {text!r:.60}: say whether it is old or new data: {option} NAME=DIR:old (forgetting is measured '
            f'on it), or {option} NAME=DIR:new'
        )
    source = parse_source(rest, option)
    return Evaluated(source.name, source.place, _ROLES[role])


def parse_budget(text: str, option: str = '--budget') -> Budget:
    """Reads ``10Btok``, ``5e9tok``, ``20000ba`` or ``2ep``: passes over the new data.

    Raises:
        UserError: If it is none of these.
    """
    if found := _PASSES.fullmatch(text.strip()):
        passes = Fraction(found[1])
        if passes:
            return Budget(passes)
    elif found := _COUNT.fullmatch(text.strip()):
        text = f'{found[1]}e{_ZEROS[found[2]]}tok'
    try:
        length = Duration.parse(text)
    except ValueError:
        length = Duration(0, 'tok')
    if length.unit not in ('tok', 'ba') or not length.value:
        raise UserError(f'{option} {text!r:.60}: write tokens (10Btok, 300Mtok), batches (5000ba) or passes (2ep)')
    return Budget(None, length)
