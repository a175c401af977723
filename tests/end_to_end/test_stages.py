"""Stages are appended, annealed and forked; what has been trained cannot be edited."""

import json
import re
import shutil
import signal
import time

import pytest

from rewarm.report.forgetting import set_outcomes
from rewarm.report.run_folder import read_run

ANNEAL = """  - name: anneal
    max_duration: 4ba
    train: {{streams: [{{name: new, local: {data}/new}}]}}
    schedule: {{name: linear, lr: current}}
"""


@pytest.fixture
def finished(make_run, unbroken):
    run = make_run()
    shutil.copytree(unbroken.folder, run.folder)
    return run


def append_stage(run, data):
    text = run.file.read_text()
    run.file.write_text(text.replace('eval:\n', ANNEAL.format(data=data) + 'eval:\n', 1))


def test_appending_a_stage_starts_exactly_that_stage(finished, unbroken, data):
    append_stage(finished, data)
    finished.finish()
    assert finished.losses()[:12] == unbroken.losses()
    added = finished.lines('metrics')[12:]
    assert [r['stage'] for r in added] == ['anneal'] * 4
    last = finished.lines('metrics')[11]['lr']
    assert [r['lr'] for r in added] == pytest.approx([last, last * 3 / 4, last / 2, last / 4])
    begun = [event['stage'] for event in finished.lines('events') if event['event'] == 'stage_start']
    assert begun == ['first', 'second', 'anneal']
    # The same weights are evaluated once and recorded for both stages.
    at_edge = [r for r in finished.lines('evals') if r['batch'] == 12]
    assert [(r['stage'], r['when']) for r in at_edge] == [('second', 'end')] * 2 + [('anneal', 'start')] * 2
    assert at_edge[0]['loss'] == at_edge[2]['loss']
    # What each set is in a stage is written as the plan and the report tell it.
    told = {(each.stage.name, each.set): each.told.words for each in set_outcomes(read_run(finished.folder))}
    assert {(r['stage'], r['set']): r['kind'] for r in finished.lines('evals')} == told


@pytest.mark.parametrize(
    ('override', 'words'),
    [
        ('stages.0.max_duration=5ba', 'stages.0.max_duration  6ba  5ba'),
        ('stages.0.schedule.lr=2.0e-2', 'has ended and cannot be edited'),
        ('seed=18', 'seed  17   18'),
        ('global_train_batch_size=4', 'global_train_batch_size  8    4'),
    ],
)
def test_what_has_been_trained_cannot_be_edited(finished, unbroken, data, override, words):
    append_stage(finished, data)
    output = finished.finish(override, code=2)
    assert words in output
    assert 'Traceback' not in output
    assert finished.losses() == unbroken.losses()


def test_other_data_under_a_begun_stage_is_refused(make_run, data):
    run = make_run()
    process = run.start('stages.1.max_duration=4000ba', 'eval.interval=4000ba')
    while not [name for name in run.checkpoints() if name > 'ba00000006']:  # where the first stage ends
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    text = run.file.read_text()
    run.file.write_text(text.replace(f'local: {data}/new, proportion', f'local: {data}/new-val, proportion'))
    output = run.finish('stages.1.max_duration=4000ba', code=2)
    assert 'stage `second` has begun with other data' in output
    assert 'Traceback' not in output


def test_anneal_now_from_a_plateau_and_another_from_its_pinned_checkpoint(make_run, data):
    run = make_run('stable')
    plateau = ('stages.1.schedule={name: constant, lr: 1.0e-2, warmup: 2ba}',)
    # The stage was planned for 40 batches; it is told to go at some batch of its plateau.
    process = run.start(*plateau, 'stages.1.max_duration=400ba', 'eval.interval=100ba')
    while len(run.lines('metrics')) < 10:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 75, output
    here = len(run.lines('metrics'))
    append_stage(run, data)
    run.finish(*plateau, f'stages.1.max_duration={here - 6}ba', 'eval.interval=100ba')
    rates = [r['lr'] for r in run.lines('metrics')]
    assert rates[here - 1 :] == pytest.approx([1e-2, 1e-2, 7.5e-3, 5e-3, 2.5e-3])
    pinned = run.folder / 'checkpoints' / f'ba{here:08d}'
    assert pinned.is_dir()

    fork = make_run('fork')
    text = fork.file.read_text()
    head, tail = text.split('stages:\n')[0], 'eval:\n' + text.split('eval:\n')[1]
    text = head.replace('init_from: scratch', f'init_from: "checkpoint:{pinned}"')
    fork.file.write_text(text + 'stages:\n' + ANNEAL.format(data=data) + tail)
    fork.finish()
    assert [r['lr'] for r in fork.lines('metrics')] == pytest.approx([1e-2, 7.5e-3, 5e-3, 2.5e-3])
    # The same tensors, rates and samples: the fork repeats the anneal of the run it came from.
    ours, theirs = fork.lines('metrics'), run.lines('metrics')[here:]
    assert [r['loss'] for r in ours] == [r['loss'] for r in theirs]


@pytest.mark.slow
def test_loggers_hold_every_batch_of_all_stages_and_starts_in_the_run_folder(make_run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = make_run()
    run.file.write_text(
        run.file.read_text() + 'loggers: {tensorboard: {}, file: {capture_stderr: false}, in_memory: {}}\n'
    )
    process = run.start()
    while len(run.lines('metrics')) < 2:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=60)
    assert process.returncode == 75
    run.finish()
    losses = {record['batch']: record['loss'] for record in run.lines('metrics')}

    text = ''.join(log.read_text() for log in (run.folder / 'file').iterdir())
    logged = re.findall(r'\[batch=(\d+)\]: loss/train/total: (\S+)', text)
    assert {int(batch): float(loss) for batch, loss in logged} == pytest.approx(losses, rel=1e-4)

    events = EventAccumulator(str(run.folder / 'tensorboard' / 'tiny')).Reload()
    curve = {event.step: event.value for event in events.Scalars('loss/train/total')}
    assert curve == pytest.approx(losses, rel=1e-6)


@pytest.mark.slow
def test_a_run_of_two_ranks_on_triton_kernels_has_the_losses_of_one_rank_on_plain_pytorch(make_run):
    short = ('stages.0.max_duration=4ba', 'stages.1.max_duration=4ba', 'eval.sets=[]')
    plain, fused = make_run('plain'), make_run('fused')
    plain.finish(*short)
    said = fused.finish(*short, 'model.kernels=triton', ranks=2)  # and under DistributedDataParallel
    assert 'Operations: Triton kernels' in said
    losses = [[record['loss'] for record in run.lines('metrics')] for run in (fused, plain)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert losses[0] != losses[1]  # other arithmetic: kernels did run


def test_a_run_keeps_its_tokenizer_and_is_not_given_another(finished, unbroken, data, tmp_path):
    from rewarm.formats.tokenizer import tokenizer_hash

    began = tokenizer_hash(data / 'tokenizer.json')
    newest = finished.folder / 'checkpoints' / finished.checkpoints()[-1]
    for folder in (finished.folder / 'tokenizer', newest):
        assert tokenizer_hash(folder / 'tokenizer.json') == began
    assert json.loads((newest / 'state.json').read_text())['tokenizer_hash'] == began
    content = json.loads((data / 'tokenizer.json').read_text())
    content['model']['vocab']['another'] = 512
    (tmp_path / 'tokenizer.json').write_text(json.dumps(content))
    append_stage(finished, data)
    output = finished.finish(f'tokenizer={tmp_path}/tokenizer.json', code=2)
    assert 'is another tokenizer' in output
    assert 'Traceback' not in output
    assert finished.losses() == unbroken.losses()
    (tmp_path / 'tokenizer.json').unlink()
    assert 'The copy that the run holds stands in' in finished.finish(f'tokenizer={tmp_path}/tokenizer.json')
