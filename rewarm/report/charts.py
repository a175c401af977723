"""The page's charts of losses and rates, over the tokens of a run."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from rewarm.report.arms import Arm, pareto_front
from rewarm.report.forgetting import Curve, by_set
from rewarm.report.interruptions import interruptions
from rewarm.report.plots import Figure, escape_label, finite_span, panels, scatter, set_range
from rewarm.report.run_folder import Batch, Run
from rewarm.report.stories import find_stories, set_label

__all__ = ['comparison_figure', 'pareto_figure', 'training_figure', 'validation_figure']

MAX_POINTS = 500
"""Points of a training curve in one stage; more batches than this share a point (mean, lowest and highest)."""
MAX_MARKS = 80
"""Evaluations are marked one by one up to here."""
MAX_LINES = 12
"""Up to here every interruption gets a line through the chart; beyond, only its mark."""
SET_DASHES = ('solid', 'dash', 'dot', 'dashdot')
ARM_DASHES = {'rewarm': 'solid', 'constant': 'dash', 'scratch': 'dot', 'replay': 'dashdot', 'same-data': 'longdash'}
ARM_MARKS = {
    'rewarm': 'circle',
    'constant': 'square',
    'scratch': 'x',
    'replay': 'diamond',
    'same-data': 'triangle-up',
}
OTHER_COLOURS = 4
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
        before = [each for each in [*lines][:index] if (kinds[each] == 'old') == old]
        traces.append(
            {
                **scatter([*points], [points[tokens].loss for tokens in points]),
                'name': escape_label(set_label(name, stories.told(name, mine[-1].stage).words)),
                'mode': 'lines+markers' if len(points) <= MAX_MARKS else 'lines',
                'line': {'color': '--old' if old else '--new', 'width': 2, 'dash': SET_DASHES[len(before) % 4]},
                'marker': {
                    'size': 4,
                    'color': '--old' if old else '--new',
                    'symbol': 'circle' if old else 'square',
                },
                'hovertemplate': '%{y:.3f} at %{x:.4s} tokens',
            },
        )
    x, y = _rate(run.batches)
    traces.append(_rate_trace(x, y, 'learning rate', '--ink', None))
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
                'hovertemplate': '%{y:.3f} at %{x:.4s} tokens<extra>' + escape_label(stage.name) + '</extra>',
                'legendgroup': str(number),
            },
        )
    layout = panels(height=300, rows=(('training loss', 0.0, 1.0),))
    set_range(layout['xaxis'], [0, run.tokens], margin=0.01)
    layout['shapes'], layout['annotations'] = _stage_marks(run)
    return {'data': traces, 'layout': layout}


def comparison_figure(arms: Sequence[Arm]) -> Figure:
    """Old loss, new loss and rate of several runs over the tokens since each one's last stage began."""
    traces = []
    for index, arm in enumerate(arms):
        colour, dash, _ = _arm_style(arm, index)
        style = {
            'mode': 'lines',
            'name': escape_label(arm.name),
            'legendgroup': str(index),
            'line': {'color': colour, 'width': 2, 'dash': dash},
            'hovertemplate': '%{y:.3f} at %{x:.4s} tokens',
        }
        shown = False
        for axis, curve in (('', arm.old_curve), ('2', arm.new_curve)):
            if curve:
                traces.append({**_curve_line(curve), **style, 'yaxis': f'y{axis}', 'showlegend': not shown})
                shown = True
        x, y = _rate(arm.run.stage_batches(arm.stage.name))
        start = arm.stage.start_tokens
        rate = _rate_trace([tokens - start for tokens in x], y, escape_label(arm.name), colour, dash, axis='y3')
        traces.append({**rate, 'legendgroup': str(index)})
    rows = (('loss on old data', 0.64, 1.0), ('loss on new data', 0.25, 0.59), ('learning rate', 0.0, 0.18))
    layout = panels(height=760, rows=rows, x_title='tokens since the last stage began')
    for axis, curves in (('yaxis', [arm.old_curve for arm in arms]), ('yaxis2', [arm.new_curve for arm in arms])):
        values = [loss for arm, curve in zip(arms, curves, strict=True) for loss in _telling(arm, curve)]
        set_range(layout[axis], values)
    set_range(layout['xaxis'], [0, *(arm.stage.done_tokens for arm in arms)], margin=0.01)
    return {'data': traces, 'layout': layout}


def pareto_figure(arms: Sequence[Arm]) -> Figure:
    """End points of several runs, old loss against new loss, and the front that no other run beats on both.

    Args:
        arms (Sequence[Arm]): Arms of the comparison; those without both losses are left out.
    """
    complete = [(index, arm) for index, arm in enumerate(arms) if arm.old and arm.new]
    points = [(arm.old.end, arm.new.end) for _, arm in complete if arm.old and arm.new]
    front = pareto_front(points)
    traces: list[Figure] = [
        {
            **scatter([points[i][0] for i in front], [points[i][1] for i in front]),
            'mode': 'lines',
            'line': {'color': '--faint', 'width': 1.5, 'dash': 'dot'},
            'hoverinfo': 'skip',
            'showlegend': False,
        },
    ]
    for (index, arm), (old, new) in zip(complete, points, strict=True):
        colour, _, mark = _arm_style(arm, index)
        traces.append(
            {
                **scatter([old], [new]),
                'mode': 'markers+text',
                'name': escape_label(arm.name),
                'text': [escape_label(arm.name)],
                # Towards the middle, so that no name is cut at an edge.
                'textposition': 'top left' if 2 * old > sum(finite_span([x for x, _ in points])) else 'top right',
                'cliponaxis': False,
                'textfont': {'color': colour},
                'marker': {'size': 11, 'color': colour, 'symbol': mark},
                'hovertemplate': 'old %{x:.3f}, new %{y:.3f}',
                'showlegend': False,
            },
        )
    layout = panels(
        height=420, rows=(('loss on new data at the end', 0.0, 1.0),), x_title='loss on old data at the end'
    )
    for axis, values in (('xaxis', [x for x, _ in points]), ('yaxis', [y for _, y in points])):
        layout[axis].update(exponentformat='none', tickformat='.2f')
        set_range(layout[axis], values, margin=0.15)
    layout['hovermode'] = 'closest'
    layout['margin']['t'] = 20
    return {'data': traces, 'layout': layout}


def _curve_line(curve: Curve) -> Figure:
    return scatter([tokens for tokens, _ in curve], [loss for _, loss in curve])


def _telling(arm: Arm, curve: Curve) -> list[float]:
    """The losses that set the range of an axis; of an untrained start only those after the first steep fall."""
    untrained = bool((arm.old or arm.new) and (arm.old or arm.new).untrained)  # type: ignore[union-attr]
    after = UNTRAINED_SHARE * arm.stage.planned_tokens if untrained else 0
    return [loss for tokens, loss in curve if tokens >= after and math.isfinite(loss)]


def _rate_trace(x: list[int], y: list[float], name: str, colour: str, dash: str | None, axis: str = 'y2') -> Figure:
    return {
        **scatter(x, y),
        'mode': 'lines',
        'name': name,
        'yaxis': axis,
        'showlegend': False,
        'line': {'color': colour, 'width': 1.5, 'dash': dash or 'solid'},
        'hovertemplate': '%{y:.3~e} at %{x:.4s} tokens',
    }


def _rate(batches: Sequence[Batch]) -> tuple[list[int], list[float]]:
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


def _arm_style(arm: Arm, index: int) -> tuple[str, str, str]:
    """Colour, dash and mark of an arm: the same for a role on every page, and told apart without colour too."""
    role = arm.part
    if role:
        return f'--{role}', ARM_DASHES[role], ARM_MARKS[role]
    other = index % OTHER_COLOURS
    return f'--other-{other}', SET_DASHES[other], [*ARM_MARKS.values()][other] + '-open'


def _stage_marks(run: Run) -> tuple[list[Figure], list[Figure]]:
    """A line and a name where each stage began."""
    shapes, names = [], []
    for stage in run.stages:
        if stage.index:
            line = {'color': '--faint', 'width': 1}
            x = stage.start_tokens
            shapes.append(
                {'type': 'line', 'xref': 'x', 'yref': 'paper', 'x0': x, 'x1': x, 'y0': 0, 'y1': 1, 'line': line}
            )
        names.append(
            {
                'text': escape_label(stage.name),
                'x': stage.start_tokens,
                'y': 1,
                'xref': 'x',
                'yref': 'paper',
                'xanchor': 'left',
                'yanchor': 'bottom',
                'showarrow': False,
                'font': {'color': '--muted', 'size': 12},
            },
        )
    return shapes, names


def _stop_marks(run: Run, layout: Figure) -> list[Figure]:
    """A mark where the run went on after each interruption, with what was lost in its hover text."""
    stops = [stop for stop in interruptions(run.events) if stop.tokens is not None]
    if not stops:
        return []
    top = max((line.lr for line in run.batches if math.isfinite(line.lr)), default=1.0)
    if len(stops) <= MAX_LINES:
        line = {'color': '--faint', 'width': 1, 'dash': 'dot'}
        layout['shapes'] += [
            {
                'type': 'line',
                'xref': 'x',
                'yref': 'paper',
                'x0': s.tokens,
                'x1': s.tokens,
                'y0': 0,
                'y1': 1,
                'line': line,
            }
            for s in stops
        ]
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
