"""What the page's charts have in common: plotly figures, written as plain dictionaries of JSON types.

Colours are names of CSS variables of the page (``--old``), which the page's script replaces by their values, so that
one figure serves light, dark and paper. Nothing here imports plotly: the page carries its script, which draws them.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import Any

from rewarm.terminal import printable

__all__ = [
    'Figure',
    'escape_label',
    'finite_span',
    'panels',
    'scatter',
    'set_range',
    'short_label',
    'stage_label',
    'upright',
]

Figure = dict[str, Any]

LONGEST_LABEL = 32
"""Characters of a name in a chart; about what fits beside another on a phone."""


def scatter(x: Sequence[Any], y: Sequence[float]) -> Figure:
    """A trace of points; numbers that are not finite are gaps."""
    return {'type': 'scatter', 'x': [_finite(value) for value in x], 'y': [_finite(value) for value in y]}


def _finite(value: Any) -> Any:
    """What JSON can say: ``None`` for NaN and infinity."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def finite_span(values: Sequence[float]) -> tuple[float, float]:
    """Lowest and highest of the finite values; zeros without any."""
    finite = [value for value in values if math.isfinite(value)] or [0.0]
    return min(finite), max(finite)


def set_range(axis: Figure, values: Sequence[float], margin: float = 0.05) -> None:
    """Fits an axis to the finite values, with a margin as a share of their spread."""
    if any(map(math.isfinite, values)):
        low, high = finite_span(values)
        space = margin * (high - low) or 0.05
        axis['range'] = [low - space, high + space]


def panels(*, height: int, rows: Sequence[tuple[str, float, float]], x_title: str = 'tokens') -> Figure:
    """A quiet layout of stacked panels over one x axis; ``rows`` are (title, bottom, top) from the top down."""
    grid = {'gridcolor': '--grid', 'zeroline': False, 'linecolor': '--faint', 'showline': True, 'ticks': 'outside'}
    grid |= {'tickcolor': '--faint', 'exponentformat': 'B', 'automargin': True, 'tickangle': 0}
    layout: Figure = {
        'height': height,
        'margin': {'l': 56, 'r': 14, 't': 28, 'b': 44},
        'paper_bgcolor': 'rgba(0,0,0,0)',
        'plot_bgcolor': 'rgba(0,0,0,0)',
        'font': {
            'family': 'system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif',
            'size': 13,
            'color': '--ink',
        },
        'hovermode': 'x unified' if len(rows) < 3 else 'closest',
        'hoverlabel': {'bgcolor': '--paper', 'bordercolor': '--faint', 'font': {'color': '--ink'}},
        'showlegend': False,
        'uirevision': 'keep',
        'modebar': {'bgcolor': 'rgba(0,0,0,0)', 'color': '--faint', 'activecolor': '--ink'},
        'xaxis': {
            **grid,
            'title': {'text': x_title, 'font': {'size': 13}},
            'anchor': f'y{len(rows) if len(rows) > 1 else ""}',
        },
    }
    for number, (title, bottom, top) in enumerate(rows, start=1):
        name = '' if number == 1 else str(number)
        axis = {**grid, 'domain': [bottom, top], 'title': {'text': title, 'font': {'size': 13}}, 'anchor': 'x'}
        if title == 'learning rate':
            axis |= {'rangemode': 'tozero', 'exponentformat': 'e', 'nticks': 4}
        elif 'loss' in title:
            axis |= {'exponentformat': 'none'}
        layout[f'yaxis{name}'] = axis
    return layout


def escape_label(text: str) -> str:
    """Text from a file for a label: plotly reads some HTML in labels."""
    return html.escape(printable(text), quote=False)


def short_label(text: str) -> str:
    """The same for a place with little room: a long text is cut in its middle."""
    half = LONGEST_LABEL // 2
    return escape_label(text if len(text) <= LONGEST_LABEL else f'{text[: half - 1]}…{text[-half:]}')


def upright(x: object, **line: Any) -> Figure:
    """A line through all panels."""
    place = {'type': 'line', 'xref': 'x', 'yref': 'paper', 'x0': x, 'x1': x, 'y0': 0, 'y1': 1}
    return place | {'line': {'color': '--faint', 'width': 1, **line}}


def stage_label(name: str, x: object) -> Figure:
    """A stage's name above where it began; the page's script moves those apart that lie on each other."""
    return {
        'name': 'stage',
        'text': short_label(name),
        'x': x,
        'y': 1,
        'xref': 'x',
        'yref': 'paper',
        'xanchor': 'left',
        'yanchor': 'bottom',
        'showarrow': False,
        'font': {'color': '--muted', 'size': 12},
    }
