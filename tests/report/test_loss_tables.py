from __future__ import annotations

import re

from rewarm.report.arms import last_stage_arm
from rewarm.report.loss_tables import arms_table, changes_table, stage_outcomes_table
from rewarm.report.run_folder import read_run
from tests.report.stages import write_stages


def rows(table):
    """The texts of a table's cells, row by row, by the first one."""
    found = [re.findall(r'<t[hd][^>]*>(.*?)</t[hd]>', row) for row in re.split(r'<tr[^>]*>', table)]
    texts = [[re.sub(r'<[^>]*>', '', cell) for cell in row] for row in found if row]
    return {row[0]: row[1:] for row in texts}


def annealed(tmp_path):
    return write_stages(
        tmp_path / 'run',
        {'law': ['law'], 'anneal': ['law']},
        {
            'pile': {'law': (5.2, 7.0, 7.36), 'anneal': (7.36, 7.34, 7.32)},
            'law': {'law': (5.0, 3.5, 3.2), 'anneal': (3.2, 3.15, 3.1)},
        },
    )


def test_each_set_is_told_three_ways(tmp_path):
    found = rows(changes_table(read_run(annealed(tmp_path)), 1))
    assert found['pile (old)'] == ['7.320', '−0.040', '+2.120', '+2.120']
    assert found['law (old, trained again)'] == ['3.100', '−0.100', 'anneal trains it', '−1.900']


def test_a_comparison_tells_what_an_anneal_did_not_undo(tmp_path):
    arm = last_stage_arm(read_run(annealed(tmp_path)))
    assert arm is not None
    table = arms_table([arm], 1)
    found = rows(table)
    assert found['Run'][4:7] == ['Forgetting', 'since trained', 'since the run began']
    assert found['run'] == [
        '2\xa0k',
        '7.360',
        '+0.000',
        '7.320',
        '−0.040',
        '+2.120',
        '+2.120',
        '3.200',
        '3.100',
        '+0.100',
    ]
    assert 'Here old is pile, new is law.' in table


def test_a_set_called_old_is_not_old_old(tmp_path):
    losses = {'old': {'law': (2.0, 2.2, 2.1)}, 'new': {'law': (5.0, 4.0, 3.0)}}
    sets = [{'name': 'old', 'role': 'upstream'}, {'name': 'new', 'role': 'downstream', 'of': ['law']}]
    folder = write_stages(tmp_path / 'run', {'law': ['law']}, losses, sets=sets)
    assert {'old', 'new'} < rows(stage_outcomes_table(read_run(folder), 1)).keys()
