from __future__ import annotations

import pytest

from rewarm.report.run_folder import read_run
from rewarm.report.summary import find_arms, findings, role_of, summary


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
