"""The page's tables of validation losses: of each stage, of each set over the run, and of several runs."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rewarm.report.arms import Arm
from rewarm.report.forgetting import Change, SetChanges, SetOutcome, set_changes, set_outcomes
from rewarm.report.run_folder import Run
from rewarm.report.stories import set_label
from rewarm.report.tables import DASH, Row, make_table, percent_text, plain_text, tokens_text

__all__ = ['arms_table', 'changes_table', 'stage_outcomes_table']


def stage_outcomes_table(run: Run, number: int) -> str:
    """What each stage did to each evaluation set."""
    outcomes = set_outcomes(run)
    groups = []
    for stage in run.stages:
        rows = [_outcome_row(entry) for entry in outcomes if entry.stage is stage]
        suffix = '' if stage.finished else ', so far'
        groups.append((f'{stage.name} ({tokens_text(stage.done_tokens)} tokens{suffix})', rows))
    head = ('Validation set', 'Before', 'Peak', 'Rise', 'Peak at', 'End', 'Forgetting', 'Recovery', 'Adaptation')
    head += ('Perplexity', 'Bits per byte')
    caption = (
        'What each stage did to the validation losses, in nats per token. Perplexity and bits per byte are those at the '
        'end of the stage. A set is old once an earlier stage, or the starting weights, learned its data: a stage that began '
        'with untrained weights has nothing to forget.'
    )
    return make_table(number, caption, head, groups)


def changes_table(run: Run, number: int) -> str:
    """What the run did to each evaluation set, told three ways."""
    rows = [_changes_row(each) for each in set_changes(run)]
    head = ('Validation set', 'Loss now', 'In the last stage', 'Since last trained', 'Since the run began')
    caption = (
        'The same losses over longer spans, in nats per token. A plus sign is a worse loss: on old data, forgetting. Since '
        'last trained counts from the end of the last stage that trained the set’s data for its own sake, not as replay.'
    )
    return make_table(number, caption, head, [('', rows)], text_columns=(0,))


def arms_table(arms: Sequence[Arm], number: int) -> str:
    """The last stage of several runs, a line each, with what was forgotten over longer spans."""
    rows = []
    for arm in arms:
        old, new = arm.old, arm.new
        rows.append(
            (
                arm.name if arm.run.finished else f'{arm.name} (so far)',
                tokens_text(arm.stage.done_tokens),
                _loss(old.before if old else None),
                _signed(old.rise if old and not old.untrained else None),
                _loss(old.end if old else None),
                _signed(old.forgetting if old else None),
                _signed(arm.since_trained),
                _signed(arm.since_began),
                _loss(new.before if new else None),
                _loss(new.end if new else None),
                _signed(new.adaptation if new else None),
            ),
        )
    head = ('Run', 'Tokens', 'Old before', 'Rise', 'Old end', 'Forgetting', 'since trained', 'since the run began')
    head += ('New before', 'New end', 'Adaptation')
    caption = (
        'The last stage of every run; losses in nats per token. New is what the stage trains for its own sake, old the other '
        'data that was learned before, and what is forgotten of it is told for the last stage, since it was last trained '
        f'for its own sake, and since the run began. {_sets_text(arms)}'
    )
    return make_table(number, caption, head, [('', rows)])


def _sets_text(arms: Sequence[Arm]) -> str:
    """The evaluation sets behind the columns; by run, where runs differ in them."""

    def sides(arm: Arm) -> str:
        return f'old is {", ".join(arm.old_sets) or "nothing"}, new is {", ".join(arm.new_sets) or "nothing"}'

    said = {arm.name: sides(arm) for arm in arms}
    if len(set(said.values())) == 1:
        return f'Here {sides(arms[0])}.'
    return 'By evaluation set: ' + '; '.join(f'in {name} {text}' for name, text in said.items()) + '.'


def _outcome_row(entry: SetOutcome) -> Row:
    measured, old = entry.outcome, entry.old
    rose = measured.rise is not None and measured.rise > 0
    return (
        set_label(entry.set, entry.told.words),
        _loss(measured.before),
        _loss(measured.peak if rose else None),
        _signed(measured.rise if rose else None),
        f'{tokens_text(measured.peak_tokens)} ({percent_text(measured.peak_share)})' if rose else DASH,
        _loss(measured.end),
        _signed(measured.forgetting) if old else '',
        _recovery(entry) if old else '',
        '' if old else _signed(measured.adaptation),
        plain_text(entry.last.perplexity, ',.2f'),
        plain_text(entry.last.bits_per_byte, '.3f'),
    )


def _changes_row(each: SetChanges) -> Row:
    def cell(what: str, change: Change | None) -> str:
        return each.reasons.get(what, DASH) if change is None else _signed(change.difference)

    told = each.told[each.stage].words
    return (
        set_label(each.set, told),
        _loss(each.loss),
        cell('last_stage', each.last_stage),
        cell('since_trained', each.since_trained),
        cell('since_began', each.since_began),
    )


def _recovery(entry: SetOutcome) -> str:
    measured = entry.outcome
    if measured.before is None or measured.untrained:
        return DASH
    if measured.recovery_tokens == 0:
        return 'never above'
    if measured.recovery_tokens is not None:
        return f'after {tokens_text(measured.recovery_tokens)}'
    share = measured.recovered_share
    return DASH if share is None or not math.isfinite(share) else f'{percent_text(share)} of rise'


def _loss(value: float | None) -> str:
    return plain_text(value, '.3f')


def _signed(value: float | None) -> str:
    return plain_text(value, '+.3f').replace('-', '−')
