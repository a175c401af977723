"""What a stage of a run is, so far as runs are compared by it: starting weights, curve, data, budget. Never its name."""

from __future__ import annotations

import json
import os
from collections.abc import Collection
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any

from rewarm.config.errors import DamagedFile
from rewarm.config.old_and_new import StreamData, share_data
from rewarm.formats.checkpoint import MODEL_FILE, checkpoint_name, read_manifest
from rewarm.report.run_folder import Run, Stage
from rewarm.report.stories import find_stories

__all__ = ['PARTS', 'Start', 'Traits', 'find_traits', 'same_mix']

PARTS = ('rewarm', 'constant', 'scratch', 'replay', 'same-data')
"""What a run can be to the paper's findings, in the order in which runs are listed."""

RISE = 1.05
"""A peak above so many times the rate before it is a re-warming."""

Mix = tuple[tuple[StreamData, Fraction], ...]


@dataclass(frozen=True)
class Start:
    """The weights that a stage began with."""

    untrained: bool
    names: frozenset[str]
    """Folders of the checkpoint, or the id of a model, in all spellings that the run tells."""
    sha256: str | None
    """Of the checkpoint's ``model.safetensors``, where it was recorded or is still there."""
    past: str | None
    """All that made the weights within the run, where it is known: equal for runs with the same first stages."""

    def same(self, other: Start) -> bool:
        """Whether both are the same trained weights. A hash counts more than a folder, whose content may be another by now."""
        if self.untrained or other.untrained:
            return False
        if self.past is not None and self.past == other.past:
            return True
        if self.sha256 is not None and other.sha256 is not None:
            return self.sha256 == other.sha256
        return bool(self.names & other.names)


@dataclass(frozen=True)
class Traits:
    """A stage of a run, as it is compared with stages of other runs."""

    start: Start
    curve: str
    """``rewarmed``: the rate rises above that of the weights it began with; ``constant``; ``other``."""
    peak: float | None
    """The highest rate."""
    new: Mix
    """The new data, with its shares among the new."""
    replayed: Mix
    """Old data beside it, with its shares of the stage."""
    again: bool
    """Nothing in the stage is new."""
    budget_tokens: int
    required: dict[str, Any]
    """Settings that runs must share to be compared."""
    settings: dict[str, str]
    """Settings that may differ, in words; said where they do."""

    @property
    def replay(self) -> Fraction:
        """The share of replayed data."""
        return sum((share for _, share in self.replayed), Fraction(0))

    @cached_property
    def part(self) -> str | None:
        """What the run is to the paper's findings, one of ``PARTS``; ``None`` if it is something else."""
        if self.start.untrained:
            return 'scratch'
        if self.curve == 'rewarmed':
            return 'same-data' if self.again else 'replay' if self.replayed else 'rewarm'
        return 'constant' if self.curve == 'constant' and not self.again and not self.replayed else None


def same_mix(one: Mix, other: Mix) -> bool:
    """Whether two mixes have the same data in the same shares."""
    left = list(other)
    for stream, share in one:
        match = next((each for each in left if each[1] == share and share_data(stream, each[0])), None)
        if match is None:
            return False
        left.remove(match)
    return not left


def find_traits(run: Run, stage: Stage) -> Traits:
    """Looks up what a stage of a run is.

    Args:
        run (Run): The run, with all its batches.
        stage (Stage): One of its stages.
    """
    told = find_stories(run).streams.get(stage.name, {})
    shares = _shares(stage, told)
    new = [stream for stream, each in told.items() if each.kind == 'new']
    whole = sum((shares[stream] for stream in new), Fraction(0))
    before, peak = _rate_before(run, stage), _peak(run, stage)
    model = run.config.model
    settings = {
        'peak rate': '' if peak is None else f'{peak:.3g}',
        'curve': stage.schedule.name or '',
        'warm-up': '' if stage.schedule.warmup_tokens is None else f'{stage.schedule.warmup_tokens:,} tokens',
        'lowest rate': f'{stage.schedule.min_lr:.3g}' if isinstance(stage.schedule.min_lr, float) else '',
        'optimizer state': stage.optimizer_state or '',
        'tokens a batch': f'{run.plan.tokens_per_batch:,}' if run.plan.tokens_per_batch else '',
        'seed': '' if run.config.seed is None else str(run.config.seed),
    }
    return Traits(
        start=_start(run, stage),
        curve=_curve(run, stage, before, peak),
        peak=peak,
        new=tuple((stream, shares[stream] / whole if whole else Fraction(0)) for stream in new),
        replayed=tuple((stream, shares[stream]) for stream, each in told.items() if new and each.trained == 'replay'),
        again=bool(told) and not new,
        budget_tokens=stage.planned_tokens,
        required={
            'model': model and model.model_dump(exclude={'init_from'}),
            'tokenizer': run.config.tokenizer,
            'sequence length': run.config.max_seq_len,
        },
        settings=settings,
    )


def _shares(stage: Stage, streams: Collection[StreamData]) -> dict[StreamData, Fraction]:
    written = {stream.name: stream.share for stream in stage.streams}
    found = {}
    for stream in streams:
        try:
            found[stream] = Fraction(written.get(stream.name) or '1')
        except (ValueError, ZeroDivisionError):
            found[stream] = Fraction(1)
    return found


def _peak(run: Run, stage: Stage) -> float | None:
    if isinstance(stage.schedule.lr, float):
        return stage.schedule.lr
    return max((line.lr for line in run.stage_batches(stage.name) if line.lr >= 0), default=None)


def _curve(run: Run, stage: Stage, before: float | None, peak: float | None) -> str:
    level = stage.schedule.name == 'constant'
    if before is not None and peak is not None:
        return 'rewarmed' if peak > RISE * before else 'constant' if level else 'other'
    # Weights whose last rate nothing tells: a warm-up is what shows that the rate was raised.
    batches = run.stage_batches(stage.name)
    warmed = RISE * batches[0].lr < peak if batches and peak is not None else bool(stage.schedule.warmup_tokens)
    return 'rewarmed' if warmed else 'constant' if level else 'other'


def _rate_before(run: Run, stage: Stage) -> float | None:
    """The rate that the weights were last trained at."""
    for event in run.events:
        if event.event == 'stage_start' and event.stage == stage.name:
            changes: Any = event.fields.get('changes')
            pair = changes.get('lr') if isinstance(changes, dict) else None
            if isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], float | int):
                return float(pair[0])
    if stage.index:
        past = run.stage_batches(run.stages[stage.index - 1].name)
        return past[-1].lr if past else None
    return None


def _start(run: Run, stage: Stage) -> Start:
    if stage.index == 0:
        source = run.config.model.init_from if run.config.model else None
        if source is None or source == 'scratch':
            return Start(source is not None, frozenset(), None, None)
        kind, _, place = source.partition(':')
        if kind != 'checkpoint':
            return Start(False, frozenset({source}), None, None)
        noted = next((event.fields for event in reversed(run.events) if event.event == 'starting_weights'), {})
        places = [
            place,
            noted.get('path') or place,
        ]  # `latest` or a run folder in the run file, a checkpoint in the note
        names = {_folder(spelling) for each in places for spelling in _spellings(each)}
        sha256 = noted.get('sha256')
        return Start(False, frozenset(names), sha256 if isinstance(sha256, str) else None, None)
    name = checkpoint_name(_batch_at(run, stage))
    folders = {run.config.run_folder, run.place, str(run.folder)} - {None}
    places = {os.path.join(str(folder), 'checkpoints', name) for folder in folders}
    names = {_folder(spelling) for each in places for spelling in _spellings(each)}
    return Start(False, frozenset(names), _hash_of(run, name), _past(run, stage))


def _batch_at(run: Run, stage: Stage) -> int:
    """Batches of the run before a stage."""
    each = run.plan.tokens_per_batch
    return stage.start_tokens // each if each else sum(before.batches for before in run.stages[: stage.index])


def _folder(place: str) -> str:
    scheme, separator, path = place.rpartition('://')
    return f'checkpoint {scheme}{separator}{os.path.normpath(path)}'


def _spellings(place: str) -> tuple[str, ...]:
    return (place,) if '://' in place else (place, os.path.abspath(place))


def _hash_of(run: Run, name: str) -> str | None:
    try:
        manifest = read_manifest(run.folder / 'checkpoints' / name)
    except (DamagedFile, OSError):
        return None
    entry = manifest.files.get(MODEL_FILE)
    return entry.sha256 if entry else None


def _past(run: Run, stage: Stage) -> str | None:
    """The settings that made the weights, as far as the run tells; ``None`` if it does not tell what it began from."""
    if run.config.model is None or run.config.seed is None:
        return None
    streams = find_stories(run).streams
    past = [
        [
            each.done_tokens,
            each.schedule.model_dump(),
            each.optimizer_state,
            [[stream.name, *stream.places] for stream in streams.get(each.name, {})],
            [stream.share for stream in each.streams],
        ]
        for each in run.stages[: stage.index]
    ]
    return json.dumps([run.config.model.model_dump(), run.config.seed, run.plan.tokens_per_batch, past], default=str)
