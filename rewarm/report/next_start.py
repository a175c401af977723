"""What would happen if a run were started now, in words, from what its folder holds."""

from __future__ import annotations

from collections.abc import Sequence

from rewarm.report.checkpoints import Saved
from rewarm.report.owner import Owner

__all__ = ['describe_next_start']


def describe_next_start(
    owner: Owner | None, saved: Sequence[Saved], *, finished: bool, batch: int, in_bucket: bool
) -> str:
    """What a start would do; it takes checkpoints as :func:`rewarm.resume.checkpoint.find_newest_valid` does.

    Args:
        owner (Owner | None): Who holds the run, or may: in a bucket, who took it over last and has not said that it stopped.
        saved (Sequence[Saved]): Its checkpoints, newest first.
        finished (bool): Whether all that is planned is trained and saved.
        batch (int): Batches behind the run.
        in_bucket (bool): Whether the folder is in a bucket.
    """
    alone = _without_owner(saved, finished=finished, batch=batch)
    if owner is None or (in_bucket and finished):
        return alone
    if in_bucket:
        return f'{alone}, and take the run over from {owner}, which stops if it is still there'
    return f'it would refuse, since {owner} holds the run folder. Killed now and started again, {alone}'


def _without_owner(saved: Sequence[Saved], *, finished: bool, batch: int) -> str:
    if finished:
        return 'it would do nothing: the run is finished. Append a stage to its run file to go on'
    damaged = ''
    for each in saved:
        if each.set_aside:
            continue
        if each.problem is None:
            repeated = f', repeating {batch - each.batch:,} batches' if batch > each.batch else ''
            return f'it would {damaged}go on from {each.name}{repeated}'
        damaged += f'set {each.name} aside ({each.problem}) and '
    if saved:
        reasons = '; '.join(f'{each.name}: {each.problem or "was set aside earlier"}' for each in saved)
        return f'it would refuse: there are checkpoints and none is whole ({reasons}). Bring back a good copy of one'
    return 'it would begin at the beginning' + (f', repeating {batch:,} batches' if batch else '')
