"""A run that is killed and started again is the run that was never killed."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rewarm.config.load import load
from rewarm.config.plan import make_plan
from tests.end_to_end.waiting import wait_for, wait_until_free


def test_two_stage_run_trains_evaluates_and_finishes(unbroken):
    assert [r['batch'] for r in unbroken.lines('metrics')] == list(range(1, 13))
    plan = make_plan(load(unbroken.file))
    assert [r['lr'] for r in unbroken.lines('metrics')] == [plan.lr_at(256 * batch) for batch in range(12)]
    starts = [e for e in unbroken.lines('events') if e['event'] == 'stage_start']
    assert [(e['stage'], e['batch'], e['previous']) for e in starts] == [('first', 0, None), ('second', 6, 'first')]
    assert starts[1]['changes'] == {'lr': [plan.stages[0].last_lr, 0.0]}
    marks = [(r['stage'], r['batch'], r['when'], r['set']) for r in unbroken.lines('evals')]
    assert marks == [
        (stage, batch, when, name)
        for stage, batch, when in [
            ('first', 0, 'start'),
            ('first', 3, 'interval'),
            ('first', 6, 'end'),
            ('second', 6, 'start'),
            ('second', 9, 'interval'),
            ('second', 12, 'end'),
        ]
        for name in ('old', 'new')
    ]
    (first_batch,) = (e for e in unbroken.lines('events') if e['event'] == 'first_batch')
    assert (first_batch['stage'], first_batch['batch']) == ('first', 1)
    assert 0 < first_batch['seconds'] < 120
    assert 1e8 < first_batch['peak_memory_bytes'] < 1e10
    assert unbroken.checkpoints() == ['ba00000006', 'ba00000008', 'ba00000010', 'ba00000012']


@pytest.mark.slow
def test_killed_at_any_batch_or_instant_of_a_save_equals_the_unbroken_run(data, tmp_path):
    script = Path(__file__).with_name('kill_points.py')
    command = [sys.executable, '-W', 'ignore', str(script), str(data), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, 'OMP_NUM_THREADS': '1'})
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert done.stdout.count(': equal') >= 30


@pytest.mark.slow
def test_sigkill_of_the_whole_group_equals_the_unbroken_run(make_run, unbroken):
    run, workers = make_run(), 2
    for batches in (0, 3, 8):
        process = run.start(f'data.num_workers={workers}')
        wait_for(lambda batches=batches: run.folder.exists() and len(run.lines('metrics')) >= batches)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    run.finish(f'data.num_workers={workers}')
    assert run.losses() == unbroken.losses()
    assert run.weights() == unbroken.weights()
    assert sorted(run.evals()) == sorted(unbroken.evals())


@pytest.mark.slow
def test_two_ranks_killed_equal_two_ranks_unbroken_and_one_rank_goes_on_with_the_same_samples(
    make_run, unbroken, unbroken_of_two
):
    killed, whole = make_run('killed'), unbroken_of_two
    for batches in (4, 7):
        process = killed.start(ranks=2)
        wait_for(lambda batches=batches: killed.folder.exists() and len(killed.lines('metrics')) >= batches)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        wait_until_free(killed)
    assert 7 <= len(killed.lines('metrics')) < 12
    survivor = make_run('survivor')
    shutil.copytree(killed.folder, survivor.folder)
    killed.finish(ranks=2)
    assert killed.losses() == whole.losses()
    assert killed.weights() == whole.weights()
    # On one rank the same samples and rates; the sum over ranks is rounded elsewhere.
    survivor.finish()
    for one, two, alone in zip(survivor.lines('metrics'), whole.lines('metrics'), unbroken.lines('metrics')):
        for key in ('batch', 'lr', 'samples', 'sample_ids_crc32'):
            assert one[key] == two[key] == alone[key]
        assert one['loss'] == pytest.approx(two['loss'], rel=1e-4)
        assert one['loss'] == pytest.approx(alone['loss'], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ('ranks', 'number', 'undisturbed'),
    [(1, signal.SIGUSR2, 'unbroken'), (2, signal.SIGTERM, 'unbroken_of_two')],
)
def test_a_signal_to_the_group_saves_and_exits_75_and_the_run_goes_on(make_run, ranks, number, undisturbed, request):
    run, whole = make_run(), request.getfixturevalue(undisturbed)
    options = ('data.num_workers=2', 'checkpoints.interval=1000ba', f'preemption.signals=[{number.name}]')
    process = run.start(*options, ranks=ranks)
    wait_for(lambda: len(run.lines('metrics')) >= 2)
    os.killpg(process.pid, number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 75, output
    assert output.count('saving after this batch') == ranks  # and no loader worker says so
    assert 'resource_tracker' not in output
    saved = run.checkpoints()
    assert len(saved) == 1
    assert int(saved[0][2:]) == len(run.lines('metrics')) < 12
    events = [event['event'] for event in run.lines('events')]
    assert events[-1] == 'preempted'
    run.finish(*options, ranks=ranks)
    resume = next(event for event in run.lines('events') if event['event'] == 'resume')
    assert resume['lost_batches'] == 0
    assert run.losses() == whole.losses()
    assert sorted(run.evals()) == sorted(whole.evals())


def test_a_finished_run_says_so_and_exits_0(make_run, unbroken):
    run = make_run()
    shutil.copytree(unbroken.folder, run.folder)
    assert 'is finished' in run.finish()
    assert run.losses() == unbroken.losses()


def test_a_second_process_on_the_run_folder_is_refused_with_the_owner(make_run):
    run = make_run()
    first = run.start('stages.0.max_duration=20000ba', 'eval.interval=20000ba')
    wait_for(lambda: len(run.lines('metrics')) >= 1)
    output = run.finish(code=2)
    assert first.poll() is None
    first.kill()
    first.wait()
    assert f'in use by process {first.pid} on' in output
    assert 'Traceback' not in output


@pytest.mark.parametrize('damage', ['flipped byte', 'half written', 'latest wrong'])  # more in tests/faults
def test_a_damaged_newest_checkpoint_is_set_aside_and_the_run_goes_on(make_run, unbroken, damage):
    run = make_run()
    shutil.copytree(unbroken.folder, run.folder)
    root = run.folder / 'checkpoints'
    newest = root / 'ba00000012'
    model = newest / 'model.safetensors'
    if damage == 'flipped byte':
        content = bytearray(model.read_bytes())
        content[len(content) // 2] ^= 1
        model.write_bytes(content)
    elif damage == 'half written':
        newest.rename(root / '.writing-ba00000012')
    else:
        (root / 'latest').write_text('ba99999999\n')
    run.finish()
    assert run.losses() == unbroken.losses()
    assert run.weights() == unbroken.weights()
    assert (root / 'latest').read_text() == 'ba00000012\n'
    assert not list(root.glob('.writing-*'))
    events = [event for event in run.lines('events') if event['event'] == 'fallback']
    assert len(events) == {'flipped byte': 2}.get(damage, 1)  # `latest` is put right as well
    if damage == 'flipped byte':
        assert (root / 'ba00000012.broken').exists()


def test_damaged_records_are_left_out_told_once_and_stop_no_start(make_run, unbroken):
    run = make_run()
    shutil.copytree(unbroken.folder, run.folder)
    shutil.rmtree(run.folder / 'checkpoints/ba00000012')
    for name in ('metrics', 'evals', 'events'):
        path = run.folder / f'{name}.jsonl'
        lines = path.read_text().splitlines(keepends=True)
        path.write_text(''.join([lines[0], '{}\n', '[' * 5000 + '\n', *lines[1:]]))
    output = run.finish()
    assert run.losses() == unbroken.losses()
    assert sorted(run.evals()) == sorted(unbroken.evals())
    for name in ('metrics', 'evals', 'events'):
        path = run.folder / f'{name}.jsonl'
        assert output.count(f'2 damaged lines of {path} left out, the first: {path}:2: damaged: ') == 1
    text = (run.folder / 'events.jsonl').read_text()
    told = [json.loads(line) for line in text.splitlines() if '"records_damaged"' in line]
    assert [each['lines'] for each in told] == [2, 2, 2]
    (run.folder / 'evals.jsonl').unlink()
    (run.folder / 'evals.jsonl').mkdir()
    output = run.finish(code=2)
    assert 'evals.jsonl: damaged: it is a folder' in output
    assert 'Traceback' not in output


def test_a_set_that_is_added_where_the_run_stopped_is_evaluated_and_no_other_recorded_again(make_run, unbroken):
    run = make_run()
    shutil.copytree(unbroken.folder, run.folder)
    sets = [line for line in run.lines('evals') if line['set'] == 'old']
    (run.folder / 'evals.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in sets))
    run.finish()
    added = [line for line in run.lines('evals') if line['set'] == 'new']
    assert run.lines('evals') == [*sets, *added]
    assert [line['batch'] for line in added] == [12]


def test_no_whole_checkpoint_is_a_refusal_and_never_a_new_start(make_run, unbroken):
    run = make_run()
    shutil.copytree(unbroken.folder, run.folder)
    for path in (run.folder / 'checkpoints').glob('ba*/model.safetensors'):
        os.truncate(path, 100)
    output = run.finish(code=2)
    assert 'none of them is whole' in output
    assert 'Traceback' not in output
    assert run.losses() == unbroken.losses()
