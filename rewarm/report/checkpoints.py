"""The checkpoints of a run folder at a glance: sizes are compared, and nothing is hashed."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from rewarm.config.errors import DamagedFile
from rewarm.formats.checkpoint import PIN_FILE, read_manifest
from rewarm.formats.files import regular_files

__all__ = ['Saved', 'find_saved']

_NAME = re.compile(r'ba(\d{8})((?:\.\d+)?\.broken)?', re.ASCII)


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
    pinned: bool
    """No run deletes it."""


def find_saved(run_folder: Path) -> list[Saved]:
    """All checkpoints of a run folder, newest first.

    Args:
        run_folder (Path): The run's folder; its ``checkpoints`` may be absent.

    Returns:
        list[Saved]: With those that a start has set aside; never half-written ones.
    """
    found: list[Saved] = []
    for path in (run_folder / 'checkpoints').glob('ba*'):
        match = _NAME.fullmatch(path.name)
        if match is None:
            continue
        size, problem = _look(path) if path.is_dir() else (0, 'it is no folder')
        if os.path.lexists(path):  # or deleted while we looked
            pinned = os.path.lexists(path / PIN_FILE)
            found.append(Saved(path.name, int(match[1]), size, problem, bool(match[2]), pinned))
    return sorted(found, key=lambda each: each.batch, reverse=True)


def _look(path: Path) -> tuple[int, str | None]:
    """Bytes of a checkpoint, and why it cannot be complete."""
    there: dict[str, int] = {}
    try:
        there = regular_files(path)
        manifest = read_manifest(path)
    except DamagedFile as error:
        return sum(
            there.values()
        ), f'manifest.json cannot be read: {error.place + ": " if error.place else ""}{error.what}'
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        return sum(there.values()), f'manifest.json {"is missing" if missing else f"cannot be read: {error.strerror}"}'
    return sum(entry.bytes for entry in manifest.files.values()), '; '.join(manifest.wrong_sizes(there)) or None
