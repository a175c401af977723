"""Reads a run file into a frozen ``RunConfig``, showing everything that is wrong with it at once; writes one back as YAML."""

import copy
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML

from rewarm.config.checks import find_problems
from rewarm.config.messages import QUOTES_NEEDED, explain, locate
from rewarm.config.schema import RunConfig
from rewarm.config.secrets import redacted
from rewarm.config.source import Loc, Source, dotted, is_list, is_map, read_source


def load(path: str | Path, overrides: Sequence[str] = (), *, world_size: int | None = None) -> RunConfig:
    """Reads and checks a run file.

    Args:
        path (str | Path): The YAML file.
        overrides (Sequence[str]): ``key=value`` each, such as ``stages.0.schedule.lr=1e-4``; the value is read as YAML.
        world_size (int | None): Ranks that will run it. Default: the environment's ``WORLD_SIZE``, else 1.

    Returns:
        RunConfig: The settings, checked alone and against each other.

    Raises:
        ConfigError: With every problem found: ``run.yaml:12: ...``, or ``command line: ...`` for an override.
    """
    source = read_source(path, overrides)
    config, problems = _validate(source)
    if config is not None:
        wrong = [loc for loc, _ in problems]
        found = find_problems(config, world_size=world_size)
        problems += [(loc, text) for loc, text in found if not any(_hides(part, loc) for part in wrong)]
    lines = source.problems + [(source.line(loc), _for_a_shell(source, loc, text)) for loc, text in problems]
    if lines or config is None:
        raise source.error(lines)
    return config


def read_settings(path: str | Path) -> RunConfig:
    """Reads the settings of a run that has been started, whatever became of its data, its machines or its model's origin.

    Nothing is checked against anything else, and keys of other versions are left out.

    Args:
        path (str | Path): A ``config.yaml`` that a run has written, or its run file.

    Returns:
        RunConfig: The settings.

    Raises:
        ConfigError: If it is no run file.
    """
    source = read_source(path)
    config, problems = _validate(source)
    if config is None:
        raise source.error(source.problems + [(source.line(loc), text) for loc, text in problems])
    return config


def dump(config: RunConfig) -> str:
    """Writes settings as YAML: every default spelled out, overrides and ``${key}`` put in, and no secret.

    Args:
        config (RunConfig): The settings.

    Returns:
        str: YAML, which ``load`` reads into an equal config; where a logger was given a secret, ``REDACTED`` stands for it.
    """
    data = redacted(config.model_dump(mode='json', exclude_none=True))
    for stage in data['stages']:
        stage['schedule'] = {'name': stage['schedule'].pop('name'), **stage['schedule']}
    yaml: Any = YAML(pure=True)
    yaml.width = 120
    stream = io.StringIO()
    yaml.dump(data, stream)
    return stream.getvalue()


def _for_a_shell(source: Source, loc: Loc, text: str) -> str:
    """An override's own quotes do not reach us unless they are quoted too."""
    written = source.overrides.get(loc)
    if written is None or not text.endswith(QUOTES_NEEDED):
        return text
    return f"""{text} that the shell leaves: {dotted(loc)}='"{written}"'"""


def _validate(source: Source) -> tuple[RunConfig | None, list[tuple[Loc, str]]]:
    """The config and what is wrong; where keys are unknown or misplaced, the config without them, so that the rest is checked too."""
    try:
        return RunConfig.model_validate(source.data), []
    except ValidationError as error:
        problems = explain(error.errors())
        rest = copy.deepcopy(source.data)
        for item in error.errors():
            _remove(rest, locate(item['loc'])[0])
    try:
        return RunConfig.model_validate(rest), problems
    except ValidationError:
        return None, problems


def _hides(wrong: Loc, loc: Loc) -> bool:
    """Whether a key that was left out as wrong is why something in its section does not add up."""
    return wrong[: len(loc)] == loc or (len(loc) > 1 and wrong[:-1] == loc[:-1])


def _remove(data: Any, loc: Loc) -> None:
    for part in loc[:-1]:
        if is_map(data):
            data = data.get(str(part))
        elif is_list(data) and isinstance(part, int):
            data = data[part]
    if is_map(data) and loc:
        data.pop(str(loc[-1]), None)
