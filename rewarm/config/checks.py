"""Checks between settings; each finding names the key and what to write instead."""

from rewarm.config.schema import RunConfig
from rewarm.config.source import Loc


def find_problems(config: RunConfig, *, world_size: int | None = None) -> list[tuple[Loc, str]]:
    return []
