import json

import pytest

from rewarm.config.errors import UserError
from rewarm.report.run_folder import NoRunYet
from rewarm.report.show_status import status_command
from rewarm.report.watch import Look, choose_seconds, watch
from tests.report.story import Story


def looks(*seen):
    """One look after the other, then Ctrl-C."""
    left = iter(seen)

    def look():
        each = next(left, KeyboardInterrupt())
        if isinstance(each, BaseException):
            raise each
        return Look(each, f'batch {each["batch"]}')

    return look


def test_in_a_pipe_each_change_is_a_block_and_time_that_passes_is_none(capsys):
    seen = [{'batch': 1, 'checkpoint_age_seconds': age} for age in (1, 2, 3)]
    watch(looks(*seen, {'batch': 2, 'checkpoint_age_seconds': 4}), seconds=0)
    lines = capsys.readouterr().out.splitlines()
    assert lines[1::2] == ['batch 1', 'batch 2']
    assert all(line.startswith('--- 2') and line.endswith(' UTC') for line in lines[::2])


def test_as_json_each_change_is_a_line(capsys):
    watch(looks({'batch': 1, 'eta_seconds': 9}, {'batch': 1, 'eta_seconds': 8}, {'batch': 2}), seconds=0, as_json=True)
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == [
        {'batch': 1, 'eta_seconds': 9},
        {'batch': 2},
    ]


def test_what_is_not_there_yet_is_waited_for_and_a_later_failure_is_shown(capsys):
    late = NoRunYet('runs/a: no such folder')
    watch(looks(late, late, {'batch': 1}, UserError('the bucket does not answer'), {'batch': 2}), seconds=0)
    assert [line for line in capsys.readouterr().out.splitlines() if not line.startswith('---')] == [
        'Waiting. runs/a: no such folder', 'batch 1', 'Waiting. the bucket does not answer', 'batch 2',
    ]  # fmt: skip


def test_a_mistake_is_told_at_once(tmp_path):
    with pytest.raises(UserError, match='no bucket'):
        status_command('ftp://data/run', watching=True)
    folder = Story(tmp_path / 'run').write()
    (folder / 'config.yaml').write_text('[')
    with pytest.raises(UserError, match=r'config\.yaml'):
        status_command(str(folder), watching=True)


def test_how_often_it_looks():
    assert (choose_seconds('runs/a', None), choose_seconds('s3://data/a', None)) == (5, 60)
    assert choose_seconds('s3://data/a', 2) == 2
    for every in (0, -1, 1e9, float('nan')):
        with pytest.raises(UserError, match='--every'):
            choose_seconds('runs/a', every)
