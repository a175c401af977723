"""A pinned checkpoint stays, on the disk and in the bucket, and what is said at the moment of its deletion is so."""

import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from rewarm.buckets.bucket import open_bucket
from rewarm.config.errors import UserError
from rewarm.formats.checkpoint import PIN_FILE, checkpoint_name
from rewarm.resume import folders
from rewarm.resume.archive import Archive
from rewarm.resume.checkpoint import find_newest_valid, problems, remove_leftovers, retain, write
from rewarm.resume.pins import find_pins, name_checkpoint, pin, unpin
from rewarm.resume.refusals import Refusals
from tests.buckets.servers import S3Server
from tests.resume.mirrored import URL, Run, name


@pytest.fixture
def run(tmp_path):
    """A run folder with checkpoints at batches 1 to 5."""
    for batch in range(1, 6):
        save(tmp_path, batch)
    return tmp_path


def save(folder, batch):
    import torch

    return write(folder / 'checkpoints', batch=batch, model={'a': torch.ones(4)}, optimizer={}, state={})


def there(folder):
    return [int(path.name[2:]) for path in sorted((folder / 'checkpoints').glob('ba*'))]


def test_retention_leaves_what_is_pinned_and_keeps_as_many_others(run):
    pin(str(run), name(1))
    pin(str(run), name(4))
    retain(run / 'checkpoints', keep=2, stage_ends={2})
    assert there(run) == [1, 2, 3, 4, 5]
    retain(run / 'checkpoints', keep=1, stage_ends={2})
    assert there(run) == [1, 2, 4, 5]
    assert find_pins(str(run)) == [name(1), name(4)]
    unpin(str(run), name(1))
    retain(run / 'checkpoints', keep=1, stage_ends=())
    assert there(run) == [4, 5]


def test_a_pinned_checkpoint_is_as_good_as_before(run):
    pin(str(run), name(5))
    pin(str(run), name(5))
    assert problems(run / 'checkpoints' / name(5)) == []
    assert find_newest_valid(run / 'checkpoints', record=print).batch == 5


def test_the_same_batch_saved_again_is_still_pinned_and_nothing_is_set_aside(run):
    pin(str(run), name(5))
    save(run, 5)
    assert find_pins(str(run)) == [name(5)]
    assert there(run) == [1, 2, 3, 4, 5]
    assert problems(run / 'checkpoints' / name(5)) == []


@pytest.mark.parametrize(('text', 'batch'), [('ba00000003', 3), ('3', 3), ('3ba', 3), ('latest', 5)])
def test_a_checkpoint_is_named_as_people_do(run, text, batch):
    assert name_checkpoint(str(run), text) == name(batch)


def test_what_cannot_be_pinned_is_told(run, tmp_path):
    for text in ('three', '-1', 'ba3', '../ba00000003', '123456789'):
        with pytest.raises(UserError, match='no checkpoint; give its name such as'):
            name_checkpoint(str(run), text)
    with pytest.raises(UserError, match='no complete checkpoint yet'):
        name_checkpoint(str(tmp_path / 'nothing'), 'latest')
    with pytest.raises(UserError, match=r'ba00000009 is not there; .*there are ba00000001, ba00000002'):
        pin(str(run), name(9))
    with pytest.raises(UserError, match='ba00000002 is not pinned'):
        unpin(str(run), name(2))
    (run / 'checkpoints' / name(2) / 'state.json').unlink()
    with pytest.raises(UserError, match='no complete checkpoint; `rewarm verify'):
        pin(str(run), name(2))
    (run / 'checkpoints' / name(7)).symlink_to(run / 'checkpoints' / name(3))
    with pytest.raises(UserError, match='is a link, which no run deletes'):
        pin(str(run), name(7))
    assert find_pins(str(run)) == []


def test_one_pinned_while_it_is_deleted_gets_its_name_back(run, monkeypatch):
    look, asked = folders.is_pinned, []

    def pinned_meanwhile(path):
        if path.name == f'.writing-gone-{name(1)}' and not asked:
            asked.append(path)
            path.rename(run / 'checkpoints' / name(1))  # an instant earlier
            pin(str(run), name(1))
            (run / 'checkpoints' / name(1)).rename(path)
        return look(path)

    monkeypatch.setattr(folders, 'is_pinned', pinned_meanwhile)
    assert [path.name for path in retain(run / 'checkpoints', keep=1, stage_ends=())] == [name(2), name(3), name(4)]
    assert asked
    assert there(run) == [1, 5]
    assert find_pins(str(run)) == [name(1)]


def test_a_kill_before_it_has_its_name_back_does_not_lose_it(run):
    root = run / 'checkpoints'
    pin(str(run), name(1))
    (root / name(1)).rename(root / f'.writing-gone-{name(1)}')
    (root / name(2)).rename(root / f'.writing-gone-{name(2)}')
    remove_leftovers(root)
    assert there(run) == [1, 3, 4, 5]
    assert [path.name for path in root.glob('.writing*')] == []


def test_pinning_against_deletion_many_times_over_always_tells_the_truth(run):
    """Both outcomes occur, at whatever instant the one comes to the other."""
    said = []
    for number in range(60):
        write_copy(run, 10)

        def try_to_pin(delay=number * 2e-5):
            time.sleep(delay)
            try:
                pin(str(run), name(10))
            except UserError:
                return False
            return True

        save(run, 11) if number == 0 else None
        with ThreadPoolExecutor() as threads:
            pinned = threads.submit(try_to_pin)
            retain(run / 'checkpoints', keep=1, stage_ends=set(range(1, 6)))
            said.append(pinned.result())
        assert (run / 'checkpoints' / name(10)).exists() == said[-1]
        assert (name(10) in find_pins(str(run))) == said[-1]
        shutil.rmtree(run / 'checkpoints' / name(10), ignore_errors=True)
    assert True in said


def write_copy(run, batch):
    shutil.copytree(run / 'checkpoints' / name(1), run / 'checkpoints' / name(batch))


# ---------------------------------------------------------------- in a bucket


@pytest.fixture(scope='module')
def server(tmp_path_factory):
    server = S3Server(tmp_path_factory.mktemp('pins') / 's3')
    yield server
    server.stop()


@pytest.fixture
def bucket(server, monkeypatch):
    server.empty()
    for key, value in server.variables.items():
        monkeypatch.setenv(key, value)
    return open_bucket(URL)


@pytest.fixture
def machine(bucket, tmp_path):
    run = Run(tmp_path / 'machine')
    run.mirror.start()
    yield run
    run.mirror.close()


def in_bucket(bucket):
    return sorted({int(entry.name[2:10]) for entry in bucket.list(f'{URL}/checkpoints') if entry.name.startswith('ba')})


def test_retention_in_the_bucket_leaves_what_is_pinned_from_anywhere(machine, bucket):
    machine.publish(1, keep=1)
    assert machine.mirror.flush(30)
    pin(URL, name(1))
    for batch in (2, 3):
        machine.publish(batch, keep=1)
        assert machine.mirror.flush(30)
    assert in_bucket(bucket) == [1, 3]
    assert find_pins(URL) == [name(1)]
    assert name_checkpoint(URL, 'latest') == name(3)
    unpin(URL, name(1))
    machine.publish(4, keep=1)
    assert machine.mirror.flush(30)
    assert in_bucket(bucket) == [4]
    with pytest.raises(UserError, match='ba00000001 is not there'):
        pin(URL, name(1))
    with pytest.raises(UserError, match='ba00000004 is not pinned'):
        unpin(URL, name(4))


def test_one_pinned_on_the_disk_before_its_upload_is_pinned_in_the_bucket(machine, bucket):
    machine.train(1)
    pin(str(machine.folder), name(1))
    for batch in (1, 2, 3):
        machine.mirror.publish(machine.train(batch), keep=1, stage_ends=set())
        assert machine.mirror.flush(30)
    assert in_bucket(bucket) == [1, 3]
    assert find_pins(URL) == [name(1)]


def test_other_bits_of_a_pinned_batch_take_its_place_and_stay_pinned(machine, bucket):
    machine.publish(1)
    assert machine.mirror.flush(30)
    pin(URL, name(1))
    machine.publish(1, seed=7)
    assert machine.mirror.flush(30)
    manifest = (machine.root / name(1) / 'manifest.json').read_bytes()
    assert bucket.read(f'{URL}/checkpoints/{name(1)}/manifest.json') == manifest
    assert find_pins(URL) == [name(1)]
    other = Run(machine.folder.with_name('other'))
    assert other.mirror.fetch().name == name(1)
    assert problems(other.root / name(1)) == []


class Noticing:
    """A bucket that does something at one moment of a deletion."""

    def __init__(self, bucket, moment, action):
        self.bucket, self.moment, self.action = bucket, moment, action

    def __getattr__(self, method):
        def call(url, *arguments, **options):
            if (method, url.rpartition('/')[2]) == self.moment[1:] and self.moment[0] == 'before':
                self.action()
            result = getattr(self.bucket, method)(url, *arguments, **options)
            if (method, url.rpartition('/')[2]) == self.moment[1:] and self.moment[0] == 'after':
                self.action()
            return result

        return call


@pytest.mark.parametrize(
    ('moment', 'stays'),
    [
        (('before', 'write', 'unfinished.json'), True),
        (('before', 'find', PIN_FILE), True),
        (('after', 'find', PIN_FILE), False),
        (('before', 'delete', 'manifest.json'), False),
        (('after', 'delete', 'manifest.json'), False),
    ],
)
def test_pinned_at_the_moment_of_its_deletion_it_stays_or_is_told_to_be_gone(machine, bucket, moment, stays):
    for batch in (1, 2):
        machine.publish(batch)
    assert machine.mirror.flush(30)
    said: list[str] = []

    def try_to_pin():
        try:
            pin(URL, name(1))
        except UserError as error:
            said.append(str(error))
        else:
            said.append('pinned')

    pinning = threading.Thread(target=try_to_pin)

    def begin():
        pinning.start()
        deadline = time.monotonic() + 20
        while bucket.find(f'{URL}/checkpoints/{name(1)}/{PIN_FILE}') is None and pinning.is_alive():
            assert time.monotonic() < deadline

    archive = Archive(Noticing(bucket, moment, begin), f'{URL}/checkpoints')
    refusals = Refusals(lambda: None, lambda url, reason: None)
    gone = archive.retain(keep=1, stage_ends=(), refusals=refusals, before_write=lambda: None)
    pinning.join(30)
    if stays:
        assert said == ['pinned']
        assert gone == []
    else:
        assert 'ba00000001 is not there; it was deleted' in said[0]
        assert gone == [name(1)]
    files = {entry.name for entry in bucket.list(f'{URL}/checkpoints/{name(1)}')}
    assert files == ({*(path.name for path in (machine.root / name(1)).iterdir()), PIN_FILE} if stays else set())
    assert checkpoint_name(2) in archive.names()
