"""``rewarm status``: a run at a glance, in words or as JSON."""

from __future__ import annotations

from collections import Counter
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from rewarm.report.logger_failures import failure_text, find_logger_failures
from rewarm.report.newest_losses import MOST_SETS, loss_lines, loss_text, losses_to_json
from rewarm.report.position import Position
from rewarm.report.status import RECENT_BATCHES, Lag, Status, find_status
from rewarm.report.watch import Look, show
from rewarm.terminal import printable

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ['status_command', 'status_lines', 'to_json']

STATE_COLOURS = {'running': 'green', 'finished': 'green', 'stopped': 'yellow'}
QUIET_SECONDS = 300
"""A process that holds the run and has written nothing for longer than this is worth a look."""


def status_command(
    folder: str,
    *,
    as_json: bool = False,
    price: float | None = None,
    watching: bool = False,
    every: float | None = None,
) -> None:
    """Prints where a run is.

    Args:
        folder (str): The run folder, here or in a bucket.
        as_json (bool): Whether to print JSON instead of words.
        price (float | None): Price of one device for an hour, in any unit of money.
        watching (bool): Whether to go on showing it.
        every (float | None): Seconds between looks then. Default: by where the folder is.

    Raises:
        UserError: If it is no run folder, or such a wait is none.
    """

    def look() -> Look:
        status = find_status(folder)
        return Look(to_json(status, price), None if as_json else _block(status, price))

    show(look, folder, as_json=as_json, watching=watching, every=every)


def _block(status: Status, price: float | None) -> RenderableType:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    why = f' ({status.reason})' if status.state == 'stopped' else ''
    name, state = _cell(status.run.name, 'bold'), _cell(status.state, STATE_COLOURS.get(status.state, 'default'))
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style='dim')
    table.add_column()
    for key, value in status_lines(status, price).items():
        table.add_row(key, _cell(value))
    return Group(Text.assemble(name, ' is ', state, _cell(why)), table)


def status_lines(status: Status, price: float | None = None) -> dict[str, str]:
    """The facts in words, by name, in the order to show them.

    Args:
        status (Status): What was found.
        price (float | None): Price of one device for an hour, in any unit of money.

    Returns:
        dict[str, str]: Without what is not known.
    """
    last, lines = status.last, {}
    if last and status.position:
        lines['where'] = f'{_where(status, status.position)}, {last.tokens:,} tokens'
        speed = status.tokens_per_second
        lines['training'] = f'loss {loss_text(last.loss)} at rate {last.lr:.3g}' + (
            f'; {speed:,.0f} tokens/s, the median of the last {min(RECENT_BATCHES, len(status.run.batches))} batches'
            if speed
            else ''
        )
    lines |= loss_lines(status.run, status.batch)
    if status.run.damage:
        lines['damaged'] = '; '.join(map(str, status.run.damage))
    lines['held by'] = _held_by(status)
    lines['last save'] = _last_save(status)
    if status.pinned:
        lines['pinned'] = ', '.join(status.pinned)
    if status.lag:
        lines['bucket'] = _lag(status.lag, status.now)
    if failures := find_logger_failures(status.run.events):
        lines['loggers'] = '. '.join(map(failure_text, failures))
    lines['stops'] = _stops(status)
    if status.device_hours is not None:
        lines['spent'] = _spent(status, price)
    if status.goodput is not None:
        until = 'now' if status.state == 'running' else 'the last sign of life'
        lines['goodput'] = (
            f'{status.goodput:.1%}: time in batches that count, over the time from the first start to {until}'
        )
    if (eta := status.eta_seconds) is not None:
        running = status.state == 'running'
        at = f', {status.now + timedelta(seconds=eta):%Y-%m-%d %H:%M} UTC' if running else ', once it is started'
        lines['to the end'] = f'about {duration_text(eta)} at this speed and goodput{at}'
    lines['if started now'] = status.next_start + (
        '. Sizes were compared here; a start compares hashes' if 'go on from' in status.next_start else ''
    )
    return lines


def to_json(status: Status, price: float | None = None) -> dict[str, Any]:
    """The status as JSON types; ages in seconds, ``None`` for what is not known.

    Args:
        status (Status): What was found.
        price (float | None): Price of one device for an hour, in any unit of money.
    """
    last, owner, lag, position = status.last, status.owner, status.lag, status.position
    saved, at = status.checkpoint, status.checkpoint_position
    hours, to_come = status.device_hours, status.device_hours_to_come
    return {
        'run_name': status.run.name,
        'run_folder': printable(status.place),
        'state': status.state,
        'stopped_because': status.reason if status.state == 'stopped' else None,
        'stage': last.stage if last else None,
        'batch': status.batch,
        'batches': status.planned_batches or None,
        'stage_batch': position.stage_batch if position else None,
        'stage_batches': position.stage_batches if position else None,
        'tokens': last.tokens if last else 0,
        'planned_tokens': status.planned_tokens or None,
        'loss': last.loss if last and last.loss == last.loss else None,  # NaN is no JSON
        'lr': last.lr if last and last.lr == last.lr else None,
        'tokens_per_second': status.tokens_per_second,
        'evaluations': losses_to_json(status.run),
        'evaluating': dict(status.evaluating.fields) if status.evaluating else None,
        'process': {'pid': owner.pid, 'host': owner.host, 'since': owner.since} if owner else None,
        'last_batch_age_seconds': _age(status, status.last_batch_at),
        'last_sign_age_seconds': _age(status, status.last_sign_at),
        'checkpoint': {'name': saved.name, 'batch': saved.batch, 'bytes': saved.bytes} if saved else None,
        'checkpoint_stage': at.stage if at else None,
        'checkpoint_stage_batch': at.stage_batch if at else None,
        'checkpoint_age_seconds': _age(status, status.saved_at),
        'pinned': list(status.pinned),
        'bucket': {
            'newest': lag.newest,
            'uploaded_age_seconds': _age(status, lag.uploaded_at),
            'waiting_checkpoints': lag.waiting,
            'waiting_bytes': lag.waiting_bytes,
            'failure': lag.failure.fields if lag.failure else None,
        }
        if lag
        else None,
        'stops': dict(Counter(stop.kind for stop in status.stops)),
        'lost_batches': sum(stop.lost_batches or 0 for stop in status.stops),
        'goodput': status.goodput,
        'device_hours': hours,
        'cost': None if price is None or hours is None else hours * price,
        'cost_to_come': None if price is None or to_come is None else to_come * price,
        'eta_seconds': status.eta_seconds,
        'loggers': {
            each.name: {
                'fails': each.is_new,
                'since': each.since.isoformat() if each.since else None,
                'reason': each.reason,
                'lost_calls': each.calls,
            }
            for each in find_logger_failures(status.run.events)
        },
        'damaged_lines': {each.file: each.lines for each in status.run.damage},
        'if_started_now': status.next_start,
    }


def duration_text(seconds: float) -> str:
    """A time as people say it: ``12 s``, ``14 min``, ``6.2 h``, ``3.4 days``."""
    if seconds < 99.5:
        return f'{seconds:.0f} s'
    if seconds < 99.5 * 60:
        return f'{seconds / 60:.0f} min'
    return f'{seconds / 3600:.1f} h' if seconds < 72 * 3600 else f'{seconds / 86400:.1f} days'


def size_text(size: int) -> str:
    """Bytes with three digits and a unit."""
    for unit, count in (('TB', 10**12), ('GB', 10**9), ('MB', 10**6), ('kB', 10**3)):
        if size >= count:
            return f'{size / count:.3g} {unit}'
    return f'{size} bytes'


def _where(status: Status, position: Position) -> str:
    batch, of = f'batch {position.batch:,}', ''
    if status.planned_batches:
        of = f' of {status.planned_batches:,} ({position.batch / status.planned_batches:.1%})'
        if position.stage_batch is not None and len(status.run.plan.stages) > 1:
            of = of.replace(' (', ' of the run (')
            batch = f'batch {position.stage_batch:,} of {position.stage_batches:,} of the stage, {position.batch:,}'
    return f'stage {position.stage}, {batch}{of}'


def _spent(status: Status, price: float | None) -> str:
    kind = 'GPU' if status.run.environment.device_kind == 'gpu' else 'process'
    hours, to_come = status.device_hours or 0.0, status.device_hours_to_come
    text = f'{hours:,.2f} {kind} hours' + (f', about {to_come:,.2f} to come' if to_come else '')
    if price is not None:
        text += f'; cost {hours * price:,.2f}' + (f', about {to_come * price:,.2f} to come' if to_come else '')
        text += f', at {price:g} for an hour of one {kind}'
    return text


def _held_by(status: Status) -> str:
    quiet = _age(status, status.last_batch_at)
    said = 'no batch yet' if quiet is None else f'last batch {duration_text(quiet)} ago'
    if status.owner is None:
        return f'nobody; {said}'
    if status.in_bucket and status.said_it_stopped:
        return f'nobody: {status.owner} said that it stopped; {said}'
    since = ''
    if status.owner.since is not None:
        since = f', since {duration_text(max(0.0, status.now.timestamp() - status.owner.since))} ago'
    if status.in_bucket:
        return f'last taken by {status.owner}{since}; {said}, as far as it was uploaded'
    said += _meanwhile(status)
    silent = _age(status, status.last_sign_at)
    if silent is not None and silent > QUIET_SECONDS:
        return f'nothing for {duration_text(silent)} although {status.owner} holds the run{since}{_meanwhile(status)}'
    return f'{status.owner}{since}; {said}'


def _meanwhile(status: Status) -> str:
    """What a process does that trains no batch now, as far as it said."""
    first = 'before its first batch' if status.is_starting else ''
    if status.evaluating is None:
        return f'; loading, {first}' if first else ''
    fields, age = status.evaluating.fields, _age(status, status.evaluating.time)
    tokens, sets = fields.get('evaluated_tokens'), fields.get('sets')
    what = ', '.join(map(str, sets[:MOST_SETS])) if isinstance(sets, list) else ''
    what += f' ({tokens:,} tokens)' if isinstance(tokens, int) else ''
    since = '' if age is None else f', since {duration_text(age)} ago'
    return f'; evaluating {what} {first}'.rstrip() + since


def _last_save(status: Status) -> str:
    saved, age = status.checkpoint, _age(status, status.saved_at)
    if saved is None:
        return 'none'
    there = status.lag is not None and status.lag.newest == saved.name
    where = 'in the bucket' if status.in_bucket else 'on disk and in the bucket' if there else 'on disk'
    return f'{saved.name}, {size_text(saved.bytes)}, {"" if age is None else f"{duration_text(age)} ago, "}{where}'


def _lag(lag: Lag, now: datetime) -> str:
    when = f', uploaded {duration_text((now - lag.uploaded_at).total_seconds())} ago' if lag.uploaded_at else ''
    text = f'newest there is {lag.newest}{when}' if lag.newest else 'no checkpoint is there yet'
    if lag.waiting:
        text += f'; {lag.waiting} newer on the disk only, {size_text(lag.waiting_bytes)}'
    if lag.failure:
        text += f'. The last upload failed: {lag.failure.fields.get("reason", "no reason given")}'
    return text


def _stops(status: Status) -> str:
    if not status.stops:
        return 'none'
    kinds = ', '.join(f'{count} {kind}' for kind, count in Counter(stop.kind for stop in status.stops).items())
    lost = sum(stop.lost_batches or 0 for stop in status.stops)
    return f'{len(status.stops)} ({kinds}), {lost:,} batches repeated'


def _age(status: Status, when: datetime | None) -> float | None:
    return None if when is None else max(0.0, (status.now - when).total_seconds())


def _cell(text: str, style: str = '') -> Any:
    """Text from a file for the terminal: on one line, without markup, and nothing that a terminal obeys."""
    from rich.text import Text

    return Text(printable(text).replace('\n', ' ').replace('\t', ' '), style=style)
