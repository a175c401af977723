"""What is old and what is new in each stage, and what a stage replays: from the stages' streams and the evaluation sets alone.

The words, with an example of three stages, are in ``docs/forgetting.md``. Every part that tells old from new asks here.
"""

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

__all__ = ['SetData', 'SetStory', 'StreamData', 'Telling', 'Told', 'share_data', 'tell']

TRAIN, VALIDATION = 'train', 'val'
"""The two halves that ``rewarm convert --val-fraction`` writes into one folder."""


@dataclass(frozen=True)
class StreamData:
    """A stream of a stage."""

    name: str
    places: tuple[str, ...] = ()
    """Folders and URLs of its shards."""


@dataclass(frozen=True)
class SetData:
    """An evaluation set."""

    name: str
    upstream: bool
    """Whether the starting weights learned its data, as the set's ``role`` says."""
    of: tuple[str, ...] | None = None
    """The streams that it belongs to, by name; ``None`` where they follow from names and places."""
    places: tuple[str, ...] = ()


@dataclass(frozen=True)
class Told:
    """What an evaluation set, or a stream, is in one stage."""

    kind: Literal['old', 'new', 'unseen']
    """``old``: learned before the stage; ``new``: first learned in it; ``unseen``: neither."""
    trained: Literal['main', 'replay', 'no']
    """What the stage does with its data: trains it for its own sake, replays it, or leaves it alone."""

    @property
    def words(self) -> str:
        """The same for a reader: ``new``, ``old``, ``old, replayed``, ``old, trained again``, ``not trained``."""
        if self.kind == 'unseen':
            return 'not trained'
        again = {'main': ', trained again', 'replay': ', replayed', 'no': ''}[self.trained]
        return f'old{again}' if self.kind == 'old' else 'new'


@dataclass(frozen=True)
class SetStory:
    """An evaluation set over the stages of a run."""

    belongs_to: tuple[str, ...]
    """Names of its streams in this run, in the order in which stages have them."""
    stages: tuple[Told, ...]
    """What it is in each stage."""

    @property
    def words(self) -> tuple[str, ...]:
        """The same in words."""
        return tuple(told.words for told in self.stages)


@dataclass(frozen=True)
class Telling:
    """What was told of a run."""

    sets: dict[str, SetStory]
    """By name of the set."""
    streams: tuple[dict[StreamData, Told], ...]
    """The streams of each stage."""


def tell(stages: Sequence[Sequence[StreamData]], sets: Sequence[SetData], *, untrained: bool) -> Telling:
    """Tells old from new, for each set in each stage.

    Args:
        stages (Sequence[Sequence[StreamData]]): The streams of each stage with a share above 0, replayed ones too.
        sets (Sequence[SetData]): The evaluation sets.
        untrained (bool): Whether the first stage begins with untrained weights, which have learned nothing.

    Returns:
        Telling: Of each set and stream.
    """
    streams = [*dict.fromkeys(stream for stage in stages for stream in stage)]
    own = {each.name: {stream: None for stream in streams if _belongs(each, stream)} for each in sets}
    old = {each.name: _old_stages(each, own[each.name], stages, untrained=untrained) for each in sets}
    known = [
        {stream for name, mine in own.items() if old[name][index] for stream in mine} for index in range(len(stages))
    ]
    parts = _parts(stages, known)
    stories = {
        each.name: SetStory(
            tuple(dict.fromkeys(stream.name for stream in own[each.name])),
            tuple(_told(each, own[each.name], parts[index], old=old[each.name][index]) for index in range(len(stages))),
        )
        for each in sets
    }
    return Telling(stories, tuple(parts))


def share_data(one: StreamData, other: StreamData) -> bool:
    """Whether streams of two runs read the same data: they have a folder in common; if one of them tells none, a name."""
    if one.places and other.places:
        return bool(set(map(_tidy, one.places)) & set(map(_tidy, other.places)))
    return one.name == other.name


def _belongs(each: SetData, stream: StreamData) -> bool:
    if each.of is not None:
        return stream.name in each.of
    if each.name == stream.name:
        return True
    return any(_same_dataset(_tidy(mine), _tidy(its)) for mine in each.places for its in stream.places)


def _same_dataset(mine: str, its: str) -> bool:
    if mine == its:
        return True
    (parent, half), (its_parent, its_half) = os.path.split(mine), os.path.split(its)
    return parent == its_parent and (half, its_half) == (VALIDATION, TRAIN)


def _tidy(place: str) -> str:
    """A folder or URL in one spelling."""
    scheme, separator, path = place.rpartition('://')
    return f'{scheme}{separator}{os.path.normpath(path)}'


def _old_stages(
    each: SetData, own: Collection[StreamData], stages: Sequence[Sequence[StreamData]], *, untrained: bool
) -> list[bool]:
    """Whether the set is old in each stage."""
    learned = each.upstream and not untrained
    found: list[bool] = []
    for index, stage in enumerate(stages):
        found.append(learned or (index > 0 and each.upstream and _is_stray(each, own)))
        learned = learned or any(stream in own for stream in stage)
    return found


def _is_stray(each: SetData, own: Collection[StreamData]) -> bool:
    """Whether nothing says where the set belongs, so that only its role is left to go by."""
    return each.of is None and not own


def _parts(stages: Sequence[Sequence[StreamData]], known: Sequence[set[StreamData]]) -> list[dict[StreamData, Told]]:
    """What each stream is in each stage.

    Old data beside new data is replayed. A stage with nothing new goes on with what was last trained for its own sake, and
    the rest is replayed; if nothing was, in a first stage, all is what the stage is for. ``known`` are the streams of the
    sets that are old in each stage.
    """
    trained: set[str] = set()  # names and places
    last: dict[str, int] = {}  # of a name or place: the last stage that trained it for its own sake
    found: list[dict[StreamData, Told]] = []
    for index, stage in enumerate(stages):
        new = [stream for stream in stage if stream not in known[index] and trained.isdisjoint(_marks(stream))]
        times = {stream: max(last.get(mark, -1) for mark in _marks(stream)) for stream in stage}
        main = new or [stream for stream, time in times.items() if time == max(times.values(), default=-1)]
        told = {
            stream: Told('new' if stream in new else 'old', 'main' if stream in main else 'replay') for stream in stage
        }
        trained.update(mark for stream in stage for mark in _marks(stream))
        last.update({mark: index for stream in main for mark in _marks(stream)})
        found.append(told)
    return found


def _marks(stream: StreamData) -> list[str]:
    """What two streams over the same data have in common, one of them at least."""
    return [f'name {stream.name}', *(f'place {_tidy(place)}' for place in stream.places)]


def _told(each: SetData, own: Collection[StreamData], parts: dict[StreamData, Told], *, old: bool) -> Told:
    mine = {part.trained for stream, part in parts.items() if stream in own}
    trained = 'main' if 'main' in mine else 'replay' if mine else 'no'
    if old:
        return Told('old', trained)
    stray = _is_stray(each, own) and not each.upstream
    return Told('new' if mine or stray else 'unseen', trained)
