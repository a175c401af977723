"""The page's tables and lists as HTML. Every text is escaped here, in one place: it comes from files."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence

from rewarm.report.interruptions import interruptions
from rewarm.report.run_folder import Run, Stage
from rewarm.report.timeline import KINDS, find_timeline
from rewarm.terminal import printable

__all__ = [
    'DASH',
    'Row',
    'duration_text',
    'escape',
    'interruptions_table',
    'make_table',
    'percent_text',
    'plain_text',
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
    return make_table(number, 'The stages as they ran.', head, [('', rows)], text_columns=(0, 3, 4, 5))


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
    return make_table(number, caption, head, [('', rows)])


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
    return make_table(number, caption, ('What', 'Time', 'Share'), [('', rows)])


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
    return f'{plain_text(seconds / 3600, ".1f")} h'


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


def percent_text(share: float) -> str:
    """A share in percent, without decimals."""
    return f'{100 * share:.0f} %'


def plain_text(value: float | None, form: str) -> str:
    """A number as it is usual; with an exponent where that would be a row of digits that nobody reads."""
    if value is None:
        return DASH
    return f'{value:{form}}' if abs(value) < LONG or math.isnan(value) else f'{value:.3g}'


def make_table(
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
