"""Streaming's shared memory and lock files: swept when a run starts, released when a stage ends.

Streaming gives each dataset of a machine a number (the first that is free) and creates blocks of shared memory and
lock files named after it. It removes them when the process ends in an orderly way, and not before. A run killed by
its scheduler leaves them behind, which can refuse every restart; and a run of many stages would pile them up.

Only what a run of ours left is swept. Each marks its blocks with a hard link to the first of them, in a folder of this
user's own in shared memory, and holds a lock on that file, which the kernel frees when the run's last process is gone.
Links and locks belong to the file: they tell the dead from the living between containers that share nothing else. All of
it happens under one lock in that folder, so that no two of this user's runs choose one number or see the other half built.
"""

import atexit
import contextlib
import errno
import fcntl
import logging
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.shared_memory import SharedMemory as BuiltinSharedMemory
from pathlib import Path
from typing import Any, TypeVar

from composer.utils import dist
from streaming import StreamingDataset
from streaming.base.constant import BARRIER_FILELOCK, CACHE_FILELOCK, LOCALS, SHM_TO_CLEAN
from streaming.base.shared import SharedMemory

from rewarm.config.errors import UserError
from rewarm.formats.files import private_folder

__all__ = ['build_dataset', 'check_space', 'release', 'sweep_shared_memory']

log = logging.getLogger(__name__)

D = TypeVar('D', bound=StreamingDataset)

SHARED_MEMORY = Path('/dev/shm')

_LOCK_SECONDS = 30.0  # Then go on without the lock: two runs on several machines could wait for each other.
_REUSE_SECONDS = 20.0  # Loader processes notice within 5 s that their run was killed; until then its blocks are in use.
_BLOCK = re.compile(rf'(\d{{6,}})_({"|".join(SHM_TO_CLEAN)})')
_MARK = re.compile(r'\d{6,}')
_LEAST_BYTES = 64 << 10  # a dataset takes 6 pages


def sweep_shared_memory() -> int:
    """Removes what killed runs of this program left behind: blocks of shared memory, and the lock files beside them.

    For local rank 0 alone, before the first dataset; a barrier must follow. Living runs lose nothing, and neither do
    those of other users, and of programs that use Streaming without us, dead or not.

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
        UserError: If a living run uses one of its cache folders, or shared memory is full.
    """
    check_space(_LEAST_BYTES)  # on all ranks, before one waits for the others
    leader = dist.get_local_rank() == 0
    with _noting_blocks() as opened, _machine_lock() if leader else contextlib.nullcontext():
        dist.barrier()
        dataset = _build_patiently(build, leader)
        if _own_folder() is not None:
            fcntl.flock(
                _descriptor(dataset._locals_shm.shm), fcntl.LOCK_SH
            )  # on each rank, as its first did when it was made
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
                _unlink_lock_files(f'{dataset._shm_prefix_int:06}')
    dist.barrier()


def check_space(needed_bytes: int, use: str = 'datasets') -> None:
    """Says that shared memory is too small while it can be said: a page that is not there ends a process by SIGBUS.

    Args:
        needed_bytes (int): How much will be taken on this machine.
        use (str): What for.

    Raises:
        UserError: If less is free.
    """
    if not SHARED_MEMORY.is_dir():
        return
    room = os.statvfs(SHARED_MEMORY)
    if room.f_bavail * room.f_frsize < needed_bytes:
        raise UserError(
            f'{SHARED_MEMORY} has {room.f_bavail * room.f_frsize:,} of {room.f_blocks * room.f_frsize:,} bytes free, and '
            f'{use} need {needed_bytes:,}. Give a container more: `docker run --shm-size=1g`, on Kubernetes an `emptyDir` '
            f'with `medium: Memory` at {SHARED_MEMORY}; elsewhere `mount -o remount,size=1g {SHARED_MEMORY}`'
        )


def _own_folder() -> Path | None:
    """Where this user's runs mark their blocks; ``None`` where there is no shared memory to be seen, or not for us."""
    if not SHARED_MEMORY.is_dir():
        return None
    try:
        return private_folder(f'rewarm-{os.geteuid()}', below=SHARED_MEMORY)
    except UserError as error:
        log.warning('%s. Without it, nothing that killed runs left in shared memory is removed', error)
        return None


@contextlib.contextmanager
def _machine_lock() -> Iterator[None]:
    """Held by one process of this user at a time; the kernel frees it when that process dies."""
    folder = _own_folder()
    if folder is None:
        yield
        return
    lock = os.open(folder / 'lock', os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        deadline = time.monotonic() + _LOCK_SECONDS
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    log.warning('another run has held %s for %.0f s; going on without it', folder, _LOCK_SECONDS)
                    break
                time.sleep(0.02)
        yield
    finally:
        os.close(lock)


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
                    f'{_unmarked_blocks()}'
                ) from None
            if leader:
                _sweep()
            time.sleep(0.5)


# ---------------------------------------------------------------- what is dead


def _sweep() -> int:
    folder = _own_folder()
    if folder is None:
        return 0
    removed = 0
    for mark in sorted(path for path in folder.iterdir() if _MARK.fullmatch(path.name)):
        if not _is_held(mark):
            removed += _remove_dead(mark)
    if removed:
        log.info('removed %d pieces of shared memory and lock files of runs that are no more', removed)
    return removed


def _remove_dead(mark: Path) -> int:
    """Removes what a dead run left; the marked block goes last but for its mark, so that the number stays its own."""
    first = SHARED_MEMORY / f'{mark.name}_{LOCALS}'
    removed = 0
    if not os.path.lexists(first) or os.path.samestat(first.lstat(), mark.lstat()):
        removed += _unlink_lock_files(mark.name)
    if os.path.lexists(first) and os.path.samestat(first.lstat(), mark.lstat()):
        others = (SHARED_MEMORY / f'{mark.name}_{kind}' for kind in SHM_TO_CLEAN if kind != LOCALS)
        removed += sum(map(_unlink_own, (*others, first)))
    mark.unlink(missing_ok=True)
    return removed


def _unlink_lock_files(number: str) -> int:
    return sum(
        _unlink_own(Path(tempfile.gettempdir(), f'{number}_{name}')) for name in (BARRIER_FILELOCK, CACHE_FILELOCK)
    )


def _is_held(mark: Path) -> bool:
    """Whether a process of the run that made it is left, here or in a container that shares memory, but not processes."""
    try:
        block = os.open(mark, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
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
        if path.lstat().st_uid == os.geteuid():
            path.unlink()
            return True
    return False


def _unmarked_blocks() -> str:
    """Blocks of this user that no run of ours marked: of another program, or of a release before marks."""
    folder = _own_folder()
    numbers = [
        path.name.split('_')[0] for path in sorted(SHARED_MEMORY.glob(f'*_{LOCALS}')) if _BLOCK.fullmatch(path.name)
    ]
    unmarked = [number for number in numbers if folder is None or not (folder / number).exists()]
    if not unmarked:
        return ''
    names = ' '.join(f'{SHARED_MEMORY}/{number}_*' for number in unmarked[:5])
    return f'. If no run is alive there, a killed program left its blocks: `rm {names}`'


# ---------------------------------------------------------------- what a dataset holds


def _blocks_of(dataset: StreamingDataset) -> list[SharedMemory]:
    """The marked one is last: as long as it is there, the number is taken."""
    blocks = [
        dataset._shared_barrier._arr.shm,
        dataset._next_epoch.arr.shm,
        dataset._cache_usage.arr.shm,
        dataset._shard_states.shm,
        dataset._shard_access_times.shm,
    ]
    resume = getattr(dataset, '_resume_shm', None)
    return [*blocks, *([resume] if resume else []), dataset._locals_shm]


@contextlib.contextmanager
def _noting_blocks() -> Iterator[list[SharedMemory]]:
    """Lists the blocks that Streaming opens meanwhile, of which it tells only those that the dataset keeps.

    Those that it makes get their memory at once, and the first of a dataset its mark.
    """
    opened: list[SharedMemory] = []
    construct = SharedMemory.__init__

    def construct_and_note(
        self: SharedMemory, name: str | None = None, create: bool | None = None, *args: Any, **kwargs: Any
    ) -> None:
        try:
            construct(self, name, create, *args, **kwargs)
        except FileNotFoundError:
            if create is not None:
                raise
            # It was there a moment ago, so it was opened and not made: a killed run's resource tracker has removed it.
            construct(self, name, create, *args, **kwargs)
        opened.append(self)
        for block in self.created_shms:
            _reserve(block)
            _mark(block)

    SharedMemory.__init__ = construct_and_note
    try:
        yield opened
    finally:
        SharedMemory.__init__ = construct


def _reserve(block: BuiltinSharedMemory) -> None:
    """Takes the pages of a new block now, where it is an error, and not when they are written, where it is a SIGBUS."""
    try:
        os.posix_fallocate(_descriptor(block), 0, block.size)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            return  # a system that cannot reserve
        check_space(max(_LEAST_BYTES, block.size))
        raise


def _mark(block: BuiltinSharedMemory) -> None:
    """Marks the first block of a dataset as a run's of ours, living until this process and its loaders end."""
    match = _BLOCK.fullmatch(block.name)
    folder = _own_folder() if match and match[2] == LOCALS else None
    if match and folder is not None:
        mark = folder / match[1]
        mark.unlink(missing_ok=True)  # of blocks that are gone: the number was free
        fcntl.flock(_descriptor(block), fcntl.LOCK_SH)  # before it can be seen
        os.link(SHARED_MEMORY / block.name, mark)


def _descriptor(block: BuiltinSharedMemory) -> int:
    """Open as long as the block is mapped, in each loader too."""
    return block._fd  # pyright: ignore[reportAttributeAccessIssue]


def _close(block: SharedMemory) -> None:
    """Unmaps a block and, if this process created it, removes it."""
    atexit.unregister(block.cleanup)
    names = [created.name for created in block.created_shms]
    try:
        block.cleanup()
    except BufferError:  # An array still looks into it: it is unmapped with the array, but its name goes now.
        for created in block.created_shms:
            with contextlib.suppress(FileNotFoundError):
                created.unlink()
    for match in filter(None, map(_BLOCK.fullmatch, names)):
        folder = _own_folder() if match[2] == LOCALS else None
        if folder is not None:
            (folder / match[1]).unlink(missing_ok=True)


def _stop_threads(dataset: StreamingDataset) -> None:
    # Not `_iterator.exit()`: it waits for ever for a thread that ended with an error.
    if hasattr(dataset, '_iterator'):
        dataset._iterator.non_blocking_exit()
    if hasattr(dataset, '_event'):
        dataset._event.set()
    if hasattr(dataset, '_executor'):
        dataset._executor.shutdown(wait=True)
