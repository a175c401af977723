"""Shards that are damaged or missing: fetched again where there is a remote, else an error that names them."""

import hashlib
import json
import os
import shutil
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import zstandard
from streaming import MDSWriter
from streaming.base.format import FileInfo
from streaming.base.util import merge_index

from rewarm.config.duration import Duration
from rewarm.config.errors import RankError, UserError
from rewarm.config.schedules import ConstantSchedule
from rewarm.config.schema import DataConfig, ModelConfig, RunConfig, StageConfig, StreamConfig, TrainConfig
from rewarm.data.mixed_dataset import MixedDataset
from rewarm.data.shard_files import problem_of
from rewarm.data.shard_folder import remove_half_fetched
from rewarm.data.stream import build_train_loader, release
from tests.buckets.servers import S3Server

SEQ, BATCH, SAMPLES = 16, 8, 160
BAD = 'shard.00003.mds'


@pytest.fixture(autouse=True)
def _short(short_temporary_folder):
    """Loader workers' sockets need it."""


@pytest.fixture(scope='module')
def sets(tmp_path_factory):
    """The same data with hashes, without, and packed."""
    root = tmp_path_factory.mktemp('sets')
    for name, options in {
        'hashed': {'hashes': ['sha1']},
        'xxhashed': {'hashes': ['xxh64']},
        'plain': {},
        'packed': {'hashes': ['sha1'], 'compression': 'zstd'},
    }.items():
        columns = {'tokens': f'ndarray:uint16:{SEQ + 1}'}
        with MDSWriter(out=str(root / name), columns=columns, size_limit=1500, **options) as writer:
            for sample in range(SAMPLES):
                writer.write({'tokens': (sample * 7 + np.arange(SEQ + 1)).astype(np.uint16)})
    return root


@pytest.fixture
def reading():
    """Reads a whole stage through a loader and releases what it held."""
    made, iterators = [], []

    def read(workers=0, **source):
        stage = StageConfig(
            name='stage',
            max_duration=Duration(20, 'ba'),
            train=TrainConfig(streams=(StreamConfig(name='new', **source),)),
            schedule=ConstantSchedule(name='constant', lr=1e-3),
        )
        config = RunConfig(
            run_name='test',
            run_folder='runs/test',
            max_seq_len=SEQ,
            global_train_batch_size=BATCH,
            device_train_microbatch_size=4,
            data=DataConfig(num_workers=workers, shuffle_block_size=64),
            tokenizer='none',
            model=ModelConfig(name='pythia-14m', init_from='scratch'),
            stages=(stage,),
        )
        data = build_train_loader(stage, config=config, start_sample=0, total_samples=SAMPLES)
        made.append(data.dataset)
        iterators.append(iter(data.spec.dataloader))
        batches = {}
        for batch in iterators[-1]:
            batches.update(zip(batch['sample_ids'].tolist(), batch['input_ids'].tolist()))
        return batches, list(data.dataset.refetched())

    yield read
    for iterator in iterators:
        if hasattr(iterator._iterator, '_shutdown_workers'):
            iterator._shutdown_workers()  # left to the garbage collector, torch waits ten seconds for them
    release(made)


def whole():
    return {sample: (sample * 7 + np.arange(SEQ)).tolist() for sample in range(SAMPLES)}


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path):
    os.truncate(path, 100)


def zero(path):
    path.write_bytes(b'\0' * path.stat().st_size)


DAMAGES = [(flip, 'its sha1 is not what'), (cut, 'it has 100 bytes instead of'), (zero, 'its sha1 is not what')]


@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize(('damage', 'words'), DAMAGES)
def test_a_shard_that_went_bad_in_the_cache_is_fetched_again(sets, reading, tmp_path, workers, damage, words):
    cache = shutil.copytree(sets / 'hashed', tmp_path / 'cache')
    damage(cache / BAD)
    batches, refetched = reading(workers, remote=str(sets / 'hashed'), local=str(cache))
    assert batches == whole()
    assert [shard for shard, _ in refetched] == [f'new/{BAD}']  # by one of the workers, and once
    assert words in refetched[0].reason
    assert {path.name: path.read_bytes() for path in cache.iterdir()} == {
        path.name: path.read_bytes() for path in (sets / 'hashed').iterdir()
    }


@pytest.mark.parametrize('kind', ['xxhashed', 'packed'])
def test_whatever_hash_or_packing_the_index_has(sets, reading, tmp_path, kind):
    cache = tmp_path / 'cache'
    batches, refetched = reading(remote=str(sets / kind), local=str(cache))
    assert (batches, refetched) == (whole(), [])
    flip(cache / BAD)
    batches, refetched = reading(remote=str(sets / kind), local=str(cache))
    assert batches == whole()
    assert [shard for shard, _ in refetched] == [f'new/{BAD}']


def test_without_hashes_sizes_are_checked(sets, reading, tmp_path):
    cache = shutil.copytree(sets / 'plain', tmp_path / 'cache')
    cut(cache / BAD)
    batches, refetched = reading(remote=str(sets / 'plain'), local=str(cache))
    assert batches == whole()
    assert len(refetched) == 1


def test_a_shard_unpacked_wrong_is_unpacked_again_from_its_packed_form(sets, reading, tmp_path):
    folder = shutil.copytree(sets / 'packed', tmp_path / 'packed')
    assert reading(local=str(folder))[0] == whole()
    flip(folder / BAD)
    batches, refetched = reading(local=str(folder))
    assert batches == whole()
    assert len(refetched) == 1
    assert (folder / f'{BAD}.zstd').exists()


@pytest.mark.parametrize('workers', [0, 1])
@pytest.mark.parametrize(('damage', 'words'), DAMAGES)
def test_a_damaged_shard_without_remote_is_named_and_nothing_is_deleted(
    sets, reading, tmp_path, workers, damage, words
):
    folder = shutil.copytree(sets / 'hashed', tmp_path / 'local')
    damage(folder / BAD)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(UserError) as caught:
        reading(workers, local=str(folder))
    assert str(caught.value).startswith(f'new: {folder / BAD} cannot be used: {words}')
    assert 'Nothing was deleted' in str(caught.value)
    assert 'Traceback' not in str(caught.value)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize('workers', [0, 1])
@pytest.mark.parametrize('kind', ['hashed', 'packed'])
def test_a_shard_damaged_at_the_remote_is_named_after_trying_again(sets, reading, tmp_path, kind, workers):
    remote = shutil.copytree(sets / kind, tmp_path / 'remote')
    bad = next(remote.glob(f'{BAD}*'))
    cut(bad)
    began = time.monotonic()
    with pytest.raises(UserError, match=rf'new: {bad} is damaged: it has 100 bytes instead of .*whole copy'):
        reading(workers, remote=str(remote), local=str(tmp_path / 'cache'))
    assert time.monotonic() - began < 30
    left = {path.name for path in (tmp_path / 'cache').iterdir()}
    assert not left & {BAD, bad.name}
    assert not any(name.endswith('.tmp') for name in left)


def test_a_shard_that_vanishes_from_a_local_folder_is_named(sets, reading, tmp_path, monkeypatch):
    folder = shutil.copytree(sets / 'hashed', tmp_path / 'local')
    monkeypatch.setattr('rewarm.data.datasets._check_shards_are_there', lambda *_: (folder / BAD).unlink())
    with pytest.raises(UserError, match=rf'new: {folder / BAD} cannot be used: it is missing'):
        reading(local=str(folder))


def test_when_both_threads_of_a_reader_fail_it_does_not_wait_for_ever(sets, reading, tmp_path, monkeypatch):
    together = threading.Barrier(2)

    def fail(self, shard_id, blocking=True):
        together.wait(10)
        raise RankError('no such luck')

    def give_up(*_):
        pytest.fail('it waits for ever')  # no Exception, which the reader would take for a shard's

    monkeypatch.setattr(MixedDataset, 'prepare_shard', fail)
    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(20)
    try:
        with pytest.raises(RankError, match='no such luck'):
            reading(remote=str(sets / 'hashed'), local=str(tmp_path / 'cache'))
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def test_each_process_checks_each_shard_once(sets, reading, tmp_path, monkeypatch):
    checked = []
    monkeypatch.setattr(
        'rewarm.data.shard_files.problem_of', lambda path, info: checked.append(path.name) or problem_of(path, info)
    )
    reading(local=str(sets / 'hashed'))
    assert sorted(set(checked)) == sorted(path.name for path in (sets / 'hashed').glob('*.mds'))
    # The reader and the thread that runs ahead may come upon a shard at the same moment.
    assert len(checked) <= 2 * len(set(checked))


def test_our_own_shards_have_hashes(tmp_path, tokenizer_path):
    from rewarm.data.convert import convert

    (tmp_path / 'text.jsonl').write_text(json.dumps({'text': 'the quick brown fox ' * 200}) + '\n')
    convert(
        [str(tmp_path / 'text.jsonl')], str(tmp_path / 'out'), tokenizer=str(tokenizer_path), seq_len=16, workers=1,
        progress=False,
    )  # fmt: skip
    for shard in json.loads((tmp_path / 'out/index.json').read_text())['shards']:
        info = FileInfo(**shard['raw_data'])
        assert set(info.hashes) == {'sha1'}
        assert problem_of(tmp_path / 'out' / info.basename, info) is None
        flip(tmp_path / 'out' / info.basename)
        assert problem_of(tmp_path / 'out' / info.basename, info) == 'its sha1 is not what index.json says'


def test_what_a_dead_process_had_half_fetched_is_removed(tmp_path):
    child = dead_process()
    mine, dead, strange = (tmp_path / name for name in (f'{BAD}.{os.getpid()}.tmp', f'{BAD}.{child}.tmp', 'notes.tmp'))
    for path in (mine, dead, strange):
        path.touch()
    of_others = tmp_path / f'thesis.tex.{child}.tmp'
    of_others.touch()
    remove_half_fetched(tmp_path, {BAD})
    assert [path.exists() for path in (mine, dead, strange, of_others)] == [True, False, True, True]


def test_index_of_hash_that_nobody_knows_counts_as_none(tmp_path):
    path = Path(tmp_path / 'a')
    path.write_bytes(b'abc')
    assert problem_of(path, FileInfo(basename='a', bytes=3, hashes={'crc9': '00'})) is None
    assert problem_of(path, FileInfo(basename='a', bytes=4, hashes={})) == 'it has 3 bytes instead of 4'


# ---------------------------------------------------------------- folders in names, as merge_index writes them


@pytest.fixture(scope='module')
def merged(tmp_path_factory):
    """The same data in two folders with one index, as LLM Foundry's converter makes it; packed or not, hashed or not."""
    root = tmp_path_factory.mktemp('merged')
    for name, options in {
        'plain': {},
        'hashed': {'hashes': ['sha1']},
        'packed': {'compression': 'zstd'},
        'packed-hashed': {'compression': 'zstd', 'hashes': ['sha1']},
    }.items():
        for group, samples in {'g0': range(70), 'g1': range(70, SAMPLES)}.items():
            columns = {'tokens': f'ndarray:uint16:{SEQ + 1}'}
            with MDSWriter(out=str(root / name / group), columns=columns, size_limit=1500, **options) as writer:
                for sample in samples:
                    writer.write({'tokens': (sample * 7 + np.arange(SEQ + 1)).astype(np.uint16)})
        merge_index(str(root / name), keep_local=True)
    return root


@pytest.fixture(scope='module')
def merged_bucket(merged, tmp_path_factory):
    server = S3Server(tmp_path_factory.mktemp('s3'))
    client = server.client()
    for path in merged.rglob('*'):
        if path.is_file():
            client.upload_file(str(path), 'data', path.relative_to(merged).as_posix())
    with pytest.MonkeyPatch.context() as patch:
        for name, value in server.variables.items():
            patch.setenv(name, value)
        yield 's3://data'
    server.stop()


KINDS = ['plain', 'hashed', 'packed', 'packed-hashed']


@pytest.mark.parametrize('kind', KINDS)
def test_shards_in_folders_are_read_where_they_are(merged, reading, tmp_path, kind):
    folder = shutil.copytree(merged / kind, tmp_path / 'local')
    assert reading(local=str(folder)) == (whole(), [])
    assert not list(folder.rglob('*.tmp'))


@pytest.mark.parametrize('kind', KINDS)
def test_shards_in_folders_come_from_a_bucket(merged, merged_bucket, reading, tmp_path, kind):
    cache = tmp_path / 'cache'
    assert reading(1, remote=f'{merged_bucket}/{kind}', local=str(cache)) == (whole(), [])
    made = {path.relative_to(cache).as_posix() for path in cache.rglob('*.mds')}
    assert made == {shard['raw_data']['basename'] for shard in index_of(merged / kind)['shards']}
    bad = cache / 'g1' / 'shard.00001.mds'
    cut(bad)
    half_fetched = bad.with_name(f'{bad.name}.{dead_process()}.tmp')
    half_fetched.touch()
    batches, refetched = reading(remote=f'{merged_bucket}/{kind}', local=str(cache))
    assert batches == whole()
    assert [shard for shard, _ in refetched] == ['new/g1/shard.00001.mds']
    assert not half_fetched.exists()


# ---------------------------------------------------------------- links, and what is no file


def test_nothing_is_written_or_deleted_through_a_linked_folder(merged, reading, tmp_path):
    home = tmp_path / 'home'
    home.mkdir()
    precious = [home / 'shard.00000.mds', home / 'shard.00000.mds.zstd', home / f'shard.00000.mds.{dead_process()}.tmp']
    for path in precious:
        path.write_text('mine')
    cache = tmp_path / 'cache'
    cache.mkdir()
    (cache / 'g0').symlink_to(home)
    for kind in ('hashed', 'packed-hashed'):
        with pytest.raises(RankError, match=rf'{cache}/g0 is a link or no folder, so nothing is written below it'):
            reading(remote=str(merged / kind), local=str(cache))
        (cache / 'index.json').unlink()
        assert [path.read_text() for path in precious] == ['mine'] * 3
        assert len(list(home.iterdir())) == 3


def test_a_linked_shard_is_replaced_and_not_written_through(sets, reading, tmp_path):
    (tmp_path / 'mine').write_text('mine')
    cache = tmp_path / 'cache'
    cache.mkdir()
    (cache / BAD).symlink_to(tmp_path / 'mine')
    (cache / f'{BAD}.{os.getpid()}.tmp').symlink_to(tmp_path / 'mine')
    assert reading(remote=str(sets / 'hashed'), local=str(cache))[0] == whole()
    assert (tmp_path / 'mine').read_text() == 'mine'
    assert not (cache / BAD).is_symlink()


def test_linked_shards_are_read(sets, reading, tmp_path):
    shutil.copytree(sets / 'hashed', tmp_path / 'disk')
    folder = tmp_path / 'local'
    folder.mkdir()
    for path in (tmp_path / 'disk').iterdir():
        (folder / path.name).symlink_to(path)
    assert reading(local=str(folder)) == (whole(), [])


NO_FILES = {
    'pipe': os.mkfifo,
    'device': lambda path: path.symlink_to('/dev/zero'),
    'folder': os.mkdir,
    'link to itself': lambda path: path.symlink_to(path),
}


@pytest.mark.parametrize('kind', NO_FILES)
def test_what_is_no_file_in_place_of_a_shard_is_refused_at_once(sets, reading, tmp_path, kind):
    folder = shutil.copytree(sets / 'hashed', tmp_path / 'local')
    (folder / BAD).unlink()
    NO_FILES[kind](folder / BAD)
    words = r'no regular file|it is a folder|symbolic links'
    with pytest.raises(UserError, match=rf'1 of \d+ shards are missing from {folder}.*{BAD} \(.*({words})'):
        reading(local=str(folder))
    with pytest.raises(UserError, match=rf'{folder}/{BAD} could not be fetched.*({words})'):
        reading(remote=str(folder), local=str(tmp_path / 'cache'))
    if kind != 'folder':
        assert reading(remote=str(sets / 'hashed'), local=str(folder))[0] == whole()


# ---------------------------------------------------------------- whole by its hash, and not to be trained on


def index_of(folder):
    return json.loads((folder / 'index.json').read_text())


def dead_process():
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    return child


def rewrite(folder, edit, name=BAD, kind='raw_data'):
    """Changes a file of the dataset and describes it anew."""
    content = bytearray((folder / name).read_bytes())
    content = edit(content) or content
    (folder / name).write_bytes(content)
    index = index_of(folder)
    (info,) = [shard[kind] for shard in index['shards'] if shard[kind]['basename'] == name]
    info.update(bytes=len(content), hashes={'sha1': hashlib.sha1(content).hexdigest()})
    (folder / 'index.json').write_text(json.dumps(index))


def set_id(value):
    def edit(content):
        content[-2:] = value.to_bytes(2, 'little')

    return edit


def set_offset(content):
    content[8:12] = (1 << 31).to_bytes(4, 'little')


def set_count(content):
    content[0] += 1


@pytest.mark.parametrize('workers', [0, 1])
@pytest.mark.parametrize(
    ('edit', 'words'),
    [
        (set_id(50304), 'it holds the token id 50304, but the vocabulary has 50304 ids'),
        (set_offset, 'where it says that its samples begin and end is not inside it'),
        (set_count, 'samples, the index says'),
    ],
)
def test_a_shard_that_holds_no_samples_of_the_run_is_named(sets, reading, tmp_path, edit, words, workers):
    folder = shutil.copytree(sets / 'hashed', tmp_path / 'local')
    rewrite(folder, edit)
    for source in ({'local': str(folder)}, {'remote': str(folder), 'local': str(tmp_path / 'cache')}):
        with pytest.raises(RankError) as caught:
            reading(workers, **source)
        assert str(caught.value).startswith(f'new: {folder / BAD} cannot be used: ')
        assert words in str(caught.value)
        assert 'another copy will not help' in str(caught.value)
    assert not (tmp_path / 'cache' / BAD).exists()


def test_a_frame_that_unpacks_to_more_than_the_index_says_is_refused(sets, reading, tmp_path):
    folder = shutil.copytree(sets / 'packed', tmp_path / 'local')
    bomb = zstandard.ZstdCompressor(level=1).compress(bytes(256 << 20))
    rewrite(folder, lambda _: bomb, f'{BAD}.zstd', 'zip_data')
    with pytest.raises(RankError, match=rf'{folder / BAD}.zstd cannot be used: it unpacks to 268,435,456 bytes'):
        reading(local=str(folder))
    assert sorted(path.name for path in folder.iterdir() if path.suffix == '.tmp') == []


def test_an_unhashed_packed_shard_that_went_bad_in_the_cache_is_fetched_again(sets, reading, merged, tmp_path):
    cache = shutil.copytree(merged / 'packed', tmp_path / 'cache')
    bad = cache / 'g0' / 'shard.00001.mds.zstd'
    zero(bad)
    assert reading(remote=str(merged / 'packed'), local=str(cache))[0] == whole()
