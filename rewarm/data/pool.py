"""Worker processes that give results in order, hold a bounded amount of work, and end when their parent does."""

import collections
import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any

from rewarm import terminal
from rewarm.config.errors import UserError

PATIENCE_SECONDS = 600.0
"""For one item; a piece of 4 MiB takes the slowest tokenizers half a minute."""


class Workers:
    """Applies a function to items in other processes.

    The standard pools keep a queue whose ends every worker holds, so after a SIGKILL of the parent they wait for ever.
    Here each worker has a pipe of its own and ends when it breaks.

    Args:
        count (int): Number of processes.
        make (Callable[..., Callable[[Any], Any]]): Called once in each process; what it returns does the work.
        args (tuple[Any, ...]): Arguments of `make`.
    """

    def __init__(self, count: int, make: Callable[..., Callable[[Any], Any]], args: tuple[Any, ...]) -> None:
        context = multiprocessing.get_context('spawn')  # threads and locks of this process stay here
        self._pipes: list[Connection] = []
        self._processes: list[BaseProcess] = []
        for _ in range(count):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, make, args), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)

    def map(self, items: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
        """Yields (item, result) in the order of the items; at most two items a worker are under way.

        Raises:
            UserError: If the function raised one, or a worker died or did not end.
            RuntimeError: If it raised anything else.
        """
        source, idle, busy = iter(items), collections.deque(self._pipes), {}
        begun: dict[Connection, float] = {}
        order: collections.deque[list[Any]] = collections.deque()  # [item, result, whether it is there]
        exhausted = False
        while True:
            while idle and not exhausted and len(order) < 2 * len(self._pipes):
                try:
                    entry = [next(source), None, False]
                except StopIteration:
                    exhausted = True
                    break
                pipe = idle.popleft()
                self._talk(pipe, pipe.send, entry[0])
                busy[pipe] = entry
                begun[pipe] = time.monotonic()
                order.append(entry)
            while order and order[0][2]:
                item, result, _ = order.popleft()
                yield item, result
            if not busy:
                if exhausted and not order:
                    return
                continue
            patience = PATIENCE_SECONDS - (time.monotonic() - min(begun[pipe] for pipe in busy))
            answers = wait(list(busy), max(0.0, patience))
            if not answers:
                raise UserError(
                    f'a worker has not ended a piece of the work in {PATIENCE_SECONDS:.0f} s: a pattern of the tokenizer '
                    '(its `normalizer` or `pre_tokenizer`) takes time without end on this text, or the machine stands still'
                )
            for ready in answers:
                entry = busy.pop(ready)
                kind, value = self._talk(ready, ready.recv)  # type: ignore[union-attr, arg-type]
                if kind == 'user':
                    raise value
                if kind == 'bug':
                    raise RuntimeError(f'a worker failed:\n{value}')
                entry[1:] = [value, True]
                idle.append(ready)  # type: ignore[arg-type]

    def _talk(self, pipe: Connection, call: Callable[..., Any], *args: Any) -> Any:
        try:
            return call(*args)
        except (EOFError, ConnectionError):
            process = self._processes[self._pipes.index(pipe)]
            process.join(5)  # its pipe closes a moment before it is gone
            code = process.exitcode
            how = f'signal {signal.Signals(-code).name}' if code is not None and code < 0 else f'exit code {code}'
            raise UserError(
                f'a worker died ({how}). SIGKILL is mostly the system out of memory: take fewer --workers; SIGABRT and '
                'SIGSEGV are mostly a tokenizer that its library cannot run: --encoder tokenizers, or another tokenizer'
            ) from None

    def __enter__(self) -> 'Workers':
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            if kind is not None:
                process.terminate()
            process.join()


def _serve(pipe: Connection, make: Callable[..., Callable[[Any], Any]], args: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's to handle
    terminal.take_over()  # a warning that nobody reads is no reason to fail
    os.environ['TOKENIZERS_PARALLELISM'] = 'false'
    work: Callable[[Any], Any] | None = None
    while True:
        try:
            item = pipe.recv()
        except (EOFError, ConnectionError):
            return
        try:
            work = work or make(*args)
            reply: tuple[str, Any] = ('ok', work(item))
        except UserError as error:
            reply = ('user', error)
        except Exception:
            reply = ('bug', traceback.format_exc())
        del item
        try:
            pipe.send(reply)
        except ConnectionError:
            return
        del reply
