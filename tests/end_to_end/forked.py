"""Ranks of a run as forked processes: what they import is imported once, so a start takes a second or two."""

import contextlib
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from rewarm import train
from rewarm.config.errors import UserError
from rewarm.config.load import load

__all__ = ['Ranks']

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class Ranks:
    """The processes of one start.

    Args:
        file (Path): The run file.
        overrides (list[str]): ``key=value`` each.
        count (int): How many ranks.
        log (Path): Where all of them write.
    """

    def __init__(self, file: Path, overrides: list[str], *, count: int, log: Path) -> None:
        with socket.socket() as free:
            free.bind(('127.0.0.1', 0))
            port = free.getsockname()[1]
        self.codes: dict[int, int] = {}
        """Exit code by rank; negative for a signal."""
        self.pids = [self._start(rank, count, port, file, overrides, log) for rank in range(count)]

    @staticmethod
    def _start(rank: int, count: int, port: int, file: Path, overrides: list[str], log: Path) -> int:
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # until the child treats them as a start of its own does
        pid = os.fork()
        if pid:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            return pid
        code = 1
        try:
            os.setsid()
            handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(handle, 1)
            os.dup2(handle, 2)
            for number in SIGNALS:  # as the command line does until training listens
                signal.signal(number, lambda *_: os._exit(75))
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            os.environ |= {
                'RANK': str(rank),
                'LOCAL_RANK': str(rank),
                'WORLD_SIZE': str(count),
                'LOCAL_WORLD_SIZE': str(count),
                'NODE_RANK': '0',
                'MASTER_ADDR': '127.0.0.1',
                'MASTER_PORT': str(port),
            }
            code = train.run(load(file, overrides, world_size=count))
        except UserError as error:
            print(f'rank {rank}: {error}', flush=True)
            code = 2
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)

    def send(self, rank: int, number: signal.Signals) -> None:
        """Signals one rank, if it still runs, with the loader workers of its session if it is to die."""
        if rank in self.codes:
            return
        os.kill(self.pids[rank], number)  # not reaped yet, so it is there
        if number == signal.SIGKILL:
            with contextlib.suppress(ProcessLookupError):  # it had no session of its own yet
                os.killpg(self.pids[rank], number)

    def running(self) -> list[int]:
        """Ranks that have not ended."""
        for rank, pid in enumerate(self.pids):
            if rank not in self.codes:
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    self.codes[rank] = os.waitstatus_to_exitcode(status)
        return [rank for rank in range(len(self.pids)) if rank not in self.codes]

    def wait(self, seconds: float) -> None:
        """Waits until all have ended.

        Raises:
            AssertionError: If they take longer; they are killed then.
        """
        self.wait_while_it_moves(lambda: None, seconds)

    def wait_while_it_moves(
        self, progress: Callable[[], object], still_seconds: float, until: Callable[[], bool] = lambda: False
    ) -> None:
        """Waits until all have ended, however long that takes on a busy machine.

        Args:
            progress (Callable): Something that changes as long as they get on.
            still_seconds (float): How long it may stay as it is.
            until (Callable): What else ends the wait.

        Raises:
            AssertionError: If it stays so for longer; they are killed then.
        """
        last, moved = progress(), time.monotonic()
        looked = moved
        while (left := self.running()) and not until():
            time.sleep(0.005)
            now = time.monotonic()
            if now - looked < min(1.0, still_seconds / 10):
                continue
            looked, before = now, last
            last = progress()
            if last != before:
                moved = now
            if now - moved > still_seconds:
                for rank in left:
                    self.send(rank, signal.SIGKILL)
                raise AssertionError(f'ranks {left} had not ended {still_seconds} s after anything moved last')
