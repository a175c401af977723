"""The evaluation sets of a run file: what each is in each stage, and those that fit nowhere."""

from collections.abc import Iterator
from pathlib import Path

from rewarm.config.errors import DamagedFile
from rewarm.config.messages import did_you_mean
from rewarm.config.old_and_new import SetData, StreamData, Telling, tell
from rewarm.config.paths import is_url
from rewarm.config.schema import EvalSetConfig, RunConfig, StreamConfig

__all__ = ['find_misfits', 'tell_config']


def tell_config(config: RunConfig) -> Telling:
    """Tells old from new, for each evaluation set in each stage of a run file."""
    stages = [[StreamData(stream.name, _places(stream)) for stream in stage.train.streams] for stage in config.stages]
    sets = [SetData(each.name, each.role == 'upstream', each.of, _places(each)) for each in config.eval.sets]
    return tell(stages, sets, untrained=config.model.init_from == 'scratch')


def find_misfits(config: RunConfig) -> Iterator[str]:
    """Finds evaluation sets whose role or streams do not go with the stages.

    Args:
        config (RunConfig): The settings.

    Yields:
        str: A warning, with what to write instead.
    """
    streams = list(dict.fromkeys(stream.name for stage in config.stages for stream in stage.train.streams))
    telling = tell_config(config)
    for each in config.eval.sets:
        for name in each.of or ():
            # Another run's stream may be named, so that run files can share their sets; a slip of the pen is close to one here.
            if name not in streams and (meant := did_you_mean(name, streams)):
                yield (
                    f'eval set `{each.name}`: `of` names the stream `{name}`, which no stage has.{meant} '
                    f'Streams here: {", ".join(streams)}'
                )
        if each.of is None and not telling.sets[each.name].belongs_to:
            yield from _find_stray(config, each, streams)
    yield from _find_learned(config)


def _find_stray(config: RunConfig, each: EvalSetConfig, streams: list[str]) -> Iterator[str]:
    what = {
        'downstream': 'with `role: downstream` it counts as new data in every stage',
        'upstream': 'with untrained weights nothing says when its data was learned',
    }
    if each.role == 'downstream' or (config.model.init_from == 'scratch' and len(config.stages) > 1):
        yield (
            f'eval set `{each.name}` belongs to no stream, by its name or its folder, and {what[each.role]}. Name its streams, '
            f'such as `of: [{streams[0]}]`, or write `of: []` if no stage trains its data'
        )


def _find_learned(config: RunConfig) -> Iterator[str]:
    """Sets that the first stage replays beside new data although they say that the starting weights did not learn them."""
    kind, _, folder = config.model.init_from.partition(':')
    if kind != 'checkpoint' or is_url(folder):
        return
    from rewarm.formats.checkpoint import read_state  # a tenth of what a plan takes, and few need it

    try:
        saved, _ = read_state(Path(folder))
    except (OSError, DamagedFile):
        return  # it is not here, or a start will say what is wrong with it
    known = {str(stream.get('name')) for stage in saved.stages or [] for stream in stage.identity.streams or []}
    if all(stream.name in known for stream in config.stages[0].train.streams):
        return  # the checkpoint's own stage, gone on with
    for name, story in tell_config(config).sets.items():
        role = next(each.role for each in config.eval.sets if each.name == name)
        if role == 'downstream' and (both := known & {name, *story.belongs_to}):
            yield (
                f'eval set `{name}` has `role: downstream`, and {folder} was trained on the stream `{min(both)}`: if that is '
                'the same data, it is old from the first stage on. Write `role: upstream`'
            )


def _places(item: StreamConfig | EvalSetConfig) -> tuple[str, ...]:
    return tuple(place for place in (item.local, item.remote) if place)
