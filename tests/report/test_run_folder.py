from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from dataclasses import replace

import pytest

from rewarm.config.errors import UserError
from rewarm.report.run_folder import read_run, read_runs


def test_reads_every_file_of_a_run(make_run):
    run = read_run(make_run('rewarm'))
    assert run.name == 'demo-rewarm'
    assert [(s.name, s.index, s.start_tokens, s.done_tokens, s.batches) for s in run.stages] == [
        ('code', 0, 0, 1_024_000, 1000),
        ('prose', 1, 1_024_000, 798_720, 780),
    ]
    assert run.tokens == 1_822_720
    assert run.finished
    assert run.from_scratch
    assert run.batches[1005].samples == {'prose': 48}
    assert run.evaluations[0].when == 'start'
    assert run.events[2].fields == {'path': 'checkpoints/ba00000600', 'seconds': 0.4, 'bytes': 7_400_000}
    assert run.environment.versions['torch'] == '2.13.0+cpu'
    assert run.damage == ()


def test_an_unfinished_run_is_read_as_far_as_it_came(make_run):
    run = read_run(make_run('constant', stop=100))
    assert run.stages[0].done_tokens == 102_400
    assert run.stages[0].planned_tokens == 798_720
    assert not run.finished


def test_a_run_with_stages_to_come_is_not_finished(make_run):
    folder = make_run('constant')
    plan = json.loads((folder / 'plan.json').read_text())
    plan['stages'].append({'name': 'later', 'tokens': 1024})
    (folder / 'plan.json').write_text(json.dumps(plan))
    run = read_run(folder)
    assert [stage.name for stage in run.stages] == ['prose']
    assert not run.finished


@pytest.mark.parametrize('name', ['metrics.jsonl', 'evals.jsonl', 'events.jsonl'])
def test_a_torn_last_line_is_dropped(make_run, name):
    folder = make_run('constant')
    whole = read_run(folder)
    with (folder / name).open('a') as file:
        file.write('{"stage": "prose", "batch": 7')
    assert read_run(folder) == whole


def test_unreadable_lines_before_the_last_are_dropped_and_counted(make_run):
    folder = make_run('constant')
    text = (folder / 'events.jsonl').read_text()
    (folder / 'events.jsonl').write_text('{"event": "sa\n' + text)
    run = read_run(folder)
    assert [str(each) for each in run.damage] == [
        '1 damaged line of events.jsonl left out, the first: events.jsonl:1: damaged: byte 10: no JSON '
        '(Unterminated string starting at)'
    ]
    assert len(run.events) == len(text.splitlines())


def test_only_one_file_is_enough(make_run):
    folder = make_run('constant')
    for path in folder.iterdir():
        if path.name != 'evals.jsonl':
            path.unlink()
    run = read_run(folder)
    assert run.name == 'demo-constant'  # the folder's name
    assert run.stages[0].planned_tokens == 798_720
    assert run.batches == ()


def test_a_batch_done_twice_counts_once(make_run):
    folder = make_run('constant', stop=50)
    lines = (folder / 'metrics.jsonl').read_text().splitlines(keepends=True)
    again = [line.replace('"grad_norm": 1.0', '"grad_norm": 2.0') for line in lines[30:45]]
    (folder / 'metrics.jsonl').write_text(''.join(lines + again))
    assert [line.batch for line in read_run(folder).batches] == list(range(1, 46))


def test_losses_that_are_not_numbers(make_run):
    folder = make_run('constant', stop=8)
    text = (folder / 'metrics.jsonl').read_text().splitlines()
    text[2] = json.dumps({**json.loads(text[2]), 'loss': None})
    (folder / 'metrics.jsonl').write_text('\n'.join(text))
    losses = [line.loss for line in read_run(folder).batches]
    assert [math.isnan(loss) for loss in losses] == [False, False, True, *[False] * 5]


@pytest.mark.parametrize(
    ('line', 'message'),
    [
        ('{"stage": "a", "batch": 1}', 'metrics.jsonl:2: damaged: tokens: is missing'),
        ('{"stage": "a", "batch": "x", "tokens": 1, "stage_tokens": 1}', "metrics.jsonl:2: damaged: batch: .*'x'"),
    ],
)
def test_a_line_of_another_kind_is_left_out_and_named(make_run, line, message):
    folder = make_run('constant', stop=8)
    lines = (folder / 'metrics.jsonl').read_text().splitlines()
    (folder / 'metrics.jsonl').write_text('\n'.join([lines[0], line, *lines[1:]]) + '\n')
    run = read_run(folder)
    assert len(run.batches) == 8
    assert re.search(message, str(run.damage[0]))


def test_a_run_in_a_bucket_reads_like_the_folder(make_run, bucket):
    folder = make_run('rewarm')
    url = bucket(folder)
    here, there = read_run(folder), read_run(url)
    assert there.place == url
    assert replace(there, folder=here.folder, place=here.place) == here


def test_what_is_no_run_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match='no such folder'):
        read_run(tmp_path / 'none')
    with pytest.raises(UserError, match=r'not a run folder.*give the folder'):
        read_run(tmp_path)
    with pytest.raises(UserError, match='no run folder given'):
        read_runs([])
    for name, text in (('plan.json', '{'), ('plan.json', '[]'), ('config.yaml', 'a: [')):
        (tmp_path / name).write_text(text)
        with pytest.raises(UserError, match=name):
            read_run(tmp_path)
        (tmp_path / name).unlink()


def test_nothing_in_the_report_imports_torch():
    code = (
        'import sys\n'
        'from rewarm.report import charts, figure, forgetting, interruptions, page, run_folder, summary, tables\n'
        "print([name for name in ('torch', 'composer', 'streaming', 'transformers', 'matplotlib') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == '[]'
