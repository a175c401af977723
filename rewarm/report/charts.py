"""The page's charts of one run: losses and rates over its tokens."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from rewarm.report.forgetting import by_set
from rewarm.report.interruptions import interruptions
from rewarm.report.plots import Figure, escape_label, panels, scatter, set_range, stage_label, upright
from rewarm.report.run_folder import Batch, Run
from rewarm.report.stories import find_stories, set_label

__all__ = ['UNTRAINED_SHARE', 'rate_of', 'rate_trace', 'training_figure', 'validation_figure']

MAX_POINTS = 500
"""Points of a training curve in one stage; more batches than this share a point (mean, lowest and highest)."""
MAX_MARKS = 80
"""Evaluations are marked one by one up to here."""
MAX_LINES = 12
"""Up to here every interruption gets a line through the chart; beyond, only its mark."""
SET_DASHES = ('solid', '8px,4px', '2px,3px', '8px,4px,2px,4px', '14px,5px')
UNTRAINED_SHARE = 0.1
"""An untrained model starts so high that all differences would vanish: loss axes ignore this share of its stage."""


def validation_figure(run: Run) -> Figure:
    """Validation loss of every set over the tokens of the run, with the learning rate under it on the same axis.

    Args:
        run (Run): The run; stages and interruptions are marked.
    """
    traces = []
    lines, stories = by_set(run), find_stories(run)
    kinds = {name: stories.told(name, mine[-1].stage).kind for name, mine in lines.items()}
    for index, (name, mine) in enumerate(lines.items()):
        points = {line.tokens: line for line in mine}
        old = kinds[name] == 'old'
        colour = '--old' if old else '--new'
        before = [each for each in [*lines][:index] if (kinds[each] == 'old') == old]
        traces.append(
            {
                **scatter([*points], [points[tokens].loss for tokens in points]),
                'name': escape_label(set_label(name, stories.told(name, mine[-1].stage).words)),
                'mode': 'lines+markers' if len(points) <= MAX_MARKS else 'lines',
                'line': {'color': colour, 'width': 2, 'dash': SET_DASHES[len(before) % len(SET_DASHES)]},
                'marker': {'size': 4, 'color': colour, 'symbol': 'circle' if old else 'square'},
                'hovertemplate': '%{y:.4f} at %{x:.4s} tokens',
            },
        )
    x, y = rate_of(run.batches)
    traces.append(rate_trace(x, y, 'learning rate', '--ink', None))
    layout = panels(height=520, rows=(('validation loss', 0.36, 1.0), ('learning rate', 0.0, 0.28)))
    layout['shapes'], layout['annotations'] = _stage_marks(run)
    set_range(layout['xaxis'], [0, run.tokens], margin=0.01)
    untrained = run.stages[0].name if run.from_scratch and run.stages else None
    after = UNTRAINED_SHARE * run.stages[0].planned_tokens if untrained else 0
    telling = [line.loss for line in run.evaluations if line.stage != untrained or line.stage_tokens >= after]
    set_range(layout['yaxis'], telling)
    traces += _stop_marks(run, layout)
    return {'data': traces, 'layout': layout}


def training_figure(run: Run) -> Figure:
    """Training loss over the tokens of the run: the mean of neighbouring batches and the range they span."""
    traces = []
    for number, stage in enumerate(run.stages):
        buckets = _buckets(run.stage_batches(stage.name))
        x = [bucket[-1].tokens for bucket in buckets]
        losses = [[line.loss for line in bucket if math.isfinite(line.loss)] or [math.nan] for bucket in buckets]
        if any(len(bucket) > 1 for bucket in buckets):
            band = {'mode': 'lines', 'line': {'width': 0, 'color': '--band'}, 'showlegend': False, 'hoverinfo': 'skip'}
            traces.append({**scatter(x, [min(values) for values in losses]), **band})
            fill = {'fill': 'tonexty', 'fillcolor': '--band'}
            traces.append({**scatter(x, [max(values) for values in losses]), **band, **fill})
        traces.append(
            {
                **scatter(x, [sum(values) / len(values) for values in losses]),
                'name': 'training loss',
                'mode': 'lines',
                'line': {'color': '--ink', 'width': 1.3},
                'showlegend': False,
                'hovertemplate': '%{y:.4f} at %{x:.4s} tokens<extra>' + escape_label(stage.name) + '</extra>',
                'legendgroup': str(number),
            },
        )
    layout = panels(height=300, rows=(('training loss', 0.0, 1.0),))
    set_range(layout['xaxis'], [0, run.tokens], margin=0.01)
    layout['shapes'], layout['annotations'] = _stage_marks(run)
    return {'data': traces, 'layout': layout}


def rate_trace(x: list[int], y: list[float], name: str, colour: str, dash: str | None, axis: str = 'y2') -> Figure:
    """A line of learning rates, in the panel ``axis``."""
    return {
        **scatter(x, y),
        'mode': 'lines',
        'name': name,
        'yaxis': axis,
        'showlegend': False,
        'line': {'color': colour, 'width': 1.5, 'dash': dash or 'solid'},
        'hovertemplate': '%{y:.3~e} at %{x:.4s} tokens',
    }


def rate_of(batches: Sequence[Batch]) -> tuple[list[int], list[float]]:
    """The rate over tokens, thinned; the first, highest and last batch of each stretch stay, so no peak is lost."""
    x: list[int] = []
    y: list[float] = []
    for bucket in _buckets(batches):
        kept = {id(line): line for line in (bucket[0], max(bucket, key=lambda line: line.lr), bucket[-1])}
        for line in sorted(kept.values(), key=lambda line: line.tokens):
            x.append(line.tokens)
            y.append(line.lr)
    return x, y


def _buckets(batches: Sequence[Batch]) -> list[Sequence[Batch]]:
    """Neighbouring batches in at most ``MAX_POINTS`` groups of about the same size."""
    count = min(MAX_POINTS, len(batches))
    edges = [index * len(batches) // count for index in range(count + 1)] if count else []
    return [batches[a:b] for a, b in itertools.pairwise(edges)]


def _stage_marks(run: Run) -> tuple[list[Figure], list[Figure]]:
    """A line and a name where each stage began."""
    lines = [upright(stage.start_tokens) for stage in run.stages if stage.index]
    return lines, [stage_label(stage.name, stage.start_tokens) for stage in run.stages]


def _stop_marks(run: Run, layout: Figure) -> list[Figure]:
    """A mark where the run went on after each interruption, with what was lost in its hover text."""
    stops = [stop for stop in interruptions(run.events) if stop.tokens is not None]
    if not stops:
        return []
    top = max((line.lr for line in run.batches if math.isfinite(line.lr)), default=1.0)
    if len(stops) <= MAX_LINES:
        layout['shapes'] += [upright(stop.tokens, dash='dot') for stop in stops]
    texts = []
    for stop in stops:
        idle = 'unknown time' if stop.seconds is None else f'{"at most " if stop.at_most else ""}{stop.seconds:.0f} s'
        again = '' if stop.lost_batches is None else f', {stop.lost_batches} batches repeated'
        texts.append(f'{stop.kind}, went on at batch {stop.batch}<br>{idle} stood still{again}')
    return [
        {
            **scatter([stop.tokens or 0 for stop in stops], [top * 1.1] * len(stops)),
            'mode': 'markers',
            'name': 'stopped and resumed',
            'yaxis': 'y2',
            'marker': {'symbol': 'triangle-down', 'size': 9, 'color': '--muted'},
            'text': texts,
            'hovertemplate': '%{text}<extra></extra>',
        },
    ]
