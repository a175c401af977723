from __future__ import annotations

import json
import math

import pytest

from rewarm.report.arms import first_lead, last_stage_arm, pareto_front
from rewarm.report.run_folder import read_run
from tests.report.stages import write_stages


def test_first_lead_is_where_it_stays_below():
    ours = [(0, 5.0), (10, 3.9), (20, 4.0), (30, 3.5), (40, 3.0), (45, 9.9)]
    theirs = [(0, 5.0), (10, 4.0), (20, 3.8), (30, 3.6), (40, 3.5)]
    assert first_lead(ours, theirs) == 30
    assert first_lead(theirs, ours) is None


def test_pareto_front_keeps_what_nothing_beats_on_both():
    points = [(4.6, 4.13), (4.25, 4.40), (5.17, 4.31), (3.75, 4.18), (math.nan, 1.0)]
    assert pareto_front(points) == [3, 0]
    assert pareto_front([]) == []


def test_an_arm_is_the_mean_over_the_sets_of_a_role(make_run):
    folder = make_run('constant')
    lines = [json.loads(line) for line in (folder / 'evals.jsonl').read_text().splitlines()]
    second = [{**line, 'set': 'other', 'loss': line['loss'] + 1} for line in lines if line['role'] == 'upstream']
    second = second[:-1]  # not evaluated at the last position: the mean ends one earlier
    (folder / 'evals.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines + second))
    arm = last_stage_arm(read_run(folder))
    assert arm is not None
    assert arm.old is not None
    assert arm.old_sets == ('code', 'other')
    assert arm.old.before == pytest.approx(lines[0]['loss'] + 0.5)
    assert arm.old_curve[-1][0] == second[-1]['stage_tokens']


def test_the_sides_of_an_arm_follow_from_the_stages(tmp_path):
    losses = {
        'pile': {'law': (5.2, 7.0, 7.36), 'june': (7.36, 7.34, 7.32)},
        'law': {'law': (5.0, 3.5, 3.2), 'june': (3.2, 3.15, 3.1)},
        'june': {'law': (4.0, 4.0, 4.1), 'june': (4.1, 3.9, 3.8)},
    }

    def sides(name, streams, *, upstream=('pile',), names=('pile', 'law', 'june')):
        mine = {each: losses[each] for each in names}
        folder = write_stages(tmp_path / name, {'law': ['law'], 'june': streams}, mine, upstream=upstream)
        arm = last_stage_arm(read_run(folder))
        assert arm is not None
        return arm.old_sets, arm.new_sets, arm

    old, new, arm = sides('third', ['june'])
    assert (old, new) == (('law', 'pile'), ('june',))
    # Since trained: (3.1 - 3.2 + 7.32 - 5.2) / 2. Since the run began only pile was old: 7.32 - 5.2.
    assert arm.since_trained == pytest.approx(1.01)
    assert arm.since_began == pytest.approx(2.12)
    # An anneal trains law again: its gain is not mixed into what is forgotten of pile.
    old, new, arm = sides('anneal', ['law'], names=('pile', 'law'))
    assert (old, new) == (('pile',), ('law',))
    assert arm.old.forgetting == pytest.approx(-0.04)
    assert arm.since_trained == arm.since_began == pytest.approx(2.12)
    assert sides('replay', {'june': '3/4', 'law': '1/4'})[:2] == (('law', 'pile'), ('june',))
    # The same data again: there is no other old data.
    assert sides('same', ['law'], upstream=('law',), names=('law',))[:2] == (('law',), ())


def test_an_untrained_arm_shows_the_old_data_of_others(tmp_path):
    losses = {'pile': {'law': (8.0, 7.0, 6.0)}, 'law': {'law': (8.0, 5.0, 4.0)}}
    arm = last_stage_arm(read_run(write_stages(tmp_path / 'run', {'law': ['law']}, losses, init_from='scratch')))
    assert arm is not None
    assert (arm.old_sets, arm.new_sets) == (('pile',), ('law',))
    assert arm.old is not None
    assert arm.old.forgetting is None
    assert arm.since_began is None


def test_a_set_that_was_added_within_the_stage_is_left_out_of_the_mean(tmp_path):
    losses = {'pile': {'law': (2.0, 2.5, 2.4)}, 'books': {'law': (None, None, 9.0)}, 'law': {'law': (5.0, 4.0, 3.0)}}
    folder = write_stages(tmp_path / 'run', {'law': ['law']}, losses, upstream=('pile', 'books'))
    arm = last_stage_arm(read_run(folder))
    assert arm is not None
    assert arm.old_sets == ('pile',)
    assert arm.old_curve == ((0, 2.0), (1000, 2.5), (2000, 2.4))
