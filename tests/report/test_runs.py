import io
import json
import os
from datetime import timedelta
from pathlib import Path

import pytest
from rich.console import Console

from rewarm.buckets.bucket import open_bucket
from rewarm.config.errors import UserError
from rewarm.formats.files import LARGEST_BYTES
from rewarm.report import show_runs
from rewarm.report.runs import find_runs
from rewarm.report.show_runs import runs_command
from rewarm.report.status import find_status
from tests.buckets.servers import BUCKET
from tests.report.conftest import BEGAN
from tests.report.story import Story


@pytest.fixture
def runs(tmp_path):
    """A folder with a finished run, one in a folder of its own that was preempted later, and what is no run."""
    Story(tmp_path / 'done', {'code': 20}).start().train(19).finish().write()
    later = Story(tmp_path / 'november/law', {'code': 10, 'prose': 40}, began=BEGAN + timedelta(hours=1))
    later.start().train(24).preempt().write()
    Story(tmp_path / 'new').write()
    (tmp_path / 'notes').mkdir()
    (tmp_path / '.hidden').mkdir()
    (tmp_path / 'notes/again').symlink_to(tmp_path)
    (tmp_path / 'readme.txt').write_text('mine')
    return tmp_path


def bytes_read():
    """What this process has read so far, by the kernel's count."""
    return int(Path('/proc/self/io').read_text().split()[1])


def facts_of(folder, capsys):
    runs_command(str(folder), as_json=True)
    return json.loads(capsys.readouterr().out)


def test_runs_are_found_in_folders_too_and_the_last_sign_of_life_comes_first(runs):
    assert [each.name for each in find_runs(str(runs))] == ['november/law', 'done', 'new']
    assert [each.name for each in find_runs(f'{runs}/done')] == ['done']
    assert find_runs(f'{runs}/notes/again/.hidden') == []


def test_each_run_is_told_with_what_needs_attention(runs, capsys):
    law, done, new = facts_of(runs, capsys)
    assert (law['state'], law['stage'], law['batch'], law['batches']) == ('stopped', 'prose', 25, 50)
    assert law['attention'] == 'preempted: SIGTERM; if started now, it would go on from ba00000025'
    assert law['loss'] == pytest.approx(4 + 1 / 25)
    assert (done['state'], done['attention'], done['run_folder']) == ('finished', None, f'{runs}/done')
    assert (new['state'], new['attention'], new['last_sign']) == ('not started', None, None)


def test_a_run_that_cannot_be_read_has_its_line_and_the_others_theirs(runs, capsys):
    (runs / 'done/plan.json').write_text('{')
    (runs / 'november/law/metrics.jsonl').write_text('no line\n')
    law, done, _ = facts_of(runs, capsys)
    assert done['state'] == 'damaged'
    assert 'plan.json: damaged' in done['attention']
    assert law['attention'].endswith('. 1 damaged line in metrics.jsonl')
    runs_command(str(runs))
    out = capsys.readouterr().out
    assert 'damaged' in out
    assert 'new' in out


def test_validation_losses_are_means_over_what_is_old_and_new(make_run, capsys):
    folder = make_run('rewarm', stop=300)
    (facts,) = facts_of(folder.parent, capsys)
    newest = {entry['set']: entry['loss'] for entry in facts['evaluations']}
    assert (facts['old_loss'], facts['new_loss']) == (newest['code'], newest['prose'])
    runs_command(str(folder.parent))
    line = capsys.readouterr().out.splitlines()[1]
    assert f'{newest["code"]:.3f} {newest["prose"]:.3f}' in line


@pytest.mark.parametrize('width', [120, 80, 60, 40])
def test_the_table_fits_and_keeps_name_and_state_however_narrow(runs, width, capsys):
    long = 'a-run-of-which-the-name-is-longer-than-the-half-of-a-terminal'
    (runs / 'done').rename(runs / long)
    block = show_runs._block(str(runs), facts_of(runs, capsys))
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(block)
    text = console.file.getvalue()
    assert max(map(len, text.splitlines())) <= width
    assert long in text.replace('\n', '').replace(' ', '') or width < 100
    assert all(word in text for word in ('stopped', 'finished', 'not started', 'last sign'))
    assert ('stage' in text.splitlines()[0]) == (width >= 80)


def test_no_run_and_no_folder_are_told(tmp_path, capsys):
    runs_command(str(tmp_path))
    assert capsys.readouterr().out == f'There is no run in {tmp_path}.\n'
    assert facts_of(tmp_path, capsys) == []
    with pytest.raises(UserError, match='no such folder; name the one that your run folders are in'):
        runs_command(str(tmp_path / 'nowhere'))


def test_names_from_files_do_not_steer_the_terminal(tmp_path, capsys):
    Story(tmp_path / 'a\x1b[2J').write()
    runs_command(str(tmp_path))
    out = capsys.readouterr().out
    assert '\x1b' not in out
    assert r'a\x1b[2J' in out


def test_only_the_ends_of_long_files_are_read(tmp_path):
    folder = Story(tmp_path / 'long', {'code': 900}).start().train(499).write()
    for name in ('metrics.jsonl', 'events.jsonl'):
        text = (folder / name).read_bytes()
        with (folder / name).open('wb') as file:
            file.truncate(LARGEST_BYTES // 2)  # of nothing, and the lines
            file.seek(0, 2)
            file.write(b'\n' + text)
        assert (folder / name).stat().st_blocks < 2000
    before = bytes_read()
    (run,) = find_runs(str(tmp_path))
    assert bytes_read() - before < 1 << 20
    assert (run.status.batch, run.problem) == (500, None)


def test_runs_of_a_bucket_are_told_like_those_of_a_folder(runs, bucket, capsys):
    long = Story(runs / 'long', {'code': 900}).start().train(600)
    long.save().train(30).kill().write()
    assert (runs / 'long/metrics.jsonl').stat().st_size > 1 << 17
    (runs / 'notes/again').unlink()
    bucket(runs)
    url = f's3://{BUCKET}/runs/story'
    store = open_bucket(url)
    store.write(f'{url}/new/tensorboard/log.0', b'x')
    here, there = ({each['run']: each for each in facts_of(place, capsys)} for place in (runs, url))
    assert [*here] == [*there]
    for name, facts in there.items():
        assert facts['run_folder'] == f'{url}/{name}'
        for key in ('state', 'stage', 'batch', 'batches', 'loss', 'evaluations', 'last_sign', 'attention'):
            assert facts.get(key) == here[name].get(key), (name, key)
    with pytest.raises(UserError, match='there is no run'):
        find_runs(f's3://{BUCKET}/elsewhere')
    words = f'{url}: not a run folder; it holds the runs done, long, new, november/law: name one of them. All: rewarm'
    with pytest.raises(UserError, match=words):
        find_status(url)


def test_a_folder_of_runs_is_no_run_and_says_which_there_are(runs):
    with pytest.raises(UserError, match=f'it holds the runs done, new: name one of them. All: rewarm runs {runs}'):
        find_status(runs)
    assert os.listdir(runs)
