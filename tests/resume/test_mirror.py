"""A run folder in a bucket: whole on any machine, whatever dies, and training never waits for it."""

import hashlib
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rewarm.buckets import s3
from rewarm.buckets.errors import Unreachable
from rewarm.config.errors import UserError
from rewarm.formats.logger_files import Identity, read_identity, write_identity
from rewarm.formats.records import BATCHES, EVENTS
from rewarm.report.records import JsonLines
from rewarm.resume import fetching
from rewarm.resume.mirror import Fetched, local_folder
from tests.buckets.servers import BUCKET, S3Server, free_port, wait_for
from tests.resume.mirrored import URL, Run, files, is_whole, metrics_line, name

ROOT = Path(__file__).parents[2]
MIB = 1 << 20
BOTH = pytest.mark.parametrize('server', ['nanio', 'rclone'], indirect=True)


@pytest.fixture(scope='module')
def nanio(tmp_path_factory):
    server = S3Server(tmp_path_factory.mktemp('nanio') / 's3')
    yield server
    server.stop()


@pytest.fixture
def server(request, nanio, tmp_path, monkeypatch):
    kind = getattr(request, 'param', 'nanio')
    s3._client.cache_clear()  # no connection that an earlier test has left in the middle of an answer
    if kind == 'nanio':
        nanio.empty()
    server = nanio if kind == 'nanio' else S3Server(tmp_path / 's3', kind)
    for key, value in server.variables.items():
        monkeypatch.setenv(key, value)
    yield server
    if server is not nanio:
        server.stop()


@pytest.fixture
def machine(server, tmp_path):
    """Makes machines with an empty disk; their mirrors are closed at the end."""
    runs = []

    def make(*, start=True, **options):
        runs.append(Run(tmp_path / f'machine{len(runs)}', **options))
        if start:
            runs[-1].mirror.start()
        return runs[-1]

    yield make
    for run in runs:
        run.mirror.close()


def keys(server, prefix='runs/tiny/'):
    found = server.client().list_objects_v2(Bucket=BUCKET, Prefix=prefix).get('Contents', ())
    return [item['Key'].removeprefix(prefix) for item in found]


def whole_ones(server):
    return [key.split('/')[1] for key in keys(server) if key.endswith('/manifest.json')]


def object_file(server, checkpoint, file):
    return server.folder / BUCKET / 'runs/tiny/checkpoints' / checkpoint / file


# ---------------------------------------------------------------- to the bucket and back


@BOTH
def test_a_run_comes_back_to_an_empty_disk_byte_for_byte(server, machine):
    first = machine()
    assert first.mirror.fetch() is None
    first.publish(2)
    first.publish(4)
    (first.folder / 'config.yaml').write_text('run_name: tiny\n')
    (first.folder / 'tensorboard').mkdir()
    (first.folder / 'tensorboard' / 'log.0').write_bytes(b'log')
    (first.folder / 'run.lock').write_text('{}')
    assert first.mirror.flush(30)
    assert first.recorded('upload_failed') == []
    assert whole_ones(server) == [name(2), name(4)]
    assert [key for key in keys(server) if not key.startswith('checkpoints/ba')] == [
        'checkpoints/latest', 'config.yaml', 'events.jsonl', 'metrics.jsonl', 'owner.json', 'tensorboard/log.0',
    ]  # fmt: skip
    second = machine()
    assert second.mirror.fetch() == Fetched(name(4), 'bucket')
    assert files(second.root / name(4)) == files(first.root / name(4))
    assert sorted(path.name for path in second.root.iterdir()) == [name(4), 'latest']
    assert (second.root / 'latest').read_text() == f'{name(4)}\n'
    for record in ('metrics.jsonl', 'events.jsonl'):
        assert (second.folder / record).read_bytes() == (first.folder / record).read_bytes()
    assert second.mirror.lag().newest == name(4)
    assert second.events == []


@pytest.mark.parametrize('before', [None, 'their own', 'torn'])
def test_the_identity_of_a_run_comes_from_its_bucket_also_where_no_checkpoint_is(server, machine, before):
    first, second, third = machine(), machine(start=False), machine(start=False)
    identity = Identity(id='0123456789abcdef' * 2)
    write_identity(first.folder, identity)
    assert first.mirror.flush(30)
    if before == 'torn':
        (second.folder / 'identity.json').write_text('{"id": ')
    elif before:
        write_identity(second.folder, Identity(id='f' * 32))
    assert second.mirror.fetch() is None
    assert read_identity(second.folder) == identity
    server.client().put_object(Bucket=BUCKET, Key='runs/tiny/identity.json', Body=b'{"id": "..."}')
    assert third.mirror.fetch() is None
    assert read_identity(third.folder) is None


def test_what_was_uploaded_is_told_with_its_size_and_place(server, machine):
    run = machine()
    run.publish(2)
    assert run.mirror.flush(30)
    (upload,) = run.recorded('upload')
    size = sum(path.stat().st_size for path in (run.root / name(2)).iterdir())
    assert upload['bytes'] == size
    assert upload['sent_bytes'] >= size
    assert (upload['path'], upload['url']) == (str(run.root / name(2)), f'{URL}/checkpoints/{name(2)}')
    assert upload['seconds'] >= 0


@pytest.mark.parametrize('local', [2, 4, 6])
def test_the_newer_of_disk_and_bucket_is_taken_and_records_come_from_where_it_is(server, machine, local):
    first, second = machine(), machine(start=False)
    first.publish(4)
    assert first.mirror.flush(30)
    second.train(local)
    JsonLines(second.folder / 'metrics.jsonl', BATCHES).append([metrics_line(local + 1)])  # trained and not saved
    found = second.mirror.fetch()
    if local < 4:
        assert found == Fetched(name(4), 'bucket')
        assert (second.folder / 'metrics.jsonl').read_bytes() == (first.folder / 'metrics.jsonl').read_bytes()
    else:
        assert found == Fetched(name(local), 'disk')
        assert len(JsonLines(second.folder / 'metrics.jsonl', BATCHES).read()) == local + 1
    assert {line.batch for line in JsonLines(second.folder / 'metrics.jsonl', BATCHES).read()} >= set(range(1, 5))


def test_events_of_both_machines_are_kept_in_the_order_of_their_times(server, machine):
    first, second = machine(), machine(start=False)
    first.publish(2)
    assert first.mirror.flush(30)
    second.mirror.fetch()
    JsonLines(second.folder / 'events.jsonl', EVENTS).append([{'time': '2026-01-01T00:00:05', 'event': 'preempted'}])
    first.publish(4)
    first.publish(6)
    assert first.mirror.flush(30)
    for _ in range(2):
        second.mirror.fetch()
        seconds = [each.time.second for each in JsonLines(second.folder / 'events.jsonl', EVENTS).read()]
        assert seconds == [2, 4, 5, 6]


def test_a_node_gets_exactly_the_checkpoint_that_the_first_one_has(server, machine):
    first, second = machine(), machine(start=False)
    for batch in (2, 4):
        first.publish(batch)
    assert first.mirror.flush(30)
    second.train(2, seed=1)  # of the same batch, with other bits
    assert second.mirror.fetch(name(2)) == Fetched(name(2), 'bucket')
    assert files(second.root / name(2)) == files(first.root / name(2))
    assert second.mirror.fetch(name(2)) == Fetched(name(2), 'disk')
    with pytest.raises(UserError, match=f'{name(6)}: is not in the bucket'):
        second.mirror.fetch(name(6))


# ---------------------------------------------------------------- kills

KILLED = """
import os, signal, sys
sys.path.insert(0, {root!r})
from pathlib import Path
import botocore.client
from rewarm.buckets import s3
from tests.resume.mirrored import Run, name
s3.SINGLE_BYTES, s3.PART_BYTES, s3.UPLOAD_THREADS = 6 << 20, 5 << 20, 1
folder = Path({folder!r})
call = botocore.client.BaseClient._make_api_call

def upload(prefix, fatal_request):
    requests, run = 0, Run(folder / 'unused' / f'{{prefix}}-{{os.getpid()}}', 's3://data/' + prefix)
    run.mirror.folder = folder / 'run'
    def counted(*args, **kwargs):
        nonlocal requests
        requests += 1
        if requests == fatal_request:
            print(prefix, 'killed', run.mirror._bucket.bytes_sent, requests, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*args, **kwargs)
    botocore.client.BaseClient._make_api_call = counted
    run.mirror.start()
    run.mirror.publish(name(4), keep=3, stage_ends=set())
    assert run.mirror.flush(60)
    print(prefix, 'done', run.mirror._bucket.bytes_sent, requests, flush=True)
    os._exit(0)

for task in sys.argv[1:]:
    prefix, fatal = task.split(':')
    child = os.fork()
    if child == 0:
        upload(prefix, int(fatal))
    os.waitpid(child, 0)
"""


@pytest.mark.slow
@pytest.mark.parametrize(('server', 'step'), [('nanio', 4), ('rclone', 8)], indirect=['server'])
def test_killed_at_any_request_the_bucket_is_whole_and_the_next_start_sends_the_rest(server, tmp_path, step):
    local = Run(tmp_path / 'run')
    local.train(2)
    local.train(4, values=3 * MIB)  # a file of 12 MiB: three parts
    size = sum(path.stat().st_size for path in (local.root / name(4)).iterdir())
    script = KILLED.format(root=str(ROOT), folder=str(tmp_path))

    def run(*tasks):
        command = [sys.executable, '-c', script, *tasks]
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=300, check=True)
        lines = [line.split() for line in done.stdout.splitlines()]
        return {prefix: (how, int(sent), int(requests)) for prefix, how, sent, requests in lines}

    requests = run('unbroken:0')['unbroken'][2]
    points = range(4, requests + 1, step)  # before the fourth, a start claims the bucket and has sent nothing
    for point in points:
        for path in (local.root / name(2)).iterdir():
            server.client().upload_file(str(path), BUCKET, f'k{point}/checkpoints/{name(2)}/{path.name}')
    killed = run(*(f'k{point}:{point}' for point in points))
    assert {how for how, *_ in killed.values()} == {'killed'}
    found = {}
    for point in points:
        there = Run(tmp_path / f'there{point}', f's3://data/k{point}')
        fetched = there.mirror.fetch()
        assert fetched is not None
        found[point] = fetched.name
        if fetched.name == name(4):  # its records were there before its manifest was
            assert (there.folder / 'metrics.jsonl').read_bytes() == (local.folder / 'metrics.jsonl').read_bytes()
        assert files(there.root / fetched.name) == files(local.root / fetched.name)
    assert found[points[0]] == name(2)
    assert found[points[-1]] == name(4)
    again = run(*(f'k{point}:0' for point in points))
    for point in points:
        how, sent, _ = again[f'k{point}']
        assert how == 'done'
        assert killed[f'k{point}'][1] + sent <= size + 100_000  # nothing twice but small files
        there = Run(tmp_path / f'whole{point}', f's3://data/k{point}')
        assert there.mirror.fetch() == Fetched(name(4), 'bucket')
        assert files(there.root / name(4)) == files(local.root / name(4))
        left = keys(server, f'k{point}/checkpoints/')
        assert not any('unfinished' in key for key in left)
        assert (
            server.client().get_object(Bucket=BUCKET, Key=f'k{point}/checkpoints/latest')['Body'].read()
            == b'ba00000004\n'
        )


@BOTH
def test_a_server_killed_in_the_middle_and_started_again_gets_the_rest(server, machine, monkeypatch):
    monkeypatch.setattr(s3, 'SINGLE_BYTES', 6 * MIB)
    monkeypatch.setattr(s3, 'PART_BYTES', 5 * MIB)
    run, count = machine(), s3.S3Bucket._count

    def kill(self, size):
        count(self, size)
        if self.bytes_sent > 8 * MIB and server.process is not None:
            server.kill()

    with monkeypatch.context() as patch:
        patch.setattr(s3.S3Bucket, '_count', kill)
        run.publish(2, values=4 * MIB)
        wait_for(lambda: run.recorded('upload_failed'), 60, 'a failure')
    assert whole_ones_on_disk(server) == []
    server.start()
    assert run.mirror.flush(60)
    assert run.mirror.lag() == (name(2), 0, 0.0)
    assert 'no answer from' in run.recorded('upload_failed')[0]['reason']
    assert any('tried again; training goes on' in text for text in run.said)
    assert any('answers again' in text for text in run.said)
    second = machine()
    assert second.mirror.fetch() == Fetched(name(2), 'bucket')
    assert files(second.root / name(2)) == files(run.root / name(2))


def whole_ones_on_disk(server):
    return list((server.folder / BUCKET).rglob('manifest.json'))


def test_what_a_killed_start_left_on_its_disk_goes_up_at_the_next(server, machine):
    run = machine(start=False)
    for batch in (2, 3, 4, 5):
        run.train(batch)
    object_path = run.root / name(2) / 'model.safetensors'
    os.truncate(object_path, 10)  # damaged since: nobody else's copy may be replaced by it
    run.mirror.start()
    run.mirror.catch_up(keep=1, stage_ends={2, 3})
    assert run.mirror.flush(30)
    assert whole_ones(server) == [name(3), name(5)]
    assert f'{name(2)} is not whole' in run.recorded('upload_failed')[0]['reason']


def test_a_download_that_was_killed_goes_on_with_the_files_it_has(server, machine):
    first, second = machine(), machine(start=False)
    first.publish(2)
    assert first.mirror.flush(30)
    draft = second.root / f'.writing-fetched-{name(2)}'
    draft.mkdir()
    (draft / 'model.safetensors').write_bytes((first.root / name(2) / 'model.safetensors').read_bytes())
    (draft / 'optimizer-0000.safetensors').write_bytes(b'torn')
    (draft / 'optimizer-0001.safetensors').write_bytes(b'of another save')
    kept = (draft / 'model.safetensors').stat().st_ino
    second.mirror.fetch()
    assert files(second.root / name(2)) == files(first.root / name(2))
    assert (second.root / name(2) / 'model.safetensors').stat().st_ino == kept


# ---------------------------------------------------------------- damage


@pytest.mark.parametrize(
    ('file', 'content', 'words'),
    [
        ('optimizer-0000.safetensors', lambda old: old[:-1] + b'!', 'does not hash'),
        ('model.safetensors', lambda old: old[:-9], 'bytes instead of'),
        ('state.json', lambda old: None, 'state.json is missing'),
        ('manifest.json', lambda old: old[:99], 'no JSON'),
        ('manifest.json', lambda old: b'{"format": 2, "files": {}}', 'has format 2'),
        ('manifest.json', lambda old: old.replace(b'optimizer-0000', b'../../evil'), 'the name'),
        ('manifest.json', lambda old: re.sub(rb'"[0-9a-f]{64}"', b'null', old), 'sha256'),
        ('manifest.json', lambda old: re.sub(rb'"bytes": \d+', b'"bytes": "1"', old), 'bytes'),
        ('manifest.json', lambda old: b'[' * 100_000, 'levels deep'),
    ],
)
def test_a_damaged_checkpoint_is_recorded_and_the_one_before_is_taken(server, machine, file, content, words):
    first, second = machine(), machine(start=False)
    for batch in (2, 4):
        first.publish(batch)
    assert first.mirror.flush(30)
    damage(server, name(4), file, content)
    assert second.mirror.fetch() == Fetched(name(2), 'bucket')
    assert is_whole(second.root / name(2))
    (fallback,) = second.recorded('fallback')
    assert fallback['path'] == f'{URL}/checkpoints/{name(4)}'
    assert words in fallback['reason']
    assert fallback['instead'] == f'{name(2)} (bucket)'


def damage(server, checkpoint, file='model.safetensors', content=lambda old: b'x'):
    """Replaces an object, or deletes it."""
    where = {'Bucket': BUCKET, 'Key': f'runs/tiny/checkpoints/{checkpoint}/{file}'}
    new = content(server.client().get_object(**where)['Body'].read())
    client = server.client()
    client.delete_object(**where) if new is None else client.put_object(**where, Body=new)


@pytest.mark.parametrize('state', [b'{"batch": "4"}', b'[' * 2000, b'\xff', b'{"batch": 4, "stages": 1}'])
def test_a_state_that_hashes_right_and_is_none_is_damage(server, machine, state):
    first, second = machine(), machine(start=False)
    for batch in (2, 4):
        first.publish(batch)
    assert first.mirror.flush(30)
    damage(server, name(4), 'state.json', lambda old: state)
    entry = {'bytes': len(state), 'sha256': hashlib.sha256(state).hexdigest()}

    def with_its_hash(old):
        manifest = json.loads(old)
        manifest['files']['state.json'] = entry
        return json.dumps(manifest).encode()

    damage(server, name(4), 'manifest.json', with_its_hash)
    assert second.mirror.fetch() == Fetched(name(2), 'bucket')
    assert is_whole(second.root / name(2))
    assert second.recorded('fallback')[0]['path'] == f'{URL}/checkpoints/{name(4)}'


def test_parts_that_hash_right_and_do_not_belong_together_are_damage_to_a_run(server, machine):
    first, second = machine(), machine(start=False)
    first.publish(2)
    assert first.mirror.flush(30)
    with pytest.raises(UserError, match=r'none of them is whole(.|\n)*state.json lacks'):  # as an import has it
        second.mirror.fetch(trained=True)
    assert second.mirror.fetch() == Fetched(name(2), 'bucket')


def test_damaged_events_are_left_out_and_said_and_no_reason_not_to_start(server, machine):
    first, second = machine(), machine(start=False)
    first.publish(2)
    assert first.mirror.flush(30)
    good = first.folder.joinpath('events.jsonl').read_bytes()
    odd = [b'[' * 100_000, b'{}', b'3', b'\xff', b'{"time": 5, "event": "save"}']
    server.client().put_object(Bucket=BUCKET, Key='runs/tiny/events.jsonl', Body=b'\n'.join([*odd, b'', good, b'{"ti']))
    assert second.mirror.fetch() == Fetched(name(2), 'bucket')
    assert (second.folder / 'events.jsonl').read_bytes() == good
    (said,) = [text for text in second.said if 'left out' in text]
    assert said.startswith(f'5 damaged lines of {URL}/events.jsonl left out, the first: {URL}/events.jsonl:1: damaged')


def test_events_of_a_wild_size_are_not_read_and_no_reason_not_to_start(server, machine, monkeypatch):
    monkeypatch.setattr(fetching, 'LARGEST_EVENTS_BYTES', 10)
    first, second = machine(), machine(start=False)
    first.publish(2)
    assert first.mirror.flush(30)
    assert second.mirror.fetch() == Fetched(name(2), 'bucket')
    assert any('events.jsonl: has more than 10 bytes' in text for text in second.said)


@pytest.mark.parametrize('content', [b'', b'{}', b'null', b'[' * 5000, b'{"id": "x", "host": 3}', b'x' * 100_000])
def test_an_owner_that_is_none_is_nobody(server, machine, content):
    run = machine()
    server.client().put_object(Bucket=BUCKET, Key='runs/tiny/owner.json', Body=content)
    run.publish(2)
    assert run.mirror.flush(30)
    assert run.mirror.failure() is None


def test_odd_files_beside_a_checkpoint_come_with_it_nowhere(server, machine):
    first, second = machine(), machine(start=False)
    first.publish(2)
    assert first.mirror.flush(30)
    client = server.client()
    for key in (
        f'{name(2)}/optimizer-old.safetensors',
        f'{name(2)}/sub/state.json',
        f'{name(2)}x/manifest.json',
        'ba1/x',
    ):
        client.put_object(Bucket=BUCKET, Key=f'runs/tiny/checkpoints/{key}', Body=b'odd')
    assert second.mirror.fetch() == Fetched(name(2), 'bucket')
    assert files(second.root / name(2)) == files(first.root / name(2))
    assert sorted(path.name for path in second.root.iterdir()) == [name(2), 'latest']


def test_a_download_writes_and_deletes_nothing_that_a_link_leads_to(server, machine, tmp_path):
    first, second = machine(), machine(start=False)
    first.publish(2)
    assert first.mirror.flush(30)
    mine = tmp_path / 'mine'
    mine.mkdir()
    (mine / 'model.safetensors').write_text('mine')
    for link in (f'.writing-fetched-{name(2)}', f'{name(2)}.broken', name(2)):
        (second.root / link).symlink_to(mine)
    for link in ('latest', '.writing-latest'):
        (second.root / link).symlink_to(mine / 'model.safetensors')
    (second.folder / 'events.jsonl').symlink_to(mine / 'none')
    assert second.mirror.fetch() == Fetched(name(2), 'bucket')
    assert files(second.root / name(2)) == files(first.root / name(2))
    assert not (second.root / name(2)).is_symlink()
    assert {path.name: path.read_text() for path in mine.iterdir()} == {'model.safetensors': 'mine'}


def test_an_object_that_its_server_has_lost_half_of_is_damaged(server, machine):
    first, second = machine(), machine(start=False)
    for batch in (2, 4):
        first.publish(batch)
    assert first.mirror.flush(30)
    os.truncate(object_file(server, name(4), 'model.safetensors'), 9)
    assert second.mirror.fetch() == Fetched(name(2), 'bucket')
    assert 'breaks off each time' in second.recorded('fallback')[0]['reason']


def test_a_damaged_checkpoint_is_replaced_when_the_run_comes_by_again(server, machine):
    first, second, third = machine(), machine(start=False), machine(start=False)
    for batch in (2, 4):
        first.publish(batch)
    assert first.mirror.flush(30)
    model = object_file(server, name(4), 'model.safetensors')
    model.write_bytes(model.read_bytes()[:-1] + b'!')  # the server's own hash of it stays as it was
    second.mirror.start()
    second.mirror.fetch()
    second.publish(4)
    assert second.mirror.flush(30)
    assert third.mirror.fetch() == Fetched(name(4), 'bucket')
    assert files(third.root / name(4)) == files(first.root / name(4))


def test_checkpoints_of_which_none_is_whole_are_no_reason_to_start_over(server, machine):
    first, second = machine(), machine(start=False)
    for batch in (2, 4):
        first.publish(batch)
    assert first.mirror.flush(30)
    for batch in (2, 4):
        damage(server, name(batch))
    with pytest.raises(UserError, match=r'none of them is whole.*does not start over') as caught:
        second.mirror.fetch()
    assert all(f'{URL}/checkpoints/{name(batch)}' in str(caught.value) for batch in (2, 4))
    second.train(1)
    assert second.mirror.fetch() == Fetched(name(1), 'disk')
    assert len(second.recorded('fallback')) == 2


def test_a_local_checkpoint_that_is_damaged_is_set_aside_for_the_one_in_the_bucket(server, machine):
    run = machine()
    run.publish(2)
    assert run.mirror.flush(30)
    whole = files(run.root / name(2))
    os.truncate(run.root / name(2) / 'model.safetensors', 9)
    assert run.mirror.fetch() == Fetched(name(2), 'bucket')
    assert files(run.root / name(2)) == whole
    assert (run.root / f'{name(2)}.broken').is_dir()
    assert run.recorded('fallback')[0]['path'] == str(run.root / name(2))


def test_other_bits_of_the_same_batch_replace_those_in_the_bucket(server, machine):
    first, third = machine(), machine(start=False)
    first.publish(2)
    assert first.mirror.flush(30)
    second = machine()
    second.publish(2, seed=1)
    assert second.mirror.flush(30)
    assert third.mirror.fetch() == Fetched(name(2), 'bucket')
    assert files(third.root / name(2)) == files(second.root / name(2)) != files(first.root / name(2))


# ---------------------------------------------------------------- retention


@BOTH
def test_retention_counts_what_is_in_the_bucket_and_spares_stage_ends_and_what_others_wrote(server, machine):
    first = machine()
    for batch in (2, 4, 6, 8):
        first.publish(batch, keep=9, stage_ends={4})
        assert first.mirror.flush(30)
    client = server.client()
    foreign = ['ba00000003/notes.txt', 'ba00000002/notes.txt', 'ba-mine/manifest.json', 'other']
    for key in foreign:
        client.put_object(Bucket=BUCKET, Key=f'runs/tiny/checkpoints/{key}', Body=b'mine')
    unfinished = f'runs/tiny/checkpoints/{name(5)}'
    client.copy_object(
        Bucket=BUCKET, Key=f'{unfinished}/unfinished.json',
        CopySource={'Bucket': BUCKET, 'Key': f'runs/tiny/checkpoints/{name(4)}/manifest.json'},
    )  # fmt: skip
    client.put_object(Bucket=BUCKET, Key=f'{unfinished}/model.safetensors', Body=b'half')
    client.create_multipart_upload(Bucket=BUCKET, Key=f'{unfinished}/optimizer-0000.safetensors')
    client.create_multipart_upload(Bucket=BUCKET, Key='runs/tiny/mine')
    second = machine()
    second.mirror.fetch()
    second.publish(10, keep=2, stage_ends={4})
    assert second.mirror.flush(30)
    assert whole_ones(server) == ['ba-mine', name(2), name(4), name(8), name(10)]
    assert [event['path'] for event in second.recorded('delete')] == [f'{URL}/checkpoints/{name(6)}']
    left = keys(server, 'runs/tiny/checkpoints/')
    assert set(foreign) <= set(left)
    assert not any(key.startswith((name(5), name(6))) for key in left)
    assert [each['Key'] for each in client.list_multipart_uploads(Bucket=BUCKET)['Uploads']] == ['runs/tiny/mine']


def test_leftovers_of_the_server_are_no_reason_to_keep_a_checkpoint(server, machine):
    run = machine()
    run.publish(2, keep=1)
    assert run.mirror.flush(30)
    object_file(server, name(2), '.tmp.0123456789abcdef').write_bytes(b'torn')  # of nanio, killed in a write
    object_file(server, name(3), 'x').parent.mkdir()
    object_file(server, name(3), '.tmp.0123456789abcdef').write_bytes(b'torn')
    assert any('.tmp.' in key for key in keys(server))
    run.publish(4, keep=1)
    assert run.mirror.flush(30)
    assert whole_ones(server) == [name(4)]
    assert machine().mirror.fetch() == Fetched(name(4), 'bucket')


def test_a_newer_one_that_somebody_is_copying_does_not_count(server, machine):
    run = machine()
    for batch in (2, 4):
        run.publish(batch, keep=2)
        assert run.mirror.flush(30)
    client, top = server.client(), 'runs/tiny/checkpoints'
    manifest = client.get_object(Bucket=BUCKET, Key=f'{top}/{name(4)}/manifest.json')['Body'].read()
    for batch, text in ((5, manifest), (90, manifest), (91, b'{}')):
        client.put_object(Bucket=BUCKET, Key=f'{top}/{name(batch)}/manifest.json', Body=text)
    run.publish(6, keep=2)
    assert run.mirror.flush(30)
    assert whole_ones(server) == [name(batch) for batch in (4, 5, 6, 90, 91)]
    assert client.get_object(Bucket=BUCKET, Key=f'{top}/latest')['Body'].read() == f'{name(6)}\n'.encode()
    assert machine().mirror.fetch() == Fetched(name(6), 'bucket')


def test_a_known_damaged_one_does_not_count_and_goes(server, machine):
    first, second = machine(), machine(start=False)
    for batch in (2, 4):
        first.publish(batch)
    assert first.mirror.flush(30)
    damage(server, name(4))
    second.mirror.start()
    second.mirror.fetch()
    second.publish(5, keep=2)
    assert second.mirror.flush(30)
    assert whole_ones(server) == [name(2), name(5)]


# ---------------------------------------------------------------- two starts on one bucket


@BOTH
def test_the_newer_start_wins_and_the_older_one_stops_before_it_publishes(server, machine):
    first = machine()
    first.publish(2)
    assert first.mirror.flush(30)
    second = machine()
    first.publish(4)
    assert not first.mirror.flush(30)
    failure = first.mirror.failure()
    assert isinstance(failure, UserError)
    assert f'(process {os.getpid()}) took this run over at 20' in str(failure)
    assert 'this process stops' in str(failure)
    assert first.mirror.in_use() == set()
    assert whole_ones(server) == [name(2)]
    second.publish(6)
    assert second.mirror.flush(30)
    assert second.mirror.failure() is None
    assert whole_ones(server) == [name(2), name(6)]


@pytest.mark.parametrize('after', ['model.safetensors', 'metrics.jsonl', 'events.jsonl'])
def test_a_takeover_in_the_middle_of_an_upload_is_seen_before_its_manifest(server, machine, monkeypatch, after):
    first, upload, others = machine(), s3.S3Bucket.upload, []

    def take_over(self, path, url, sha256=None):
        upload(self, path, url, sha256)
        if url.endswith(after) and not others:
            others.append(machine())

    monkeypatch.setattr(s3.S3Bucket, 'upload', take_over)
    first.publish(2)
    assert not first.mirror.flush(30)
    assert others
    assert 'took this run over' in str(first.mirror.failure())
    assert whole_ones(server) == []


def test_an_owner_that_somebody_deleted_is_written_again(server, machine):
    run = machine()
    server.client().delete_object(Bucket=BUCKET, Key='runs/tiny/owner.json')
    run.publish(2)
    assert run.mirror.flush(30)
    assert 'owner.json' in keys(server)


# ---------------------------------------------------------------- what goes wrong at a start


def test_wrong_keys_are_said_before_anything_is_done(server, machine, monkeypatch):
    monkeypatch.setattr(s3, '_client', s3._client.__wrapped__)
    monkeypatch.setenv('AWS_SECRET_ACCESS_KEY', 'wrong')
    with pytest.raises(UserError, match=r's3://data/runs/tiny/owner.json: .* does not accept the keys'):
        machine()


def test_a_missing_bucket_is_said_before_anything_is_done(server, machine):
    with pytest.raises(UserError, match=r'there is no bucket nowhere at .*; make it'):
        machine(url='s3://nowhere/run')


def test_a_server_that_does_not_answer_is_waited_for_and_then_said(server, machine, monkeypatch):
    monkeypatch.setattr(s3, '_client', s3._client.__wrapped__)
    monkeypatch.setenv('S3_ENDPOINT_URL', f'http://127.0.0.1:{free_port()}')
    run = machine(start=False, patience_seconds=0.1)
    with pytest.raises(Unreachable, match='no answer from'):
        run.mirror.start()
    assert any('Waiting for the bucket' in text for text in run.said)


@pytest.mark.skipif(os.geteuid() != 0, reason='mounts a small disk, as root')
def test_a_disk_without_room_for_the_checkpoint_is_said(server, machine):
    first, second = machine(), machine(start=False)
    first.publish(2, values=MIB)
    assert first.mirror.flush(30)
    subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=1M', 'none', str(second.folder)], check=True)
    try:
        with pytest.raises(UserError, match=r'cannot be stored here .No space left.*TMPDIR'):
            second.mirror.fetch()
    finally:
        subprocess.run(['umount', str(second.folder)], check=True)


def test_the_local_folder_is_the_same_at_each_start_and_another_for_another_run(tmp_path, monkeypatch):
    monkeypatch.setattr('tempfile.tempdir', str(tmp_path))
    folder = local_folder('s3://data/a', 'tiny')
    assert folder == local_folder('s3://data/a/', 'tiny')
    assert folder.is_dir()
    assert folder.parent == tmp_path / f'rewarm-{os.getuid()}'
    assert folder.name.startswith('tiny-')
    assert folder != local_folder('s3://data/b', 'tiny')
    monkeypatch.setattr('tempfile.tempdir', str(tmp_path / 'file'))
    (tmp_path / 'file').write_text('')
    with pytest.raises(UserError, match=r'cannot be made .*TMPDIR'):
        local_folder('s3://data/a', 'tiny')


# ---------------------------------------------------------------- training never waits


def test_a_server_that_hangs_holds_up_neither_training_nor_the_end_of_the_process(server, tmp_path):
    script = f"""
import sys, time
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from tests.resume.mirrored import Run
run = Run(Path({str(tmp_path / 'run')!r}))
run.mirror.start()
print('started', flush=True)
sys.stdin.readline()
longest = 0
for batch in range(1, 9):
    name = run.train(batch)
    begun = time.monotonic()
    run.mirror.publish(name, keep=2, stage_ends={{3}})
    run.mirror.in_use(), run.mirror.lag(), run.mirror.failure()
    longest = max(longest, time.monotonic() - begun)
begun = time.monotonic()
assert not run.mirror.flush(1)
flushed = time.monotonic() - begun
run.mirror.close()
print(longest, flushed, sorted(run.mirror.in_use()), run.mirror.lag().batches, *run.said, sep='|', flush=True)
sys.exit(75)
"""
    pipes = {'stdin': subprocess.PIPE, 'stdout': subprocess.PIPE, 'text': True}
    with subprocess.Popen([sys.executable, '-c', script], cwd=ROOT, **pipes) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stdout.readline() == 'started\n'
        server.freeze()
        begun = time.monotonic()
        child.stdin.write('\n')
        child.stdin.flush()
        assert child.wait(60) == 75
        seconds = time.monotonic() - begun
        longest, flushed, waiting, batches, *said = child.stdout.read().strip().split('|')
    server.thaw()
    assert float(longest) < 0.2
    assert 0.9 < float(flushed) < 3
    assert seconds < 20
    assert waiting == str([name(1), name(3), name(8)])  # at work, a stage's end, the newest
    assert int(batches) == 8
    assert any('8 batches' in text or 'batches behind' in text for text in said)
    assert 'Not in s3://data/runs/tiny: ba00000001' in said[-1]


@pytest.fixture
def slow_link():
    """An address in a network of its own, and what sets the rate of the link to it."""
    if os.geteuid() != 0:
        pytest.skip('makes a network namespace, as root')
    space, link, number = f'rw{os.getpid()}', f'rw{os.getpid()}', os.getpid() % 250

    def ip(*arguments):
        subprocess.run(arguments, check=True, capture_output=True, text=True)

    def rate(kilobits):
        ip('tc', 'qdisc', 'replace', 'dev', link, 'root', 'tbf', 'rate', f'{kilobits}kbit', 'burst', '32kbit',
           'latency', '400ms')  # fmt: skip

    try:
        ip('ip', 'netns', 'add', space)
        ip('ip', 'link', 'add', link, 'type', 'veth', 'peer', 'name', 'inside', 'netns', space)
        ip('ip', 'address', 'add', f'10.213.{number}.1/30', 'dev', link)
        ip('ip', 'link', 'set', link, 'up')
        ip('ip', '-n', space, 'address', 'add', f'10.213.{number}.2/30', 'dev', 'inside')
        ip('ip', '-n', space, 'link', 'set', 'inside', 'up')
        rate(1_000_000)
        yield f'10.213.{number}.2', ('ip', 'netns', 'exec', space), rate
    except (subprocess.CalledProcessError, FileNotFoundError) as error:
        pytest.skip(f'no network namespace with a rate here: {getattr(error, "stderr", error)}')
    finally:
        subprocess.run(['ip', 'netns', 'delete', space], capture_output=True, check=False)
        subprocess.run(['ip', 'link', 'delete', link], capture_output=True, check=False)


@pytest.mark.slow
def test_over_a_slow_link_training_goes_on_and_the_lag_is_told_until_it_is_made_up(slow_link, tmp_path, monkeypatch):
    host, within, rate = slow_link
    server = S3Server(tmp_path / 's3', host=host, within=within)
    try:
        for key, value in server.variables.items():
            monkeypatch.setenv(key, value)
        run, longest = Run(tmp_path / 'machine'), 0.0
        run.mirror.start()
        rate(2000)  # 3 MiB take 12 s
        for batch in (2, 4, 6, 8):
            checkpoint = run.train(batch, values=3 * MIB // 4)
            begun = time.monotonic()
            run.mirror.publish(checkpoint, keep=3, stage_ends=set())
            longest = max(longest, time.monotonic() - begun)
        assert longest < 0.2
        time.sleep(1)
        lag = run.mirror.lag()
        assert (lag.newest, lag.batches) == (None, 8)
        assert lag.seconds >= 1
        assert any('6 batches behind' in text for text in run.said)
        assert run.mirror.in_use() == {name(2), name(8)}
        assert not run.mirror.flush(0.2)
        wait_for(lambda: run.mirror.lag().newest == name(2), 90, 'an upload at 2 Mbit/s')
        rate(1_000_000)
        assert run.mirror.flush(60)
        assert run.mirror.lag() == (name(8), 0, 0.0)
        assert run.recorded('upload_failed') == []
        assert 8 < run.recorded('upload')[0]['seconds']
        run.mirror.close()
    finally:
        server.stop()
