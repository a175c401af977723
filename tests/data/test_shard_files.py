"""Shards that are damaged or missing: fetched again where there is a remote, else an error that names them."""

import json
import os
import shutil
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from streaming import MDSWriter
from streaming.base.format import FileInfo

from rewarm.config.duration import Duration
from rewarm.config.errors import RankError, UserError
from rewarm.config.schedules import ConstantSchedule
from rewarm.config.schema import DataConfig, ModelConfig, RunConfig, StageConfig, StreamConfig, TrainConfig
from rewarm.data.mixed_dataset import MixedDataset
from rewarm.data.shard_files import problem_of, remove_half_fetched
from rewarm.data.stream import build_train_loader, release

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
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    mine, dead, strange = (tmp_path / name for name in (f'{BAD}.{os.getpid()}.tmp', f'{BAD}.{child}.tmp', 'notes.tmp'))
    for path in (mine, dead, strange):
        path.touch()
    remove_half_fetched(tmp_path, {BAD})
    assert [path.exists() for path in (mine, dead, strange)] == [True, False, True]


def test_index_of_hash_that_nobody_knows_counts_as_none(tmp_path):
    path = Path(tmp_path / 'a')
    path.write_bytes(b'abc')
    assert problem_of(path, FileInfo(basename='a', bytes=3, hashes={'crc9': '00'})) is None
    assert problem_of(path, FileInfo(basename='a', bytes=4, hashes={})) == 'it has 3 bytes instead of 4'
