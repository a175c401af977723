"""The checkpoints of a run folder at a glance: sizes are compared, and nothing is hashed."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

__all__ = ['Saved', 'find_saved']

NAME = re.compile(r'ba(\d{8})(\.broken)?')


@dataclass(frozen=True)
class Saved:
    """A checkpoint folder."""

    name: str
    batch: int
    """Batches of the run behind it."""
    bytes: int
    """By its manifest, or what is there if that cannot be read."""
    problem: str | None
    """Why it cannot be whole; ``None`` if its sizes are right."""
    set_aside: bool
    """A start has found it damaged and renamed it."""


def find_saved(run_folder: Path) -> list[Saved]:
    """All checkpoints of a run folder, newest first.

    Args:
        run_folder (Path): The run's folder; its ``checkpoints`` may be absent.

    Returns:
        list[Saved]: With those that a start has set aside; never half-written ones.
    """
    found = []
    for path in (run_folder / 'checkpoints').glob('ba*'):
        match = NAME.fullmatch(path.name)
        if match is None or not path.is_dir():
            continue
        try:
            sizes = {file.name: file.stat().st_size for file in path.iterdir()}
            expected = _sizes(path / 'manifest.json')
        except FileNotFoundError as error:
            if not path.is_dir():
                continue  # deleted while we looked
            expected = f'{Path(error.filename).name} is missing'
            sizes = {}
        if isinstance(expected, str):
            found.append(Saved(path.name, int(match[1]), sum(sizes.values()), expected, bool(match[2])))
            continue
        problems = [
            f'{name} is missing' if name not in sizes else f'{name} has {sizes[name]:,} bytes instead of {size:,}'
            for name, size in expected.items()
            if sizes.get(name) != size
        ]
        found.append(
            Saved(path.name, int(match[1]), sum(expected.values()), '; '.join(problems) or None, bool(match[2]))
        )
    return sorted(found, key=lambda each: each.batch, reverse=True)


def _sizes(manifest: Path) -> dict[str, int] | str:
    """Bytes of each file by the manifest, or what is wrong with it."""
    try:
        return {name: int(each['bytes']) for name, each in json.loads(manifest.read_text())['files'].items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        return 'manifest.json cannot be read'
