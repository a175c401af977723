"""A chart's legend as HTML beside it: it wraps on a phone, reads without scripts, and its buttons hide and show curves."""

from __future__ import annotations

import html

from rewarm.report.plots import Figure

__all__ = ['legend']

WIDTH = 46
"""Of a sample of a line, in pixels: the longest dash is there twice."""

_MARKS = {
    'circle': '<circle cx="{x}" cy="7" r="4"/>',
    'square': '<rect x="{x}" y="3.5" width="7" height="7" transform="translate(-3.5)"/>',
    'diamond': '<path d="M{x} 2l4.5 5-4.5 5-4.5-5z"/>',
    'triangle-up': '<path d="M{x} 2.5l4.5 8h-9z"/>',
    'triangle-down': '<path d="M{x} 11.5l4.5-8h-9z"/>',
    'x': '<path d="M{x} 7m-4-4l8 8m0-8l-8 8" stroke-width="2.5"/>',
    'cross': '<path d="M{x} 2.5v9m-4.5-4.5h9" stroke-width="2.5"/>',
    'star': '<path d="M{x} 1.5l1.5 3.7 4 .3-3 2.6.9 3.9-3.4-2.1-3.4 2.1.9-3.9-3-2.6 4-.3z"/>',
}


def legend(figure: Figure, chart: str) -> str:
    """The legend of a chart; empty where there is only one thing to tell.

    Args:
        figure (Figure): Traces with ``showlegend: false`` are left out; traces of one ``legendgroup`` are hidden together.
        chart (str): The id of the chart's element.

    Returns:
        str: A list of buttons.
    """
    shown = [trace for trace in figure['data'] if trace.get('showlegend', True)]
    if len(shown) < 2:
        return ''
    items = []
    for trace in shown:
        group = trace.get('legendgroup', trace['name'])  # names are HTML already: plotly reads it in them too
        items.append(
            f'<li><button type="button" aria-pressed="true" data-group="{html.escape(group)}">'
            f'{_sample(trace)}{trace["name"]}</button></li>'
        )
    return f'<ul class="legend" data-chart="{chart}">{"".join(items)}</ul>'


def _sample(trace: Figure) -> str:
    drawn = ''
    line, mark = trace.get('line'), trace.get('marker')
    wide = 'lines' in trace['mode'] and line is not None
    width = WIDTH if wide else 16
    if wide and line is not None:
        thick = line['width']
        dash = line.get('dash', 'solid')
        dashes = '' if dash == 'solid' else f' stroke-dasharray="{dash.replace("px", "")}"'
        drawn += f'<path d="M1 7h{WIDTH - 2}" stroke="var({line["color"]})" stroke-width="{min(thick, 10)}"{dashes}/>'
    if 'markers' in trace['mode'] and mark is not None:
        colour = f'var({mark["color"]})'
        fill = 'var(--paper)' if mark['symbol'].endswith('-open') else colour
        shape = _MARKS[mark['symbol'].removesuffix('-open')].format(x=width // 2)
        drawn += f'<g fill="{fill}" stroke="{colour}">{shape}</g>'
    return f'<svg width="{width}" height="14" aria-hidden="true">{drawn}</svg>'
