from __future__ import annotations

import json
import math

import pytest

from rewarm.report.forgetting import first_lead, last_stage_arm, outcome, pareto_front, set_outcomes
from rewarm.report.run_folder import read_run
from rewarm.report.summary import find_arms, findings, role_of, summary


def test_every_measure_of_a_hand_made_curve():
    # Rises from 3.0 to 3.8 at a quarter, falls to 2.9 at the end; back under 3.0 from 90 tokens on.
    result = outcome([(0, 3.0), (10, 3.4), (25, 3.8), (60, 3.2), (90, 3.0), (100, 2.9)], stage_tokens=100)
    assert result.before == 3.0
    assert (result.peak, result.peak_tokens, result.peak_share) == (3.8, 25, 0.25)
    assert (result.end, result.end_tokens) == (2.9, 100)
    assert result.rise == pytest.approx(0.8)
    assert result.forgetting == pytest.approx(-0.1)
    assert result.adaptation == pytest.approx(0.1)
    assert result.recovery_tokens == 90
    assert result.recovered_share == pytest.approx(0.9 / 0.8)


def test_partly_recovered():
    result = outcome([(0, 3.0), (50, 4.0), (100, 3.75)], stage_tokens=200)
    assert result.recovery_tokens is None
    assert result.recovered_share == pytest.approx(0.25)
    assert result.forgetting == pytest.approx(0.75)
    assert result.peak_share == 0.25  # of the budget, not of what was done so far


def test_recovery_counts_only_if_it_lasts():
    curve = [(0, 3.0), (10, 3.5), (20, 2.9), (30, 3.1), (40, 2.8)]
    assert outcome(curve, stage_tokens=40).recovery_tokens == 40
    assert outcome(curve[:4], stage_tokens=40).recovery_tokens is None


def test_a_loss_that_never_rose_has_no_rise_and_recovers_at_once():
    result = outcome([(0, 6.0), (10, 5.0), (20, 4.5)], stage_tokens=20)
    assert result.rise == 0
    assert result.recovery_tokens == 0
    assert result.recovered_share is None
    assert result.adaptation == 1.5


def test_without_an_evaluation_before_the_stage_nothing_is_guessed():
    result = outcome([(10, 3.5), (20, 3.4)], stage_tokens=20)
    assert (result.before, result.rise, result.forgetting, result.recovery_tokens) == (None, None, None, None)
    assert result.end == 3.4


def test_untrained_weights_forget_nothing():
    assert outcome([(0, 7.8), (10, 5.0)], stage_tokens=10, untrained=True).forgetting is None


def test_a_diverged_loss_is_shown_and_is_no_peak():
    result = outcome([(0, 3.0), (10, 3.2), (20, math.nan)], stage_tokens=20)
    assert result.peak == 3.2
    assert math.isnan(result.end)
    assert result.recovery_tokens is None


def test_an_empty_curve_is_refused():
    with pytest.raises(ValueError, match='at least one evaluation'):
        outcome([], stage_tokens=1)


def test_first_lead_is_where_it_stays_below():
    ours = [(0, 5.0), (10, 3.9), (20, 4.0), (30, 3.5), (40, 3.0), (45, 9.9)]
    theirs = [(0, 5.0), (10, 4.0), (20, 3.8), (30, 3.6), (40, 3.5)]
    assert first_lead(ours, theirs) == 30
    assert first_lead(theirs, ours) is None


def test_pareto_front_keeps_what_nothing_beats_on_both():
    points = [(4.6, 4.13), (4.25, 4.40), (5.17, 4.31), (3.75, 4.18), (math.nan, 1.0)]
    assert pareto_front(points) == [3, 0]
    assert pareto_front([]) == []


def test_outcomes_of_a_run_with_two_stages(make_run):
    results = set_outcomes(read_run(make_run('rewarm')))
    assert [(r.stage.name, r.set) for r in results] == [
        ('code', 'code'),
        ('code', 'prose'),
        ('prose', 'code'),
        ('prose', 'prose'),
    ]
    upstream, _, old, new = results
    assert upstream.outcome.forgetting is None  # it began untrained
    assert old.outcome.before == pytest.approx(upstream.outcome.end, abs=0.02)
    assert old.outcome.forgetting == pytest.approx(0.95, abs=0.01)
    assert new.outcome.adaptation == pytest.approx(5.83 - 4.126, abs=0.01)


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


@pytest.mark.parametrize(
    ('name', 'role'),
    [
        ('rewarm', 'rewarm'),
        ('demo-constant', 'constant'),
        ('pythia-410m-same-data', 'same-data'),
        ('demo_same_data', 'same-data'),
        ('a-b-Replay', 'replay'),
        ('upstream', None),
        ('rewarm-2x', None),
        ('norewarm', None),
    ],
)
def test_role_of_a_run_name(name, role):
    assert role_of(name) == role


def verdicts(folders):
    return {f.claim: (f.verdict, f.detail) for f in findings(find_arms([read_run(folder) for folder in folders]))}


def test_findings_are_read_off_the_runs(make_run):
    found = verdicts([make_run(role) for role in ('rewarm', 'constant', 'scratch', 'replay', 'same-data')])
    assert found['re-warmed ends below constant on new data'] == ('seen', '-0.27')
    assert found['re-warmed ends below scratch on new data'] == ('seen', '-0.18')
    assert found['re-warmed forgets more than constant'] == ('seen', '+0.34')
    assert found['replay reduces forgetting'] == ('seen', '+0.95 to +0.10, at +0.05 on new data')
    assert found['re-warming raises the loss on the same data'][0] == 'seen'
    assert found['constant is better on new data at first, then passed'][0] == 'seen'


def test_findings_turn_around_when_the_runs_do(make_run):
    # The same claims on runs whose names are swapped.
    folders = [make_run('constant', name='x-rewarm'), make_run('rewarm', name='x-constant')]
    found = verdicts(folders)
    assert found['re-warmed ends below constant on new data'] == ('not seen', '+0.27')
    assert found['re-warmed forgets more than constant'] == ('not seen', '-0.34')
    assert found['re-warmed ends below scratch on new data'] == ('not measured', 'no scratch run')
    assert found['replay reduces forgetting'] == ('not measured', 'no replay run')
    assert found['re-warming raises the loss on the same data'] == ('not measured', 'no same-data run')


def test_equal_runs_are_too_close_to_tell(make_run):
    found = verdicts([make_run('rewarm', name='a-rewarm'), make_run('rewarm', name='a-constant')])
    assert found['re-warmed ends below constant on new data'][0] == 'too close to tell'


def test_other_evaluation_sets_are_not_compared(make_run):
    other = make_run('constant')
    text = (other / 'evals.jsonl').read_text()
    (other / 'evals.jsonl').write_text(text.replace('"set": "prose"', '"set": "news"'))
    found = verdicts([make_run('rewarm'), other])
    assert found['re-warmed ends below constant on new data'] == ('not measured', 'no new set in common')
    assert found['re-warmed forgets more than constant'][0] == 'seen'


def test_summary_has_a_line_an_arm_and_a_line_a_finding(make_run):
    lines = summary([make_run(role) for role in ('same-data', 'scratch', 'rewarm', 'replay', 'constant')])
    assert [line.split()[0] for line in lines[1:6]] == ['rewarm', 'constant', 'scratch', 'replay', 'same-data']
    assert len(lines) == 12
    assert max(map(len, lines)) <= 110
    assert '+0.95' in lines[1]
    assert lines[1].split()[5:7] == ['5.830', '4.126']
    assert all(len(line) == len(lines[0]) for line in lines[1:6])


def test_summary_of_one_run_and_of_an_unfinished_one(make_run):
    assert len(summary([make_run('rewarm')])) == 2
    lines = summary([make_run('rewarm', name='y-rewarm', stop=200), make_run('constant')])
    assert lines[1].startswith('rewarm (so far)')
    assert 'rewarm not finished' in '\n'.join(lines)
