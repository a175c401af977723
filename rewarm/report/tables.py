"""The page's tables and lists as HTML. Every text is escaped here, in one place: it comes from files."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence

from rewarm.report.arms import Arm
from rewarm.report.forgetting import Change, SetChanges, SetOutcome, set_changes, set_outcomes
from rewarm.report.interruptions import interruptions
from rewarm.report.run_folder import Run, Stage
from rewarm.report.stories import set_label
from rewarm.report.timeline import KINDS, find_timeline
from rewarm.terminal import printable

__all__ = [
    'arms_table',
    'changes_table',
    'duration_text',
    'escape',
    'interruptions_table',
    'stage_outcomes_table',
    'stages_table',
    'time_table',
    'tokens_text',
]

DASH = '–'
LONG = 1e9
NARROW_COLUMNS = 3
"""So many fit side by side on a phone."""
Row = Sequence[str]


def escape(text: object) -> str:
    """Text for HTML, in content and in quoted attributes."""
    return html.escape(printable(str(text)), quote=True)


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
    return _table(number, caption, head, groups)


def changes_table(run: Run, number: int) -> str:
    """What the run did to each evaluation set, told three ways."""
    rows = [_changes_row(each) for each in set_changes(run)]
    head = ('Validation set', 'Loss now', 'In the last stage', 'Since last trained', 'Since the run began')
    caption = (
        'The same losses over longer spans, in nats per token. A plus sign is a worse loss: on old data, forgetting. Since '
        'last trained counts from the end of the last stage that trained the set’s data for its own sake, not as replay.'
    )
    return _table(number, caption, head, [('', rows)], text_columns=(0,))


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
    return _table(number, caption, head, [('', rows)])


def _sets_text(arms: Sequence[Arm]) -> str:
    """The evaluation sets behind the columns; by run, where runs differ in them."""

    def sides(arm: Arm) -> str:
        return f'old is {", ".join(arm.old_sets) or "nothing"}, new is {", ".join(arm.new_sets) or "nothing"}'

    said = {arm.name: sides(arm) for arm in arms}
    if len(set(said.values())) == 1:
        return f'Here {sides(arms[0])}.'
    return 'By evaluation set: ' + '; '.join(f'in {name} {text}' for name, text in said.items()) + '.'


def stages_table(run: Run, number: int) -> str:
    """What each stage was: budget, curve, data, optimizer state."""
    rows = []
    for stage in run.stages:
        batches = run.stage_batches(stage.name)
        samples = batches[-1].samples if batches else {}
        shares = {stream.name: stream.share for stream in stage.streams}
        streams = [
            f'{name} {_share(shares.get(name, ""))}'.strip()
            + (f' ({samples[name]:,} samples)' if name in samples else '')
            for name in dict.fromkeys([*shares, *samples])
        ]
        rows.append(
            (
                stage.name,
                tokens_text(stage.done_tokens) + ('' if stage.finished else f' of {tokens_text(stage.planned_tokens)}'),
                f'{stage.batches:,}',
                _schedule(stage),
                ', '.join(streams) or DASH,
                stage.optimizer_state or DASH,
            ),
        )
    head = ('Stage', 'Tokens', 'Batches', 'Learning rate', 'Data', 'Optimizer state')
    return _table(number, 'The stages as they ran.', head, [('', rows)], text_columns=(0, 3, 4, 5))


def interruptions_table(run: Run, number: int) -> str:
    """Every stop and restart; empty if there was none."""
    rows = [
        (
            stop.kind,
            DASH if stop.batch is None else f'{stop.batch:,}',
            DASH if stop.tokens is None else tokens_text(stop.tokens),
            DASH if stop.seconds is None else f'{"≤ " if stop.at_most else ""}{duration_text(stop.seconds)}',
            DASH if stop.lost_batches is None else f'{stop.lost_batches:,}',
        )
        for stop in interruptions(run.events)
    ]
    if not rows:
        return ''
    caption = (
        'Interruptions. Lost time runs from the stop to the first batch after it; where a run was killed without a word, '
        'it counts from the last event before and is an upper bound.'
    )
    head = ('Stop', 'Went on at batch', 'Tokens', 'Lost time', 'Batches repeated')
    return _table(number, caption, head, [('', rows)])


def time_table(run: Run, number: int) -> str:
    """Where the wall-clock time went; the shares add up to all of it."""
    timeline = find_timeline(run)
    wall = timeline.wall_seconds
    rows = [
        (name, duration_text(seconds), f'{100 * seconds / wall:.1f} %')
        for kind, name in KINDS.items()
        if (seconds := timeline.seconds[kind]) or kind in ('training', 'repeating', 'saving')
    ]
    rows.append(('all, from the first start to the last sign of life', duration_text(wall), '100.0 %'))
    caption = (
        'Where the time went. The goodput is the share of batches that count'
        + (', of the time in which the run was not finished' if timeline.seconds['waiting'] else '')
        + f': {100 * (timeline.goodput or 0):.1f} %. The time of batches that were lost with a process is their count '
        'times the median time of a batch.'
    )
    return _table(number, caption, ('What', 'Time', 'Share'), [('', rows)])


def tokens_text(tokens: int) -> str:
    """A count of tokens with three digits and a unit: ``1.02 M``."""
    for size, unit in ((10**12, 'T'), (10**9, 'B'), (10**6, 'M'), (10**3, 'k')):
        if abs(tokens) >= 0.9995 * size:
            return f'{tokens / size:.3g}\N{NO-BREAK SPACE}{unit}'
    return str(tokens)


def duration_text(seconds: float) -> str:
    """A length of time in the unit in which it reads best: ``3.2 min``."""
    if seconds < 60:
        return f'{seconds:.1f} s'
    if seconds < 3600:
        return f'{seconds / 60:.1f} min'
    return f'{_plain(seconds / 3600, ".1f")} h'


def _outcome_row(entry: SetOutcome) -> Row:
    measured, old = entry.outcome, entry.old
    rose = measured.rise is not None and measured.rise > 0
    return (
        set_label(entry.set, entry.told.words),
        _loss(measured.before),
        _loss(measured.peak if rose else None),
        _signed(measured.rise if rose else None),
        f'{tokens_text(measured.peak_tokens)} ({_percent(measured.peak_share)})' if rose else DASH,
        _loss(measured.end),
        _signed(measured.forgetting) if old else '',
        _recovery(entry) if old else '',
        '' if old else _signed(measured.adaptation),
        _plain(entry.last.perplexity, ',.2f'),
        _plain(entry.last.bits_per_byte, '.3f'),
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
    return DASH if share is None or not math.isfinite(share) else f'{_percent(share)} of rise'


def _schedule(stage: Stage) -> str:
    values = stage.schedule
    text = values.name or DASH
    rates = [f'{rate:.3g}' for rate in (values.lr, values.min_lr) if isinstance(rate, float)]
    if rates:
        text += f', {" to ".join(rates)}'
    return text + (f', warm-up {tokens_text(values.warmup_tokens)} tokens' if values.warmup_tokens else '')


def _share(share: str) -> str:
    top, _, bottom = share.partition('/')
    try:
        return f'{100 * int(top) / int(bottom or 1):.4g} %'
    except (ValueError, ZeroDivisionError, OverflowError):
        return share


def _percent(share: float) -> str:
    return f'{100 * share:.0f} %'


def _plain(value: float | None, form: str) -> str:
    """A number as it is usual; with an exponent where that would be a row of digits that nobody reads."""
    if value is None:
        return DASH
    return f'{value:{form}}' if abs(value) < LONG or math.isnan(value) else f'{value:.3g}'


def _loss(value: float | None) -> str:
    return _plain(value, '.3f')


def _signed(value: float | None) -> str:
    return _plain(value, '+.3f').replace('-', '−')


def _table(
    number: int,
    caption: str,
    head: Sequence[str],
    groups: Iterable[tuple[str, Sequence[Row]]],
    text_columns: Sequence[int] = (0,),
) -> str:
    """A table with row groups; all columns but ``text_columns`` hold numbers and are aligned right.

    On a phone the rows of a wide one become blocks, in which each cell shows its column's name. Roles are written out,
    since browsers forget those of a table whose rows are laid out otherwise.
    """
    kinds = ['' if index in text_columns else ' class="number"' for index in range(len(head))]
    columns = ''.join(f'<th scope="col" role="columnheader"{k}>{escape(t)}</th>' for k, t in zip(kinds, head))
    parts = [f'<thead role="rowgroup"><tr role="row">{columns}</tr></thead>']
    for title, rows in groups:
        parts.append('<tbody role="rowgroup">')
        if title:
            group = f'<th class="group" scope="rowgroup" role="rowheader" colspan="{len(head)}">{escape(title)}</th>'
            parts.append(f'<tr role="row">{group}</tr>')
        for row in rows:
            cells = [f'<th scope="row" role="rowheader">{escape(row[0])}</th>']
            cells += [
                f'<td role="cell" data-label="{escape(name)}"{kind}>{escape(cell)}</td>'
                for name, kind, cell in zip(head[1:], kinds[1:], row[1:])
            ]
            parts.append(f'<tr role="row">{"".join(cells)}</tr>')
        parts.append('</tbody>')
    name = f'table-{number}'
    wide = ' class="wide"' if len(head) > NARROW_COLUMNS else ''
    return (
        f'<figure><figcaption id="{name}"><b>Table {number}.</b> {escape(caption)}</figcaption>'
        f'<div class="scroll" tabindex="0" role="region" aria-labelledby="{name}">'
        f'<table{wide} role="table" aria-labelledby="{name}">{"".join(parts)}</table></div>'
        '<p class="more">The table is wider than the screen: scroll it sideways.</p></figure>'
    )
