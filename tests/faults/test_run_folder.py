"""What can happen to a run's folder while it runs and between starts: full, read-only, damaged, wrong, contended."""

import contextlib
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from rewarm.resume.checkpoint import problems
from tests.faults.layer import read_only_from

pytestmark = pytest.mark.slow


def result(run):
    """Everything of a finished run that does not depend on the clock."""
    return run.losses(), sorted(run.evals()), run.weights()


def torn(run):
    return [path.name for path in (run.folder / 'checkpoints').glob('ba????????') if problems(path)]


def refused(run, done):
    """The words of a start that ended with code 2; no traceback."""
    text = run.log.read_text()
    assert done.code == 2, text
    assert 'Traceback' not in text
    run.log.unlink()
    return text


# ---------------------------------------------------------------- the disk


@contextlib.contextmanager
def mounted(folder, *options):
    """A small real file system, or a skip."""
    folder.mkdir(parents=True)
    if os.geteuid() != 0:
        pytest.skip('only root may mount')
    mount = subprocess.run(['mount', '-t', 'tmpfs', *options, 'tmpfs', str(folder)], capture_output=True, text=True)
    if mount.returncode:
        pytest.skip(f'no file system may be mounted here: {mount.stderr}')
    try:
        yield
    finally:
        subprocess.run(['umount', '-l', str(folder)], check=True)


def remount(folder, options):
    subprocess.run(['mount', '-o', f'remount,{options}', str(folder)], check=True)


def test_a_disk_that_fills_up_in_a_save(forks, tiny, whole):
    with mounted(tiny.folder, '-o', 'size=2m'):  # room for two checkpoints of 0.7 MB and the records
        text = refused(tiny, forks.start(tiny))
        assert 'No space left on device' in text
        assert len(tiny.checkpoints()) >= 1
        assert torn(tiny) == []
        assert shutil.disk_usage(tiny.folder).free > 400_000  # what was half written is removed
        remount(tiny.folder, 'size=64m')
        assert forks.start(tiny).code == 0
        assert result(tiny) == result(whole)


def test_a_disk_that_is_full_when_metrics_are_appended(forks, tiny, whole):
    filler = tiny.folder / 'filler'

    def fill(call):
        if call.name == 'write' and call.path == 'metrics.jsonl' and not filler.exists():
            with filler.open('wb', buffering=0) as file, contextlib.suppress(OSError):
                while file.write(b'\0' * 4096):
                    pass

    with mounted(tiny.folder, '-o', 'size=64m'):
        text = refused(tiny, forks.start(tiny, fill))
        assert 'No space left on device' in text
        assert torn(tiny) == []
        filler.unlink()
        assert forks.start(tiny).code == 0
        assert result(tiny) == result(whole)


def test_a_run_folder_that_is_read_only_at_the_start(forks, tiny, whole):
    with mounted(tiny.folder, '-o', 'size=64m,ro'):
        text = refused(tiny, forks.start(tiny))
        assert str(tiny.folder) in text
        assert 'Read-only file system' in text
        remount(tiny.folder, 'rw')
        assert forks.start(tiny).code == 0
        assert result(tiny) == result(whole)


@pytest.mark.parametrize('number', [60, 150, 250])
def test_a_run_folder_that_becomes_read_only_midway(forks, tiny, whole, number):
    text = refused(tiny, forks.start(tiny, read_only_from(number)))
    assert 'Read-only file system' in text
    assert torn(tiny) == []
    assert forks.start(tiny).code == 0
    assert result(tiny) == result(whole)


# ---------------------------------------------------------------- what lies in it


@pytest.fixture
def finished(tiny, whole):
    """A copy of a finished run: a start that believes it does nothing, one that is set back trains again."""
    shutil.copytree(whole.folder, tiny.folder)
    return tiny


def newest(run):
    return run.folder / 'checkpoints' / run.checkpoints()[-1]


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 64
    path.write_bytes(content)


FILE_DAMAGES = {
    'truncated': lambda path: os.truncate(path, path.stat().st_size // 2),
    'emptied': lambda path: os.truncate(path, 0),
    'zero-filled': lambda path: path.write_bytes(b'\0' * path.stat().st_size),
    'flipped': flip,
    'longer': lambda path: path.write_bytes(path.read_bytes() + b'\0'),
    'missing': Path.unlink,
}


@pytest.mark.parametrize('kind', ['model.safetensors', 'optimizer-*.safetensors', 'state.json', 'manifest.json'])
def test_any_file_of_the_newest_checkpoint_damaged_in_any_way(forks, finished, whole, kind):
    for name, damage in FILE_DAMAGES.items():
        bad = newest(finished)
        damage(next(bad.glob(kind)))
        done = forks.start(finished)
        assert done.code == 0, (name, finished.log.read_text())
        assert result(finished) == result(whole), name
        event = next(event for event in reversed(finished.lines('events')) if event.get('moved_to'))
        assert (event['event'], event['path'], event['instead']) == ('fallback', str(bad), 'ba00000010'), name
        assert Path(event['moved_to']).is_dir()
        shutil.rmtree(event['moved_to'])


def test_an_empty_folder_with_a_checkpoints_name(forks, finished, whole):
    (finished.folder / 'checkpoints/ba00000099').mkdir()
    assert forks.start(finished).code == 0
    assert result(finished) == result(whole)
    assert (finished.folder / 'checkpoints/ba00000099.broken').is_dir()


def test_files_and_folders_of_others_are_left_where_they_are(forks, tiny, whole):
    root = tiny.folder / 'checkpoints'
    strange = ['notes.txt', 'ba.txt', 'ba123/model.safetensors', 'ba0000000x/a', 'backup-ba00000004/manifest.json']
    for name in strange:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    marked = []

    def mark(call):
        # Somebody puts a note into the first checkpoint, which retention would delete.
        first = root / 'ba00000002'
        if first.is_dir() and not marked:
            first.joinpath('my-note').write_text('keep me')
            marked.append(first)

    assert forks.start(tiny, mark).code == 0, tiny.log.read_text()
    assert result(tiny) == result(whole)
    assert [(root / name).read_text() for name in strange] == strange
    assert (root / 'ba00000002/my-note').read_text() == 'keep me'
    assert problems(root / 'ba00000002') == ['my-note is not listed in manifest.json']


@pytest.mark.parametrize(
    'what',
    [
        'a dangling link',
        'a link',
        'a directory',
        'a full directory',
        'bytes',
        'empty',
    ],
)
def test_whatever_latest_is_the_newest_whole_checkpoint_is_taken_and_latest_put_right(forks, finished, whole, what):
    latest = finished.folder / 'checkpoints/latest'
    latest.unlink()
    if what == 'a dangling link':
        latest.symlink_to('ba99999999')
    elif what == 'a link':
        latest.symlink_to('ba00000006')
    elif what == 'a directory':
        latest.mkdir()
    elif what == 'a full directory':
        shutil.copytree(finished.folder / 'checkpoints/ba00000010', latest)
    else:
        latest.write_bytes(b'\xff\x00\xfe' if what == 'bytes' else b'')
    shutil.rmtree(newest(finished))  # so that there is something to train
    done = forks.start(finished)
    assert done.code == 0, finished.log.read_text()
    assert result(finished) == result(whole)
    assert latest.is_file()
    assert not latest.is_symlink()
    assert latest.read_text() == 'ba00000012\n'


@pytest.mark.parametrize('name', ['metrics', 'evals', 'events'])
@pytest.mark.parametrize('tail', [b'{"batch": 13, "lo', b'\0' * 512, b'\xff\xfe\n'])
def test_records_with_a_torn_or_strange_end(forks, finished, whole, name, tail):
    with (finished.folder / f'{name}.jsonl').open('ab') as file:
        file.write(tail)
    shutil.rmtree(newest(finished))
    done = forks.start(finished)
    assert done.code == 0, finished.log.read_text()
    if name != 'events':
        assert result(finished) == result(whole)
        return
    # Never cut: what was there stays, and what is added stands on lines of its own.
    there = (finished.folder / 'events.jsonl').read_bytes()
    assert there.startswith((whole.folder / 'events.jsonl').read_bytes() + tail)
    added = []
    for line in there.splitlines()[len(whole.lines('events')) :]:
        with contextlib.suppress(ValueError):
            added.append(json.loads(line)['event'])
    assert (added[0], added[-1]) == ('fallback', 'finished')


# ---------------------------------------------------------------- two at once


def test_of_two_started_at_once_one_trains_and_the_other_names_it(make_run, unbroken):
    run = make_run()
    both = [run.start(), run.start()]
    outputs = [process.communicate(timeout=240)[0] for process in both]
    codes = [process.returncode for process in both]
    assert sorted(codes) == [0, 2], outputs
    winner, loser = both[codes.index(0)], outputs[codes.index(2)]
    assert f'in use by process {winner.pid} on' in loser
    assert 'Traceback' not in loser
    assert (run.losses(), run.weights()) == (unbroken.losses(), unbroken.weights())


# ---------------------------------------------------------------- its data


@pytest.mark.parametrize('workers', [0, 2])
def test_a_damaged_shard_of_a_local_dataset_ends_the_run_and_names_it(forks, tiny, whole, data, tmp_path, workers):
    copy = shutil.copytree(data / 'new', tmp_path / 'copy')
    for shard in copy.glob('*.mds'):
        flip(shard)
    before = {path.name: path.read_bytes() for path in copy.iterdir()}
    tiny.overrides += [f'data.num_workers={workers}', f'stages.1.train.streams.0.local={copy}']
    text = refused(tiny, forks.start(tiny))
    assert f'new: {copy}/shard.' in text
    assert 'Nothing was deleted' in text
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == before
    for shard in copy.glob('*.mds'):
        shutil.copy(data / 'new' / shard.name, shard)
    assert forks.start(tiny).code == 0, tiny.log.read_text()
    assert result(tiny) == result(whole)


@pytest.mark.parametrize('workers', [0, 2])
def test_damaged_shards_in_a_cache_are_fetched_again(forks, tiny, whole, data, tmp_path, workers):
    cache = shutil.copytree(data / 'new', tmp_path / 'cache')
    for shard in cache.glob('*.mds'):
        flip(shard)
    tiny.overrides += [
        f'data.num_workers={workers}',
        f'stages.1.train.streams.0.local={cache}',
        f'stages.1.train.streams.0.remote={data}/new',
    ]
    assert forks.start(tiny).code == 0, tiny.log.read_text()
    assert result(tiny) == result(whole)
    assert 'was damaged (its sha1 is not what index.json says) and has been replaced by a whole one' in (
        tiny.log.read_text()
    )
