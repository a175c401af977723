"""Streaming's shared memory and lock files: swept when a run starts, released when a stage ends.

Streaming gives each dataset of a machine a number (the first that is free) and creates blocks of shared memory and
lock files named after it. It removes them when the process ends in an orderly way, and not before. A run killed by
its scheduler leaves them behind, which can refuse every restart; and a run of many stages would pile them up.

All of it happens under one lock a machine, which is the folder of shared memory itself, so that two runs never choose
the same number and no run is seen half built.
"""

import atexit
import contextlib
import fcntl
import logging
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from composer.utils import dist
from streaming import StreamingDataset
from streaming.base.constant import BARRIER_FILELOCK, CACHE_FILELOCK, SHM_TO_CLEAN
from streaming.base.shared import SharedMemory

from rewarm.config.errors import UserError

__all__ = ['build_dataset', 'release', 'sweep_shared_memory']

log = logging.getLogger(__name__)

D = TypeVar('D', bound=StreamingDataset)

SHARED_MEMORY = Path('/dev/shm')

_LOCK_SECONDS = 30.0  # Then go on without the lock: two runs on several machines could wait for each other.
_REUSE_SECONDS = 20.0  # Loader processes notice within 5 s that their run was killed; until then its blocks are in use.
_BLOCK = re.compile(rf'(\d{{6,}})_({"|".join(SHM_TO_CLEAN)})')
_LOCK_FILE = re.compile(rf'(\d{{6,}})_({BARRIER_FILELOCK}|{CACHE_FILELOCK})')


def sweep_shared_memory() -> int:
    """Removes what dead runs left behind: blocks no process has open, and the lock files that belong to none.

    For local rank 0 alone, before the first dataset; a barrier must follow. Living runs lose nothing, and neither do
    those of other users.

    Returns:
        int: Blocks and lock files removed.
    """
    with _machine_lock():
        return _sweep()


def build_dataset(build: Callable[[], D]) -> D:
    """Builds a dataset while no other run of this machine builds, sweeps or releases one. All ranks call it together.

    Args:
        build (Callable[[], D]): Calls the constructor; may be called again.

    Returns:
        D: The dataset, which holds only the shared memory that it needs.

    Raises:
        UserError: If a living run uses one of its cache folders.
    """
    leader = dist.get_local_rank() == 0
    with _noting_blocks() as opened, _machine_lock() if leader else contextlib.nullcontext():
        dist.barrier()
        dataset = _build_patiently(build, leader)
        if leader:
            _hold(dataset)
        dist.barrier()
    # While it looked for a free number, Streaming opened the blocks of every other dataset, and keeps them open.
    kept = {id(block) for block in _blocks_of(dataset)}
    for block in opened:
        if id(block) not in kept:
            _close(block)
    return dataset


def release(datasets: Iterable[StreamingDataset]) -> None:
    """Gives back what datasets hold: threads, shared memory, lock files. All ranks call it together.

    Args:
        datasets (Iterable[StreamingDataset]): Datasets that will not be read again.
    """
    datasets = list(datasets)
    dist.barrier()
    for dataset in datasets:
        _stop_threads(dataset)
    with _machine_lock() if dist.get_local_rank() == 0 else contextlib.nullcontext():
        for dataset in datasets:
            for block in _blocks_of(dataset):
                _close(block)
            if dataset._unique_rank_world.is_local_leader:
                _unhold(dataset)
                for name in (BARRIER_FILELOCK, CACHE_FILELOCK):
                    Path(tempfile.gettempdir(), f'{dataset._shm_prefix_int:06}_{name}').unlink(missing_ok=True)
    dist.barrier()


@contextlib.contextmanager
def _machine_lock() -> Iterator[None]:
    """Held by one process of the machine at a time; the kernel frees it when that process dies."""
    if not SHARED_MEMORY.is_dir():
        yield
        return
    folder = os.open(SHARED_MEMORY, os.O_RDONLY)
    try:
        deadline = time.monotonic() + _LOCK_SECONDS
        while True:
            try:
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    log.warning('another run has held %s for %.0f s; going on without it', SHARED_MEMORY, _LOCK_SECONDS)
                    break
                time.sleep(0.02)
        yield
    finally:
        os.close(folder)


def _build_patiently(build: Callable[[], D], leader: bool) -> D:
    """Waits for a killed run's loaders to be gone; tries once more after a race with a program that takes no lock."""
    deadline, raced = time.monotonic() + _REUSE_SECONDS, False
    while True:
        try:
            return build()
        except FileExistsError:
            # Other ranks wait inside the constructor, so only a run of one rank can start over.
            if raced or dist.get_world_size() > 1:
                raise
            raced = True
        except ValueError as error:
            if 'Reused local directory' not in str(error):
                raise
            if time.monotonic() > deadline:
                raise UserError(
                    f'another run on this machine uses the same cache folder ({str(error).split(". Provide")[0]}). '
                    'Give this run a `local` of its own, or leave out `remote` if the data is all there'
                ) from None
            if leader:
                _sweep()
            time.sleep(0.5)


# ---------------------------------------------------------------- what is dead


def _sweep() -> int:
    if not SHARED_MEMORY.is_dir():
        return 0
    blocks = _by_number(SHARED_MEMORY, _BLOCK)
    in_use = _numbers_in_use() if blocks else set()
    in_use |= {number for number, paths in blocks.items() if any(map(_is_held, paths))}
    removed = 0
    for number, paths in blocks.items():
        if number not in in_use:
            removed += sum(map(_unlink_own, paths))
    living = _by_number(SHARED_MEMORY, _BLOCK)
    for number, paths in _by_number(Path(tempfile.gettempdir()), _LOCK_FILE).items():
        if number not in living:
            removed += sum(map(_unlink_own, paths))
    if removed:
        log.info('removed %d pieces of shared memory and lock files of runs that are no more', removed)
    return removed


def _by_number(folder: Path, pattern: re.Pattern[str]) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for name in sorted(os.listdir(folder)):
        if match := pattern.fullmatch(name):
            found.setdefault(match[1], []).append(folder / name)
    return found


def _numbers_in_use() -> set[str]:
    """Numbers of the datasets that any process we can look into has mapped or open.

    A program that uses Streaming without us keeps what it opened while it looked for a number, so it can make a dead
    run's blocks look alive until it ends.
    """
    mapped = re.compile(rf'{SHARED_MEMORY}/{_BLOCK.pattern}')
    found: set[str] = set()
    for pid in filter(str.isdigit, os.listdir('/proc')):
        # A process of another user cannot be looked into; a process may end while we look.
        with contextlib.suppress(OSError):
            maps = Path('/proc', pid, 'maps').read_text(errors='replace')
            found.update(match[1] for match in mapped.finditer(maps))
        with contextlib.suppress(OSError):
            for descriptor in os.scandir(f'/proc/{pid}/fd'):
                with contextlib.suppress(OSError):
                    if match := mapped.match(os.readlink(descriptor.path)):
                        found.add(match[1])
    return found


def _is_held(path: Path) -> bool:
    """Whether a run holds this block by its lock; so can one in a container that shares memory, but not processes."""
    try:
        block = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(block, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(block)
    return False


def _unlink_own(path: Path) -> bool:
    with contextlib.suppress(OSError):
        if path.stat().st_uid == os.geteuid():
            path.unlink()
            return True
    return False


# ---------------------------------------------------------------- what a dataset holds


def _blocks_of(dataset: StreamingDataset) -> list[SharedMemory]:
    blocks = [
        dataset._locals_shm,
        dataset._shared_barrier._arr.shm,
        dataset._next_epoch.arr.shm,
        dataset._cache_usage.arr.shm,
        dataset._shard_states.shm,
        dataset._shard_access_times.shm,
    ]
    resume = getattr(dataset, '_resume_shm', None)
    return [*blocks, resume] if resume else blocks


@contextlib.contextmanager
def _noting_blocks() -> Iterator[list[SharedMemory]]:
    """Lists the blocks that Streaming opens meanwhile; it tells of none but those that the dataset keeps."""
    opened: list[SharedMemory] = []
    construct = SharedMemory.__init__

    def construct_and_note(self: SharedMemory, *args: Any, **kwargs: Any) -> None:
        construct(self, *args, **kwargs)
        opened.append(self)

    SharedMemory.__init__ = construct_and_note
    try:
        yield opened
    finally:
        SharedMemory.__init__ = construct


def _close(block: SharedMemory) -> None:
    """Unmaps a block and, if this process created it, removes it."""
    atexit.unregister(block.cleanup)
    try:
        block.cleanup()
    except BufferError:  # An array still looks into it: it is unmapped with the array, but its name goes now.
        for created in block.created_shms:
            with contextlib.suppress(FileNotFoundError):
                created.unlink()


def _stop_threads(dataset: StreamingDataset) -> None:
    # Not `_iterator.exit()`: it waits for ever for a thread that ended with an error.
    if hasattr(dataset, '_iterator'):
        dataset._iterator.non_blocking_exit()
    if hasattr(dataset, '_event'):
        dataset._event.set()
    if hasattr(dataset, '_executor'):
        dataset._executor.shutdown(wait=True)


def _hold(dataset: StreamingDataset) -> None:
    """Marks the dataset's blocks as those of a living run, until this process and its loaders end."""
    path = SHARED_MEMORY / f'{dataset._shm_prefix_int:06}_{SHM_TO_CLEAN[0]}'
    if path.exists():
        held = os.open(path, os.O_RDONLY)
        fcntl.flock(held, fcntl.LOCK_SH)
        dataset.__dict__['_held'] = held


def _unhold(dataset: StreamingDataset) -> None:
    held = dataset.__dict__.pop('_held', None)
    if held is not None:
        os.close(held)
