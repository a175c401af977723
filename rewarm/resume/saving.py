"""Saving while training goes on: a copy in host memory, written by background threads of the first node's ranks.

The ranks of the first node divide the tensors; each copies its share, which is all that training waits for, and a thread
writes, hashes and flushes it. Once every share is on the disk, rank 0 publishes the checkpoint.
"""

import functools
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from composer.utils import dist
from torch import Tensor
from torch.nn import Module
from torch.optim import Optimizer

from rewarm.config.errors import UserError
from rewarm.formats.tokenizer_folder import TokenizerFiles
from rewarm.resume import checkpoint as checkpoints
from rewarm.resume.checkpoint import FileDescription
from rewarm.resume.state import optimizer_tensors

__all__ = ['BackgroundSaver', 'Snapshot', 'divide']

ALIGNMENT_BYTES = 64


def divide(sizes: Mapping[str, int], writers: int, head_start: int = 0) -> dict[str, int]:
    """Which writer gets which tensors: largest first, to whoever has least.

    Args:
        sizes (Mapping[str, int]): Bytes by name.
        writers (int): How many there are.
        head_start (int): Bytes that writer 0 has already.

    Returns:
        dict[str, int]: Writer by name; the same on every rank.
    """
    load = [head_start] + [0] * (writers - 1)
    chosen = {}
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        chosen[name] = min(range(writers), key=load.__getitem__)
        load[chosen[name]] += sizes[name]
    return chosen


class Snapshot:
    """Copies tensors into memory of its own, which is taken once and used again for every save.

    Page-locked where the tensors are on a GPU: the copies then run beside the host, and are complete when
    :meth:`wait` returns. Whatever is computed afterwards on the same CUDA stream comes after them.

    Args:
        capacity_bytes (int): Expected size of a snapshot; a larger one takes more memory when it comes.
        page_locked (bool): Whether the tensors are on a GPU.
    """

    def __init__(self, capacity_bytes: int, *, page_locked: bool) -> None:
        self._page_locked = page_locked
        self._pool = self._take(capacity_bytes)
        self._copied: torch.cuda.Event | None = None

    def _take(self, size: int) -> Tensor:
        # Written to at once: the first touch of a page costs 30 times as much as a copy into it.
        return torch.empty(size, dtype=torch.uint8, pin_memory=self._page_locked).zero_()

    def take(self, files: Mapping[str, Mapping[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
        """Begins to copy the tensors of each file; the copies are valid from :meth:`wait` to the next :meth:`take`."""
        needed = sum(_aligned(tensor.nbytes) for part in files.values() for tensor in part.values())
        if needed > self._pool.numel():
            self._pool = self._take(needed)
        copies: dict[str, dict[str, Tensor]] = {file: {} for file in files}
        begin = 0
        for file, part in files.items():
            for name, tensor in part.items():
                memory = self._pool[begin : begin + tensor.nbytes]
                begin += _aligned(tensor.nbytes)
                copies[file][name] = memory.view(tensor.dtype).view(tensor.shape)
                copies[file][name].copy_(tensor.detach(), non_blocking=self._page_locked)
        if self._page_locked:
            self._copied = torch.cuda.Event()
            self._copied.record()
        return copies

    def wait(self) -> None:
        """Returns when the copies are complete."""
        if self._copied is not None:
            self._copied.synchronize()


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


@dataclass(frozen=True)
class _Save:
    position: dict[str, Any]
    state: Mapping[str, Any]
    started: float
    stall_seconds: float | None
    """How long training stood still; None if it waits to the end."""


class BackgroundSaver:
    """One save at a time, in the background; every method is called by all ranks at the same batch edge.

    Args:
        root (Path): The run's ``checkpoints`` folder.
        model (Module): The raw model.
        optimizer (Optimizer): Its AdamW.
        before_publishing (Callable): Flushes the run's records: no checkpoint is newer than the metrics that lead to it.
        after_publishing (Callable[[Path, dict], None]): Called on rank 0's thread with the folder and what ``save``
            records of it.
        other_failure (Callable): What else in the background makes saving pointless; a UserError, or None.
        tokenizer (TokenizerFiles | None): Goes into each checkpoint.
    """

    def __init__(
        self,
        root: Path,
        *,
        model: Module,
        optimizer: Optimizer,
        before_publishing: Callable[[], object],
        after_publishing: Callable[[Path, dict[str, Any]], None],
        other_failure: Callable[[], BaseException | None] = lambda: None,
        tokenizer: TokenizerFiles | None = None,
    ) -> None:
        self.root = root
        self.model = model
        self.optimizer = optimizer
        self.before_publishing = before_publishing
        self.after_publishing = after_publishing
        self.other_failure = other_failure
        self.tokenizer = tokenizer
        self._rank = dist.get_global_rank()
        writers = int(_from_rank_zero(dist.get_local_world_size()))
        parameters = dict(model.named_parameters())
        where = next(iter(parameters.values())).device
        # A new thread would otherwise use GPU 0, and take memory there for each rank.
        own_device = functools.partial(torch.cuda.set_device, where) if where.type == 'cuda' else None
        self._threads = ThreadPoolExecutor(1, thread_name_prefix='save', initializer=own_device)
        self._writing: Future[dict[str, FileDescription]] | None = None
        self._publishing: Future[None] | None = None
        sizes = {name: 2 * parameter.nbytes for name, parameter in parameters.items()}  # two moments
        self._writer_of = divide(sizes, writers, head_start=sum(parameter.nbytes for parameter in parameters.values()))
        mine = sum(
            sizes[name] + 3 * ALIGNMENT_BYTES for name, writer in self._writer_of.items() if writer == self._rank
        )
        if self._rank == 0:
            mine += sum(parameter.nbytes + ALIGNMENT_BYTES for parameter in parameters.values())
        self._snapshot = (
            self._threads.submit(Snapshot, mine, page_locked=where.type == 'cuda') if self._rank < writers else None
        )  # taken at once, beside the first batches

    @property
    def in_flight(self) -> bool:
        """Whether a save has begun and is not known to have ended."""
        return self._writing is not None or self._publishing is not None

    @property
    def busy(self) -> bool:
        """Whether this rank's thread has work of a save."""
        return any(work is not None and not work.done() for work in (self._writing, self._publishing))

    @property
    def failure(self) -> BaseException | None:
        """What a background thread of this rank died of."""
        for work in (self._writing, self._publishing):
            if work is not None and work.done() and work.exception() is not None:
                return work.exception()
        return self.other_failure()

    def snapshot_ready(self) -> None:
        """Waits for the memory of the copies, which is taken beside the first batches; the first save would."""
        if self._snapshot is not None:
            self._snapshot.result()

    def begin(self, position: Mapping[str, Any], state: Mapping[str, Any], *, wait: bool = False) -> None:
        """Copies this rank's share and leaves the rest to the thread; a save that is in flight is waited for first.

        Args:
            position (Mapping): ``batch``, ``tokens`` and ``stage``; for the records.
            state (Mapping): For ``state.json``.
            wait (bool): Whether to return only when the checkpoint is whole on the disk.

        Raises:
            UserError: If a save fails that was waited for, because of the disk.
            RuntimeError: If it fails in another way.
        """
        started = time.monotonic()
        self.finish()
        parts: dict[str, dict[str, Tensor]] = {}
        if self._snapshot is not None:
            parts = self._snapshot.result().take(self._share())
        self._save = _Save(dict(position), state, started, None if wait else time.monotonic() - started)
        self._writing = self._threads.submit(self._write, self._save, parts)
        if wait:
            self.finish()

    def advance(self) -> None:
        """Takes a save that is in flight one step on: publishes what all ranks have written, or ends it.

        Called once no rank is :attr:`busy` and none has a :attr:`failure`.
        """
        if self._writing is not None:
            files = {
                name: each for part in dist.all_gather_object(self._writing.result()) for name, each in part.items()
            }
            self._writing = None
            self._publishing = self._threads.submit(self._publish, self._save, files) if self._rank == 0 else _done()
        elif self._publishing is not None:
            self._publishing.result()
            self._publishing = None

    def finish(self) -> None:
        """Waits until nothing is in flight.

        Raises:
            UserError: On every rank, if it failed on one because of the disk.
            RuntimeError: On every rank, if it failed on one in another way.
        """
        while self.in_flight:
            if (work := self._writing or self._publishing) is not None:
                work.exception()  # waits
            self.raise_failure()
            self.advance()

    def raise_failure(self) -> None:
        """Compares notes with all ranks; raises what happened to one of them.

        Raises:
            UserError: If it was the disk.
            RuntimeError: If it was anything else.
        """
        where = f'saving a checkpoint in {self.root} failed on rank {self._rank}'
        for failure in dist.all_gather_object(_describe_failure(self.failure, where)):
            if failure is not None:
                kind, text = failure
                raise kind(text) from self.failure

    def close(self) -> None:
        """Ends the threads; waits for what they are at."""
        self._threads.shutdown(cancel_futures=True)

    def _share(self) -> dict[str, dict[str, Tensor]]:
        """This rank's tensors by file."""
        moments = optimizer_tensors(self.model, self.optimizer)
        mine = {key: t for key, t in moments.items() if self._writer_of[key.rpartition('.')[0]] == self._rank}
        files = {checkpoints.optimizer_file(self._rank): mine}
        if self._rank == 0:
            files[checkpoints.MODEL_FILE] = self.model.state_dict()
        return files

    def _write(self, save: _Save, parts: dict[str, dict[str, Tensor]]) -> dict[str, FileDescription]:
        if self._snapshot is not None:
            self._snapshot.result().wait()
        batch = save.position['batch']
        return {name: checkpoints.write_tensors(self.root, batch, name, tensors) for name, tensors in parts.items()}

    def _publish(self, save: _Save, files: dict[str, FileDescription]) -> None:
        self.before_publishing()
        path = checkpoints.publish(
            self.root, batch=save.position['batch'], files=files, state=save.state, tokenizer=self.tokenizer
        )
        seconds = time.monotonic() - save.started
        stall_seconds = seconds if save.stall_seconds is None else save.stall_seconds
        self.after_publishing(
            path,
            {
                **save.position,
                'path': str(path),
                'bytes': sum(file.stat().st_size for file in path.iterdir()),
                'seconds': round(seconds, 3),
                'stall_seconds': round(stall_seconds, 4),
            },
        )


def _describe_failure(error: BaseException | None, where: str) -> tuple[type[Exception], str] | None:
    """What every rank raises for it; an exception itself may not travel."""
    if error is None:
        return None
    if isinstance(error, UserError):
        return UserError, str(error)
    text = f'{where}: {error.__class__.__name__}: {error}'
    if isinstance(error, OSError):
        return UserError, (
            f'{text}. Free space there, or lower `checkpoints.keep`, and start the same command again: '
            'it goes on from the newest whole checkpoint'
        )
    return RuntimeError, text


def _done() -> Future[None]:
    future: Future[None] = Future()
    future.set_result(None)
    return future


def _from_rank_zero(value: Any) -> Any:
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]
