from __future__ import annotations

from rewarm.report.findings import NEEDED
from rewarm.report.summary import summary
from tests.report.stages import write_stages


def test_summary_has_a_line_a_run_and_two_a_finding(make_run):
    lines = summary([make_run(role) for role in ('same-data', 'scratch', 'rewarm', 'replay', 'constant')])
    assert [line.split()[0] for line in lines[1:6]] == [
        'demo-rewarm',
        'demo-constant',
        'demo-scratch',
        'demo-replay',
        'demo-same-data',
    ]
    assert len(lines) == 6 + 2 * 6
    assert max(map(len, lines)) <= 110
    assert lines[1].split()[1:] == ['3.647', '+1.11', '4.597', '+0.95', '+0.95', '5.830', '4.126', '+1.70']
    assert all(len(line) == len(lines[0]) for line in lines[1:6])
    assert lines[6] == '✓ re-warmed ends below constant on new data: seen (-0.27)'
    assert lines[7].strip().startswith('demo-rewarm against demo-constant')


def test_summary_of_one_run_and_of_an_unfinished_one(make_run):
    assert len(summary([make_run('rewarm')])) == 2
    lines = summary([make_run('rewarm', name='y', stop=200), make_run('constant')])
    assert lines[1].startswith('y (so far)')
    assert 'y not finished' in '\n'.join(lines)


def test_runs_that_cannot_be_compared_get_one_sentence(tmp_path):
    losses = {'pile': {'law': (2.0, 2.6, 2.5)}, 'law': {'law': (5.0, 4.0, 3.0)}}
    folders = [write_stages(tmp_path / name, {'law': ['law']}, losses, init_from=f'hf:{name}') for name in ('a', 'b')]
    assert summary(folders)[3:] == [NEEDED]
