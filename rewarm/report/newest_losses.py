"""The newest validation losses of a run, and what became of them so far: for a glance, in words and as JSON."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from rewarm.report.forgetting import Change, SetChanges, set_changes
from rewarm.report.run_folder import Evaluation, Run
from rewarm.report.stories import set_label

__all__ = ['MOST_SETS', 'loss_lines', 'loss_text', 'losses_to_json', 'mean_loss']

MOST_SETS = 6
"""That a line names; the rest is counted."""


def loss_lines(run: Run, batch: int) -> dict[str, str]:
    """The validation losses, forgetting and adaptation so far, as lines by name; without what was not evaluated.

    Args:
        run (Run): The run; its batches may be the newest ones only.
        batch (int): Batches behind it.
    """
    changes = [each for each in set_changes(run) if math.isfinite(each.loss)]
    newest = {line.set: line for line in run.evaluations}
    lines = {'validation': _losses(changes, newest, batch)}
    for word, old in (('forgetting', True), ('adaptation', False)):
        lines[word] = _some(text for each in changes if (text := _change(each, old=old)))
    return {name: text for name, text in lines.items() if text}


def losses_to_json(run: Run) -> list[dict[str, Any]]:
    """The same as JSON types, one entry a set; losses in nats per token."""
    newest = {line.set: line for line in run.evaluations}
    return [
        {
            'set': each.set,
            'kind': each.kind,
            'loss': _finite(each.loss),
            'stage': each.stage,
            'batch': newest[each.set].batch,
            'tokens': newest[each.set].tokens,
            'last_stage': _as_json(each.last_stage),
            'since_trained': _as_json(each.since_trained),
            'since_began': _as_json(each.since_began),
        }
        for each in set_changes(run)
    ]


def mean_loss(changes: Sequence[SetChanges], kind: str) -> float | None:
    """The mean of the newest losses on sets of a kind, ``old`` or ``new``; ``None`` if there is none."""
    losses = [each.loss for each in changes if each.kind == kind and math.isfinite(each.loss)]
    return sum(losses) / len(losses) if losses else None


def loss_text(loss: float) -> str:
    """A loss with four decimals, or as few digits where it is huge."""
    return f'{loss:.4f}' if abs(loss) < 1e6 else f'{loss:.4g}'


def _losses(changes: Sequence[SetChanges], newest: dict[str, Evaluation], batch: int) -> str:
    places = {newest[each.set].batch for each in changes}
    told = [
        f'{set_label(each.set, each.told[each.stage].words)} {loss_text(each.loss)}'
        + (f' at batch {newest[each.set].batch:,}' if len(places) > 1 else '')
        for each in changes
    ]
    if len(places) != 1:
        return _some(told)
    (place,) = places
    ago = f' ({batch - place:,} batches ago)' if batch > place else ''
    return f'{_some(told)}, at batch {place:,}{ago}'


def _change(each: SetChanges, *, old: bool) -> str:
    """What became of a set's loss; empty where it is not known, or was none of this kind."""
    change, since = each.last_stage, each.since_trained
    if change is None or change.old != old or not math.isfinite(change.difference):
        return ''
    value = change.difference if old else -change.difference
    text = f'{each.set} {value:+.3f} in stage {change.stage}'
    if old and since is not None and since.before != change.before and math.isfinite(since.difference):
        text += f' ({since.difference:+.3f} since {since.since})'
    return text


def _some(texts: Iterable[str]) -> str:
    all_of_them = [*texts]
    more = len(all_of_them) - MOST_SETS
    return ', '.join(all_of_them[:MOST_SETS]) + (f' and {more} more' if more > 0 else '')


def _as_json(change: Change | None) -> dict[str, Any] | None:
    if change is None or not math.isfinite(change.difference):
        return None
    return {
        'since': change.since,
        'from_stage': change.stage,
        'before': change.before,
        'after': change.after,
        'forgetting': change.forgetting,
        'adaptation': change.adaptation,
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
