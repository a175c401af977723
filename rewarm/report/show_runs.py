"""``rewarm runs``: a line a run, in words or as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from rewarm.report.forgetting import set_changes
from rewarm.report.newest_losses import losses_to_json, mean_loss
from rewarm.report.runs import Glance, find_runs
from rewarm.report.show_status import QUIET_SECONDS, duration_text
from rewarm.report.watch import Look, show
from rewarm.terminal import printable

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
    from rich.table import Table

__all__ = ['runs_command']

COLOURS = {'running': 'green', 'finished': 'green', 'stopped': 'yellow', 'damaged': 'red'}
HEADINGS = ('run', 'state', 'stage', 'batch', 'loss', 'old', 'new', 'last sign')
DROPPED_FIRST = ('stage', 'loss', 'new', 'old', 'batch')
"""Columns that go, in this order, where the terminal is too narrow for all."""
EVALUATION_KEYS = ('set', 'kind', 'loss', 'batch')
"""What the end of the file tells for certain."""
NAME_WIDTH = 16
"""Columns at least for names, which are folded."""


def runs_command(folder: str, *, as_json: bool = False, watching: bool = False, every: float | None = None) -> None:
    """Prints a line for each run of a folder.

    Args:
        folder (str): The folder, here or in a bucket.
        as_json (bool): Whether to print JSON instead of words.
        watching (bool): Whether to go on showing it.
        every (float | None): Seconds between looks then. Default: by where the folder is.

    Raises:
        UserError: If there is no such folder, or such a wait is none.
    """

    def look() -> Look:
        now = datetime.now(UTC)
        found = find_runs(folder, now=now)
        facts = [_to_json(each, now) for each in found]
        return Look(facts, None if as_json else _block(folder, facts))

    show(look, folder, as_json=as_json, watching=watching, every=every)


def _to_json(glance: Glance, now: datetime) -> dict[str, Any]:
    status, sign = glance.status, glance.last_sign_at
    known: dict[str, Any] = {
        'run': printable(glance.name),
        'run_folder': printable(glance.place),
        'state': 'damaged',
        'attention': printable(glance.problem or ''),
    }
    if status is not None:
        last, changes = status.last, set_changes(status.run)
        known |= {
            'state': status.state,
            'stopped_because': status.reason if status.state == 'stopped' else None,
            'stage': last.stage if last else None,
            'batch': status.batch,
            'batches': status.planned_batches or None,
            'loss': last.loss if last and last.loss == last.loss else None,
            'old_loss': mean_loss(changes, 'old'),
            'new_loss': mean_loss(changes, 'new'),
            'evaluations': [{key: each[key] for key in EVALUATION_KEYS} for each in losses_to_json(status.run)],
            'last_sign': sign.isoformat(timespec='seconds') if sign else None,
            'last_sign_age_seconds': max(0.0, (now - sign).total_seconds()) if sign else None,
            'if_started_now': status.next_start,
            'attention': _attention(glance, now),
        }
    return known


def _attention(glance: Glance, now: datetime) -> str | None:
    """What somebody has to do something about, or may want to; ``None`` for a run that is well, or finished."""
    status, sign = glance.status, glance.last_sign_at
    assert status is not None
    notes: list[str] = []
    if status.state in ('stopped', 'running or killed'):
        why = f'{status.reason}; ' if status.state == 'stopped' else ''
        notes.append(f'{why}if started now, {status.next_start}')
    elif status.state == 'running' and sign is not None and (now - sign).total_seconds() > QUIET_SECONDS:
        notes.append(f'nothing for {duration_text((now - sign).total_seconds())} although {status.owner} holds the run')
    if status.lag and status.lag.failure:
        notes.append(f'the last upload failed: {status.lag.failure.fields.get("reason", "no reason given")}')
    notes += [
        f'{each.lines:,} damaged line{"s" if each.lines > 1 else ""} in {each.file}' for each in status.run.damage
    ]
    return '. '.join(notes) or None


class _Runs:
    """The table, in as many columns as there is room for, and below it what needs attention."""

    def __init__(self, rows: Sequence[dict[str, str]], notes: Sequence[tuple[str, str]]) -> None:
        self.rows = rows
        self.notes = notes

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.text import Text

        yield self._table(options.max_width)
        if self.notes:
            yield Text()
        for name, note in self.notes:
            yield Text.assemble((name, 'bold'), f': {note}')

    def _table(self, width: int) -> Table:
        from rich.table import Table
        from rich.text import Text

        headings = [*HEADINGS]
        widths = {name: max(len(name), *(len(row[name]) for row in self.rows)) for name in headings}
        widths['run'], widths['stage'] = min(widths['run'], NAME_WIDTH), min(widths['stage'], NAME_WIDTH)
        for dropped in DROPPED_FIRST:
            if sum(widths[name] + 1 for name in headings) > width + 1:
                headings.remove(dropped)
        table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style='bold')
        for name in headings:
            folded = name in ('run', 'stage')
            numeric = name in ('batch', 'loss', 'old', 'new', 'last sign')
            table.add_column(name, no_wrap=not folded, overflow='fold', justify='right' if numeric else 'left')
        for row in self.rows:
            colour = COLOURS.get(row['state'], 'default')
            table.add_row(*(Text(row[name], style=colour if name == 'state' else '') for name in headings))
        return table


def _block(folder: str, facts: Sequence[dict[str, Any]]) -> RenderableType:
    from rich.text import Text

    if not facts:
        return Text(printable(f'There is no run in {folder}.'), no_wrap=True, overflow='ignore')
    notes = [(_one_line(each['run']), _one_line(each['attention'])) for each in facts if each['attention']]
    return _Runs([_row(each) for each in facts], notes)


def _row(facts: dict[str, Any]) -> dict[str, str]:
    state, batches, age = facts['state'], facts.get('batches'), facts.get('last_sign_age_seconds')
    batch = '' if state == 'damaged' else f'{facts["batch"]:,}' + (f'/{batches:,}' if batches else '')
    return {
        'run': _one_line(facts['run']),
        'state': {'running or killed': 'running?'}.get(state, state),
        'stage': _one_line(facts.get('stage') or ''),
        'batch': batch,
        'loss': _loss(facts.get('loss')),
        'old': _loss(facts.get('old_loss')),
        'new': _loss(facts.get('new_loss')),
        'last sign': '' if age is None else f'{duration_text(age)} ago',
    }


def _loss(value: float | None) -> str:
    if value is None:
        return ''
    return f'{value:.3f}' if abs(value) < 1000 else f'{value:.3g}'


def _one_line(text: str) -> str:
    return printable(text).replace('\n', ' ').replace('\t', ' ')
