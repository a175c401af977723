"""One object that a bucket refuses never blocks the others: a real server, with one key that it takes no PUT of."""

import pytest

from rewarm.config.errors import UserError
from rewarm.resume import refusals as refusals_module
from rewarm.resume import uploads as uploads_module
from rewarm.resume.mirror import Fetched
from tests.buckets.servers import BUCKET, S3Server, wait_for
from tests.buckets.unkind import Refusing
from tests.resume.mirrored import URL, Run, files, name

TOP = f'/{BUCKET}/runs/tiny'


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(uploads_module, 'FIRST_WAIT_SECONDS', 0.02)
    monkeypatch.setattr(uploads_module, 'LONGEST_WAIT_SECONDS', 0.1)
    monkeypatch.setattr(refusals_module, 'PATIENCE_SECONDS', 0.6)
    monkeypatch.setattr('botocore.retries.standard.ExponentialBackoff.delay_amount', lambda self, context: 0)


@pytest.fixture(scope='module')
def started(tmp_path_factory):
    server = S3Server(tmp_path_factory.mktemp('refusals') / 's3')
    yield server
    server.stop()


@pytest.fixture
def real(started):
    started.empty()
    return started


@pytest.fixture
def server(real, monkeypatch):
    """In front of the real one."""
    proxy = Refusing(real)
    for key, value in proxy.variables.items():
        monkeypatch.setenv(key, value)
    yield proxy
    proxy.stop()


@pytest.fixture
def machine(server, tmp_path):
    runs = []

    def make(*, start=True, **options):
        runs.append(Run(tmp_path / f'machine{len(runs)}', **options))
        if start:
            runs[-1].mirror.start()
        return runs[-1]

    yield make
    for run in runs:
        run.mirror.close()


def keys(real):
    found = real.client().list_objects_v2(Bucket=BUCKET, Prefix='runs/tiny/').get('Contents', ())
    return {item['Key'].removeprefix('runs/tiny/') for item in found}


def told(run, key):
    return [text for text in run.said if f'{URL}/{key}: ' in text]


@pytest.mark.parametrize('key', ['checkpoints/latest', 'events.jsonl', f'checkpoints/{name(4)}/unfinished.json'])
def test_without_an_object_that_no_resume_needs_the_run_is_done_and_says_which_it_is(real, server, machine, key):
    run = machine()
    (run.folder / 'config.yaml').write_text('run_name: tiny\n')
    server.refuses = lambda path: path == f'{TOP}/{key}'
    run.publish(2)
    run.publish(4)
    assert run.mirror.flush(30)
    assert run.mirror.refusal() is None
    assert len(told(run, key)) == 1
    (event,) = run.recorded('upload_failed')
    assert event['url'] == f'{URL}/{key}'
    assert event['reason'].startswith(f'{URL}/{key}: ')
    other = machine(start=False)
    assert other.mirror.fetch() == Fetched(name(4), 'bucket')
    assert files(other.root / name(4)) == files(run.root / name(4))
    assert (other.folder / 'metrics.jsonl').read_bytes() == (run.folder / 'metrics.jsonl').read_bytes()
    wanted = {'checkpoints/latest', 'events.jsonl', 'config.yaml', f'checkpoints/{name(4)}/manifest.json'}
    assert keys(real) >= wanted - {key}
    assert key not in keys(real)


@pytest.mark.parametrize('file', ['model.safetensors', 'manifest.json'])
def test_a_file_of_the_newest_checkpoint_that_is_refused_holds_up_nothing_else(real, server, machine, file):
    run, key = machine(), f'checkpoints/{name(4)}/{file}'
    server.refuses = lambda path: path == f'{TOP}/{key}'
    run.publish(2)
    assert run.mirror.flush(30)
    (run.folder / 'config.yaml').write_text('run_name: tiny\n')
    run.publish(4)
    assert not run.mirror.flush(30)
    refusal = str(run.mirror.refusal())
    assert refusal.startswith(f'{URL}/{key}: ')
    assert 'InternalError' in refusal
    assert f'All is in {run.folder} on this machine' in refusal
    assert len(told(run, key)) == 1
    there = keys(real)
    assert there >= {'config.yaml', f'checkpoints/{name(2)}/manifest.json'}
    own = {f'checkpoints/{name(4)}/{path.name}' for path in (run.root / name(4)).iterdir()}
    assert own - there == {key, f'checkpoints/{name(4)}/manifest.json'}
    assert machine(start=False).mirror.fetch() == Fetched(name(2), 'bucket')


def test_records_that_are_refused_for_good_cost_no_checkpoint_but_the_run_is_not_done(real, server, machine):
    run, record = machine(), 'metrics.jsonl'
    server.refuses = lambda path: path == f'{TOP}/{record}'
    run.publish(2)
    assert not run.mirror.flush(30)
    assert str(run.mirror.refusal()).startswith(f'{URL}/{record}: ')
    run.publish(4)
    assert not run.mirror.flush(30)
    assert len(told(run, record)) == 1
    assert machine(start=False).mirror.fetch() == Fetched(name(4), 'bucket')


def test_a_manifest_waits_for_records_that_are_refused_for_a_moment(real, server, machine, monkeypatch):
    monkeypatch.setattr(refusals_module, 'PATIENCE_SECONDS', 60.0)
    run = machine()
    server.refuses = lambda path: path == f'{TOP}/metrics.jsonl'
    run.publish(2)
    wait_for(lambda: len(server.refused) > 8, 20)
    assert f'checkpoints/{name(2)}/manifest.json' not in keys(real)
    server.refuses = lambda path: False
    assert run.mirror.flush(30)
    assert run.said[-1] == f'{URL}/metrics.jsonl was refused and is taken now.'
    assert all('taken now' not in event['reason'] for event in run.recorded('upload_failed'))


def test_newer_checkpoints_go_up_while_an_older_one_and_a_stages_end_are_refused(real, server, machine):
    run = machine()
    server.refuses = lambda path: f'/{name(2)}/model' in path or f'/{name(4)}/model' in path
    run.publish(2)  # a stage ends with it
    wait_for(lambda: told(run, f'checkpoints/{name(2)}/model.safetensors'), 20)
    for batch in (4, 6, 8):
        run.publish(batch, stage_ends={2})
        wait_for(lambda: run.mirror.lag().newest == (name(batch) if batch > 4 else None), 20)  # noqa: B023
    assert run.mirror.flush(30)
    assert run.mirror.refusal() is None
    assert run.mirror.lag().batches == 0
    server.refuses = lambda path: False
    assert run.mirror.flush(30)


def test_a_refusal_by_rights_is_for_good_at_once(real, server, machine, monkeypatch):
    monkeypatch.setattr(refusals_module, 'PATIENCE_SECONDS', 600.0)
    run = machine()
    server.answer = (403, 'AccessDenied')
    server.refuses = lambda path: path.endswith('state.json')
    run.publish(2)
    assert not run.mirror.flush(600)
    assert 'AccessDenied' in str(run.mirror.refusal())


def test_a_server_that_takes_nothing_is_away_and_refuses_no_object(real, server, machine, monkeypatch):
    run = machine()
    server.refuses = lambda path: True
    run.publish(2)
    assert not run.mirror.flush(1)
    assert run.mirror.refusal() is None
    assert [text for text in run.said if 'takes other objects' in text] == []
    server.refuses = lambda path: False
    assert run.mirror.flush(30)
    assert f'{URL} answers again.' in run.said


def test_an_owner_that_cannot_be_written_is_said_at_the_start(real, server, machine):
    server.refuses = lambda path: path.endswith('owner.json')
    run = machine(start=False, patience_seconds=0.1)
    with pytest.raises(UserError, match=f'{URL}/owner.json: '):
        run.mirror.start()


def test_what_a_killed_nanio_leaves_of_a_put_costs_that_object_alone(real, server, machine):
    """Its own temporary file, because of which it answers InternalError to each later PUT of that key."""
    leftover = real.folder / BUCKET / '.nanio-meta/runs/tiny/checkpoints/latest.json.tmp'
    leftover.parent.mkdir(parents=True)
    leftover.write_bytes(b'{"etag"')
    run = machine()
    run.publish(2)
    assert run.mirror.flush(30)
    assert len(told(run, 'checkpoints/latest')) == 1
    assert 'InternalError' in told(run, 'checkpoints/latest')[0]
    assert machine(start=False).mirror.fetch() == Fetched(name(2), 'bucket')
