"""The page's charts of several runs: their last stages over each other, and where each ends."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rewarm.report.arms import Arm, pareto_front
from rewarm.report.charts import UNTRAINED_SHARE, rate_of, rate_trace
from rewarm.report.outcome import Curve
from rewarm.report.plots import Figure, escape_label, panels, scatter, set_range, short_label

__all__ = ['comparison_figure', 'has_two_ends', 'pareto_figure']

COLOURS = ('rewarm', 'constant', 'scratch', 'replay', 'same-data', 'other-0', 'other-1', 'other-2', 'other-3')
DASHES = ('solid', '8px,4px', '2px,3px', '8px,4px,2px,4px', '16px,5px')
MARKS = ('circle', 'square', 'x', 'diamond', 'triangle-up', 'cross', 'star')
"""Each run takes the next of all three, so that the first 315 differ in one of them at least."""

NEAR = 0.015
"""Ends that are no further apart than this share of both axes lie on each other as marks."""


def comparison_figure(arms: Sequence[Arm]) -> Figure:
    """Old loss, new loss and rate of several runs over the tokens since each one's last stage began."""
    traces = []
    for index, arm in enumerate(arms):
        colour, dash, _ = _style(index)
        style = {
            'mode': 'lines',
            'name': escape_label(arm.name),
            'legendgroup': str(index),
            'line': {'color': colour, 'width': 2, 'dash': dash},
            'hovertemplate': '%{y:.4f} at %{x:.4s} tokens',
        }
        shown = False
        for axis, curve in (('', arm.old_curve), ('2', arm.new_curve)):
            if curve:
                traces.append({**_curve_line(curve), **style, 'yaxis': f'y{axis}', 'showlegend': not shown})
                shown = True
        x, y = rate_of(arm.run.stage_batches(arm.stage.name))
        start = arm.stage.start_tokens
        rate = rate_trace([tokens - start for tokens in x], y, escape_label(arm.name), colour, dash, axis='y3')
        traces.append({**rate, 'legendgroup': str(index)})
    rows = (('loss on old data', 0.64, 1.0), ('loss on new data', 0.25, 0.59), ('learning rate', 0.0, 0.18))
    layout = panels(height=720, rows=rows, x_title='tokens since the last stage began')
    for axis, curves in (('yaxis', [arm.old_curve for arm in arms]), ('yaxis2', [arm.new_curve for arm in arms])):
        values = [loss for arm, curve in zip(arms, curves, strict=True) for loss in _telling(arm, curve)]
        set_range(layout[axis], values)
    set_range(layout['xaxis'], [0, *(arm.stage.done_tokens for arm in arms)], margin=0.01)
    return {'data': traces, 'layout': layout}


def pareto_figure(arms: Sequence[Arm]) -> Figure:
    """End points of several runs, old loss against new loss, and the front that no other run beats on both.

    Args:
        arms (Sequence[Arm]): All arms of the comparison; those without a place in a trade-off are left out.
    """
    complete = [(index, arm) for index, arm in enumerate(arms) if has_two_ends(arm)]
    points = [(arm.old.end, arm.new.end) for _, arm in complete if arm.old and arm.new]
    layout = panels(
        height=420, rows=(('loss on new data at the end', 0.0, 1.0),), x_title='loss on old data at the end'
    )
    layout['xaxis']['exponentformat'] = 'none'
    for axis, values in (('xaxis', [x for x, _ in points]), ('yaxis', [y for _, y in points])):
        set_range(layout[axis], values, margin=0.15)
    layout['hovermode'] = 'closest'
    layout['margin']['t'] = 20
    front = pareto_front(points)
    traces: list[Figure] = []
    if len({points[i] for i in front}) > 1:
        traces.append(
            {
                **scatter([points[i][0] for i in front], [points[i][1] for i in front]),
                'mode': 'lines',
                'name': 'no run is better on both',
                'line': {'color': '--faint', 'width': 1.5, 'dash': '2px,3px'},
                'hoverinfo': 'skip',
                'showlegend': False,
            },
        )
    layout['annotations'] = []
    for place, ((index, arm), (old, new)) in enumerate(zip(complete, points, strict=True)):
        colour, _, mark = _style(index)
        below = sum(_near(points[each], (old, new), layout) for each in range(place))
        traces.append(
            {
                **scatter([old], [new]),
                'mode': 'markers',
                'name': escape_label(arm.name),
                'cliponaxis': False,
                # A mark on others is a ring around them.
                'marker': {'size': 11 + 7 * below, 'color': colour, 'symbol': mark + ('-open' if below else '')},
                'hovertemplate': 'old %{x:.4f}, new %{y:.4f}',
            },
        )
        layout['annotations'].append(_end_label(arm.name, old, new, colour))
    return {'data': traces, 'layout': layout}


def has_two_ends(arm: Arm) -> bool:
    """Whether a run has a place in a trade-off of old and new data: finite losses on both, and new data that it was shown."""
    ends = [side.end for side in (arm.old, arm.new) if side is not None]
    return len(ends) == 2 and all(map(math.isfinite, ends)) and arm.part != 'same-data'


def _end_label(name: str, old: float, new: float, colour: str) -> Figure:
    """A run's name, which the page's script puts where there is room near the mark, or leaves to the legend."""
    return {'name': 'end', 'text': short_label(name), 'x': old, 'y': new, 'font': {'color': colour, 'size': 13}}


def _near(a: tuple[float, float], b: tuple[float, float], layout: Figure) -> bool:
    spans = [layout[axis].get('range', (0, 1)) for axis in ('xaxis', 'yaxis')]
    return all(abs(p - q) <= NEAR * (high - low) for p, q, (low, high) in zip(a, b, spans, strict=True))


def _curve_line(curve: Curve) -> Figure:
    return scatter([tokens for tokens, _ in curve], [loss for _, loss in curve])


def _telling(arm: Arm, curve: Curve) -> list[float]:
    """The losses that set the range of an axis; of an untrained start only those after the first steep fall."""
    outcome = arm.old or arm.new
    after = UNTRAINED_SHARE * arm.stage.planned_tokens if outcome and outcome.untrained else 0
    return [loss for tokens, loss in curve if tokens >= after and math.isfinite(loss)]


def _style(index: int) -> tuple[str, str, str]:
    """Colour, dash and mark of a run by its place: told apart without colour too."""
    return f'--{COLOURS[index % len(COLOURS)]}', DASHES[index % len(DASHES)], MARKS[index % len(MARKS)]
