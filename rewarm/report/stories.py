"""What each evaluation set of a run is in each stage, old or new: the run's files, put to :mod:`rewarm.config.old_and_new`."""

from __future__ import annotations

from dataclasses import dataclass

from rewarm.config.old_and_new import SetData, SetStory, StreamData, Told, tell
from rewarm.report.run_folder import Run

__all__ = ['Stories', 'find_stories', 'set_label', 'stage_streams']

UNKNOWN = Told('unseen', 'no')


@dataclass(frozen=True)
class Stories:
    """The evaluation sets of a run over its stages, also those that have not begun."""

    stages: tuple[str, ...]
    """Names, in order."""
    sets: dict[str, SetStory]
    streams: dict[str, dict[StreamData, Told]]
    """The streams of each stage."""

    def told(self, name: str, stage: str) -> Told:
        """What a set is in a stage."""
        story = self.sets.get(name)
        return story.stages[self.stages.index(stage)] if story and stage in self.stages else UNKNOWN


def find_stories(run: Run) -> Stories:
    """Tells old from new for every set that was evaluated or is in the run file.

    Args:
        run (Run): The run; of an old one, whose files say less, names and roles decide.
    """
    streams = stage_streams(run)
    written = {each.name: each for each in run.config.eval.sets}
    roles = {line.set: line.role for line in reversed(run.evaluations)}  # the first one counts
    roles.update({name: each.role for name, each in written.items() if each.role is not None})
    sets = []
    for name, role in roles.items():
        each = written.get(name)
        of = None if each is None or each.of is None else tuple(each.of)
        places = () if each is None else tuple(filter(None, (each.local, each.remote)))
        sets.append(SetData(name, role == 'upstream', of, places))
    telling = tell([*streams.values()], sets, untrained=run.from_scratch)
    return Stories(tuple(streams), telling.sets, dict(zip(streams, telling.streams, strict=True)))


def stage_streams(run: Run) -> dict[str, tuple[StreamData, ...]]:
    """The streams of each stage of a run by its name, in order, also of those that have not begun."""
    written = {
        (stage.name, stream.name): tuple(filter(None, (stream.local, stream.remote)))
        for stage in run.config.stages
        for stream in stage.train.streams
    }
    names = {stage.name: [stream.name for stream in stage.streams] for stage in run.plan.stages}
    for stage in run.config.stages:
        if not names.get(stage.name):
            names[stage.name] = [stream.name for stream in stage.train.streams]
    for stage in run.stages:
        if not names.get(stage.name):
            batches = run.stage_batches(stage.name)
            names[stage.name] = [*batches[-1].samples] if batches else []
    return {
        stage: tuple(StreamData(stream, written.get((stage, stream), ())) for stream in streams)
        for stage, streams in names.items()
    }


def set_label(name: str, words: str) -> str:
    """A set's name with what it is, which a name that says it does not say twice: ``law (old)``, ``old``, ``old (replayed)``."""
    words = words.removeprefix(name).removeprefix(', ') if words.split(', ')[0] == name else words
    return f'{name} ({words})' if words else name
