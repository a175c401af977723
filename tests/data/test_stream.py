"""Loaders: the same batches for any world, any start, any kind of shard; datasets that do not fit are refused."""

import json
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import time
from fractions import Fraction
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from streaming import MDSWriter
from torch.utils.data import DataLoader

from rewarm.config.duration import Duration
from rewarm.config.errors import UserError
from rewarm.config.schedules import ConstantSchedule
from rewarm.config.schema import (
    DataConfig,
    EvalConfig,
    EvalSetConfig,
    ModelConfig,
    RunConfig,
    StageConfig,
    StreamConfig,
    TrainConfig,
)
from rewarm.data import mixed_dataset
from rewarm.data.mixed_dataset import _WorkerOrder
from rewarm.data.order import Mix, MixStream
from rewarm.data.stream import IGNORED, build_eval_loader, build_train_loader, release
from rewarm.formats.tokenizer import tokenizer_hash
from tests.buckets.servers import S3Server

SEQ = 16
BATCH = 8
SIZES = {'new': 400, 'old': 53}


def tokens_of(name, sample, length=SEQ + 1):
    """Tokens that tell which sample they are."""
    return (sample * 7 + np.arange(length) + (1000 if name == 'old' else 0)).astype(np.uint16)


def write(folder, name='new', samples=None, encoding=f'ndarray:uint16:{SEQ + 1}', make=tokens_of, **kwargs):
    with MDSWriter(out=str(folder), columns={'tokens': encoding}, size_limit=1500, **kwargs) as writer:
        for sample in range(SIZES[name] if samples is None else samples):
            writer.write({'tokens': make(name, sample)})
    return str(folder)


def run_config(tmp_path, *streams, num_workers=0, **changes):
    stage = StageConfig(
        name='stage',
        max_duration=Duration(10, 'ba'),
        train=TrainConfig(streams=streams),
        schedule=ConstantSchedule(name='constant', lr=1e-3),
    )
    settings = {
        'run_name': 'test',
        'run_folder': str(tmp_path / 'run'),
        'max_seq_len': SEQ,
        'global_train_batch_size': BATCH,
        'device_train_microbatch_size': 4,
        'data': DataConfig(num_workers=num_workers, shuffle_block_size=64),
        'tokenizer': str(tmp_path / 'tokenizer.json'),
        'model': ModelConfig(name='pythia-14m', init_from='scratch'),
        'stages': (stage,),
    }
    return RunConfig(**{**settings, **changes})


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp('shards')
    return {name: write(root / name, name) for name in SIZES}


@pytest.fixture
def config(tmp_path, folders):
    def make(num_workers=0, **changes):
        streams = (
            StreamConfig(name='new', local=folders['new'], proportion=0.95),
            StreamConfig(name='old', local=folders['old'], proportion=0.05),
        )
        return run_config(tmp_path, *streams, num_workers=num_workers, **changes)

    return make


@pytest.fixture
def built():
    """Builds loaders and releases their datasets after the test."""
    made = []

    def train(config, start=0, total=20 * BATCH):
        made.append(build_train_loader(config.stages[0], config=config, start_sample=start, total_samples=total))
        return made[-1]

    def evaluation(config, **source):
        made.append(build_eval_loader(EvalSetConfig(**{'name': 'old', 'role': 'upstream', **source}), config=config))
        return made[-1]

    train.evaluation = evaluation
    yield train
    release([each.dataset for each in made])


def single(tmp_path, **source):
    return run_config(tmp_path, StreamConfig(name='new', **source))


def ids_of(data):
    return [batch['sample_ids'].tolist() for batch in data.spec.dataloader]


def expected_ids(start=0, total=20 * BATCH):
    streams = [
        MixStream('new', shard_sizes(SIZES['new']), Fraction(19, 20)),
        MixStream('old', shard_sizes(SIZES['old']), Fraction(1, 20)),
    ]
    return Mix(streams, 17, 'stage', 64).ids(start, total).reshape(-1, BATCH).tolist()


def shard_sizes(samples, per_shard=None):
    per_shard = per_shard or SHARD
    return [per_shard] * (samples // per_shard) + ([samples % per_shard] if samples % per_shard else [])


SHARD = 34  # samples of 17 uint16 that MDSWriter puts in 1,500 bytes; checked below


# ---------------------------------------------------------------- what a batch holds


def test_batches_hold_the_samples_in_order_with_their_targets(config, folders, built):
    sizes = [shard['samples'] for shard in json.loads(Path(folders['new'], 'index.json').read_text())['shards']]
    assert sizes == shard_sizes(SIZES['new'])
    data = built(config())
    batches = list(data.spec.dataloader)
    assert [batch['sample_ids'].tolist() for batch in batches] == expected_ids()
    for batch in batches:
        assert batch['input_ids'].dtype == batch['labels'].dtype == batch['sample_ids'].dtype == torch.int64
        assert batch['input_ids'].shape == batch['labels'].shape == (BATCH, SEQ)
        for row, at in enumerate(batch['sample_ids'].tolist()):
            tokens = tokens_of('new', at) if at < SIZES['new'] else tokens_of('old', at - SIZES['new'])
            assert batch['input_ids'][row].tolist() == tokens[:-1].tolist()
            assert batch['labels'][row].tolist() == tokens[1:].tolist()
    assert sum(data.mix.counts(20 * BATCH).values()) == 20 * BATCH


@pytest.mark.parametrize('num_workers', [0, 1, 2, 3])
@pytest.mark.parametrize('start', [0, 1, 7, 19])
def test_any_start_with_any_workers_continues_the_same_batches(config, built, num_workers, start):
    data = built(config(num_workers), start * BATCH)
    assert ids_of(data) == expected_ids()[start:]
    assert len(data.spec.dataloader) == 20  # the Trainer counts the whole stage


def test_a_stage_longer_than_its_data_repeats_it_by_whole_passes(config, built):
    total = 120 * BATCH
    ids = np.concatenate(ids_of(built(config(1), 0, total)))
    assert ids.tolist() == np.concatenate(expected_ids(0, total)).tolist()
    new = ids[ids < SIZES['new']]
    assert np.bincount(new[: 2 * SIZES['new']]).tolist() == [2] * SIZES['new']


def test_counts_are_taken_from_shapes(config, built):
    spec = built(config()).spec
    batch = next(iter(spec.dataloader))
    assert spec.get_num_samples_in_batch(batch) == BATCH
    assert spec.get_num_tokens_in_batch(batch) == BATCH * SEQ
    meta = {'input_ids': torch.empty(3, 5, device='meta')}  # has a shape and nothing to read
    assert spec.get_num_samples_in_batch(meta) == 3
    assert spec.get_num_tokens_in_batch(meta) == 15


@pytest.mark.parametrize('num_workers', [0, 2])
def test_reading_leaves_the_random_state_alone(config, built, num_workers):
    data = built(config(num_workers))
    before = torch.get_rng_state()
    next(iter(data.spec.dataloader))
    assert torch.equal(torch.get_rng_state(), before)


def test_workers_ignore_the_signals_a_scheduler_sends_to_the_group(config, built):
    iterator = iter(built(config(2)).spec.dataloader)
    batches = []
    for _ in range(2):  # before any worker is up, and while they read
        for worker in iterator._workers:
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
                os.kill(worker.pid, number)
        batches.append(next(iterator))
    time.sleep(0.2)
    batches += list(iterator)
    assert [batch['sample_ids'].tolist() for batch in batches] == expected_ids()


def test_a_temporary_folder_too_long_for_worker_sockets_is_refused(config, built, tmp_path, monkeypatch):
    folder = tmp_path / ('long' * 20)
    folder.mkdir()
    monkeypatch.setattr('tempfile.tempdir', str(folder))
    with pytest.raises(UserError, match='set TMPDIR to a shorter one'):
        built(config(2))
    built(config(0))


LEFT_OPEN = """
import pickle, sys
from pathlib import Path
from rewarm.data.stream import build_train_loader
config = pickle.loads((Path(sys.argv[1]) / 'configs').read_bytes())
data = build_train_loader(config.stages[0], config=config, start_sample=0, total_samples=160)
iterator = iter(data.spec.dataloader)
next(iterator)
sys.exit(75)
"""


def test_a_process_with_an_open_loader_still_exits(config, tmp_path):
    (tmp_path / 'configs').write_bytes(pickle.dumps(config(2)))
    began = time.monotonic()
    ((errors, code),) = run_ranks(tmp_path, LEFT_OPEN, 1)
    assert code == 75, errors
    assert time.monotonic() - began < 60


def test_workers_may_be_spawned(config, built):
    data = built(config())
    loader = data.spec.dataloader
    assert pickle.loads(pickle.dumps(loader.collate_fn))
    spawned = DataLoader(
        data.dataset, BATCH, num_workers=1, collate_fn=loader.collate_fn, multiprocessing_context='spawn'
    )
    assert [batch['sample_ids'].tolist() for batch in spawned] == expected_ids()


# ---------------------------------------------------------------- worlds


@pytest.mark.parametrize('ranks', [1, 2, 4, 8])
@pytest.mark.parametrize('workers', [1, 2, 3])
@pytest.mark.parametrize(('start', 'total'), [(0, 160), (40, 160), (0, 53), (0, 5), (0, 16)])
def test_workers_of_all_ranks_together_read_each_sample_once(ranks, workers, start, total):
    batch = 2
    for count_batches in (-(-(total - start) // (batch * ranks)),):
        seen = np.full((count_batches, ranks, batch), -2)
        for rank in range(ranks):
            for worker in range(workers):
                order = _WorkerOrder(
                    np.arange,
                    start=start,
                    total=total,
                    device_batch=batch,
                    rank=rank,
                    ranks=ranks,
                    worker=worker,
                    workers=workers,
                )
                ids = [order[i] for i in range(len(order))] + [-1] * order.padding
                assert len(ids) % batch == 0
                seen[worker::workers, rank] = np.reshape(ids, (-1, batch))
        flat = seen.ravel().tolist()
        assert flat == [*range(start, total), *[-1] * (len(flat) - total + start)]


RANK = """
import pickle, sys
from pathlib import Path
from composer.utils import dist
from rewarm.config.schema import EvalSetConfig
from rewarm.data.stream import build_eval_loader, build_train_loader, release, sweep_shared_memory
folder, device = Path(sys.argv[1]), 'cpu'
dist.initialize_dist(device)
if dist.get_local_rank() == 0:
    sweep_shared_memory()
dist.barrier()
out, memory = {}, Path('/dev/shm')
for (workers, start), config in pickle.loads((folder / 'configs').read_bytes()).items():
    size = config.global_train_batch_size
    train = build_train_loader(config.stages[0], config=config, start_sample=start * size, total_samples=20 * size)
    out[workers, start] = [batch['sample_ids'].tolist() for batch in train.spec.dataloader]
    datasets = [train.dataset]
    for stream in config.stages[0].train.streams:
        source = EvalSetConfig(name=stream.name, local=stream.local, role='upstream')
        data = build_eval_loader(source, config=config)
        out[workers, start, stream.name] = [
            (batch['sample_ids'].tolist(), batch['labels'].tolist()) for batch in data.spec.dataloader
        ]
        datasets.append(data.dataset)
    numbers = tuple(f'{dataset._shm_prefix_int:06}_' for dataset in datasets)
    ours = {path.stat().st_ino for path in memory.iterdir() if path.name.startswith(numbers)}
    assert len(ours) == 6 * len(datasets), ours
    dist.barrier()
    release(datasets)
    left = [path.name for path in memory.iterdir() if path.name.startswith(numbers) and path.stat().st_ino in ours]
    dist.barrier()
    out[workers, start, 'left'] = left
(folder / f'rank{dist.get_global_rank()}').write_bytes(pickle.dumps(out))
"""


def free_port():
    with socket.socket() as server:
        server.bind(('127.0.0.1', 0))
        return server.getsockname()[1]


def run_ranks(folder, script, ranks, *arguments):
    environment = {
        **os.environ,
        'WORLD_SIZE': str(ranks),
        'LOCAL_WORLD_SIZE': str(ranks),
        'MASTER_ADDR': '127.0.0.1',
        'MASTER_PORT': str(free_port()),
        'NODE_RANK': '0',
        'OMP_NUM_THREADS': '1',
        'PYTHONPATH': str(Path(__file__).parents[2]),
    }
    processes = [
        subprocess.Popen(
            [sys.executable, '-W', 'ignore', '-c', script, str(folder), *arguments],
            env={**environment, 'RANK': str(rank), 'LOCAL_RANK': str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks)
    ]
    return [(process.communicate(timeout=150)[1], process.returncode) for process in processes]


@pytest.mark.parametrize('ranks', [2, pytest.param(4, marks=pytest.mark.slow)])
def test_every_world_reads_the_same_global_batches(config, tmp_path, ranks):
    cases = [(0, 0), (1, 7), (2, 13)]  # loader workers, first batch
    configs = {(workers, start): config(workers, device_train_microbatch_size=2) for workers, start in cases}
    (tmp_path / 'configs').write_bytes(pickle.dumps(configs))
    for errors, code in run_ranks(tmp_path, RANK, ranks):
        assert code == 0, errors
    of_ranks = [pickle.loads((tmp_path / f'rank{rank}').read_bytes()) for rank in range(ranks)]
    for case in cases:
        batches = zip(*(of_rank[case] for of_rank in of_ranks), strict=True)
        assert [list(chain(*parts)) for parts in batches] == expected_ids()[case[1] :]
        assert not any(of_rank[*case, 'left'] for of_rank in of_ranks)
        for name, size in SIZES.items():
            evals = [of_rank[*case, name] for of_rank in of_ranks]  # zip is strict: each rank has as many batches
            ids = [at for parts in zip(*evals, strict=True) for part in parts for at in part[0]]
            labels = [row for parts in zip(*evals, strict=True) for part in parts for row in part[1]]
            assert ids == [*range(size), *[-1] * (len(ids) - size)]
            assert labels[:size] == [tokens_of(name, at)[1:].tolist() for at in range(size)]
            assert all(set(row) == {IGNORED} for row in labels[size:])


FAILING_RANK = """
import pickle, sys
from pathlib import Path
from composer.utils import dist
from rewarm.config.errors import UserError
from rewarm.data.stream import build_train_loader
dist.initialize_dist('cpu')
config = pickle.loads((Path(sys.argv[1]) / 'configs').read_bytes())
try:
    build_train_loader(config.stages[0], config=config, start_sample=0, total_samples=16)
except UserError as error:
    print(error, file=sys.stderr)
    sys.exit(2)
"""


def test_all_ranks_refuse_together_what_one_finds(tmp_path):
    config = single(tmp_path, remote=str(tmp_path / 'nothing'), local=str(tmp_path / 'cache'))
    (tmp_path / 'configs').write_bytes(pickle.dumps(config))
    for errors, code in run_ranks(tmp_path, FAILING_RANK, 2):
        assert code == 2, errors
        assert 'no dataset at' in errors


# ---------------------------------------------------------------- evaluation sets


@pytest.mark.parametrize('num_workers', [0, 2])
def test_an_evaluation_set_is_read_whole_each_time(config, folders, built, num_workers):
    data = built.evaluation(config(num_workers), local=folders['old'])
    assert (data.samples, data.card) == (SIZES['old'], None)
    for _ in range(2):
        batches = list(data.spec.dataloader)
        assert len(batches) == len(data.spec.dataloader) == 14
        ids = torch.cat([batch['sample_ids'] for batch in batches]).tolist()
        assert ids == [*range(53), -1, -1, -1]
        labels = torch.cat([batch['labels'] for batch in batches])
        assert (labels[53:] == IGNORED).all()
        assert (labels[:53] != IGNORED).all()


@pytest.mark.parametrize(('most', 'microbatch'), [(10, 4), (10, 3), (53, 4), (1000, 4), (1, 4)])
def test_the_first_samples_of_an_evaluation_set_are_read_whatever_the_batch(config, folders, built, most, microbatch):
    settings = config(eval=EvalConfig(max_samples=most), device_train_microbatch_size=microbatch)
    data = built.evaluation(settings, local=folders['old'])
    batches = list(data.spec.dataloader)
    ids = [each for batch in batches for each in batch['sample_ids'].tolist() if each >= 0]
    assert ids == list(range(min(most, 53)))
    assert data.samples == len(ids)
    assert sum(int((batch['labels'] != IGNORED).sum()) for batch in batches) == len(ids) * SEQ


def test_a_part_of_a_set_has_no_bytes_that_somebody_counted(config, folders, built, tmp_path):
    folder = shutil.copytree(folders['old'], tmp_path / 'old')
    settings = config()
    Path(settings.tokenizer).write_text('{}')
    write_card(folder, settings.tokenizer, samples=53, tokens=53 * SEQ + 1)
    assert built.evaluation(settings, local=str(folder)).card is not None
    for most, known in ((53, True), (52, False)):
        part = settings.model_copy(update={'eval': EvalConfig(max_samples=most)})
        assert (built.evaluation(part, local=str(folder)).card is not None) == known


def test_more_workers_than_cores_are_no_matter_of_torchs(config, built, recwarn, short_temporary_folder):
    data = built(config(num_workers=len(os.sched_getaffinity(0)) + 1), total=BATCH)
    next(iter(data.spec.dataloader))
    assert not [each for each in recwarn if 'DataLoader' in str(each.message)]


# ---------------------------------------------------------------- kinds of shards


@pytest.mark.parametrize(
    ('encoding', 'dtype', 'length'),
    [
        (f'ndarray:uint32:{SEQ + 1}', np.uint32, SEQ + 1),
        ('ndarray', np.int32, SEQ + 1),
        ('bytes', np.int64, SEQ),  # LLM Foundry, as it was
        (f'ndarray:int64:{SEQ}', np.int64, SEQ),
        ('ndarray:uint16', np.uint16, SEQ),  # LLM Foundry, token_encoding_type
    ],
)
def test_other_formats_are_read_too(tmp_path, built, encoding, dtype, length):
    def make(name, sample):
        tokens = tokens_of(name, sample, length).astype(dtype)
        return tokens.tobytes() if encoding == 'bytes' else tokens

    folder = write(tmp_path / 'other', samples=40, encoding=encoding, make=make)
    data = built(single(tmp_path, local=folder), total=2 * BATCH)
    for batch in data.spec.dataloader:
        for row, at in enumerate(batch['sample_ids'].tolist()):
            tokens = tokens_of('new', at).tolist()
            assert batch['input_ids'][row].tolist() == tokens[:SEQ]
            targets = tokens[1:] if length == SEQ + 1 else [*tokens[1:SEQ], IGNORED]
            assert batch['labels'][row].tolist() == targets


def test_compressed_shards_are_unpacked_and_kept(tmp_path, built):
    folder = Path(write(tmp_path / 'packed', compression='zstd'))
    packed = sorted(folder.glob('*.zstd'))
    config = single(tmp_path, local=str(folder))
    first = ids_of(built(config))
    assert len(set(chain(*first))) == 20 * BATCH
    assert sorted(folder.glob('*.zstd')) == packed
    assert not list(folder.glob('*.tmp'))


def test_unpacked_shards_without_their_packed_form_are_not_deleted(tmp_path, built):
    folder = Path(write(tmp_path / 'packed', compression='zstd'))
    expected = ids_of(built(single(tmp_path, local=str(folder)), total=400))
    raw = sorted(folder.glob('*.mds'))
    for path in folder.glob('*.zstd'):
        if path.with_suffix('') in raw:
            path.unlink()
    assert ids_of(built(single(tmp_path, local=str(folder)), total=400)) == expected
    assert sorted(folder.glob('*.mds')) == raw


# ---------------------------------------------------------------- places


def test_a_local_folder_is_read_where_it_is_and_left_as_it_was(config, folders, built):
    def listing():
        return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in Path(folders['new']).iterdir()}

    before = listing()
    ids_of(built(config(2), total=60 * BATCH))
    assert listing() == before


def test_a_remote_is_fetched_into_the_cache(tmp_path, folders, built):
    cache = tmp_path / 'cache'
    config = single(tmp_path, remote=folders['new'], local=str(cache))
    data = built(config, total=400)
    ids = ids_of(data)
    assert sorted(chain(*ids)) == list(range(400))
    assert {path.name for path in cache.iterdir()} == {path.name for path in Path(folders['new']).iterdir()}


def test_a_remote_without_local_has_a_cache_that_a_restart_finds(tmp_path, folders, built, monkeypatch):
    monkeypatch.setattr('tempfile.tempdir', str(tmp_path))
    config = single(tmp_path, remote=folders['new'])
    assert built(config).dataset.streams[0].remote is None  # a folder is read where it is
    from rewarm.data.datasets import _place

    source = StreamConfig(name='new', remote='s3://bucket/new')
    other = StreamConfig(name='new', remote='s3://bucket/other')
    places = [_place(source, config), _place(source, config), _place(other, config)]
    assert places[0] == places[1]
    assert places[0] != places[2]
    assert Path(places[0][0]).parent.parent == tmp_path
    assert places[0][1] == 's3://bucket/new'


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """A client of a real S3 server on this machine, with the environment set for it."""
    server = S3Server(tmp_path / 's3')
    for name, value in server.variables.items():
        monkeypatch.setenv(name, value)
    yield server.client()
    server.stop()


@pytest.mark.parametrize('num_workers', [0, 2])
def test_a_bucket_is_read_like_a_folder(
    tmp_path, folders, built, tokenizer_path, bucket, short_temporary_folder, num_workers
):
    for path in Path(folders['new']).iterdir():
        bucket.upload_file(str(path), 'data', f'sets/new/{path.name}')
    config = single(tmp_path, remote='s3://data/sets/new')
    config = config.model_copy(update={'data': DataConfig(num_workers=num_workers), 'tokenizer': str(tokenizer_path)})
    data = built(config, total=400)  # no card in the bucket: not an error
    assert data.dataset.streams[0].remote == 's3://data/sets/new'
    assert sorted(chain(*ids_of(data))) == list(range(400))
    refused(single(tmp_path, remote='s3://data/sets/none'), 'no dataset at s3://data/sets/none: index.json is missing')


def test_a_half_fetched_index_is_fetched_again(tmp_path, folders, built):
    cache = tmp_path / 'cache'
    cache.mkdir()
    (cache / 'index.json.tmp').write_text('{"version": 2, "sha')
    assert len(ids_of(built(single(tmp_path, remote=folders['new'], local=str(cache))))) == 20


@pytest.mark.parametrize('num_workers', [0, 1])
def test_a_shard_that_cannot_be_fetched_ends_the_run_and_not_the_epoch(tmp_path, folders, built, num_workers):
    remote = shutil.copytree(folders['new'], tmp_path / 'remote')
    (Path(remote) / 'shard.00005.mds').unlink()
    config = single(tmp_path, remote=str(remote), local=str(tmp_path / 'cache'))
    config = config.model_copy(update={'data': DataConfig(num_workers=num_workers)})
    data = built(config, total=400)
    data.dataset.streams[0].download_retry = 1
    iterator = iter(data.spec.dataloader)
    with pytest.raises(UserError, match=r'shard.00005.mds could not be fetched'):
        list(iterator)
    if num_workers:
        iterator._shutdown_workers()  # left to the garbage collector, torch waits ten seconds for them


# ---------------------------------------------------------------- what does not fit


def refused(config, match):
    with pytest.raises(UserError, match=match):
        build_train_loader(config.stages[0], config=config, start_sample=0, total_samples=BATCH)


def test_a_folder_without_index_is_refused(tmp_path):
    refused(single(tmp_path, local=str(tmp_path)), rf'new: no dataset in {tmp_path}: index.json is missing.*convert')


def test_a_remote_without_index_is_refused(tmp_path):
    config = single(tmp_path, remote=str(tmp_path / 'no'), local=str(tmp_path / 'cache'))
    refused(config, r'no dataset at .*/no: index.json is missing')


def test_an_unknown_kind_of_remote_is_refused(tmp_path):
    refused(single(tmp_path, remote='ftp://host/data', local=str(tmp_path / 'c')), 's3://bucket/prefix')


def test_an_empty_dataset_is_refused(tmp_path):
    (tmp_path / 'index.json').write_text('{"version": 2, "shards": []}')
    refused(single(tmp_path, local=str(tmp_path)), 'holds no samples')


def test_a_torn_index_is_refused(tmp_path):
    (tmp_path / 'index.json').write_text('{"version": 2, "sha')
    refused(single(tmp_path, local=str(tmp_path)), r'index\.json: damaged: byte \d+: no JSON.*Make the dataset again')


def test_missing_shards_are_refused_before_the_first_batch(tmp_path, folders):
    folder = Path(shutil.copytree(folders['new'], tmp_path / 'some'))
    (folder / 'shard.00003.mds').unlink()
    refused(single(tmp_path, local=str(folder)), r'1 of 12 shards are missing.*shard.00003.mds')


def test_another_sequence_length_is_refused(tmp_path, folders):
    config = single(tmp_path, local=folders['new'])
    refused(config.model_copy(update={'max_seq_len': 32}), r'are 16 tokens long, but max_seq_len is 32.*--seq-len 32')


def test_another_sequence_length_is_found_when_the_index_does_not_tell(tmp_path, built):
    folder = write(tmp_path / 'other', samples=8, encoding='bytes', make=lambda *_: np.arange(9).tobytes())
    data = built(single(tmp_path, local=folder), total=BATCH)
    with pytest.raises(
        UserError, match=rf'{folder}/shard.00000.mds cannot be used: a sample has 9 tokens, but max_seq_len is 16'
    ):
        ids_of(data)


def test_shards_without_tokens_are_refused(tmp_path):
    with MDSWriter(out=str(tmp_path), columns={'text': 'str'}) as writer:
        writer.write({'text': 'a'})
    refused(single(tmp_path, local=str(tmp_path)), r'must have the one column `tokens`.*text: str')


def write_card(folder, tokenizer, **changes):
    card = {
        'version': 1,
        'tokenizer_hash': tokenizer_hash(tokenizer),
        'vocab_size': 4000,
        'eod_id': 0,
        'seq_len': SEQ,
        'dtype': 'uint16',
        'documents': 1,
        'tokens': 400 * SEQ + 1,
        'bytes': 20,
        'samples': 400,
        'converter': 'test',
    }
    (Path(folder) / 'dataset_card.json').write_text(json.dumps({**card, **changes}))


def test_the_cards_of_merged_parts_must_agree_with_the_run(tmp_path, folders, built, tokenizer_path):
    part = shutil.copytree(folders['new'], tmp_path / 'merged' / 'part0')
    index = json.loads((part / 'index.json').read_text())
    for shard in index['shards']:
        shard['raw_data']['basename'] = f'part0/{shard["raw_data"]["basename"]}'
    (tmp_path / 'merged' / 'index.json').write_text(json.dumps(index))
    config = single(tmp_path, local=str(tmp_path / 'merged'))
    config = config.model_copy(update={'tokenizer': str(tokenizer_path)})
    write_card(part, tokenizer_path)
    built(config)
    write_card(part, tokenizer_path, tokenizer_hash='sha256:0000000000000')
    refused(config, 'new: the tokens in .*merged are of another tokenizer')


def test_the_card_must_agree_with_the_run(tmp_path, folders, built, tokenizer_path):
    folder = shutil.copytree(folders['new'], tmp_path / 'with_card')
    config = single(tmp_path, local=str(folder)).model_copy(update={'tokenizer': str(tokenizer_path)})
    write_card(folder, tokenizer_path)
    built(config)
    assert built.evaluation(config, local=str(folder)).card.bytes == 20
    write_card(folder, tokenizer_path, tokenizer_hash='sha256:0000000000000')
    refused(config, rf'new: the tokens in {folder} are of another tokenizer.*convert it again')
    write_card(folder, tokenizer_path, seq_len=32)
    refused(config, 'are 32 tokens long')


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        ({'samples': 399, 'tokens': 399 * SEQ + 1}, 'the index counts 400 blocks, the card 399'),
        ({'tokens': 400 * SEQ}, 'the card counts 6400 tokens'),
        ({'vocab_size': -1}, 'dataset_card.json: damaged: vocab_size'),
    ],
)
def test_index_and_card_must_belong_together(tmp_path, folders, tokenizer_path, changes, words):
    folder = shutil.copytree(folders['new'], tmp_path / 'with_card')
    write_card(folder, tokenizer_path, **changes)
    config = single(tmp_path, local=str(folder)).model_copy(update={'tokenizer': str(tokenizer_path)})
    refused(config, words)


def test_ids_above_the_cards_vocabulary_are_refused_when_their_shard_is_read(tmp_path, folders, built, tokenizer_path):
    folder = shutil.copytree(folders['new'], tmp_path / 'with_card')
    write_card(folder, tokenizer_path, vocab_size=2000)
    config = single(tmp_path, local=str(folder)).model_copy(update={'tokenizer': str(tokenizer_path)})
    with pytest.raises(UserError, match=rf'{folder}/shard.000\d\d.mds cannot be used: it holds the token id 2\d\d\d'):
        ids_of(built(config, total=400))


def test_a_page_in_place_of_the_index_is_named_and_not_kept(tmp_path, folders, built):
    remote, cache = shutil.copytree(folders['new'], tmp_path / 'remote'), tmp_path / 'cache'
    (remote / 'index.json').write_text('<html>Please log in</html>')
    config = single(tmp_path, remote=str(remote), local=str(cache))
    refused(config, rf'new: {remote}/index.json: damaged: it is an HTML or XML page')
    shutil.copy(Path(folders['new'], 'index.json'), remote / 'index.json')
    assert len(ids_of(built(config))) == 20


def test_a_card_comes_along_from_the_remote(tmp_path, folders, built, tokenizer_path):
    remote = shutil.copytree(folders['new'], tmp_path / 'with_card')
    write_card(remote, tokenizer_path)
    config = single(tmp_path, local=str(folders['new'])).model_copy(update={'tokenizer': str(tokenizer_path)})
    assert built.evaluation(config, remote=str(remote), local=str(tmp_path / 'cache')).card.tokens == 6401


def test_two_streams_in_one_folder_are_refused(tmp_path, folders):
    streams = [StreamConfig(name=name, local=folders['new'], proportion=0.5) for name in ('a', 'b')]
    refused(run_config(tmp_path, *streams), 'a and b use the same folder')


def test_ranks_that_do_not_divide_the_batch_are_refused(config, monkeypatch):
    monkeypatch.setenv('WORLD_SIZE', '3')
    refused(config(), 'does not divide by 3 ranks')


# ---------------------------------------------------------------- fingerprint


def test_the_fingerprint_is_of_the_content(config, folders, built, tmp_path):
    first = built(config()).fingerprint
    assert json.loads(json.dumps(first)) == first
    assert built(config(2), 8 * BATCH, 40 * BATCH).fingerprint == first  # not of workers, position or budget
    assert built(config(seed=18)).fingerprint != first
    changed = write(tmp_path / 'changed', make=lambda name, sample: tokens_of(name, sample + 1), hashes=['sha1'])
    same = write(tmp_path / 'same', hashes=['sha1'])
    prints = [built(single(tmp_path, local=folder)).fingerprint for folder in (changed, same)]
    assert prints[0]['streams'][0]['shards'] != prints[1]['streams'][0]['shards']


def test_the_local_state_is_streamings():
    from streaming.base.dataset import _ShardState

    assert mixed_dataset._LOCAL == _ShardState.LOCAL
