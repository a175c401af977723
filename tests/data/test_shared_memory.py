"""Streaming's shared memory: dead runs are swept, living ones are not touched, stages leave nothing."""

import contextlib
import fcntl
import mmap
import os
import shutil
import signal
import subprocess
import sys
import time
from multiprocessing.shared_memory import SharedMemory as BuiltinSharedMemory
from pathlib import Path

import numpy as np
import pytest
from streaming import MDSWriter
from streaming.base.shared import memory as streaming_memory

from rewarm.config.duration import Duration
from rewarm.config.errors import UserError
from rewarm.config.schedules import ConstantSchedule
from rewarm.config.schema import (
    DataConfig,
    EvalSetConfig,
    ModelConfig,
    RunConfig,
    StageConfig,
    StreamConfig,
    TrainConfig,
)
from rewarm.data import shared_memory
from rewarm.data.shared_memory import release, sweep_shared_memory
from rewarm.data.stream import build_eval_loader, build_train_loader

MEMORY = Path('/dev/shm')

pytestmark = pytest.mark.skipif(not MEMORY.is_dir(), reason='shared memory has no folder on this system')


@pytest.fixture(autouse=True)
def own_lock_files(short_temporary_folder):
    """A temporary folder of the test's own, so that its lock files can be counted."""
    return short_temporary_folder


@pytest.fixture(scope='module')
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp('shards') / 'data'
    with MDSWriter(out=str(folder), columns={'tokens': 'ndarray:uint16:17'}, size_limit=1500) as writer:
        for sample in range(100):
            writer.write({'tokens': np.full(17, sample, np.uint16)})
    return str(folder)


def run_config(num_workers=0, **source):
    stages = [
        StageConfig(
            name=name,
            max_duration=Duration(10, 'ba'),
            train=TrainConfig(streams=(StreamConfig(name='new', **source),)),
            schedule=ConstantSchedule(name='constant', lr=1e-3),
        )
        for name in ('one', 'two')
    ]
    return RunConfig(
        run_name='test',
        run_folder='runs/test',
        max_seq_len=16,
        global_train_batch_size=8,
        device_train_microbatch_size=4,
        data=DataConfig(num_workers=num_workers, shuffle_block_size=64),
        tokenizer='none',
        model=ModelConfig(name='pythia-14m', init_from='scratch'),
        stages=tuple(stages),
    )


def build(config, stage=0):
    return build_train_loader(config.stages[stage], config=config, start_sample=0, total_samples=80)


def blocks_of(*datasets):
    """(name, inode) of every block of these datasets; a number may go to another run as soon as it is free."""
    numbers = tuple(f'{dataset._shm_prefix_int:06}_' for dataset in datasets)
    return {(path.name, path.stat().st_ino) for path in MEMORY.iterdir() if path.name.startswith(numbers)}


def still_there(blocks):
    return {name for name, inode in blocks if (MEMORY / name).exists() and (MEMORY / name).stat().st_ino == inode}


# ---------------------------------------------------------------- released


@pytest.mark.parametrize('num_workers', [0, 2])
def test_two_stages_of_three_datasets_leave_nothing(shards, own_lock_files, num_workers):
    config = run_config(num_workers, local=shards)
    before = open_blocks()  # of datasets that other tests in this process left to its end
    descriptors = []
    for stage in (0, 1):
        train = build(config, stage)
        evals = [
            build_eval_loader(EvalSetConfig(name=name, local=shards, role='upstream'), config=config)
            for name in ('old', 'new')
        ]
        for data in (train, *evals):
            assert sum(len(batch['sample_ids']) for batch in data.spec.dataloader) >= 80
        datasets = [data.dataset for data in (train, *evals)]
        blocks = blocks_of(*datasets)
        assert len(blocks) == 18
        release(datasets)
        assert not still_there(blocks)
        assert not list(own_lock_files.iterdir())
        del train, evals, data, datasets
        descriptors.append(open_blocks())
    assert descriptors == [before, before]


def open_blocks():
    """Descriptors of this process that point to blocks of shared memory."""
    links = []
    for number in os.listdir('/proc/self/fd'):
        with contextlib.suppress(FileNotFoundError):  # the listing's own
            links.append(os.readlink(f'/proc/self/fd/{number}'))
    return sum(bool(shared_memory._BLOCK.match(link.removeprefix(f'{MEMORY}/'))) for link in links)


def test_datasets_do_not_keep_each_others_blocks_open(shards):
    config = run_config(local=shards)
    made, counts = [], [open_blocks()]
    for _ in range(4):
        made.append(build(config).dataset)
        counts.append(open_blocks())
    release(made)
    # Six blocks and one lock, with one more descriptor for each mapping. Streaming alone opens those of the others too.
    assert len(set(np.diff(counts).tolist())) == 1, counts
    assert open_blocks() == counts[0]


def test_a_half_read_dataset_is_released_without_waiting(shards):
    data = build(run_config(local=shards))
    iterator = iter(data.spec.dataloader)
    next(iterator)
    blocks = blocks_of(data.dataset)
    began = time.monotonic()
    release([data.dataset])
    assert time.monotonic() - began < 5
    assert not still_there(blocks)


def test_a_dataset_whose_thread_failed_is_released(shards, tmp_path):
    remote = Path(shutil.copytree(shards, tmp_path / 'remote'))
    (remote / 'shard.00001.mds').unlink()
    data = build(run_config(remote=str(remote), local=str(tmp_path / 'cache')))
    data.dataset.streams[0].download_retry = 1
    with pytest.raises(UserError, match='could not be fetched'):
        list(data.spec.dataloader)
    blocks = blocks_of(data.dataset)
    release([data.dataset])
    assert not still_there(blocks)


# ---------------------------------------------------------------- swept

OTHER_RUN = """
import sys, time
sys.path[:0] = [{tests!r}]
import test_shared_memory as own
from streaming import Stream, StreamingDataset
kind, shards, cache = sys.argv[1:]
if kind == 'streaming':  # a program that knows nothing of us
    data = StreamingDataset(streams=[Stream(remote=shards, local=cache)], batch_size=4)
else:
    data = own.build(own.run_config(2 if kind == 'workers' else 0, remote=shards, local=cache)).spec.dataloader
if kind in ('reading', 'workers'):
    iterator = iter(data)
    next(iterator)
print('ready', flush=True)
time.sleep(300)
"""


@pytest.fixture
def other_run(shards, tmp_path, own_lock_files):
    """Starts another run in a group of its own, and ends whatever is left of it after the test."""
    started, made = [], []

    def start(kind, cache):
        process = subprocess.Popen(
            [
                sys.executable,
                '-W',
                'ignore',
                '-c',
                OTHER_RUN.format(tests=str(Path(__file__).parent)),
                kind,
                shards,
                cache,
            ],
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={**os.environ, 'PYTHONPATH': str(Path(__file__).parents[2]), 'OMP_NUM_THREADS': '1'},
        )
        started.append(process)
        assert process.stdout.readline() == 'ready\n'
        # Which are its: the ones that hold its folder's name, then all of the same number.
        mine = [
            path.name.split('_')[0]
            for path in MEMORY.glob('*_locals')
            if os.path.abspath(cache).encode() in path.read_bytes()
        ]
        assert len(mine) == 1
        blocks = {(path.name, path.stat().st_ino) for path in MEMORY.glob(f'{mine[0]}_*')}
        if kind == 'streaming':
            made.extend(MEMORY / name for name, _ in blocks)
        return process, blocks

    yield start
    for process in started:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.wait()
        process.stdout.close()
    sweep_shared_memory()
    for path in made:  # of the program that knows nothing of us
        path.unlink(missing_ok=True)


@pytest.fixture
def alone(monkeypatch):
    """Keeps other runs of this machine from sweeping for a moment, while we look at what a killed one left."""

    @contextlib.contextmanager
    def hold():
        with shared_memory._machine_lock(), monkeypatch.context() as patched:
            patched.setattr(shared_memory, '_machine_lock', contextlib.nullcontext)
            yield

    return hold


def sweep_until_gone(blocks):
    """Once is enough, unless a process of the killed group is not yet gone."""
    deadline = time.monotonic() + 120
    while sweep_shared_memory() >= 0 and still_there(blocks):
        assert time.monotonic() < deadline
        time.sleep(0.2)


def kill_group(process):
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def first_of_all(other_run, cache):
    """Another run, with the lowest number but for what this process holds. Streaming looks for runs up to the first free
    number, and on a machine with more runs a lower one may become free at any moment."""
    for _ in range(4):
        process, blocks = other_run('built', cache)
        number = int(min(blocks)[0][:6])
        maps = Path('/proc/self/maps').read_text()
        if all(f'/dev/shm/{lower:06}_locals' in maps for lower in range(number)):
            return process, blocks
        kill_group(process)
        sweep_until_gone(blocks)
    pytest.skip('other runs on this machine have lower numbers')


def test_a_living_run_is_left_alone_and_a_dead_one_is_swept(other_run, alone, tmp_path):
    process, blocks = other_run('reading', str(tmp_path / 'cache'))
    assert len(blocks) == 6
    sweep_shared_memory()
    assert still_there(blocks) == {name for name, _ in blocks}
    with alone():
        kill_group(process)
        assert still_there(blocks) == {name for name, _ in blocks}  # the resource tracker died with the group
    sweep_until_gone(blocks)


def test_killed_before_the_first_sample_it_can_start_again(other_run, alone, shards, tmp_path):
    cache = str(tmp_path / 'cache')
    process, blocks = other_run('built', cache)
    with alone():
        kill_group(process)
        assert still_there(blocks)
    sweep_until_gone(blocks)
    data = build(run_config(remote=shards, local=cache))
    assert len(list(data.spec.dataloader)) == 10
    release([data.dataset])


def test_killed_before_the_first_sample_streaming_alone_would_refuse(other_run, alone, shards, tmp_path, monkeypatch):
    # If this fails, Streaming has mended it, and the sweep has less to do.
    cache = str(tmp_path / 'cache')
    process, _ = first_of_all(other_run, cache)
    monkeypatch.setattr(shared_memory, '_sweep', lambda: 0)
    monkeypatch.setattr(shared_memory, '_REUSE_SECONDS', 0.0)
    with alone():
        kill_group(process)
        with pytest.raises(UserError, match='uses the same cache folder'):
            build(run_config(remote=shards, local=cache))


def test_two_runs_in_one_cache_are_told_what_to_do(other_run, shards, tmp_path, monkeypatch):
    cache = str(tmp_path / 'cache')
    _, blocks = first_of_all(other_run, cache)  # once it reads, it has a lock file, and Streaming looks no further
    monkeypatch.setattr(shared_memory, '_REUSE_SECONDS', 0.5)
    with pytest.raises(UserError, match=r'same cache folder .*cache.*a `local` of its own'):
        build(run_config(remote=shards, local=cache))
    assert still_there(blocks) == {name for name, _ in blocks}


@pytest.mark.slow
def test_loaders_that_outlive_a_killed_run_are_waited_for(other_run, shards, tmp_path):
    cache = str(tmp_path / 'cache')
    process, _ = other_run('workers', cache)
    os.kill(process.pid, signal.SIGKILL)  # only the process: its workers notice within five seconds
    process.wait()
    for path in Path(os.environ['TMPDIR']).glob('*_filelock'):
        path.unlink()
    sweep_shared_memory()
    data = build(run_config(remote=shards, local=cache))
    assert len(list(data.spec.dataloader)) == 10
    release([data.dataset])


def test_lock_files_go_with_the_run_that_made_them(other_run, alone, own_lock_files, shards, tmp_path):
    process, blocks = other_run('reading', str(tmp_path / 'cache'))
    number = min(blocks)[0][:6]
    files = [own_lock_files / f'{number}_{name}' for name in ('barrier_filelock', 'cache_filelock')]
    others = [own_lock_files / name for name in ('999998_barrier_filelock', 'cache_filelock')]
    for path in (*files, *others):
        path.touch()
    sweep_shared_memory()
    assert all(path.exists() for path in (*files, *others))
    with alone():
        kill_group(process)
    sweep_until_gone(blocks)
    assert [path for path in (*files, *others) if path.exists()] == others


def test_memory_of_other_programs_is_not_ours_to_sweep():
    strange = [MEMORY / name for name in ('999999_locals_of_mine', '99_locals', 'sem.999999_locals', '999999_locals')]
    try:
        for path in strange:
            path.touch()
        sweep_shared_memory()
        assert all(path.exists() for path in strange)
    finally:
        for path in strange:
            path.unlink(missing_ok=True)


@pytest.fixture
def marked():
    """Blocks of a number that no run will have, marked as a run of ours does it."""
    own = shared_memory._own_folder()
    blocks = [MEMORY / f'999997_{kind}' for kind in ('locals', 'barrier')]
    for block in blocks:
        block.write_bytes(bytes(8))
    os.link(blocks[0], own / '999997')
    yield blocks, own / '999997'
    for path in (*blocks, own / '999997'):
        path.unlink(missing_ok=True)


def test_a_block_is_kept_as_long_as_a_process_that_we_cannot_see_holds_it(marked):
    blocks, mark = marked
    with blocks[0].open() as held:
        fcntl.flock(held, fcntl.LOCK_SH)
        sweep_shared_memory()
        assert all(path.exists() for path in (*blocks, mark))
    sweep_shared_memory()
    assert not any(path.exists() for path in (*blocks, mark))


def test_a_number_that_another_program_has_taken_since_is_left_to_it(marked, own_lock_files):
    blocks, mark = marked
    (own_lock_files / '999997_cache_filelock').touch()
    blocks[0].unlink()
    blocks[0].write_bytes(bytes(8))
    sweep_shared_memory()
    assert all(path.exists() for path in (*blocks, own_lock_files / '999997_cache_filelock'))
    assert not mark.exists()


needs_namespaces = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which('unshare'), reason='namespaces take root and unshare'
)


def in_namespace(*command, env=None):
    done = subprocess.run(['unshare', *command], capture_output=True, text=True, env=env)
    if done.stderr.startswith(('unshare:', 'mount:')):
        pytest.skip(f'no namespaces here: {done.stderr}')
    assert done.returncode == 0, done.stderr
    return done.stdout


@needs_namespaces
def test_what_lives_in_another_pid_namespace_is_left_alone(marked):
    blocks, mark = marked
    foreign = MEMORY / '999996_locals'  # of a program that uses Streaming without us
    foreign.write_bytes(bytes(8))
    try:
        with blocks[0].open('rb') as ours, foreign.open('r+b') as theirs, mmap.mmap(theirs.fileno(), 8):
            fcntl.flock(ours, fcntl.LOCK_SH)
            sweep = 'from rewarm.data.shared_memory import sweep_shared_memory; sweep_shared_memory()'
            in_namespace('--pid', '--fork', '--mount-proc', sys.executable, '-W', 'ignore', '-c', sweep)
            assert all(path.exists() for path in (*blocks, mark, foreign))
    finally:
        foreign.unlink(missing_ok=True)


SMALL = """
import sys
sys.path[:0] = [{tests!r}]
import test_shared_memory as own
from multiprocessing.shared_memory import SharedMemory
from rewarm.config.errors import UserError

def words_of(call):
    try:
        call()
    except UserError as error:
        print(error)

words_of(lambda: own.build(own.run_config(256, local={shards!r})))
words_of(lambda: [own.build(own.run_config(local={shards!r})) for _ in range(40)])
block = SharedMemory(create=True, size=1 << 20)
words_of(lambda: own.shared_memory._reserve(block))
block.unlink()
"""


@needs_namespaces
def test_too_little_shared_memory_is_said_in_words(shards, own_lock_files):
    script = SMALL.format(tests=str(Path(__file__).parent), shards=shards)
    mount = 'mount -t tmpfs -o size=200k tmpfs /dev/shm && exec "$@"'
    env = {**os.environ, 'PYTHONPATH': str(Path(__file__).parents[2]), 'OMP_NUM_THREADS': '1'}
    said = in_namespace('--mount', 'sh', '-c', mount, 'sh', sys.executable, '-W', 'ignore', '-c', script, env=env)
    workers, datasets, block = said.splitlines()
    assert 'the batches of loader workers (`data.num_workers`) need' in workers
    assert 'datasets need 65,536' in datasets
    assert 'datasets need 1,048,576' in block
    for line in (workers, datasets, block):
        assert line.startswith('/dev/shm has ')
        assert '204,800 bytes free' in line
        assert 'docker run --shm-size' in line


def test_runs_build_one_after_the_other(monkeypatch, caplog):
    monkeypatch.setattr(shared_memory, '_LOCK_SECONDS', 0.1)
    with (shared_memory._own_folder() / 'lock').open('w') as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with shared_memory._machine_lock():
            pass
    assert 'another run has held' in caplog.text


def test_a_lock_on_the_folder_that_all_may_read_holds_up_nobody():
    other = os.open(MEMORY, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    began = time.monotonic()
    try:
        sweep_shared_memory()
    finally:
        os.close(other)
    assert time.monotonic() - began < 10


def test_a_folder_that_somebody_else_prepared_is_not_used(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(shared_memory, 'SHARED_MEMORY', tmp_path)
    (tmp_path / f'rewarm-{os.geteuid()}').mkdir()
    (tmp_path / f'rewarm-{os.geteuid()}').chmod(0o777)
    (tmp_path / f'rewarm-{os.geteuid()}' / 'lock').symlink_to(tmp_path / 'victim')
    assert sweep_shared_memory() == 0
    assert 'other users may write to it' in caplog.text
    assert not (tmp_path / 'victim').exists()


def test_a_race_for_a_number_is_run_again_once():
    calls = []

    def build_once():
        calls.append(1)
        if len(calls) == 1:
            raise FileExistsError('/000066_locals')
        return 'dataset'

    assert shared_memory._build_patiently(build_once, leader=True) == 'dataset'

    def never():
        raise FileExistsError('/000066_locals')

    with pytest.raises(FileExistsError):
        shared_memory._build_patiently(never, leader=True)


def test_a_block_that_a_killed_run_loses_while_it_is_opened_is_made_anew(monkeypatch):
    name = f'/rewarm-test-{os.getpid()}'
    left = BuiltinSharedMemory(name, True, 64)
    monkeypatch.setattr(streaming_memory, 'sleep', lambda _: left.unlink())  # between its two looks at the name
    with shared_memory._noting_blocks() as opened:
        block = streaming_memory.SharedMemory(name, size=64, auto_cleanup=False)
        with pytest.raises(FileNotFoundError):
            streaming_memory.SharedMemory(f'{name}-absent', False, auto_cleanup=False)
    left.close()
    assert opened == [block]
    assert len(block.created_shms) == 1
    block.cleanup()
    assert not (MEMORY / name.removeprefix('/')).exists()
