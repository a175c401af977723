"""Warnings about saving: whether a save fits into the grace period, into the interval and onto the disk."""

import os
from collections.abc import Iterator
from pathlib import Path

from rewarm.config.goodput import Losses
from rewarm.config.paths import is_url
from rewarm.config.schema import RunConfig


def find_saving_warnings(
    config: RunConfig, losses: Losses, *, interval_seconds: float | None, batch_seconds: float | None
) -> Iterator[str]:
    """Finds saves that come too late or too often.

    Args:
        config (RunConfig): The settings.
        losses (Losses): What a save takes, measured, given or assumed.
        interval_seconds (float | None): Between two saves; None when not known in time.
        batch_seconds (float | None): Of a global batch, which is finished before the last save; None when not known.

    Yields:
        str: A warning.
    """
    grace, needed = config.preemption.grace_period, losses.save_seconds + (batch_seconds or 0.0)
    if needed > grace.seconds:
        what = 'finishing a batch and a whole save take' if batch_seconds else 'a whole save takes'
        yield (
            f'{what} about {needed:.3g} s and `preemption.grace_period` is {grace}: a run that is told to go is killed '
            'before its last checkpoint is whole, and goes on from the newest one that is. Write '
            f'`preemption.grace_period: {_round_up(needed)}sec` if machine and launcher give that long; else save to a '
            'faster disk, and often (`checkpoints.interval`)'
        )
    if interval_seconds is not None and interval_seconds < losses.save_seconds:
        yield (
            f'`checkpoints.interval` {config.checkpoints.interval} is {interval_seconds:.3g} s and a whole save takes about '
            f'{losses.save_seconds:.3g} s: saves do not overlap, so they come only that often. Write at least '
            f'`checkpoints.interval: {_round_up(losses.save_seconds)}sec`'
        )


def find_disk_warning(config: RunConfig, checkpoint_bytes: int, checkpoints: int) -> str | None:
    """Compares the room that checkpoints take with the room on this machine's disk, if the run folder is on it.

    Args:
        config (RunConfig): The settings.
        checkpoint_bytes (int): Size of a checkpoint.
        checkpoints (int): How many are kept at most; one more is there while it is written.

    Returns:
        str | None: A warning; None where there is room, or the run folder is in a bucket.
    """
    if is_url(config.run_folder):
        return None
    folder = Path(config.run_folder).absolute()
    existing = next(each for each in (folder, *folder.parents) if os.path.exists(each))
    disk = os.statvfs(existing)
    there = sum(_bytes_of(file) for file in (folder / 'checkpoints').glob('ba*/*'))
    room, needed = disk.f_bavail * disk.f_frsize + there, (checkpoints + 1) * checkpoint_bytes
    if needed <= room:
        return None
    fitting = checkpoints - -(-(needed - room) // checkpoint_bytes)
    keep = config.checkpoints.keep - (checkpoints - fitting)
    fix = f'write `checkpoints.keep: {keep}`, or use a larger disk' if keep > 0 else 'use a larger disk'
    return (
        f'{checkpoints} checkpoints and one being written take {needed / 1e9:,.3g} GB, and the disk of {existing} on this '
        f'machine has {room / 1e9:,.3g} GB for them: {fix}'
    )


def _round_up(seconds: float) -> int:
    return int(-(-seconds // 5) * 5)


def _bytes_of(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:  # a run that is going on deletes old checkpoints
        return 0
