"""What a run folder says of the run that has begun in it, read without torch: its newest checkpoint and the settings behind it."""

import hashlib
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from rewarm.config.errors import DamagedFile, UserError
from rewarm.config.fates import Fate, changes_between
from rewarm.config.paths import is_url
from rewarm.config.schema import RunConfig
from rewarm.config.source import Source, is_map
from rewarm.config.yaml_text import parse_yaml
from rewarm.formats.files import open_regular, read_bytes, regular_files

if TYPE_CHECKING:
    from rewarm.formats.checkpoint import SavedState  # read only where there is a checkpoint: `plan` answers at once

__all__ = ['Past', 'begins_alike', 'find_past', 'read_config', 'weights_hash']

LARGEST_BYTES = 1 << 24
"""Of ``config.yaml``; ours have some kilobytes."""


@dataclass(frozen=True)
class Past:
    """Where a run is, and what it was trained with.

    Args:
        path (Path): Its newest checkpoint.
        saved (SavedState): That checkpoint's state, of a run.
        config (RunConfig | None): The settings behind it; None where no version that is known wrote them.
    """

    path: Path
    saved: 'SavedState'
    config: RunConfig | None

    @classmethod
    def of(cls, path: Path, saved: 'SavedState') -> 'Past':
        """What a checkpoint in a run folder tells; one of an earlier version leaves its settings to ``config.yaml``."""
        kept = saved.run_file
        return cls(path, saved, read_config(path.parent.parent / 'config.yaml') if kept is None else _as_config(kept))

    @property
    def batch(self) -> int:
        """Batches of the run that are behind it."""
        return self.saved.batch

    @property
    def where(self) -> str:
        """Where the run is, in words."""
        stage = (self.saved.stages or [])[-1]
        inside = self.batch - stage.start_batch
        return f'batch {self.batch:,} of the run, {inside:,} of stage `{stage.identity.name}`'

    @property
    def previous_lr(self) -> float | None:
        """The rate before the run's first stage, which ``current`` means there."""
        return self.saved.stages[0].lr_before if self.saved.stages else None

    @property
    def settings(self) -> Mapping[str, Any]:
        """What may not change within the run, as the checkpoint has it."""
        return self.saved.settings or {}


def find_past(run_folder: str) -> Past | None:
    """Looks for the checkpoint that a start would go on from, by sizes alone.

    Args:
        run_folder (str): As the run file has it; what is in a bucket is not looked at.

    Returns:
        Past | None: None if the run has not begun there, as far as can be seen from here.
    """
    root = Path(run_folder) / 'checkpoints'
    try:
        names = [] if is_url(run_folder) else sorted(os.listdir(root), reverse=True)
    except OSError:
        return None
    if not names:
        return None
    from rewarm.formats.checkpoint import NAME, read_manifest, read_state

    for name in names:
        with suppress(OSError, DamagedFile):  # a start would set it aside, and take the one before
            if NAME.fullmatch(name) and not read_manifest(root / name).wrong_sizes(regular_files(root / name)):
                saved = read_state(root / name)[0]
                if saved.is_trained and not saved.lacks():
                    return Past.of(root / name, saved)
    return None


def read_config(path: Path) -> RunConfig | None:
    """Reads the settings that an earlier start has written.

    Args:
        path (Path): ``config.yaml`` of a run folder.

    Returns:
        RunConfig | None: None if they are not there, or not those of a run file of this version.
    """
    with suppress(FileNotFoundError, UnicodeDecodeError, UserError):
        data = parse_yaml(read_bytes(path, largest_bytes=LARGEST_BYTES).decode(), Source(str(path)), ())
        return _as_config(data) if is_map(data) else None
    return None


def begins_alike(run_folder: Path, config: RunConfig) -> bool:
    """Whether a start that saved nothing had the same beginning, so that what it evaluated there still holds.

    Args:
        run_folder (Path): With the ``config.yaml`` that it wrote.
        config (RunConfig): The settings now.
    """
    before = read_config(run_folder / 'config.yaml')
    if before is None:
        return False
    changed = [
        each for each in changes_between(before, config) if each.fate not in (Fate.TAKES_EFFECT, Fate.IF_THE_PAST_STAYS)
    ]
    return not changed


def weights_hash(init_from: str) -> str | None:
    """Tells starting weights apart, wherever they lie.

    Args:
        init_from (str): As ``model.init_from`` has it.

    Returns:
        str | None: SHA-256 of a checkpoint's weights, or over those of a Hugging Face folder; None where that is not to be had
        from files that are named: the id of a model, ``scratch``, a folder that is gone.
    """
    kind, _, place = init_from.partition(':')
    try:
        if kind == 'checkpoint':
            from rewarm.formats.checkpoint import MODEL_FILE, read_manifest
            from rewarm.formats.checkpoint_place import find_checkpoint

            return None if is_url(place) else read_manifest(find_checkpoint(place)).files[MODEL_FILE].sha256
        if kind == 'hf' and os.path.isdir(place):
            names = sorted(name for name in os.listdir(place) if name.endswith(('.safetensors', '.bin')))
            return hashlib.sha256(
                ''.join(f'{name} {_hash(Path(place) / name)}\n' for name in names).encode()
            ).hexdigest()
    except (OSError, UserError):
        return None
    return None


def _hash(path: Path) -> str:
    with open_regular(path) as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()  # pyright: ignore[reportArgumentType]


def _as_config(data: Any) -> RunConfig | None:
    try:
        return RunConfig.model_validate(data)
    except (ValidationError, ValueError):
        return None
