"""Machines that say they go, go without a word, or come back with an empty disk: the run ends as the unbroken one."""

import os
import shutil
import signal
from datetime import UTC, datetime, timedelta

import pytest

from rewarm.config.load import load
from rewarm.resume.store import working_folder
from tests.buckets.servers import BUCKET, S3Server
from tests.buckets.unkind import Refusing
from tests.end_to_end.waiting import wait_for, wait_until_free
from tests.resume.clouds import MetadataServer

pytestmark = pytest.mark.slow

LONGER = ('stages.0.max_duration=60ba', 'eval.interval=100ba', 'checkpoints.interval=10ba')
"""66 batches: long enough to be hit in the middle."""


@pytest.fixture
def cloud():
    server = MetadataServer('aws').start()
    yield server
    server.stop()


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    server = S3Server(tmp_path / 's3')
    for name, value in server.variables.items():
        monkeypatch.setenv(name, value)
    yield server
    server.stop()


def instance_action(seconds):
    moment = datetime.now(UTC) + timedelta(seconds=seconds)
    return {'action': 'terminate', 'time': moment.strftime('%Y-%m-%dT%H:%M:%SZ')}


def test_a_notice_saves_at_once_and_stops_only_when_its_deadline_is_near(make_run, unbroken, cloud):
    run = make_run()
    watching = ('preemption.notice=aws', f'preemption.notice_url={cloud.url}', 'checkpoints.interval=1000ba')
    cloud.action = instance_action(3600)
    run.finish(*watching)
    events = run.lines('events')
    notices = [event for event in events if event['event'] == 'notice']
    assert [event['cloud'] for event in notices] == ['aws']
    assert 3500 < notices[0]['deadline_seconds'] <= 3600
    saves = [event['batch'] for event in events if event['event'] == 'save']
    assert saves[0] == notices[0]['batch'] < 6  # before the first stage ends with batch 6
    assert run.losses() == unbroken.losses()

    told = make_run('told')
    cloud.action = instance_action(10)  # within the grace period of 25 s
    output = told.finish(*watching, code=75)
    assert 'Spot notices: AWS' in output
    stopped = told.lines('events')[-1]
    assert stopped['event'] == 'preempted'
    assert 'terminate' in stopped['signal']
    assert len(told.lines('metrics')) < 12  # none, if it was seen in the evaluation before the first batch
    cloud.action = None
    told.finish(*watching)
    assert told.losses() == unbroken.losses()
    assert told.weights() == unbroken.weights()
    assert sorted(told.evals()) == sorted(unbroken.evals())


def test_a_named_cloud_that_does_not_answer_is_refused_before_anything_is_built(make_run):
    run = make_run()
    output = run.finish('preemption.notice=aws', 'preemption.notice_url=http://127.0.0.1:9', code=2)
    assert '`preemption.notice` is aws, but' in output
    assert 'Traceback' not in output


def test_a_rank_that_dies_alone_ends_the_others_with_its_name_and_the_run_goes_on(make_run):
    run, whole = make_run('killed'), make_run('whole')
    whole.finish(*LONGER, ranks=2)
    process = run.start(*LONGER, ranks=2)
    wait_for(lambda: len(run.lines('metrics')) >= 15, seconds=240)
    os.kill(rank_process(process.pid, '1'), signal.SIGKILL)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 75, output
    assert 'rank 1' in output.lower()
    assert [e['rank'] for e in run.lines('events') if e['event'] == 'rank_lost'] == [1]
    wait_until_free(run)
    assert 15 <= len(run.lines('metrics')) < 66
    run.finish(*LONGER, ranks=2)
    assert run.losses() == whole.losses()
    assert run.weights() == whole.weights()


def test_a_run_in_a_bucket_goes_on_from_there_on_an_empty_disk(make_run, bucket):
    run, unbroken = make_run(), make_run('unbroken')
    unbroken.finish(*LONGER)
    setting = f'run_folder=s3://{BUCKET}/runs/tiny'
    run.folder = working_folder(load(run.file, [setting]))
    shutil.rmtree(run.folder, ignore_errors=True)
    try:
        process = run.start(setting, *LONGER)
        wait_for(lambda: list((bucket.folder / BUCKET).glob('runs/tiny/checkpoints/ba*/manifest.json')), seconds=240)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        shutil.rmtree(run.folder)
        output = run.finish(setting, *LONGER)
        assert 'going on from ba' in output
        resume = next(event for event in run.lines('events') if event['event'] == 'resume')
        assert resume['where'] == 'bucket'
        assert run.losses() == unbroken.losses()
        assert run.weights() == unbroken.weights()
        assert sorted(run.evals()) == sorted(unbroken.evals())
        stored = bucket.folder / BUCKET / 'runs/tiny'
        assert (stored / 'checkpoints/ba00000066/manifest.json').exists()
        assert (stored / 'metrics.jsonl').read_bytes() == (run.folder / 'metrics.jsonl').read_bytes()
    finally:
        shutil.rmtree(run.folder, ignore_errors=True)


@pytest.mark.parametrize('fault', ['wrong key', 'no bucket'])
def test_a_bucket_that_cannot_be_written_is_refused_with_its_reason(make_run, bucket, monkeypatch, fault):
    run = make_run()
    name = 'absent' if fault == 'no bucket' else BUCKET
    if fault == 'wrong key':
        monkeypatch.setenv('AWS_SECRET_ACCESS_KEY', 'wrong')
    output = run.finish(f'run_folder=s3://{name}/runs/tiny', code=2)
    assert f's3://{name}' in output
    assert 'Traceback' not in output


def rank_process(launcher, rank):
    """The process of a rank, by the environment that its launcher gave it."""
    for entry in os.listdir('/proc'):
        if entry.isdigit() and parent_of(entry) == launcher:
            with open(f'/proc/{entry}/environ', 'rb') as file:
                if f'\0RANK={rank}\0'.encode() in b'\0' + file.read():
                    return int(entry)
    raise AssertionError(f'no rank {rank} below process {launcher}')


def parent_of(pid):
    try:
        with open(f'/proc/{pid}/stat') as file:
            return int(file.read().rpartition(')')[2].split()[1])
    except OSError:
        return None


def test_a_finished_run_names_the_object_that_its_bucket_refuses_and_is_done_when_a_resume_needs_it_no_more(
    make_run, bucket, monkeypatch
):
    proxy, run = Refusing(bucket), make_run()
    for key, value in proxy.variables.items():
        monkeypatch.setenv(key, value)
    setting = f'run_folder=s3://{BUCKET}/runs/refused'
    run.folder = working_folder(load(run.file, [setting]))
    shutil.rmtree(run.folder, ignore_errors=True)
    try:
        proxy.answer = (403, 'AccessDenied')
        proxy.refuses = lambda key: key.endswith(('ba00000012/manifest.json', '/latest'))
        output = run.finish(setting, code=2)
        assert 'runs/refused/checkpoints/ba00000012/manifest.json: ' in output
        assert 'which a resume on another machine needs' in output
        assert 'Traceback' not in output
        proxy.answer = (500, 'InternalError')
        proxy.refuses = lambda key: key.endswith('/latest')
        output = run.finish(setting)
        assert 'checkpoints/latest: ' in output
        assert (bucket.folder / BUCKET / 'runs/refused/checkpoints/ba00000012/manifest.json').exists()
    finally:
        proxy.stop()
        shutil.rmtree(run.folder, ignore_errors=True)
