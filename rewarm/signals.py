"""The signals that ask a run to save and leave: which there are, and who hears them when."""

import os
import signal
import threading
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from multiprocessing import resource_tracker
from types import FrameType
from typing import Literal, get_args

__all__ = ['STOP_SIGNALS', 'StopSignal', 'answer_early', 'held_back', 'ignore', 'listen', 'start_resource_tracker']

StopSignal = Literal['SIGTERM', 'SIGINT', 'SIGUSR1', 'SIGUSR2', 'SIGHUP']
"""Names that ``preemption.signals`` may hold."""

STOP_SIGNALS = tuple(signal.Signals[name] for name in get_args(StopSignal))

_early: threading.Thread | None = None


def answer_early(leave: Callable[[], object]) -> None:
    """Ends the process at each stop signal until :func:`listen`: there is nothing to save yet.

    A thread waits for them, and no handler: importing Composer replaces those of SIGTERM and SIGINT, and none runs
    while the main thread waits in C for another rank. The run file is not read yet, so all signals count that it may
    name, but for a SIGHUP that `nohup` has switched off.

    Args:
        leave (Callable[[], object]): Called in that thread; ends the process.
    """
    global _early
    numbers = [number for number in STOP_SIGNALS if not _is_nohup(number)]
    signal.pthread_sigmask(signal.SIG_BLOCK, numbers)  # threads that start later inherit it
    _early = threading.Thread(target=_wait, args=(numbers, leave), name='early-signals', daemon=True)
    _early.start()


def _wait(numbers: Iterable[signal.Signals], leave: Callable[[], object]) -> None:
    if signal.sigwaitinfo(numbers).si_pid != os.getpid():  # that is `listen`
        leave()


def listen(names: Iterable[str], handler: Callable[[int, FrameType | None], object]) -> None:
    """Gives signals to a handler, and ends the early answer; what came in between is not lost."""
    global _early
    for number in (signal.Signals[name] for name in names):
        if not _is_nohup(number):
            signal.signal(number, handler)
    if _early is not None:
        assert _early.ident is not None
        signal.pthread_kill(_early.ident, signal.SIGUSR1)
        _early.join()
        _early = None
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


def _is_nohup(number: signal.Signals) -> bool:
    return number == signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN


@contextmanager
def held_back() -> Generator[None]:
    """Stop signals wait until the block is left; a process that is started in it never gets them by default."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ignore() -> None:
    """For what works for a run, and for a run that is done: a scheduler signals the whole group."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


def start_resource_tracker() -> None:
    """Starts Python's process that frees shared memory, deaf: by itself it ignores SIGINT and SIGTERM only."""
    with held_back():
        resource_tracker.ensure_running()
