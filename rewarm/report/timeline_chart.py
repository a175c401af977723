"""The page's chart of a run against the clock: what each process did, how far it came, what it lost, and the goodput so far."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from rewarm.report.plots import Figure, escape_label, panels, scatter, stage_label, upright
from rewarm.report.run_folder import Event, Run
from rewarm.report.timeline import Life, Timeline

__all__ = ['timeline_figure']

MAX_POINTS = 1500
"""Points of the curves over all processes."""
BANDS = {
    'training': ('training, with its saves and evaluations', '--new'),
    'repeating': ('batches that were lost', '--old'),
    'starting': ('starting', '--other-0'),
    'stopped': ('no process', '--faint'),
}
"""Kinds of time that have a place of their own on the clock: what the legend calls them, and their colours."""
LANES: dict[str, tuple[tuple[str, ...], str, str]] = {
    'saves': (('save',), 'circle', '--ink'),
    'uploads': (('upload',), 'triangle-up-open', '--muted'),
    'failed saves, uploads': (('save_skipped', 'upload_failed'), 'x', '--old'),
    'asked to stop': (('notice', 'signal', 'preempted'), 'triangle-down', '--other-2'),
    'lost a rank, hung': (('rank_lost', 'hang'), 'x', '--old'),
    'damaged, set aside': (('fallback', 'shard_refetched', 'records_damaged'), 'x-open', '--old'),
    'spikes, rollbacks': (('spike', 'skip', 'rollback'), 'diamond', '--other-3'),
}
"""Rows of marks: the events in each, the mark, its colour."""


def timeline_figure(run: Run, timeline: Timeline) -> Figure:
    """Three panels over wall-clock time: tokens, goodput so far, and rows of what happened.

    Args:
        run (Run): The run.
        timeline (Timeline): Where its time went; not empty.

    Returns:
        Figure: For the page.
    """
    marks = {
        lane: [event for event in run.events if event.event in names and event.time is not None]
        for lane, (names, _, _) in LANES.items()
    }
    # A kill is no event of its own: it is where a process left no word and another followed.
    kills = [life for life in timeline.lives[:-1] if life.start.ending is None]
    lanes = [lane for lane, events in marks.items() if events] + (['killed'] if kills else []) + ['time']
    share = min(0.6, 0.045 * len(lanes) + 0.03)
    rows = (('tokens', share + 0.32, 1.0), ('goodput so far', share + 0.04, share + 0.26), ('', 0.0, share))
    layout = panels(height=560, rows=rows, x_title='time (UTC)')
    # A date has two lines. Room for them is set, since plotly draws again and again where it looks for it itself.
    layout['xaxis'] |= {'type': 'date', 'automargin': False}
    layout['margin']['b'] = 62
    layout['hovermode'] = 'closest'
    layout['yaxis2'] |= {'range': [0, 1.02], 'tickformat': '.0%', 'nticks': 4}
    layout['yaxis3'] |= {
        'tickvals': list(range(len(lanes))),
        'ticktext': lanes[::-1],
        'range': [-0.7, len(lanes) - 0.3],
        'showgrid': False,
    }
    layout['shapes'], layout['annotations'] = _stage_marks(timeline)
    place = {lane: len(lanes) - 1 - index for index, lane in enumerate(lanes)}
    traces = [*_progress(run, timeline), _goodput(timeline), *_bands(timeline, place['time'])]
    for lane, events in marks.items():
        if events:
            points = [(event.time, _words(event)) for event in events if event.time is not None]
            traces.append(_marks(points, place[lane], lane))
    if kills:
        points = [(life.ended, f'killed, {life.lost_batches:,} batches lost') for life in kills]
        traces.append(_marks(points, place['killed'], 'killed'))
    return {'data': traces, 'layout': layout}


def _progress(run: Run, timeline: Timeline) -> list[Figure]:
    """Tokens over time: what counts as a line, what was lost as dotted ones that fall back."""
    tokens_per_batch = run.batches[-1].tokens / run.batches[-1].batch if run.batches else 0
    stride = max(1, sum(len(life.kept) for life in timeline.lives) // MAX_POINTS)
    kept: list[tuple[datetime, float | None]] = []
    lost: list[tuple[datetime, float | None]] = []
    for life in timeline.lives:
        begin = life.start.from_batch
        points = [(life.running, begin)] if life.running < life.ended else []
        timed = [(line.time, line.batch) for line in life.kept if line.time is not None]
        points += timed[::stride] + timed[-1:]
        end = begin + len(life.kept)
        if not timed:
            points.append((_last_kept(life), end))
        kept += [(time, batch * tokens_per_batch) for time, batch in points] + [(life.ended, None)]
        if life.lost_batches:
            reached = (end + life.lost_batches) * tokens_per_batch
            lost += [(points[-1][0], end * tokens_per_batch), (life.ended, reached), (life.ended, None)]
    traces = [_curve(kept, 'trained', {'color': '--ink', 'width': 1.6}, '%{y:.4s} tokens, %{x}')]
    if lost:
        line = {'color': '--old', 'width': 1.6, 'dash': '2px,3px'}
        traces.append(_curve(lost, 'lost and repeated', line, 'lost at %{y:.4s} tokens, %{x}'))
    return traces


def _goodput(timeline: Timeline) -> Figure:
    """Time in batches that count over all time so far; batches that were lost later do not count from the beginning."""
    stride = max(1, sum(len(life.kept) for life in timeline.lives) // MAX_POINTS)
    origin = timeline.lives[0].began
    trained = waited = 0.0
    before: Life | None = None
    points: list[tuple[datetime, float | None]] = []

    def add(time: datetime) -> None:
        if (wall := (time - origin).total_seconds() - waited) > 0:
            points.append((time, min(1.0, trained / wall)))

    for life in timeline.lives:
        if before is not None and before.start.end == 'finished':
            waited += (life.began - before.ended).total_seconds()
        add(life.running)
        counted = 0.0
        for index, line in enumerate(life.kept):
            if not line.skipped and math.isfinite(line.seconds):
                counted += line.seconds
            if line.time is not None and index % stride == 0 and counted <= life.seconds['training']:
                trained += counted
                add(line.time)
                trained -= counted
        trained += life.seconds['training']
        add(life.ended)
        before = life
    return _curve(points, 'goodput so far', {'color': '--ink', 'width': 1.6}, '%{y:.1%}, %{x}') | {
        'yaxis': 'y2',
        'showlegend': False,
    }


def _bands(timeline: Timeline, y: int) -> list[Figure]:
    """The kinds of time as thick lines in one row."""
    spans: dict[str, list[tuple[datetime, datetime, str]]] = {kind: [] for kind in BANDS}
    for life in timeline.lives:
        spans['starting'].append((life.began, life.running, f'starting at batch {life.start.from_batch:,}'))
        lost_from = max(life.running, _last_kept(life)) if life.lost_batches else life.ended
        spans['training'].append((life.running, lost_from, f'{len(life.kept):,} batches that count'))
        spans['repeating'].append((lost_from, life.ended, f'{life.lost_batches:,} batches lost'))
    for before, after in itertools.pairwise(timeline.lives):
        if before.start.end != 'finished':
            spans['stopped'].append((before.ended, after.began, 'stopped: no process'))
    traces = []
    for kind, found in spans.items():
        real = [(begin, end, text) for begin, end, text in found if end > begin]
        if not real:
            continue
        points: list[tuple[datetime, float | None]] = []
        for begin, end, _ in real:
            points += [(begin, y), (end, y), (end, None)]
        texts = [f'{text}, {(end - begin).total_seconds():,.0f} s' for begin, end, text in real for _ in range(3)]
        name, colour = BANDS[kind]
        trace = _curve(points, name, {'color': colour, 'width': 12}, '%{text}<br>%{x}')
        traces.append(trace | {'text': texts, 'yaxis': 'y3'})
    return traces


def _last_kept(life: Life) -> datetime:
    """When the last batch that counts was done; in old runs, the lost ones' time before the end."""
    if life.kept and (time := life.kept[-1].time) is not None:
        return time
    share = life.seconds['repeating'] / max(1e-9, (life.ended - life.running).total_seconds())
    return life.ended - share * (life.ended - life.running)


def _marks(points: Sequence[tuple[datetime, str]], y: int, lane: str) -> Figure:
    _, symbol, colour = LANES.get(lane, ((), 'x', '--old'))
    return {
        **scatter([_clock(time) for time, _ in points], [y] * len(points)),
        'mode': 'markers',
        'name': lane,
        'yaxis': 'y3',
        'showlegend': False,
        'marker': {'symbol': symbol, 'size': 7, 'color': colour},
        'text': [text for _, text in points],
        'hovertemplate': '%{text}<br>%{x}<extra></extra>',
    }


def _words(event: Event) -> str:
    """An event for a hover label: its name, its batch, and what it says besides."""
    shown = (
        'path',
        'signal',
        'cloud',
        'what',
        'seconds',
        'stall_seconds',
        'reason',
        'action',
        'loss',
        'to',
        'rank',
        'host',
    )
    fields = dict(event.fields)
    said = [f'{key.replace("_", " ")} {fields[key]}' for key in shown if fields.get(key) is not None]
    at = '' if event.batch is None else f' at batch {event.batch:,}'
    return escape_label(f'{event.event.replace("_", " ")}{at}') + ''.join(f'<br>{escape_label(part)}' for part in said)


def _stage_marks(timeline: Timeline) -> tuple[list[Figure], list[Figure]]:
    """A line and a name where each stage began."""
    begun = [event for life in timeline.lives for event in life.start.events_named('stage_start')]
    places = [(event.stage or '', _clock(event.time)) for event in begun if event.time is not None]
    return [upright(x) for _, x in places], [stage_label(name, x) for name, x in places]


def _curve(points: Sequence[tuple[datetime, float | None]], name: str, line: dict[str, Any], hover: str) -> Figure:
    return {
        **scatter([_clock(time) for time, _ in points], [math.nan if value is None else value for _, value in points]),
        'mode': 'lines',
        'name': name,
        'line': line,
        'hovertemplate': hover + '<extra></extra>',
    }


def _clock(time: datetime) -> str:
    """A time as plotly reads it, which knows no zones."""
    return time.astimezone(UTC).replace(tzinfo=None).isoformat(sep=' ', timespec='milliseconds')
