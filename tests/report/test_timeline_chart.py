from __future__ import annotations

import json
import re
from datetime import datetime

import plotly.graph_objects as go
import pytest

from rewarm.report.run_folder import read_run
from rewarm.report.timeline import find_timeline
from rewarm.report.timeline_chart import timeline_figure
from tests.report.conftest import TOKENS_PER_BATCH
from tests.report.story import Story, eventful


@pytest.fixture
def story(tmp_path):
    """All that a run can go through."""
    return eventful(tmp_path / 'run')


def figure_of(story):
    run = read_run(story.write())
    return timeline_figure(run, find_timeline(run))


def trace(figure, name):
    (found,) = [each for each in figure['data'] if each['name'] == name]
    return found


def seconds(trace):
    """The total length of the spans of a band."""
    times = [datetime.fromisoformat(x) for x in trace['x']]
    spans = zip(times[::3], times[1::3], strict=True)
    return sum((end - begin).total_seconds() for begin, end in spans)


def test_each_thing_that_happened_has_its_row(story):
    figure = figure_of(story)
    assert figure['layout']['yaxis3']['ticktext'] == [
        'time', 'killed', 'spikes, rollbacks', 'damaged, set aside', 'lost a rank, hung', 'asked to stop',
        'failed saves, uploads', 'uploads', 'saves',
    ]  # fmt: skip
    rows = dict(enumerate(figure['layout']['yaxis3']['ticktext']))
    for name, count in (('saves', 3), ('uploads', 3), ('asked to stop', 3), ('killed', 1), ('spikes, rollbacks', 1)):
        marks = trace(figure, name)
        assert len(marks['x']) == count
        assert {rows[y] for y in marks['y']} == {name}
    assert 'stall seconds 0.5' in trace(figure, 'saves')['text'][0]
    assert '&lt;refused&gt;' in trace(figure, 'failed saves, uploads')['text'][0]


def test_the_bands_are_the_processes(story):
    figure = figure_of(story)
    truth = story.truth
    assert seconds(trace(figure, 'no process')) == pytest.approx(truth['stopped'], abs=1)
    assert seconds(trace(figure, 'starting')) == pytest.approx(truth['starting'], abs=0.01)
    assert seconds(trace(figure, 'batches that were lost')) == pytest.approx(truth['repeating'], abs=1)


def test_progress_falls_back_where_batches_were_lost(story):
    figure = figure_of(story)
    trained, lost = trace(figure, 'trained'), trace(figure, 'lost and repeated')
    tokens = [y for y in trained['y'] if y is not None]
    assert tokens == sorted(tokens)
    assert tokens[-1] == story.batch * TOKENS_PER_BATCH
    assert lost['y'][:2] == [300 * TOKENS_PER_BATCH, 350 * TOKENS_PER_BATCH]


def test_goodput_ends_at_that_of_the_run_and_never_leaves_its_bounds(story):
    curve = trace(figure_of(story), 'goodput so far')
    assert curve['y'][-1] == pytest.approx(find_timeline(read_run(story.folder)).goodput)
    assert all(0 <= y <= 1 for y in curve['y'])
    assert curve['x'] == sorted(curve['x'])


def test_a_long_run_is_drawn_with_few_points(tmp_path):
    story = Story(tmp_path / 'run', {'code': 20_000})
    for _ in range(10):
        story.start().train(1900).save().train(20).kill()
    figure = figure_of(story)
    assert len(trace(figure, 'trained')['x']) < 1700
    assert trace(figure, 'trained')['y'][-2] == (10 * 1901 + 20) * TOKENS_PER_BATCH  # nobody has cut the last ones yet


@pytest.mark.parametrize('role', ['rewarm', 'constant'])
def test_old_run_folders_are_drawn_too(make_run, role):
    run = read_run(make_run(role))
    figure = timeline_figure(run, find_timeline(run))
    assert trace(figure, 'trained')['y'][-2] == run.batches[-1].tokens
    assert trace(figure, 'goodput so far')['y'][-1] == pytest.approx(find_timeline(run).goodput)
    go.Figure(json.loads(re.sub(r'"--[\w-]+"', '"#000000"', json.dumps(figure))))


def test_processes_that_never_trained_are_drawn(tmp_path):
    story = Story(tmp_path / 'run').start(first_batch=False).kill().start(first_batch=False)
    assert seconds(trace(figure_of(story), 'no process')) == pytest.approx(72)  # from one start's event to the other's
