"""Runs a program and lets a test decide what becomes of each call with which it changes a folder.

The program is a child that knows nothing of it; no production code has a hook for faults.
"""

import errno
import faulthandler
import logging
import os
import select
import signal
import socket
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tests.faults.syscalls import Notice, answer, install_filter, next_notice, write_half

__all__ = ['Call', 'Decide', 'Done', 'disk_full_from', 'fail_at', 'kill_at', 'read_only_from', 'run', 'short_write_at']

NEEDS_SPACE = {'write', 'pwrite64', 'writev', 'pwritev', 'pwritev2', 'sendfile', 'copy_file_range', 'fallocate',
               'open', 'openat', 'creat', 'mkdir', 'mkdirat', 'link', 'linkat', 'symlink', 'symlinkat'}  # fmt: skip
CHANGES_NOTHING = {'close', 'fsync', 'fdatasync', 'sync_file_range'}
"""Calls before and after which a killed process leaves the same files: only a power cut could tell them apart."""


@dataclass(frozen=True)
class Call:
    """A call that is about to change something below the folder.

    Args:
        number (int): 1 for the first.
        name (str): Such as ``'rename'``.
        path (str): Below the folder; ``'from -> to'`` where there are two.
    """

    number: int
    name: str
    path: str

    def __str__(self) -> str:
        return f'call {self.number}, {self.name} {self.path}'


Decide = Callable[[Call], int | Literal['kill', 'short'] | None]
"""None: go on; an errno: fail; 'kill': SIGKILL to the program's whole group; 'short': write half."""


@dataclass(frozen=True)
class Done:
    """How a program ended.

    Args:
        code (int): Exit code, negative for a signal.
        calls (list[Call]): Every call below the folder, in order.
        struck (list[Call]): Those that were not let go on.
    """

    code: int
    calls: list[Call]
    struck: list[Call]


def kill_at(number: int) -> Decide:
    """The machine vanishes right before one call."""
    return lambda call: 'kill' if call.number == number else None


def fail_at(number: int, error: int) -> Decide:
    """One call fails."""
    return lambda call: error if call.number == number else None


def disk_full_from(number: int) -> Decide:
    """From one call on, there is no space: deleting still works, and so does what needs none."""
    return lambda call: errno.ENOSPC if call.number >= number and call.name in NEEDS_SPACE else None


def read_only_from(number: int) -> Decide:
    """From one call on, nothing changes any more: what a file system does to itself after an error."""
    return lambda call: errno.EROFS if call.number >= number and call.name not in CHANGES_NOTHING else None


def short_write_at(number: int) -> Decide:
    """One write takes only half of its bytes, as POSIX allows."""
    return lambda call: 'short' if call.number == number and call.name == 'write' else None


def run(
    program: Callable[[], int], folder: Path, decide: Decide = lambda call: None, *, log: Path, seconds: float = 120
) -> Done:
    """Forks, runs a program in the child, and decides on each of its calls below a folder.

    Args:
        program (Callable): Returns the exit code; may also exec.
        folder (Path): Calls elsewhere are let go on unseen.
        decide (Callable): Asked before each call.
        log (Path): Gets what the program writes to its standard output and error.
        seconds (float): The program is killed after this long.

    Returns:
        Done: Exit code and calls.
    """
    faulthandler.cancel_dump_traceback_later()  # pytest's: a child would inherit its lock without the thread that frees it
    ours, its = socket.socketpair()
    child = os.fork()
    if child == 0:
        _in_child(program, its, log)
    its.close()
    with ours:
        _, descriptors, _, _ = socket.recv_fds(ours, 1, 1)
    if not descriptors:
        os.waitpid(child, 0)
        raise RuntimeError(f'the filter could not be installed: {log.read_text()[-500:]}')
    try:
        return _supervise(child, descriptors[0], os.path.abspath(folder), decide, time.monotonic() + seconds)
    finally:
        os.close(descriptors[0])


def _in_child(program: Callable[[], int], its: socket.socket, log: Path) -> None:
    code = 1
    try:
        os.setsid()
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        # A test's own go elsewhere, as its log does, and its warnings are errors.
        sys.stdout, sys.stderr = (os.fdopen(number, 'w', buffering=1, closefd=False) for number in (1, 2))
        logging.getLogger().handlers.clear()
        warnings.simplefilter('ignore')
        socket.send_fds(its, [b'.'], [install_filter()])
        code = program()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def _supervise(child: int, listener: int, folder: str, decide: Decide, deadline: float) -> Done:
    calls: list[Call] = []
    struck: list[Call] = []
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    while True:
        if any(event & select.POLLIN for _, event in poll.poll(50)):
            notice = next_notice(listener)
            if notice is not None:
                _decide(notice, child, listener, folder, decide, calls, struck)
            continue
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            # Helpers that outlive it (a resource tracker, loader workers) could make no call without an answer.
            _kill_group(child)
            return Done(os.waitstatus_to_exitcode(status), calls, struck)
        if time.monotonic() > deadline:
            _kill_group(child)
            os.waitpid(child, 0)
            raise TimeoutError(f'it had not ended in time; its last call was {calls[-1] if calls else None}')


def _decide(
    notice: Notice, child: int, listener: int, folder: str, decide: Decide, calls: list[Call], struck: list[Call]
) -> None:
    try:
        paths = [path for path in notice.paths() if path == folder or path.startswith(folder + '/')]
    except OSError:  # its process died meanwhile
        return
    verdict = None
    if paths:
        call = Call(len(calls) + 1, notice.name, ' -> '.join(os.path.relpath(path, folder) for path in paths))
        calls.append(call)
        verdict = decide(call)
        if verdict is not None:
            struck.append(call)
    if verdict == 'kill':
        _kill_group(child)
    elif verdict == 'short':
        answer(listener, notice, result=write_half(notice))
    else:
        answer(listener, notice, error=verdict or 0)


def _kill_group(child: int) -> None:
    try:
        os.killpg(child, signal.SIGKILL)
    except ProcessLookupError:
        pass
