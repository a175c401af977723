from __future__ import annotations

import html
import re

from rewarm.report.comparison_charts import DASHES, MARKS
from rewarm.report.legend import legend
from rewarm.report.plots import escape_label


def trace(name, *, mode='lines', dash='solid', symbol='circle', **more):
    line, marker = {'color': '--old', 'width': 2, 'dash': dash}, {'color': '--new', 'symbol': symbol}
    return {'name': escape_label(name), 'mode': mode, 'line': line, 'marker': marker, **more}


def test_one_curve_needs_no_legend():
    assert legend({'data': [trace('a'), trace('b', showlegend=False)]}, 'figure-1') == ''


def test_names_and_groups_are_those_that_the_script_compares_with():
    name = '"><b>&x'
    text = legend({'data': [trace(name), trace('b', legendgroup='7')]}, 'figure-1')
    groups = [html.unescape(group) for group in re.findall('data-group="(.*?)"', text)]
    assert groups == [escape_label(name), '7']
    assert '<b>' not in text
    assert html.unescape(text).count(name) == 1  # the group is escaped twice


def test_every_dash_and_mark_has_a_sample():
    for dash in DASHES:
        text = legend({'data': [trace('a', dash=dash), trace('b')]}, 'figure-1')
        assert ('stroke-dasharray' in text) == (dash != 'solid')
    for symbol in [*MARKS, 'triangle-down']:
        for suffix in ('', '-open'):
            text = legend({'data': [trace('a', mode='markers', symbol=symbol + suffix), trace('b')]}, 'figure-1')
            assert text.count('<g ') == 1
            assert ('fill="var(--paper)"' in text) == bool(suffix)
